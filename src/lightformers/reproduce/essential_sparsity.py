"""Essential sparsity (arXiv 2306.03805): how much of a pre-trained encoder one-shot pruning removes for free.

    lightformers reproduce essential-sparsity

Hardware: two cores, five minutes. all-MiniLM-L6-v2 is pruned once to each sparsity, from the same untouched weights,
and fine-tuned on TREC (six classes) and SST-2 (two) with the zeros held; every arm gets the same tokens.
Expected: no loss that can be told from zero up to about half the weights, then a break, earlier for random masks.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from lightformers import reproduce
from lightformers.bundle import Bundle
from lightformers.compress.prune import masks
from lightformers.compress.prune.essential_sparsity import EssentialSparsity, essential, shares
from lightformers.reproduce import common
from lightformers.reproduce.finding import Finding
from lightformers.steps import Recipe, Run

CLAIM = (
    "30 % of the weights of a pre-trained encoder can be removed at once by magnitude, before fine-tuning, for a loss "
    "of at most one hundredth; at half of the weights magnitude keeps more than a random mask."
)
TOLERANCE = 0.01
_LR = 3e-4
_BASE = "dense"
_GRID = (0.3, 0.5, 0.7)
_ARMS: dict[str, EssentialSparsity | None] = {
    _BASE: None,
    **{f"magnitude {s}": EssentialSparsity(s) for s in _GRID},
    **{f"random {s}": EssentialSparsity(s, "random") for s in (0.5, 0.7)},
}
_TASKS = (("trec", 2000, 800), ("sst2", 1500, 500))
_DECIDE = (_BASE, "magnitude 0.3", "magnitude 0.5", "random 0.5")


def run(budget: float = common.FULL) -> Finding:
    """Fine-tune every arm once per seed and task, as long as the budget allows."""
    clock = common.Clock(budget)
    seeds = clock.seeds()
    tasks = {
        name: common.classification(name, clock.size(train, 64), clock.size(held_out, 64))
        for name, train, held_out in _TASKS[: 1 if clock.few else 2]
    }
    arms = {name: _DECIDE if clock.few or name == "sst2" else tuple(_ARMS) for name in tasks}
    encoder = common.encoder()
    jobs = [(name, arm) for name in tasks for arm in arms[name]]
    tokens = _plan(clock, encoder, tasks, len(jobs) * len(seeds))
    scores: dict[tuple[str, str], list[float]] = {job: [] for job in jobs}
    zeros: dict[str, dict[str, float]] = {}
    used = []
    for seed, count in clock.rounds(seeds, tokens):
        used.append(count)
        for name, arm in jobs:
            value, zeros[arm] = _one(encoder, tasks[name], _ARMS[arm], count, seed)
            scores[name, arm].append(value)
    return _conclude(clock, seeds, scores, zeros, used, tasks, encoder)


def _one(
    encoder: Bundle, task: Any, step: EssentialSparsity | None, tokens: int, seed: int, steps: int | None = None
) -> tuple[float, dict[str, float]]:  # fmt: skip
    """Prune, fine-tune, score. Returns accuracy and the shares of zeros after training."""
    pruned = Recipe((step,) if step else ()).apply(encoder, task, Run(seed=seed))  # a copy
    bundle = common.classifier(pruned, len(task.labels), seed)
    # embeddings are never pruned; frozen in every arm, they leave more steps to the layers that are
    common.fine_tune(bundle, task, tokens, seed, _LR, ["*word_embeddings.weight"], steps)
    return common.accuracy(bundle, task), shares(pruned.model)


def _plan(clock: common.Clock, encoder: Bundle, tasks: dict[str, Any], jobs: int) -> int:
    """Training tokens of one job that fit: a short job is timed, with its evaluation."""
    task, step = tasks["trec"], _ARMS["magnitude 0.5"]
    _one(encoder, task, step, 10**9, 0, steps=1)  # first calls are slow
    timed = []
    for steps in (1, 7):
        begun = time.monotonic()
        _one(encoder, task, step, 10**9, 0, steps=steps)
        timed.append(time.monotonic() - begun)
    tokens = 32 * np.mean([len(e["input_ids"]) for e in encoder.encode(task.splits["train"])])
    each = max((timed[1] - timed[0]) / 6, 1e-3)  # seconds of a step; the rest of a job is pruning and scoring
    return max(int(tokens * (clock.left() / jobs - timed[0]) / each), 32)


def _conclude(
    clock: common.Clock, seeds: tuple[int, ...], scores: dict[tuple[str, str], list[float]],
    zeros: dict[str, dict[str, float]], used: list[int], tasks: dict[str, Any], encoder: Bundle,
) -> Finding:  # fmt: skip
    names = list(tasks)

    def mean(arm: str) -> list[float]:
        return [sum(values) / len(names) for values in zip(*(scores[name, arm] for name in names))]

    mild = common.gain(mean("magnitude 0.3"), mean(_BASE))
    half = common.gain(mean("magnitude 0.5"), mean(_BASE))
    over = common.gain(mean("magnitude 0.5"), mean("random 0.5"))
    verdict, caution = common.settled(
        common.together(reproduce.judge(mild, -TOLERANCE), reproduce.judge(over)), mean(_BASE), tasks.values()
    )
    curve = {0.0: reproduce.spread(scores["trec", _BASE])["mean"]}
    curve |= {
        s: reproduce.spread(scores["trec", f"magnitude {s}"])["mean"]
        for s in _GRID
        if ("trec", f"magnitude {s}") in scores
    }
    read = essential(curve, TOLERANCE)
    table = [
        reproduce.row(
            arm,
            **{f"accuracy {name}": scores[name, arm] for name in names if (name, arm) in scores},
            zeros_prunable=round(zeros[arm]["prunable"], 4),
            zeros_model=round(zeros[arm]["model"], 4),
        )
        for arm in zeros
    ]
    pair = [EssentialSparsity(0.5, m).masks(encoder.model) for m in ("global", "layer-wise")]
    return reproduce.conclude(
        slug="essential-sparsity",
        claim=CLAIM,
        verdict=verdict,
        summary=(
            f"mean accuracy over {' and '.join(names)}, against dense: {common.said(mild)} with 30 % of the weights gone, "
            f"{common.said(half)} with 50 %; at 50 % magnitude against random {common.said(over)}. "
            f"On the curve of TREC's means the essential sparsity is {read.sparsity}, the knee {read.knee}.{caution}"
        ),
        table=table,
        baseline=_BASE,
        settings={
            "model": "all-MiniLM-L6-v2 with a fresh classification head, word embeddings frozen in every arm",
            "data": {
                n: {"train": len(t.splits["train"]), "verify": len(t.splits["verify"])}
                for n, t in tasks.items()
            },
            "training tokens per arm": dict(zip(map(str, seeds), used)),
            "learning rate": _LR,
            "tolerance": TOLERANCE,
            "overlap of global and layer-wise masks at 0.5": round(masks.overlap(*pair), 3),
        },
        limits=(
            "One small encoder, short fine-tuning of some tens of steps. Lottery-ticket masks, N:M, language models "
            "without fine-tuning, checkpoints along pre-training and the amount of its data were not tried. "
            "Essential sparsity on a grid of few points is read off means." + clock.note()
        ),
        started=clock.started,
        seeds=seeds,
        plots={"curve trec": {"sparsity": list(curve), "accuracy": list(curve.values())}},
    )
