"""DSEE (arXiv 2111.00160): do free entries help a low-rank update, and does the update say what to prune?

    lightformers reproduce dsee

Hardware: two cores, five minutes. all-MiniLM-L6-v2 is tuned on TREC with updates of 3,072 numbers per matrix: all rank,
rank and free entries, or free entries alone; then 40 % of the projections go, by the size of the update or at random, with
tuning before and after, equal tokens. Expected: little or no difference between the updates; the update's score ahead of
random; most of the drop made up by the tuning afterwards.
"""

from __future__ import annotations

import dataclasses
import time
from typing import Any

from lightformers import reproduce
from lightformers.bundle import Bundle
from lightformers.compress import DSEE
from lightformers.compress.prune.dsee import updated
from lightformers.reproduce import common
from lightformers.reproduce.finding import Finding
from lightformers.steps import Recipe, Run

CLAIM = (
    "For the same number of trained weights, an update of low rank plus free entries keeps up with one of rank alone (within "
    "one hundredth), and pruning by the size of the update keeps more accuracy than pruning at random."
)
TOLERANCE = 0.01
_LR = 1e-3
_LEAST_TOKENS = 2000
_RANK, _BOTH, _FREE = "rank 4", "rank 3 + 768 entries", "rank 1 + 2,304 entries"
_UPDATE, _CHANCE, _WEIGHT = "pruned by update", "pruned at random", "pruned by magnitude"
_ARMS: dict[str, DSEE] = {
    _RANK: DSEE(4, 0, sparsity=0.0, lr=_LR),
    _BOTH: DSEE(3, 768, sparsity=0.0, lr=_LR),
    _FREE: DSEE(1, 2304, sparsity=0.0, lr=_LR),
    _UPDATE: DSEE(3, 768, sparsity=0.4, score="update", lr=_LR),
    _CHANCE: DSEE(3, 768, sparsity=0.4, score="random", lr=_LR),
    _WEIGHT: DSEE(3, 768, sparsity=0.4, score="weight", lr=_LR),
}
_DECIDE = (_RANK, _BOTH, _UPDATE, _CHANCE)


def run(budget: float = common.FULL) -> Finding:
    """Every arm gets the same tokens, once per seed."""
    clock = common.Clock(budget)
    seeds = clock.seeds()
    task = common.classification("trec", clock.size(2000, 64), clock.size(900, 64))
    encoder = common.encoder(max_length=32)
    arms = _DECIDE if clock.few else tuple(_ARMS)
    tokens = _plan(clock, encoder, task, len(arms), len(seeds))
    scores: dict[str, list[float]] = {arm: [] for arm in arms}
    trained: dict[str, int] = {}
    used = []
    for seed, count in clock.rounds(seeds, tokens):
        used.append(count)
        for arm in arms:
            value, trained[arm] = _one(encoder, task, _ARMS[arm], count, seed)
            scores[arm].append(value)
    return _conclude(clock, seeds, scores, trained, used, task)


def _one(encoder: Bundle, task: Any, step: DSEE, tokens: int, seed: int) -> tuple[float, int]:
    """Accuracy, and how many numbers the updates hold."""
    if tokens < _LEAST_TOKENS:
        step = dataclasses.replace(
            step, support="magnitude"
        )  # a run too short to say anything need not split
    start = common.classifier(encoder.copy(), len(task.labels), seed)
    made = Recipe([step]).apply(start, task, Run(seed=seed, tokens=tokens, use_labels=True))
    held = sum(p.numel() for _, layer in updated(made.model) for p in layer.parameters())
    return common.accuracy(made, task), held


def _plan(clock: common.Clock, encoder: Bundle, task: Any, arms: int, seeds: int) -> int:
    """Tokens of an arm that fit, from short timed ones."""
    _one(encoder, task, _ARMS[_UPDATE], 64, 99)  # first calls are slow
    begun = time.monotonic()
    _one(encoder, task, _ARMS[_UPDATE], 64, 99)
    fixed = time.monotonic() - begun
    probe = 4000 if not clock.short else 800
    if not clock.short:
        begun = time.monotonic()
        _one(encoder, task, _ARMS[_UPDATE], _LEAST_TOKENS, 99)  # splits, once per seed
        split = time.monotonic() - begun
    else:
        split = 0.0
    begun = time.monotonic()
    _one(encoder, task, _ARMS[_UPDATE], probe, 99)
    rate = probe / max(time.monotonic() - begun - fixed, 0.05)
    return max(int(rate * ((clock.left() / seeds - split) / arms - fixed)), 64)


def _conclude(
    clock: common.Clock, seeds: tuple[int, ...], scores: dict[str, list[float]], trained: dict[str, int],
    used: list[int], task: Any,
) -> Finding:  # fmt: skip
    entries = common.gain(scores[_BOTH], scores[_RANK])
    chance = common.gain(scores[_UPDATE], scores[_CHANCE])
    verdict, caution = common.settled(
        common.together(reproduce.judge(entries, -TOLERANCE), reproduce.judge(chance)), scores[_RANK], [task]
    )
    rest = ""
    if _WEIGHT in scores:
        rest = (
            f" Update against magnitude {common.said(common.gain(scores[_UPDATE], scores[_WEIGHT]))}; almost only free entries "
            f"against rank alone {common.said(common.gain(scores[_FREE], scores[_RANK]))}."
        )
    return reproduce.conclude(
        slug="dsee",
        claim=CLAIM,
        verdict=verdict,
        summary=(
            f"accuracy of rank plus free entries over rank alone {common.said(entries)}; 40 % pruned by the update over at "
            f"random {common.said(chance)}; pruned against not pruned {common.said(common.gain(scores[_UPDATE], scores[_BOTH]))}."
            f"{rest}{caution}"
        ),
        table=[reproduce.row(arm, accuracy=values, trained=trained[arm]) for arm, values in scores.items()],
        baseline=_RANK,
        settings={
            "model": "all-MiniLM-L6-v2 with a classification head; query and value of six blocks updated",
            "data": {"trec train": len(task.splits["train"]), "verify": len(task.splits["verify"])},
            "tokens per arm, half before and half after the pruning": dict(zip(map(str, seeds), used)),
            "learning rate": _LR,
        },
        limits=(
            "One small encoder, one task, tens of steps, three seeds. GLUE averages, the removal of heads and its flops, and "
            "other sparsities were not tried." + clock.note()
        ),
        started=clock.started,
        seeds=seeds,
    )  # fmt: skip
