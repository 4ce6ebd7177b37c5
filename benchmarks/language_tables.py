"""Every mixer and feed-forward in one small decoder, at equal parameters and equal tokens, beside the plain transformer.

    python benchmarks/language_tables.py                          # all rows, two texts, three seeds: two hours on a core
    python benchmarks/language_tables.py --only mamba "mlp, relu" --texts tinyshakespeare
    python benchmarks/language_tables.py --page                   # the page again from results/language-tables.json

Two layers of width 64; what is left of a model's parameters after its mixer goes to the feed-forward's width, so that all
have as many as the transformer (rotary attention, GELU). A row learns at each of `RATES` with a seed of its own and keeps
the rate with the lower validation loss; then it is trained anew with every seed, all rows on the same batches, and scored
on text that nothing was chosen on. Finished trainings are kept: a stopped run goes on.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from lightformers import measure
from lightformers.bundle import Batch
from lightformers.errors import UserError
from lightformers.files import read_json, write_json, write_text
from lightformers.models.language.decoder import Decoder, DecoderConfig
from lightformers.models.matching import counted, match
from lightformers.reproduce import common, spread
from lightformers.train import Settings, fit

OUT = Path(__file__).parent / "results" / "language-tables.json"
WIDTH, DEPTH, HEADS, LENGTH, BATCH = 64, 2, 4, 128, 16
HIDDEN, STEPS, SEEDS = 192, 400, 3
RATES = (1e-3, 4e-3)
#: A seed that only chooses the rate.
CHOOSING = 99
WORDS = 4000
PLAIN = "attention"
_MLP = {"kind": "mlp", "activation": "gelu"}
_ATTENTION = {"kind": "attention", "heads": HEADS}


@dataclass(frozen=True)
class Row:
    """A layer but for its width. open: the option of the feed-forward that is fitted; "" where none is."""

    mixer: Mapping[str, Any]
    ffn: Mapping[str, Any]
    open: str = "hidden"

    def layer(self, width: int) -> dict[str, Any]:
        return {"mixer": dict(self.mixer), "ffn": {**self.ffn, **({self.open: width} if self.open else {})}}


def _mixer(kind: str, **options: Any) -> Row:
    return Row({"kind": kind, **options}, _MLP)


def _ffn(kind: str, open: str = "hidden", **options: Any) -> Row:
    return Row(_ATTENTION, {"kind": kind, **options}, open)


ROWS: dict[str, Row] = {
    PLAIN: _mixer("attention", heads=HEADS),
    "aaren": _mixer("aaren", heads=HEADS),
    "block-attention": _mixer("block-attention", heads=HEADS, block=32),
    "combiner": _mixer("combiner", heads=HEADS, span=16),
    "combiner-axial": _mixer("combiner-axial", heads=HEADS, span=16),
    "combiner-logsparse": _mixer("combiner-logsparse", heads=HEADS),
    "deltanet": _mixer("deltanet", heads=HEADS),
    "deltanet, gated": _mixer("deltanet", heads=HEADS, gate=True),
    "linear-attention": _mixer("linear-attention", heads=HEADS),
    "mamba": _mixer("mamba"),
    "mamba2": _mixer("mamba2", head=16, state=32),
    "mlgru": _mixer("mlgru"),
    "mlgru, full weights": _mixer("mlgru", ternary=False),
    "primer": _mixer("primer", heads=HEADS),
    "quantizable, clipped": _mixer("quantizable", heads=HEADS, low=-0.02),
    "quantizable, gated": _mixer("quantizable", heads=HEADS, gate="linear"),
    "tokenformer": _mixer("tokenformer", heads=HEADS, tokens=WIDTH),
    "mlp, relu": _ffn("mlp", activation="relu"),
    "mlp, squared_relu": _ffn("mlp", activation="squared_relu"),
    "mlp, poly_relu": _ffn("mlp", activation="poly_relu"),
    "mlp, poly_norm": _ffn("mlp", activation="poly_norm"),
    "swiglu": _ffn("swiglu"),
    "bit-swiglu": _ffn("bit-swiglu"),
    "pattention": _ffn("pattention", "tokens"),
    "structured": _ffn("structured", rank=16),
    "thor": _ffn("thor", experts=2),
}


@dataclass(frozen=True)
class Text:
    """Token numbers of three parts, and what they are called."""

    parts: Mapping[str, Tensor]
    vocab: int
    unit: str

    def batch(self, seed: int, position: int) -> Batch:
        train = self.parts["train"]
        starts = np.random.default_rng((seed, position)).integers(len(train) - LENGTH, size=BATCH)
        return _windows(train, starts)

    @cache  # noqa: B019
    def held_out(self, part: str) -> tuple[Batch, ...]:
        tokens = self.parts[part]
        starts = np.arange(0, len(tokens) - LENGTH, LENGTH)[: 20 * BATCH]
        return tuple(_windows(tokens, starts[i : i + BATCH]) for i in range(0, len(starts), BATCH))

    __hash__ = object.__hash__


def _windows(tokens: Tensor, starts: np.ndarray) -> Batch:
    rows = torch.from_numpy(starts)[:, None] + torch.arange(LENGTH + 1)
    taken = tokens[rows]
    return Batch({"input_ids": taken[:, :-1]}, {"next": taken[:, 1:]})


def _text(name: str) -> Text:
    read = {p: common.text(name, p) for p in ("train", "valid", "test")}
    pieces: dict[str, list[str]]
    if name == "tinyshakespeare":
        pieces, unit = {p: list(t) for p, t in read.items()}, "character"
    else:
        pieces, unit = {p: t.replace("\n", " <eos> ").split() for p, t in read.items()}, "word"
    known = [w for w, _ in Counter(pieces["train"]).most_common(WORDS)]
    number = {w: i for i, w in enumerate(known, 1)}  # 0: not among the known
    parts = {p: torch.tensor([number.get(w, 0) for w in ws]) for p, ws in pieces.items()}
    return Text(parts, len(known) + 1, unit)


TEXTS = {"tinyshakespeare": _text, "wikitext2_small": _text}


def _build(row: Row, vocab: int, width: int) -> Decoder:
    layers = [row.layer(width)] * DEPTH
    return Decoder(DecoderConfig(vocab, WIDTH, layers, "layer", max_position_embeddings=LENGTH))


def loss(model: Any, batch: Batch) -> Tensor:
    """Nats per token."""
    logits = model(**batch.inputs, use_cache=False).logits
    return F.cross_entropy(logits.flatten(0, 1).float(), batch.targets["next"].flatten())


@torch.no_grad()
def _score(model: Decoder, batches: Sequence[Batch]) -> float:
    model.eval()
    return sum(float(loss(model, b)) * len(b.targets["next"]) for b in batches) / sum(
        len(b.targets["next"]) for b in batches
    )


@dataclass(frozen=True)
class _Feed:
    text: Text
    seed: int

    def batch(self, position: int) -> Batch:
        return self.text.batch(self.seed, position)


def learn(row: Row, text: Text, width: int, seed: int, lr: float, steps: int) -> tuple[Decoder, float]:
    """A trained model, and seconds per step."""
    torch.manual_seed(seed)
    model = _build(row, text.vocab, width)
    settings = Settings(steps=steps, lr=lr, warmup=0.1, schedule="cosine", weight_decay=0.1, precision="fp32", seed=seed)  # fmt: skip
    begun = time.perf_counter()
    fit(model, _Feed(text, seed), loss, settings)
    return model, (time.perf_counter() - begun) / steps


def measured(name: str, text: Text, seeds: int, steps: int, held: dict[str, Any], keep: Any) -> None:
    """Fills `held` with what is missing, telling `keep` after each training."""
    row = ROWS[name]
    if "width" not in held:
        target = counted(lambda: _build(ROWS[PLAIN], text.vocab, HIDDEN))
        if row.open:
            found = match(lambda w: _build(row, text.vocab, w), target, max(8, row.ffn.get("rank", 0)))
            held |= {"width": found.width, "parameters": found.parameters}
        else:
            held |= {"width": 0, "parameters": counted(lambda: _build(row, text.vocab, 0))}
        held |= {"rates": {}, "losses": {}, "seconds": []}
    for lr in RATES:
        if f"{lr:g}" not in held["rates"]:
            model, _ = learn(row, text, held["width"], CHOOSING, lr, steps)
            held["rates"][f"{lr:g}"] = _score(model, text.held_out("valid"))
            keep()
    best = min(RATES, key=lambda lr: held["rates"][f"{lr:g}"])
    for seed in range(seeds):
        if str(seed) not in held["losses"]:
            model, took = learn(row, text, held["width"], seed, best, steps)
            held["losses"][str(seed)] = _score(model, text.held_out("test"))
            held["seconds"].append(took)
            keep()


def page(found: Mapping[str, Any]) -> str:
    """Markdown: a table per text, best first."""
    out = [
        "# Mixers and feed-forwards at equal parameters and tokens",
        "",
        f"Decoders of {DEPTH} layers, width {WIDTH}, windows of {LENGTH}, {BATCH} a step, {found['steps']} steps. Loss: nats per "
        "token on held-out text, mean over seeds; difference to the transformer of equal parameters, seed by seed, with its "
        "95 % interval. Time: of a training step, relative to the transformer's (not interleaved: a hint).",
    ]
    for name, rows in found["texts"].items():
        plain = rows.get(PLAIN, {}).get("losses", {})
        whole = {k: r for k, r in rows.items() if r.get("losses") and len(r["losses"]) >= len(plain)}
        if PLAIN not in whole:
            continue
        slow = float(np.median(rows[PLAIN]["seconds"]))
        out += [
            "",
            f"## {name}",
            "",
            "| row | loss | against the transformer | parameters | time |",
            "|---|---|---|---|---|",
        ]
        for key in sorted(whole, key=lambda k: float(np.mean(list(whole[k]["losses"].values())))):
            r = whole[key]
            apart = [r["losses"][s] - plain[s] for s in plain if s in r["losses"]]
            seen = spread(apart)
            said = "–" if key == PLAIN else f"{seen['mean']:+.3f}"
            if key != PLAIN and seen["low"] is not None:
                said += f" [{seen['low']:+.3f}, {seen['high']:+.3f}]"
            out.append(
                f"| {key} | {np.mean(list(r['losses'].values())):.3f} | {said} | {r['parameters']:,} | "
                f"{float(np.median(r['seconds'])) / slow:.2f}x |"
            )
    return "\n".join([*out, "", f"{found['machine']}", ""])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--only", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--texts", nargs="+", choices=list(TEXTS), default=list(TEXTS))
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--page", action="store_true", help="only write the page")
    given = parser.parse_args(arguments)
    found: dict[str, Any] = (
        read_json(given.out) if given.out.is_file() else {"steps": given.steps, "texts": {}}
    )
    if found["steps"] != given.steps and not given.page:
        raise UserError(f"{given.out} holds trainings of {found['steps']} steps: name another --out")
    facts = measure.machine()
    found.setdefault(
        "machine", f"{facts['cpu']}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    )

    def keep() -> None:
        write_json(given.out, found)
        write_text(given.out.with_suffix(".md"), page(found))

    for name in () if given.page else given.texts:
        text = TEXTS[name](name)
        for key in dict.fromkeys([PLAIN, *given.only]):
            held = found["texts"].setdefault(name, {}).setdefault(key, {})
            measured(key, text, given.seeds, given.steps, held, keep)
            print(f"{name}, {key}: {held['losses']}", flush=True)
    keep()


if __name__ == "__main__":
    main()
