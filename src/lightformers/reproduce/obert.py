"""The Optimal BERT Surgeon (arXiv 2203.07259): which weights go, and what the others make up for.

    lightformers reproduce obert

Hardware: two cores, five minutes. Two blocks of all-MiniLM-L6-v2 are fine-tuned on TREC (six classes); then weights
go by magnitude or by second-order score with corrected survivors: at once, and in rounds with distillation from the
dense model, equal tokens. Expected: second order keeps more, the more so the sparser, less so after retraining.
"""

from __future__ import annotations

import time
from typing import Any

import torch

from lightformers import reproduce
from lightformers.bundle import Bundle
from lightformers.compress import DropBlocks, GradualMagnitude, OptimalBertSurgeon
from lightformers.compress import calibration as batching
from lightformers.reproduce import common
from lightformers.reproduce.finding import Finding
from lightformers.steps import Recipe, Run, Step

CLAIM = (
    "At 80 and 90 % sparsity, second-order pruning with corrected survivors keeps more accuracy than magnitude pruning: at "
    "once, and in rounds with the same distillation."
)
_LR = 3e-4
_PRUNE_LR = 2e-4
_GRID = (0.8, 0.9)
_DAMPS = (1e-7, 1e-6)
_SECOND, _MAGNITUDE, _DENSE = "second order", "magnitude", "dense"
#: Share of a seed's training tokens that makes the dense model; the rest is for the two gradual arms.
_SHARE = 0.5


def run(budget: float = common.FULL) -> Finding:
    """Fine-tune one dense model per seed, prune it every way, score on held-out questions."""
    clock = common.Clock(budget)
    seeds = clock.seeds()
    task = common.classification("trec", 4500, clock.size(900, 64))
    blocks = (0,) if clock.short else (0, 3)
    encoder = Recipe([DropBlocks(blocks=blocks)]).apply(common.encoder(max_length=32))
    shape = _Shape(clock)
    tokens, damp = _plan(clock, encoder, task, shape, len(seeds))
    scores: dict[str, dict[str, list[float]]] = {}
    used = []
    for seed, count in clock.rounds(seeds, tokens):
        used.append(count)
        for arm, cells in _one(encoder, task, shape, damp, count, seed).items():
            for cell, value in cells.items():
                scores.setdefault(arm, {}).setdefault(cell, []).append(value)
    return _conclude(clock, seeds, scores, used, damp, shape, task)


class _Shape:
    """Sizes that follow the budget."""

    def __init__(self, clock: common.Clock) -> None:
        self.gradients = clock.size(64, 8)
        self.block = 8 if clock.short else 16
        self.rounds = 2 if clock.few else 3
        self.grid = (0.9,) if clock.short else _GRID

    def second(self, sparsity: float, damp: float, **fields: Any) -> OptimalBertSurgeon:
        return OptimalBertSurgeon(
            sparsity, gradients=self.gradients, damp=damp, fisher_block=self.block, labels=True, **fields
        )


def _dense(encoder: Bundle, task: Any, tokens: int, seed: int, steps: int | None = None) -> Bundle:
    bundle = common.classifier(encoder.copy(), len(task.labels), seed)
    common.fine_tune(bundle, task, tokens, seed, _LR, ["*word_embeddings.weight"], steps)
    return bundle


def _one(
    encoder: Bundle, task: Any, shape: _Shape, damp: float, tokens: int, seed: int
) -> dict[str, dict[str, float]]:
    """Arm -> cell -> value, for one seed."""
    dense = _dense(encoder, task, max(int(tokens * _SHARE), 32), seed)
    out: dict[str, dict[str, float]] = {_DENSE: _score(dense, task, "")}
    for arm in (_SECOND, _MAGNITUDE):
        out[arm] = {}
        for sparsity in shape.grid:
            step: Step = shape.second(sparsity, damp) if arm == _SECOND else GradualMagnitude(sparsity)
            out[arm] |= _score(_pruned(dense, task, step, seed), task, f", {sparsity:.0%} at once")
        training: dict[str, Any] = {"rounds": shape.rounds, "initial": 0.7, "epochs": 1.0, "lr": _PRUNE_LR}
        step = shape.second(0.9, damp, **training) if arm == _SECOND else GradualMagnitude(0.9, **training)
        share = max(int(tokens * (1 - _SHARE) / 2), 32)
        out[arm] |= _score(_pruned(dense, task, step, seed, share), task, ", 90% in rounds")
    return out


def _pruned(dense: Bundle, task: Any, step: Step, seed: int, tokens: int | None = None) -> Bundle:
    return Recipe([step]).apply(dense, task, Run(seed=seed, tokens=tokens))


@torch.no_grad()
def _score(bundle: Bundle, task: Any, when: str) -> dict[str, float]:
    """Accuracy on the verify split, and the mean loss in nats on (at most) its first 400 examples."""
    rows = task.splits["verify"][:400]
    losses = [
        (float(task.loss(bundle.model(**batch.inputs), batch)), len(batch.targets["label"]))
        for batch in batching.batches(bundle, rows)
    ]
    return {
        f"accuracy{when}": common.accuracy(bundle, task),
        f"loss{when}": sum(loss * n for loss, n in losses) / len(rows),
    }


def _plan(clock: common.Clock, encoder: Bundle, task: Any, shape: _Shape, seeds: int) -> tuple[int, float]:
    """Training tokens of one seed that fit, and the damping: the one with the least loss on the search split."""
    _dense(encoder, task, 10**9, 99, 1)  # first calls are slow
    begun = time.monotonic()
    probe = _dense(encoder, task, 10**9, 99, 4)
    step = (time.monotonic() - begun) / 4
    begun = time.monotonic()
    _pruned(probe, task, shape.second(0.7, 1e-7), 99)
    once = time.monotonic() - begun
    begun = time.monotonic()
    common.accuracy(probe, task)
    score = time.monotonic() - begun
    damp = 1e-7
    if not clock.few:
        trained = _dense(encoder, task, 10**9, 99, max(int(0.05 * clock.budget / step), 1))
        search = {"verify": task.splits["search"]}
        found = {}
        for d in _DAMPS:
            bundle = _pruned(trained, task, shape.second(0.7, d), 99)
            found[d] = sum(float(task.loss(bundle.model(**b.inputs), b)) for b in batching.batches(bundle, search["verify"]))  # fmt: skip
        damp = min(found, key=found.__getitem__)
    prunings, scored = len(shape.grid) + shape.rounds, 2 * (len(shape.grid) + 1) + 1
    each = clock.left() / seeds - prunings * once - scored * (score + 1.0)
    tokens = (
        32
        * sum(len(e["input_ids"]) for e in encoder.encode(task.splits["verify"]))
        / len(task.splits["verify"])
    )
    return max(int(tokens * each / step), 64), damp


def _conclude(
    clock: common.Clock, seeds: tuple[int, ...], scores: dict[str, dict[str, list[float]]], used: list[int],
    damp: float, shape: _Shape, task: Any,
) -> Finding:  # fmt: skip
    def gains(cell: str) -> list[float]:
        return common.gain(scores[_SECOND][cell], scores[_MAGNITUDE][cell])

    per_sparsity = [gains(f"accuracy, {s:.0%} at once") for s in shape.grid]
    once = [sum(values) / len(values) for values in zip(*per_sparsity)]
    rounds = gains("accuracy, 90% in rounds")
    verdict, caution = common.settled(
        common.together(reproduce.judge(once), reproduce.judge(rounds)), scores[_DENSE]["accuracy"], [task]
    )
    said = ", ".join(f"{s:.0%} {common.said(g)}" for s, g in zip(shape.grid, per_sparsity))
    return reproduce.conclude(
        slug="obert",
        claim=CLAIM,
        verdict=verdict,
        summary=(
            f"accuracy of second order over magnitude, at once: {said}; mean {common.said(once)}. In {shape.rounds} rounds "
            f"to 90 % with distillation: {common.said(rounds)}. Dense: {common.said(scores[_DENSE]['accuracy'], False)}.{caution}"
        ),
        table=[reproduce.row(arm, **cells) for arm, cells in scores.items()],
        baseline=_MAGNITUDE,
        settings={
            "model": "blocks of all-MiniLM-L6-v2 with a fresh classification head, word embeddings frozen",
            "data": {"trec train": len(task.splits["train"]), "verify": len(task.splits["verify"])},
            "training tokens per seed": dict(zip(map(str, seeds), used)),
            "share of the dense model": _SHARE,
            "learning rates": {"fine-tuning": _LR, "between prunings": _PRUNE_LR},
            "gradients": shape.gradients, "Fisher block": shape.block, "damping": damp, "rounds": shape.rounds,
        },
        limits=(
            "One small encoder, some tens of training steps a round, 64 gradients instead of 1,024 and blocks of 16 "
            "instead of 50. BERT-base figures, 97 % sparsity, four-weight blocks, upstream pruning and the speed of sparse "
            "runtimes were not tried." + clock.note()
        ),
        started=clock.started,
        seeds=seeds,
    )  # fmt: skip
