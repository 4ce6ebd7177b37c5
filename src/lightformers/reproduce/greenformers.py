"""Greenformers (arXiv 2108.10808): low rank from the start, against a narrower model and against Linformer.

    lightformers reproduce greenformers

Hardware: two cores, five minutes. Small encoders are trained from scratch on AG News (64 tokens): full, factorised at
half and a quarter of the break-even rank, and with half the heads and channels, which holds as many weights as the
half rank. Then one layer is timed at 64 to 2048 tokens: full, low-rank, Linformer. Expected: low rank within a point of
the full model and no worse than the narrow one; Linformer ahead of it at long inputs only.
"""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import torch
from torch import Tensor, nn

from lightformers import measure, reproduce
from lightformers.bundle import Bundle
from lightformers.compress import Greenformers, PruneChannels, PruneHeads
from lightformers.parts.low_rank import LowRankLinear
from lightformers.parts.mixers.efficient import EfficientAttention
from lightformers.reproduce import common
from lightformers.reproduce.finding import Finding
from lightformers.steps import Recipe, Run, Step

CLAIM = (
    "Trained from scratch for as many tokens, an encoder factorised to half of its weights loses at most two hundredths of "
    "accuracy and is no worse than a dense one of as many weights; low rank is faster than Linformer at 128 tokens and "
    "slower at 2048."
)
TOLERANCE = 0.02
_BASE, _NARROW = "full", "half the heads and channels"
_LRT = {"low rank 0.5": 0.5, "low rank 0.25": 0.25}
_WIDTH, _LR = 128, 1e-3
_D, _F, _HEADS = 256, 1024, 4
_RANK, _MIXTURES = 64, 64
_LONG = 2048


def run(budget: float = common.FULL) -> Finding:
    """Train every arm once per seed, as long as the budget allows, then time the layers."""
    clock = common.Clock(budget)
    seeds = clock.seeds()
    task = common.classification("ag_news", clock.size(4000, 64), clock.size(800, 64))
    reader = common.encoder(max_length=64)
    arms = (_BASE, "low rank 0.5", _NARROW) if clock.few else (_BASE, *_LRT, _NARROW)
    tokens = _plan(clock, reader, task, len(arms) * len(seeds))
    scores: dict[str, list[float]] = {arm: [] for arm in arms}
    sizes: dict[str, int] = {}
    used = []
    for seed, count in clock.rounds(seeds, tokens, until=0.2):
        used.append(count)
        for arm in arms:
            accuracy, sizes[arm] = _one(reader, task, arm, count, seed)
            scores[arm].append(accuracy)
    times = [_layers(length, clock, len(seeds)) for length in _lengths(clock)]
    return _conclude(clock, seeds, task, scores, sizes, used, times)


def fresh(reader: Bundle, arm: str, seed: int) -> Bundle:
    """A random encoder of two blocks of the arm's form, with the reader's tokenizer."""
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=len(reader.processor), hidden_size=_WIDTH, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=4 * _WIDTH, max_position_embeddings=64, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = BertModel(config, add_pooling_layer=False)
    steps: list[Step] = []
    if arm in _LRT:
        steps = [Greenformers(_LRT[arm], "random")]
    elif arm == _NARROW:
        bare = PruneChannels(0.5, score="magnitude", compensate=False, reconstruct=False)
        steps = [bare, PruneHeads(0.5, score="magnitude", reconstruct=False)]
    return Recipe(steps).apply(dataclasses.replace(reader, model=model, history=[]), None, Run(seed=seed))


def _one(
    reader: Bundle, task: Any, arm: str, tokens: int, seed: int, steps: int | None = None
) -> tuple[float, int]:
    """Accuracy after training, and the weights in the blocks."""
    bundle = fresh(reader, arm, seed)
    weights = sum(
        p.numel() for n, p in bundle.model.named_parameters() if n.startswith("encoder") and p.dim() > 1
    )
    made = common.classifier(bundle, len(task.labels), seed)
    common.fine_tune(made, task, tokens, seed, _LR, steps=steps)
    return common.accuracy(made, task), weights


def _plan(clock: common.Clock, reader: Bundle, task: Any, jobs: int) -> int:
    """Training tokens of one job that fit beside the timing of layers."""
    _one(reader, task, _BASE, 10**9, 0, steps=1)  # first calls are slow
    begun = time.monotonic()
    _one(reader, task, _BASE, 10**9, 0, steps=9)
    each = (time.monotonic() - begun) / 9  # evaluation counts as well, which errs on the safe side
    return max(int(32 * 40 * clock.left(0.25) / jobs / max(each, 1e-3)), 64)


def _linformer(rank: int) -> nn.Module:
    return EfficientAttention(_D, _HEADS, "linformer", bias=True, length=_LONG, rank=rank)


class Layer(nn.Module):
    """One transformer layer of width 256: (1, n, 256) -> (1, n, 256). low: its linears are pairs of rank 64."""

    def __init__(self, low: bool, linformer: int = 0) -> None:
        super().__init__()

        def linear(into: int, out: int) -> nn.Module:
            return LowRankLinear(into, out, _RANK) if low else nn.Linear(into, out)

        self.mix = _linformer(linformer) if linformer else None
        self.projections = nn.ModuleList() if linformer else nn.ModuleList(linear(_D, _D) for _ in range(4))
        self.up, self.down = linear(_D, _F), linear(_F, _D)

    def forward(self, x: Tensor) -> Tensor:
        if self.mix is not None:
            x = x + self.mix(x)
        else:
            q, k, v = (f(x).unflatten(-1, (_HEADS, -1)).transpose(1, 2) for f in self.projections[:3])
            states = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
            x = x + self.projections[3](states)
        return x + self.down(nn.functional.gelu(self.up(x)))


def _lengths(clock: common.Clock) -> tuple[int, ...]:
    return (128, _LONG) if clock.short else (64, 128, 256, 512, 1024, _LONG)


@torch.inference_mode()
def _layers(length: int, clock: common.Clock, repeats: int) -> dict[str, Any]:
    """Milliseconds of one layer per repeat (median of interleaved rounds)."""
    forms = {"full": Layer(False), "low rank": Layer(True), "Linformer": Layer(False, _MIXTURES)}
    x = torch.randn(1, length, _D)
    calls = {name: (lambda m=m: m(x)) for name, m in forms.items()}
    out: dict[str, Any] = {"length": length, **{name: [] for name in forms}}
    for _ in range(repeats):
        for name, timing in measure.compare(calls, rounds=clock.size(20, 3)).items():
            out[name].append(1e3 * timing.median)
    return out


def _conclude(
    clock: common.Clock, seeds: tuple[int, ...], task: Any, scores: dict[str, list[float]], sizes: dict[str, int],
    used: list[int], times: list[dict[str, Any]],
) -> Finding:  # fmt: skip
    at = {t["length"]: t for t in times}

    def ahead(length: int) -> list[float]:
        """How much longer Linformer takes than low rank, as a share."""
        return [a / b - 1 for a, b in zip(at[length]["Linformer"], at[length]["low rank"])]

    half = "low rank 0.5"
    lost = common.gain(scores[half], scores[_BASE])
    rival = common.gain(scores[half], scores[_NARROW])
    verdict, caution = common.settled(
        common.together(
            reproduce.judge(lost, -TOLERANCE), reproduce.judge(rival, -TOLERANCE), reproduce.judge(ahead(128)),
            reproduce.judge([-v for v in ahead(_LONG)]),
        ),
        scores[_BASE],
        [task],
    )  # fmt: skip
    table = [
        reproduce.row(arm, accuracy=values, **{"weights of the blocks": sizes[arm]})
        for arm, values in scores.items()
    ]
    for name in ("full", "low rank", "Linformer"):
        columns = {f"ms at {t['length']} tokens": t[name] for t in times}
        table.append(reproduce.row(f"one layer, {name}", **columns))
    return reproduce.conclude(
        slug="greenformers",
        claim=CLAIM,
        verdict=verdict,
        summary=(
            f"accuracy of half the weights against full {common.said(lost)}, against {_NARROW} {common.said(rival)}; time of a "
            f"Linformer layer above a low-rank one: {common.said(ahead(128))} at 128 tokens, {common.said(ahead(_LONG))} at "
            f"{_LONG}.{caution}"
        ),
        table=table,
        baseline=_BASE,
        settings={
            "model": f"two blocks, width {_WIDTH}, from scratch, AG News cut to 64 tokens",
            "training texts": len(task.splits["train"]),
            "training tokens per arm": dict(zip(map(str, seeds), used)),
            "learning rate": _LR,
            "layer": f"width {_D}, feed-forward {_F}, {_HEADS} heads, rank {_RANK}, {_MIXTURES} mixtures, fp32, batch 1",
        },
        limits=(
            "Short training of a small model; the cost of pre-training, speech and long-input quality were not tried. "
            "Linformer is timed, not trained." + clock.note()
        ),
        started=clock.started,
        seeds=seeds,
    )  # fmt: skip
