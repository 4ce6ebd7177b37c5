"""Training samples of TabDPT (arXiv 2410.18164): any column of a real table is a target for the others.

A sample is a random row of a random table with its nearest neighbours, a random column as target, and a random subset of
the rest; rows are shuffled and split into context and queries. Neighbours are found in all columns, the target's too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightformers.errors import DataError
from lightformers.models.tabular.tabdpt import standardise
from lightformers.train.synthetic_tables import Tables, synthetic

#: A target with more different values than this is a number, or is cut into classes.
_FEW = 10


@dataclass(frozen=True)
class Episodes:
    """Tables to learn from: what `TabDPT.answers` takes, and what it should say of the queries.

    context_x (tables, context, features), context_y (tables, context), x (tables, queries, features),
    y (tables, queries), regression (tables).
    """

    context_x: Tensor
    context_y: Tensor
    x: Tensor
    y: Tensor
    regression: Tensor


@dataclass(frozen=True)
class Source:
    """A real table: values (rows, columns) with NaN where missing, and the same standardised, 0 where missing."""

    values: NDArray[np.float32]
    scaled: NDArray[np.float32]

    @classmethod
    def of(cls, values: NDArray[np.floating]) -> Source:
        """Raises DataError for less than two columns or 16 rows, infinities, and columns without any value."""
        table = np.asarray(values, np.float64)
        if table.ndim != 2 or table.shape[0] < 16 or table.shape[1] < 2:
            raise DataError(f"a table to learn from has 16 rows and 2 columns at least, not {table.shape}")
        if np.isinf(table).any() or np.isnan(table).all(0).any():
            raise DataError("a table to learn from holds infinities, or a column without any value")
        deviation = np.nanstd(table, 0)
        scaled = (table - np.nanmean(table, 0)) / np.where(deviation > 0, deviation, 1.0)
        return cls(table.astype(np.float32), np.nan_to_num(np.clip(scaled, -4, 4)).astype(np.float32))


def episodes(
    tables: Sequence[Source],
    count: int,
    context: int,
    queries: int,
    features: int,
    seed: int,
    synthetic_share: float = 1.0,
    retrieved: bool = True,
    classes: int = 10,
) -> Episodes:
    """`count` of them, that share drawn by `synthetic`, the others from tables that have enough rows.

    retrieved: neighbours of a random row, else any rows. Where no table has context + queries rows all are synthetic, unless
    the share is 0: then DataError is raised.
    """
    rng = np.random.default_rng(seed)
    rows = context + queries
    large = [t for t in tables if len(t.values) >= rows]
    if not large and synthetic_share <= 0:
        raise DataError(f"no table has the {rows} rows of an episode: take a smaller context")
    real = int(rng.binomial(count, 1 - synthetic_share)) if large else 0
    parts = []
    if count - real:
        parts.append(synthetic(count - real, rows, features, int(rng.integers(2**31)), classes))
    if real:
        parts.append(_real(rng, large, real, rows, features, retrieved, classes))
    x, y, regression = (torch.cat([getattr(p, k) for p in parts]) for k in ("x", "y", "regression"))
    return split(Tables(x, y, regression), context)


def split(tables: Tables, context: int) -> Episodes:
    """The first rows are the context, by whose statistics alone columns and regression targets are standardised."""
    inner, outer = standardise(tables.x[:, :context], tables.x[:, context:])
    known, asked = tables.y[:, :context, None], tables.y[:, context:, None]
    numbers, wanted = standardise(known, asked)
    which = tables.regression[:, None]
    y = (torch.where(which, a[..., 0], b[..., 0]) for a, b in ((numbers, known), (wanted, asked)))
    context_y, query_y = y
    return Episodes(inner, context_y, outer, query_y, tables.regression)


def _real(
    rng: np.random.Generator, tables: Sequence[Source], count: int, rows: int, features: int, retrieved: bool, classes: int
) -> Tables:  # fmt: skip
    x = np.zeros((count, rows, features), np.float32)
    y = np.zeros((count, rows), np.float32)
    regression = np.zeros(count, bool)
    for k in range(count):
        table = tables[int(rng.integers(len(tables)))]
        if retrieved:
            distance = np.square(table.scaled - table.scaled[rng.integers(len(table.scaled))]).sum(1)
            chosen = rng.permutation(np.argpartition(distance, rows - 1)[:rows])
        else:
            chosen = rng.permutation(len(table.values))[:rows]
        values = table.values[chosen]
        usable = [
            c
            for c in range(values.shape[1])
            if len(np.unique(values[:, c])) > 1 and not np.isnan(values[:, c]).any()
        ]
        target = int(rng.choice(usable)) if usable else 0
        others = np.delete(np.arange(values.shape[1]), target)
        share = int(rng.integers((len(others) + 1) // 2, len(others) + 1))
        kept = rng.permutation(others)[: min(share, features)]
        x[k, :, : len(kept)] = values[:, kept]
        y[k], regression[k] = target_of(rng, np.nan_to_num(values[:, target]), classes)
    return Tables(torch.from_numpy(x), torch.from_numpy(y), torch.from_numpy(regression))


def target_of(
    rng: np.random.Generator, values: NDArray[np.float32], classes: int = 10
) -> tuple[NDArray[np.float32], bool]:
    """A column as classes, numbered at random, or as a number (true), then perhaps bent."""
    different, places = np.unique(values, return_inverse=True)
    if len(different) > min(_FEW, classes):
        if rng.random() < 0.5:
            scaled = (values - values.mean()) / (values.std() + 1e-6)
            bend = rng.integers(4)
            bent = (
                scaled,
                np.sign(scaled) * np.sqrt(np.abs(scaled)),
                np.tanh(scaled),
                np.exp(np.clip(scaled, -4, 2)),
            )
            return bent[bend].astype(np.float32), True
        wanted = int(rng.integers(2, min(classes, _FEW)))
        cuts = rng.choice(different[:-1], min(wanted, len(different)) - 1, replace=False)
        places = np.searchsorted(np.sort(cuts), values, side="left")
    names = rng.permutation(int(places.max()) + 1)
    return names[places.reshape(-1)].astype(np.float32), False
