"""UniTabE (arXiv 2307.09249): does a table transformer gain from other people's tables, and take in new columns?

    lightformers reproduce unitabe

Hardware: two cores, five minutes. Two layers of width 64 are pre-trained, per seed, on tables with other columns (masked
cells and contrast of parts of rows), then learn Titanic, diabetes and iris from 32, 128 and all training rows;
beside them the same model from scratch with the same steps, logistic regression and gradient boosting. Last, a fifth of
the columns is kept from training on 128 rows and shown at test time. Expected: a gain, if at all, at 32 rows; gradient
boosting ahead with all rows. The paper pre-trains on 13 billion rows.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from lightformers import reproduce
from lightformers.bundle import Bundle
from lightformers.errors import MissingExtra
from lightformers.processors.schema import Row, Schema
from lightformers.reproduce import common
from lightformers.reproduce.finding import Finding
from lightformers.reproduce.labelled_tables import LINEAR, TREES, Table, auc, peers, read, targets
from lightformers.train.unitabe import learn, pretrain

CLAIM = (
    "A table transformer that was pre-trained on tables with other columns classifies better than the same one from scratch "
    "when 32 rows are labelled, and keeps 95 % of its AUC when a fifth of the columns appears only at test time."
)
_PRE, _SCRATCH = "pre-trained", "from scratch"
_ARMS = (_PRE, _SCRATCH, LINEAR, TREES)
#: What is pre-trained on: set, table, and what its target is called there.
_OTHERS = (
    ("tabular", "adult_train", "income"), ("tabular2", "california_housing", "median_house_value"),
    ("tabular2", "diamonds_10k", "price"), ("tabular", "abalone", "rings"), ("tabular", "winequality_white", "quality"),
)  # fmt: skip
#: Labelled rows -> updates of a training on them; None: all (at most `labelled_tables.MOST`).
_SIZES: dict[int | None, int] = {32: 100, 128: 200, None: 300}
_BATCH = 32
_PRETRAINING = 0.4  # of the time


def run(budget: float = common.FULL) -> Finding:
    """Pre-train and learn once per seed, with as many updates as the budget allows."""
    try:
        import sklearn  # noqa: F401
    except ImportError as error:
        raise MissingExtra("tabular", "scikit-learn") from error
    clock = common.Clock(budget)
    seeds = clock.seeds()
    others = [
        read(*source, limit=clock.size(4000, 40)) for source in (_OTHERS[-2:] if clock.short else _OTHERS)
    ]
    tables = targets(1, 60) if clock.short else targets()
    sizes = list(_SIZES)[: 2 if clock.short else None]
    share, before = _plan(clock, others, tables, sizes, len(seeds))
    scores: dict[tuple[str, str], list[float]] = {}
    steps: list[int] = []
    for seed, thousandth in clock.rounds(seeds, 1000, 0.03):
        scale = thousandth / 1000
        start = pretrain(
            others, seconds=None, steps=max(2, int(before * scale)), batch=_BATCH, lr=2e-3, seed=seed
        )
        steps.append(start.history[0]["steps"])
        found: dict[tuple[str, str], list[float]] = {}
        for table in tables:
            _compare(found, table, sizes, start, seed, share * scale)
        for key, values in found.items():
            scores.setdefault(key, []).append(float(np.mean(values)))
    return _conclude(clock, seeds, scores, steps, others, tables, share)


def _plan(
    clock: common.Clock, others: Any, tables: Sequence[Table], sizes: Sequence[int | None], seeds: int
) -> tuple[float, float]:
    """The share of the planned updates that fits, and the updates of a pre-training."""
    if clock.budget < common.TINY:
        return 0.0, 2.0
    fixed, each = _cost(lambda steps: pretrain(others, seconds=None, steps=steps, batch=_BATCH), 2, 12)
    left = clock.left(0.15) / seeds
    before = max(2.0, (_PRETRAINING * left - fixed) / each)
    wanted = [*(_SIZES[size] for size in sizes), _SIZES[128]]  # the last one with hidden columns
    apart = needed = 0.0
    for table in tables:
        chosen, _ = table.parts(128, 0)
        fixed, each = _cost(functools.partial(_learn, table, chosen, table.rows, None, 0), 4, 20)
        apart, needed = apart + 2 * len(wanted) * fixed, needed + 2 * sum(wanted) * each
    return min(1.0, max((1 - _PRETRAINING) * left - apart, 0.0) / needed), before


def _cost(train: Callable[[int], Any], few: int, more: int) -> tuple[float, float]:
    """Seconds that a training takes besides its updates, and those of an update."""
    timed = []
    for steps in (few, more):
        begun = time.monotonic()
        train(steps)
        timed.append(time.monotonic() - begun)
    each = max((timed[1] - timed[0]) / (more - few), 1e-3)
    return max(timed[0] - few * each, 0.0), each


def _learn(
    table: Table, chosen: np.ndarray, rows: Sequence[Row], start: Bundle | None, seed: int, steps: float
) -> Bundle:
    given = [rows[i] for i in chosen]
    filled = {k for row in given for k, v in row.items() if v is not None}
    given = [{k: v for k, v in row.items() if k in filled} for row in given]
    epochs = max(1, round(steps / -(-len(given) // _BATCH)))
    return learn(
        given, table.labels[chosen], table.classes, Schema.of(given), weights=start, epochs=epochs, seconds=None, batch=_BATCH,
        seed=seed, held_out=0.0,
    )  # fmt: skip


def _compare(
    found: dict[tuple[str, str], list[float]], table: Table, sizes: Sequence[int | None], start: Bundle,
    seed: int, share: float,
) -> None:  # fmt: skip
    """Adds the AUC of every arm on one table to `found`, (arm, cell) -> one value per table."""

    def note(arm: str, cell: str, value: float) -> None:
        found.setdefault((arm, cell), []).append(value)

    for size in sizes:
        chosen, tested = table.parts(size, seed)
        cell = f"AUC, {size or 'all'} rows"
        for arm, base in ((_PRE, start), (_SCRATCH, None)):
            made = _learn(table, chosen, table.rows, base, seed, _SIZES[size] * share)
            note(arm, cell, auc(table, tested, chances(made, [table.rows[i] for i in tested])))
            if size == 32:
                note(arm, f"{table.name}, 32 rows", found[arm, cell][-1])
        for arm, value in peers(table, chosen, tested, seed).items():
            note(arm, cell, value)
            if size == 32:
                note(arm, f"{table.name}, 32 rows", value)
    chosen, tested = table.parts(128, seed)
    names = list(table.rows[0])
    gone = set(np.random.default_rng(seed).permutation(names)[: max(1, round(0.2 * len(names)))])
    short = [{k: v for k, v in row.items() if k not in gone} for row in table.rows]
    for arm, base in ((_PRE, start), (_SCRATCH, None)):
        whole = found[arm, "AUC, 128 rows"][-1]
        made = _learn(table, chosen, short, base, seed, _SIZES[128] * share)
        for cell, rows in (
            ("AUC, columns never shown", short),
            ("AUC, columns shown at test alone", table.rows),
        ):
            note(arm, cell, auc(table, tested, chances(made, [rows[i] for i in tested])))
        note(arm, "kept", found[arm, "AUC, columns shown at test alone"][-1] / whole)


@torch.no_grad()
def chances(bundle: Bundle, rows: Sequence[Row], size: int = 128) -> np.ndarray:
    """(rows, classes) probabilities."""
    cuts = [rows[i : i + size] for i in range(0, len(rows), size)]
    logits = [bundle.model(**bundle.collate([{"row": r} for r in cut]).inputs).logits for cut in cuts]
    return torch.cat(logits).double().softmax(-1).numpy()


def _conclude(
    clock: common.Clock, seeds: tuple[int, ...], scores: dict[tuple[str, str], list[float]], steps: list[int],
    others: Sequence[Any], tables: Sequence[Table], share: float,
) -> Finding:  # fmt: skip
    few = "AUC, 32 rows"
    gained = common.gain(scores[_PRE, few], scores[_SCRATCH, few])
    kept = [x - 1 for x in scores[_PRE, "kept"]]
    verdict = common.together(reproduce.judge(gained), reproduce.judge(kept, -0.05))
    ignorant = max(np.mean(scores[arm, few]) for arm in (_PRE, _SCRATCH)) < 0.6
    if ignorant:
        verdict = "inconclusive"
    last = [c for a, c in scores if a == TREES and c.startswith("AUC")][-1]
    return reproduce.conclude(
        slug="unitabe",
        claim=CLAIM,
        verdict=verdict,
        summary=(
            f"With 32 labelled rows pre-training gives {common.said(gained)} AUC over the same model from scratch; with columns "
            f"that appear at test time it keeps {np.mean(scores[_PRE, 'kept']):.1%} (from scratch "
            f"{np.mean(scores[_SCRATCH, 'kept']):.1%}). {last}: pre-trained {np.mean(scores[_PRE, last]):.3f}, gradient boosting "
            f"{np.mean(scores[TREES, last]):.3f}."
            + (" Neither has learnt anything with 32 rows: nothing follows." if ignorant else "")
        ),
        table=[reproduce.row(arm, **{c: v for (a, c), v in scores.items() if a == arm}) for arm in _ARMS],
        baseline=_SCRATCH,
        settings={
            "model": "2 layers, width 64, 4 heads; vocabulary of 2,048 pieces (from scratch: the table's own)",
            "pre-trained on": {name: len(r) for (_, name, _), r in zip(_OTHERS[-len(others) :], others)},
            "updates of pre-training": steps,
            "updates of learning": {str(k or "all"): max(1, round(v * share)) for k, v in _SIZES.items()},
            "batch": _BATCH,
            "tables": {t.name: f"{len(t.rows)} rows, {len(t.rows[0])} columns, {t.classes} classes" for t in tables},
            "test rows": {t.name: t.tested for t in tables},
        },
        limits=(
            "A model of a quarter of a million parameters, five tables to pre-train on, minutes; the paper has 92 million and 13 "
            "billion rows. Intervals are over seeds, which draw the training rows; the tables are three." + clock.note()
        ),
        started=clock.started,
        seeds=seeds,
    )  # fmt: skip
