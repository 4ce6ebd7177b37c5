"""Zero-shot tokenizer transfer (arXiv 2405.07883): a network that predicts embeddings, against heuristics.

    lightformers reproduce zett

Hardware: two cores, five minutes. A decoder with a byte-level vocabulary of 1,000 is trained on WikiText-2; it is then
given tokenizers it has never seen (a larger one, a WordPiece-like one of another kind, and bytes alone), with rows from
the hypernetwork, the mean of the pieces, co-occurrence mixtures, or at random; then all are trained on for some steps.
Nats per byte are compared. Expected: network < mean of pieces < random; bytes alone are the hardest.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightformers import reproduce
from lightformers.bundle import Batch, Bundle
from lightformers.compress.spelling import byte_letters
from lightformers.compress.zett import ZeroShotTokenizer
from lightformers.reproduce import common
from lightformers.reproduce.finding import Finding
from lightformers.steps import Recipe, Run
from lightformers.train import Feed, Settings, fit

CLAIM = (
    "Embeddings that a hypernetwork predicts for an unseen tokenizer leave a frozen language model fewer nats per byte than "
    "the mean of each token's pieces, and far fewer than random rows, before and after equal further training."
)
_OWN = "own tokenizer"
_ARMS = {
    "network": "hypernetwork",
    "mean": "mean of pieces",
    "focus": "mixtures of shared tokens",
    "lexical": "random",
}
_TARGETS = ("byte-level, 2000", "unigram, 1000", "bytes alone")
_LENGTH, _LR, _AFTER_LR = 96, 1e-3, 5e-4


def run(budget: float = common.FULL) -> Finding:
    """Train a decoder per seed, give it every tokenizer in every way, and train on."""
    clock = common.Clock(budget)
    seeds = clock.seeds()
    lines = [s.strip() for s in common.text("wikitext2_small", "train").splitlines() if len(s.split()) > 8]
    texts = lines[: clock.size(6000, 120)]
    held_out = [
        s.strip() for s in common.text("wikitext2_small", "valid").splitlines() if len(s.split()) > 8
    ][: clock.size(100, 8)]
    targets = _TARGETS[:1] if clock.few else _TARGETS
    rows = [r for r in _ARMS if not (clock.few and r == "focus")]
    scores: dict[str, dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        places = {
            name: tokenizer(name, texts, Path(folder) / str(i)) for i, name in enumerate((_OWN, *targets))
        }
        plan = _plan(clock, places, texts, held_out, len(seeds), len(targets), len(rows))
        for seed in seeds:
            original = _decoder(places[_OWN], seed)
            _train(original, texts, plan["decoder"], seed, _LR)
            own = per_byte(original, held_out)
            scores.setdefault(_OWN, {}).setdefault("nats per byte", []).append(own)
            for target in targets:
                for row in rows:
                    cells = scores.setdefault(_ARMS[row], {})
                    step = ZeroShotTokenizer(places[target], row, **_sizes(plan["network"]))  # type: ignore[arg-type]
                    edited = Recipe([step]).apply(original, _Texts(texts), Run(seed=seed))
                    cells.setdefault(f"nats per byte, {target}", []).append(per_byte(edited, held_out))
                    _train(edited, texts, plan["after"], seed + 1, _AFTER_LR)
                    cells.setdefault(f"nats per byte trained on, {target}", []).append(
                        per_byte(edited, held_out)
                    )
    return _conclude(clock, seeds, scores, plan, targets, len(texts))


def _sizes(steps: int) -> dict[str, Any]:
    return {
        "pieces": 7,
        "hidden": 128,
        "layers": 2,
        "warm_steps": max(steps // 2, 1),
        "steps": steps,
        "vocabulary": 1000,
        "lr": 2e-3,
    }


def tokenizer(name: str, texts: Sequence[str], folder: Path) -> str:
    """Make a tokenizer of this name from the texts, in a folder; returns the folder."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<unk>", "<s>", "</s>"]
    if name.startswith("unigram"):
        raw = tokenizers.Tokenizer(models.Unigram())
        raw.pre_tokenizer, raw.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
        trainer: Any = trainers.UnigramTrainer(vocab_size=1000, special_tokens=special, unk_token="<unk>", show_progress=False)  # fmt: skip
    else:
        raw = tokenizers.Tokenizer(models.BPE())
        raw.pre_tokenizer, raw.decoder = (
            pre_tokenizers.ByteLevel(add_prefix_space=False),
            decoders.ByteLevel(),
        )
        size = 260 if name == "bytes alone" else 2000 if "2000" in name else 1000
        trainer = trainers.BpeTrainer(
            vocab_size=size,
            special_tokens=special,
            initial_alphabet=sorted(byte_letters().values()),
            show_progress=False,
        )
    raw.train_from_iterator(texts, trainer)
    raw.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", raw.token_to_id("<s>"))]
    )
    made = PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )
    made.save_pretrained(folder)
    return str(folder)


def _decoder(folder: str, seed: int) -> Bundle:
    from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

    own = AutoTokenizer.from_pretrained(folder)
    config = GPT2Config(
        vocab_size=len(own), n_positions=_LENGTH, n_embd=128, n_layer=4, n_head=4, resid_pdrop=0.0, embd_pdrop=0.0,
        attn_pdrop=0.0, pad_token_id=0, bos_token_id=2, eos_token_id=3,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = GPT2LMHeadModel(config).eval()
    return Bundle(model, own, "causal-lm", max_length=_LENGTH)


class _Texts:
    """As much of a task as the step looks at."""

    def __init__(self, texts: Sequence[str]) -> None:
        self.splits = {"train": [{"text": t} for t in texts]}


def _nats(model: nn.Module, batch: Batch) -> Tensor:
    """Mean nats per token."""
    ids, mask = batch.inputs["input_ids"], batch.inputs["attention_mask"].bool()
    logits = model(input_ids=ids, attention_mask=mask.long(), use_cache=False).logits[:, :-1]
    scored = mask[:, 1:] & mask[:, :-1]
    return nn.functional.cross_entropy(logits[scored].float(), ids[:, 1:][scored])


def _train(bundle: Bundle, texts: Sequence[str], steps: int, seed: int, lr: float) -> None:
    feed = Feed.of(bundle, [{"text": t} for t in texts], max_tokens=1536, seed=seed)
    settings = Settings(steps=max(steps, 1), lr=lr, warmup=0.05, precision=common.precision(), seed=seed)
    fit(bundle.model, feed, _nats, settings)
    bundle.model.eval()


@torch.no_grad()
def per_byte(bundle: Bundle, texts: Sequence[str]) -> float:
    """Nats per byte of whole texts, each begun with the token of the beginning; comparable between tokenizers."""
    total, count = 0.0, 0
    for text in texts:
        piece = text.encode()[: _LENGTH - 1].decode(
            errors="ignore"
        )  # as bytes alone, no more than it was trained on
        row = torch.tensor([bundle.processor(piece)["input_ids"]])
        logits = bundle.model(input_ids=row, use_cache=False).logits[0, :-1]
        total += float(nn.functional.cross_entropy(logits.float(), row[0, 1:], reduction="sum"))
        count += len(piece.encode())
    return total / count


def _plan(
    clock: common.Clock, places: dict[str, str], texts: Sequence[str], held_out: Sequence[str], seeds: int,
    targets: int, rows: int,
) -> dict[str, int]:  # fmt: skip
    """Steps of the decoder (a third of the time), of the network (a half) and of going on (a sixth)."""
    probe = 2 if clock.short else 8
    one = _decoder(places[_OWN], 0)
    _train(one, texts, 1, 0, _LR)  # first calls are slow
    begun = time.monotonic()
    _train(one, texts, probe, 0, _LR)
    each = (time.monotonic() - begun) / probe
    place = places[next(name for name in places if name != _OWN)]
    begun = time.monotonic()
    Recipe([ZeroShotTokenizer(place, "network", **_sizes(probe))]).apply(one, _Texts(texts), Run())
    network = (time.monotonic() - begun) / probe
    begun = time.monotonic()
    per_byte(one, held_out)
    fixed = (time.monotonic() - begun) * 2 * targets * rows
    left = max(clock.left() / seeds - fixed, 0.0)
    return {
        "decoder": max(int(left / 3 / each), 2),
        "network": max(int(left / 2 / targets / network), 2),
        "after": max(int(left / 6 / each / targets / rows), 1),
    }


def _conclude(
    clock: common.Clock, seeds: tuple[int, ...], scores: dict[str, dict[str, list[float]]], plan: dict[str, int],
    targets: Sequence[str], texts: int,
) -> Finding:  # fmt: skip
    def mean(arm: str, after: bool) -> list[float]:
        keys = [f"nats per byte{' trained on' if after else ''}, {t}" for t in targets]
        return [sum(v) / len(v) for v in zip(*(scores[_ARMS[arm]][k] for k in keys))]

    def saved(other: str, after: bool = False) -> list[float]:
        return common.gain(mean(other, after), mean("network", after))

    verdict = common.together(
        reproduce.judge(saved("mean")),
        reproduce.judge(saved("lexical")),
        reproduce.judge(saved("mean", True)),
    )
    return reproduce.conclude(
        slug="zett",
        claim=CLAIM,
        verdict=verdict,
        summary=(
            f"nats per byte saved by the network, mean over {len(targets)} tokenizers: {common.said(saved('mean'))} against the "
            f"mean of pieces, {common.said(saved('lexical'))} against random rows; after {plan['after']} steps more "
            f"{common.said(saved('mean', True))} and {common.said(saved('lexical', True))}. With its own tokenizer the decoder "
            f"has {common.said(scores[_OWN]['nats per byte'], False)}, with the network's rows {common.said(mean('network', False), False)}."
        ),
        table=[reproduce.row(arm, **cells) for arm, cells in scores.items()],
        baseline=_ARMS["mean"],
        settings={
            "model": "GPT-2 form, 4 blocks, width 128, byte-level vocabulary of 1,000, WikiText-2",
            "training texts": texts,
            "steps": plan,
            "hypernetwork": _sizes(plan["network"]),
            "learning rates": [_LR, _AFTER_LR],
        },
        limits=(
            "The paper trains its network 200,000 steps on models of billions of parameters; here it is some hundreds, anew for "
            "every target. Mixtures of shared tokens use co-occurrence instead of fastText. Downstream tasks were not tried."
            + clock.note()
        ),
        started=clock.started,
        seeds=seeds,
    )  # fmt: skip
