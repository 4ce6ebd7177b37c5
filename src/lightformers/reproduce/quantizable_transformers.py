"""Quantizable transformers (arXiv 2306.12929): attention that can do nothing grows no outliers.

    lightformers reproduce quantizable-transformers

Hardware: two cores, five minutes. Character decoders (4 blocks, width 128) are trained on Tiny Shakespeare for equal
tokens: plain, with clipped softmax, and with gated heads. Then all linear layers of the blocks multiply in 8 and in 6
bits, one min-max range per tensor. Expected: at this scale outliers are small everywhere (they emerge over long
training), so differences show in six bits or in the kurtosis, if at all.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightformers import reproduce
from lightformers.bundle import Batch
from lightformers.compress.quantize.outliers import min_max, outliers
from lightformers.parts.attention.quantizable import QuantizableAttention, stretch
from lightformers.reproduce import common
from lightformers.reproduce.finding import Finding
from lightformers.train import Settings, fit

CLAIM = (
    "Gated heads predict as well as plain attention, within a hundredth of a nat per character, have smaller outliers, and "
    "lose less when everything is rounded to six bits."
)
TOLERANCE = 0.01
_LENGTH, _BATCH, _LR = 128, 16, 2e-3
_WIDTH, _DEPTH, _HEADS = 128, 4, 4
_BASE = "plain"
_PAPER = "gate, linear"
_ARMS: dict[str, dict[str, Any]] = {
    _BASE: {},
    _PAPER: {"gate": "linear", "opening": 0.25},
    "clipped softmax, -4/T": {"low": stretch(4, _LENGTH)},
    "gate, mlp": {"gate": "mlp", "opening": 0.25},
    "clipped softmax, -12/T": {"low": stretch(12, _LENGTH)},
}


class Block(nn.Module):
    """Pre-norm attention and feed-forward. (B, L, width) -> the same."""

    def __init__(self, fields: dict[str, Any]) -> None:
        super().__init__()
        self.before, self.between = nn.LayerNorm(_WIDTH), nn.LayerNorm(_WIDTH)
        self.attention = QuantizableAttention(_WIDTH, _HEADS, causal=True, **fields)
        self.ffn = nn.Sequential(nn.Linear(_WIDTH, 4 * _WIDTH), nn.GELU(), nn.Linear(4 * _WIDTH, _WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.before(x))
        out: Tensor = x + self.ffn(self.between(x))
        return out


class Decoder(nn.Module):
    """Characters (B, L) -> logits (B, L, symbols)."""

    def __init__(self, symbols: int, fields: dict[str, Any]) -> None:
        super().__init__()
        self.words, self.positions = nn.Embedding(symbols, _WIDTH), nn.Embedding(_LENGTH, _WIDTH)
        self.blocks: Any = nn.ModuleList(Block(fields) for _ in range(_DEPTH))
        self.norm, self.head = nn.LayerNorm(_WIDTH), nn.Linear(_WIDTH, symbols)
        for table in (self.words, self.positions):
            nn.init.normal_(table.weight, std=0.02)

    def forward(self, input_ids: Tensor, **unused: Any) -> Tensor:
        x = self.words(input_ids) + self.positions.weight[: input_ids.shape[1]]
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.head(self.norm(x))
        return out


def run(budget: float = common.FULL) -> Finding:
    """Train every arm once per seed, then measure and round it."""
    clock = common.Clock(budget)
    seeds = clock.seeds()
    text = {part: common.text("tinyshakespeare", part) for part in ("train", "valid")}
    symbols = sorted(set(text["train"] + text["valid"]))
    number = {s: i for i, s in enumerate(symbols)}
    cut = {"train": clock.size(len(text["train"]), 20_000), "valid": 40_000}
    ids = {p: torch.tensor([number[c] for c in t[: cut[p]]]) for p, t in text.items()}
    rows = ids["valid"][: len(ids["valid"]) // _LENGTH * _LENGTH].view(-1, _LENGTH)
    size = clock.size(_BATCH, 4)
    held_out = list(rows.split(size))[1 : 1 + clock.size(8, 1)]
    steps, arms = _plan(clock, ids["train"], held_out, len(symbols), len(seeds))
    scores: dict[str, dict[str, list[float]]] = {arm: {} for arm in arms}
    used = []
    for seed, tokens in clock.rounds(seeds, steps * _BATCH * _LENGTH):
        used.append(max(tokens // (_BATCH * _LENGTH), 1))
        calibration = [b.inputs["input_ids"] for b in _draws(ids["train"], seed + 100, clock.size(16, 2))]
        for arm in arms:
            model = _train(ids["train"], len(symbols), _ARMS[arm], used[-1], seed)
            for name, value in _measure(model, held_out, calibration).items():
                scores[arm].setdefault(name, []).append(value)
    return _conclude(clock, seeds, scores, used, len(symbols), sum(b.numel() for b in held_out))


def _draws(ids: Tensor, seed: int, count: int) -> list[Batch]:
    generator = torch.Generator().manual_seed(seed)
    starts = torch.randint(len(ids) - _LENGTH, (count, _BATCH), generator=generator)
    groups = [torch.stack([ids[s : s + _LENGTH] for s in row.tolist()]) for row in starts]
    return [Batch({"input_ids": g, "attention_mask": torch.ones_like(g)}, {}) for g in groups]


def _nats(logits: Tensor, ids: Tensor) -> Tensor:
    return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten())


def _train(ids: Tensor, symbols: int, fields: dict[str, Any], steps: int, seed: int) -> Decoder:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Decoder(symbols, fields)
    # clipping changes a probability by less than bf16 can tell: fp32 for every arm
    settings = Settings(steps=steps, lr=_LR, warmup=0.05, precision="fp32", seed=seed)

    def objective(module: nn.Module, batch: Batch) -> Tensor:
        return _nats(module(**batch.inputs), batch.inputs["input_ids"])

    fit(model, _draws(ids, seed, steps), objective, settings)
    return model.eval()


@torch.no_grad()
def _loss(model: nn.Module, batches: Sequence[Tensor]) -> float:
    return sum(float(_nats(model(b), b)) for b in batches) / len(batches)


@torch.no_grad()
def _measure(model: Decoder, held_out: Sequence[Tensor], calibration: Sequence[Tensor]) -> dict[str, float]:
    forward: Callable[[Tensor], object] = model
    pieces = [piece for block in model.blocks for piece in (block.attention, block.ffn)]
    seen = outliers(forward, pieces, held_out)
    layers = [m for m in model.blocks.modules() if isinstance(m, nn.Linear)]
    base = _loss(model, held_out)
    out = {
        "loss": base,
        "largest magnitude": max(o.largest for o in seen),
        "kurtosis": sum(o.kurtosis for o in seen) / len(seen),
    }
    for bits in (8, 6):
        with min_max(forward, layers, calibration, bits, bits):
            out[f"loss above fp32, {bits} bits"] = _loss(model, held_out) - base
    idle = [
        float((b.attention.probabilities(_before(model, i, held_out[0])) == 0).float().mean())
        for i, b in enumerate(model.blocks)
    ]
    out["probabilities of exactly 0"] = (
        sum(idle) / len(idle) - (1 - 1 / _LENGTH) / 2
    )  # those after a position are
    return out


def _before(model: Decoder, index: int, ids: Tensor) -> Tensor:
    """What the attention of a block reads."""
    x = model.words(ids) + model.positions.weight[: ids.shape[1]]
    for block in model.blocks[:index]:
        x = block(x)
    out: Tensor = model.blocks[index].before(x)
    return out


def _plan(
    clock: common.Clock, ids: Tensor, held_out: Sequence[Tensor], symbols: int, seeds: int
) -> tuple[int, tuple[str, ...]]:
    """Steps of a training and the arms that fit: at least 150 steps each at the full budget."""
    _train(ids, symbols, {}, 1, 0)  # first calls are slow
    begun = time.monotonic()
    model = _train(ids, symbols, _ARMS[_PAPER], 3, 0)
    step = (time.monotonic() - begun) / 3
    begun = time.monotonic()
    _measure(model, held_out, held_out[:1])
    other = 2 * (time.monotonic() - begun)
    each = clock.left() / seeds
    fit_arms = int(each / (150 * step + other))
    arms = tuple(_ARMS)[: 2 if clock.few else min(max(fit_arms, 2), len(_ARMS))]
    return max(int((each / len(arms) - other) / step), 1), arms


def _conclude(
    clock: common.Clock, seeds: tuple[int, ...], scores: dict[str, dict[str, list[float]]], used: list[int],
    symbols: int, characters: int,
) -> Finding:  # fmt: skip
    def less(cell: str) -> list[float]:
        return common.gain(scores[_BASE][cell], scores[_PAPER][cell])

    bits = "loss above fp32, 6 bits"
    verdict = common.together(
        reproduce.judge(less("loss"), -TOLERANCE),
        reproduce.judge(less("largest magnitude")),
        reproduce.judge(less(bits)),
    )
    return reproduce.conclude(
        slug="quantizable-transformers",
        claim=CLAIM,
        verdict=verdict,
        summary=(
            f"plain attention less gated heads: loss {common.said(less('loss'))} nats, largest magnitude "
            f"{common.said(less('largest magnitude'))}, kurtosis {common.said(less('kurtosis'))}, loss by rounding to six bits "
            f"{common.said(less(bits))}, to eight {common.said(less('loss above fp32, 8 bits'))}."
        ),
        table=[reproduce.row(arm, **cells) for arm, cells in scores.items()],
        baseline=_BASE,
        settings={
            "model": f"pre-norm decoder, {_DEPTH} blocks, width {_WIDTH}, {_HEADS} heads, {symbols} characters, Tiny Shakespeare",
            "training steps": dict(zip(map(str, seeds), used)),
            "batch": f"{_BATCH} x {_LENGTH}",
            "learning rate": _LR,
            "gates start at": 0.25,
            "rounding": "weights per tensor, inputs and outputs of linear layers per tensor, running min-max; head in fp32",
            "held-out characters": characters,
        },
        limits=(
            "Outliers emerge over a million steps: the collapse of a plain model in eight bits cannot be shown, nor that "
            "outliers shrink a hundredfold. Embeddings, norms and products inside attention are not rounded."
            + clock.note()
        ),
        started=clock.started,
        seeds=seeds,
    )
