"""BCT (arXiv 2304.01483): every operator of an encoder in blocks of integers with power-of-two steps, no training.

    lightformers reproduce bct

Hardware: two cores, five minutes. all-MiniLM-L6-v2 is fine-tuned on TREC and SST-2 once per seed; the result is
quantized without data or training, and scored on held-out texts. Arms: steps per matrix, per row, per block of 64 and
of 16; eight-bit and four-bit weights; operators one after the other. Expected: eight bits in blocks are as good as
fp32; four-bit weights lose little in blocks, and most of the quality with one step per matrix.
"""

from __future__ import annotations

import time
from typing import Any

from lightformers import reproduce
from lightformers.bundle import Bundle
from lightformers.compress.quantize.bct import OPERATORS, BlockwiseQuantize, compression
from lightformers.reproduce import common
from lightformers.reproduce.finding import Finding
from lightformers.steps import Recipe

CLAIM = (
    "Without training, with 4-bit weights and 8-bit everything else in blocks, accuracy falls by less than 0.9 points, and "
    "blocks lose less than one step per matrix."
)
TOLERANCE = 0.009
_BASE = "fp32"
_PAPER = "4/8 bits, blocks of 64"
_WHOLE = "4/8 bits, one step per matrix"
_ARMS: dict[str, BlockwiseQuantize] = {
    _PAPER: BlockwiseQuantize(4, 8),
    _WHOLE: BlockwiseQuantize(4, 8, (0, 0), 0),
    "8/8 bits, blocks of 64": BlockwiseQuantize(8, 8),
    "4/8 bits, one step per row": BlockwiseQuantize(4, 8, (1, 0), 0),
    "4/8 bits, blocks of 16": BlockwiseQuantize(4, 8, (16, 16), 16),
    "4/8 bits, blocks of 64, real steps": BlockwiseQuantize(4, 8, power_of_two=False),
    "4/4 bits, blocks of 64": BlockwiseQuantize(4, 4),
    **{
        f"4/8 bits, blocks of 64, {OPERATORS[n - 1]} and before": BlockwiseQuantize(
            4, 8, operators=OPERATORS[:n]
        )
        for n in (1, 2, 3, 4)
    },
}
_LR = 5e-4
_LENGTH = 64


def run(budget: float = common.FULL) -> Finding:
    """Fine-tune once per seed and task, quantize by every arm, and score."""
    clock = common.Clock(budget)
    seeds = clock.seeds()
    names = ("trec",) if clock.few else ("trec", "sst2")
    tasks = {name: common.classification(name, 5000, clock.size(500, 64)) for name in names}
    encoder = common.encoder(max_length=_LENGTH)
    tokens, arms = _plan(clock, encoder, tasks["trec"], len(seeds), len(tasks))
    scores: dict[str, dict[str, list[float]]] = {arm: {} for arm in (_BASE, *arms)}
    sizes: dict[str, float] = {_BASE: 1.0}
    used = []
    for seed, count in clock.rounds(seeds, tokens):
        used.append(count)
        for name, task in tasks.items():
            bundle = _trained(encoder, task, count, seed)
            scores[_BASE].setdefault(f"accuracy {name}", []).append(common.accuracy(bundle, task))
            for arm, step in arms.items():
                small = _quantized(bundle, step)
                sizes[arm] = compression(small.model)
                scores[arm].setdefault(f"accuracy {name}", []).append(common.accuracy(small, task))
    return _conclude(clock, seeds, scores, sizes, tasks, used)


def _trained(encoder: Bundle, task: Any, tokens: int, seed: int) -> Bundle:
    bundle = common.classifier(encoder.copy(), len(task.labels), seed)
    common.fine_tune(bundle, task, tokens, seed, _LR)
    return bundle


def _quantized(bundle: Bundle, step: BlockwiseQuantize) -> Bundle:
    """A copy with its encoder quantized; the fresh head stays (the paper's stays, too)."""
    small = bundle.copy()
    model: Any = small.model
    inner = Bundle(model.embedder.backbone, task="embedding")
    model.embedder.backbone = Recipe((step,)).apply(inner).model
    return small


def _plan(
    clock: common.Clock, encoder: Bundle, task: Any, seeds: int, tasks: int
) -> tuple[int, dict[str, BlockwiseQuantize]]:
    """Tokens of a fine-tuning, and the arms that fit: those that decide, then the others in order."""
    _trained(encoder, task, 32, 0)  # first calls are slow
    begun = time.monotonic()
    bundle = _trained(encoder, task, 4096, 0)
    rate = 4096 / max(time.monotonic() - begun, 1e-3)
    small = _quantized(bundle, _ARMS[_PAPER])
    begun = time.monotonic()
    common.accuracy(small, task)
    one = time.monotonic() - begun + 0.5
    each = clock.left(0.12) / seeds / tasks
    fitting = int(0.65 * each / one) - 1
    arms = dict(list(_ARMS.items())[: max(2, fitting)])
    return max(int(rate * (each - one * (len(arms) + 1))), 64), arms


def _conclude(
    clock: common.Clock, seeds: tuple[int, ...], scores: dict[str, dict[str, list[float]]], sizes: dict[str, float],
    tasks: dict[str, Any], used: list[int],
) -> Finding:  # fmt: skip
    def mean(arm: str) -> list[float]:
        return [sum(v) / len(tasks) for v in zip(*(scores[arm][f"accuracy {name}"] for name in tasks))]

    loss, blocks = common.gain(mean(_PAPER), mean(_BASE)), common.gain(mean(_PAPER), mean(_WHOLE))
    verdict, caution = common.settled(
        common.together(reproduce.judge(loss, -TOLERANCE), reproduce.judge(blocks)),
        mean(_BASE),
        tasks.values(),
    )
    return reproduce.conclude(
        slug="bct",
        claim=CLAIM,
        verdict=verdict,
        summary=(
            f"mean accuracy over {' and '.join(tasks)}, every operator quantized, weights in 4 bits: {common.said(loss)} "
            f"against fp32 in blocks of 64, {common.said(blocks)} over one step per matrix; the model is "
            f"{sizes[_PAPER]:.2f} times smaller in all.{caution}"
        ),
        table=[
            reproduce.row(arm, **cells, times_smaller=round(sizes[arm], 3)) for arm, cells in scores.items()
        ],
        baseline=_BASE,
        settings={
            "model": "all-MiniLM-L6-v2 with a classification head (in fp32), fine-tuned",
            "fine-tuning tokens": dict(zip(map(str, seeds), used)),
            "learning rate": _LR,
            "data": {
                n: {"train": len(t.splits["train"]), "verify": len(t.splits["verify"])}
                for n, t in tasks.items()
            },
            "steps": "powers of two, of activations found anew in every forward",
        },
        limits=(
            "One small encoder on two tasks: BERT-base on GLUE and the speed of integer hardware cannot be shown; the "
            "paper's block size and its 8-bit float variants are not known well enough to be built."
            + clock.note()
        ),
        started=clock.started,
        seeds=seeds,
    )
