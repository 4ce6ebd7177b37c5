"""Many series as one source of training windows: every channel for itself, at several rates of sampling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightformers.bundle import Batch
from lightformers.errors import DataError
from lightformers.processors.series import FREQUENCIES
from lightformers.tasks.stamps import SPANS


@dataclass(frozen=True)
class Source:
    """A series to learn from. values: (rows, channels), NaN where missing; frequency: an alias of `FREQUENCIES` or ""."""

    name: str
    values: NDArray[np.floating]
    frequency: str = ""

    def __post_init__(self) -> None:
        values = np.asarray(self.values, np.float64)
        if values.ndim != 2 or not values.size:
            raise DataError(f"{self.name} is an array (rows, channels), not {values.shape}")
        object.__setattr__(self, "values", values)


def down_sampled(source: Source, factor: int, how: Literal["mean", "pick"] = "mean") -> Source:
    """Every `factor` rows as one: their mean over what was observed, or the last of them. Rows left over go at the front.

    Raises DataError where the series is shorter than the factor.
    """
    rows = len(source.values) // factor if factor >= 1 else 0
    if not rows:
        raise DataError(f"{source.name} has {len(source.values)} rows, too few for one of {factor}")
    blocks = source.values[len(source.values) - rows * factor :].reshape(rows, factor, -1)
    if how == "pick":
        values = blocks[:, -1]
    else:
        seen = np.isfinite(blocks).sum(1)
        values = np.where(seen > 0, np.nansum(blocks, 1) / np.maximum(seen, 1), np.nan)
    seconds = SPANS.get(source.frequency, 0) * factor
    frequency = next((name for name, span in SPANS.items() if span == seconds and name in FREQUENCIES), "")
    return Source(f"{source.name} / {factor}" if factor > 1 else source.name, values, frequency)


def resolutions(sources: Sequence[Source], factors: Sequence[int], least: int) -> list[Source]:
    """The sources, and copies of them sampled `factors` times more rarely, as far as these have `least` rows.

    TTM's diverse resolution sampling (arXiv 2401.03955): a model that saw few rates learns more of them.
    """
    copies = [down_sampled(s, f) for s in sources for f in factors if f > 1 and len(s.values) // f >= least]
    return [*(s for s in sources if len(s.values) >= least), *copies]


@dataclass
class SourceFeed:
    """Windows of one channel each, drawn anew for every position; a `train.loop.Batches`.

    A channel is drawn in proportion to the root of how many windows it has, so that long series do not drown the others;
    then a place in it. Every channel is brought to mean 0 and deviation 1 over its observed rows before. What is constant
    or mostly missing is left out. size: windows of a batch. Batches: past_values (size, context, 1), frequency (size,), and
    past_observed_mask if anything is missing; targets future_values and future_observed_mask (size, horizon, 1).
    Raises DataError where no series is long enough for a window.
    """

    sources: Sequence[Source]
    context: int
    horizon: int
    size: int = 256
    seed: int = 0
    _values: Tensor = field(init=False, repr=False)
    _seen: Tensor | None = field(init=False, repr=False)
    _starts: NDArray[np.int64] = field(init=False, repr=False)
    _rooms: NDArray[np.int64] = field(init=False, repr=False)
    _codes: NDArray[np.int64] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        window = self.context + self.horizon
        columns, codes = [], []
        for source in self.sources:
            if len(source.values) < window:
                continue
            code = FREQUENCIES.index(source.frequency) if source.frequency in FREQUENCIES else 0
            for column in source.values.T:
                seen = np.isfinite(column)
                if (
                    seen.mean() < 0.5
                    or (deviation := column[seen].std()) <= 1e-9 * np.abs(column[seen]).max()
                ):
                    continue
                columns.append((column - column[seen].mean()) / deviation)
                codes.append(code)
        if not columns:
            raise DataError(f"no series has the {window} rows of a window, or all of them are constant")
        lengths = np.array([len(c) for c in columns])
        joined = np.concatenate(columns).astype(np.float32)
        seen = np.isfinite(joined)
        self._values = torch.from_numpy(np.where(seen, joined, np.float32(0)))
        self._seen = None if seen.all() else torch.from_numpy(seen)
        self._starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
        self._rooms, self._codes = lengths - window + 1, np.array(codes, np.int64)

    @property
    def windows(self) -> int:
        """How many different ones there are."""
        return int(self._rooms.sum())

    def batch(self, position: int) -> Batch:
        drawn = np.random.default_rng((self.seed, position))
        share = np.sqrt(self._rooms)
        channel = drawn.choice(len(share), self.size, p=share / share.sum())
        first = self._starts[channel] + drawn.integers(self._rooms[channel])
        rows = torch.from_numpy(first)[:, None] + torch.arange(self.context + self.horizon)
        values, seen = self._values[rows][..., None], torch.ones(*rows.shape, 1, dtype=torch.bool)
        inputs = {
            "past_values": values[:, : self.context],
            "frequency": torch.from_numpy(self._codes[channel]),
        }
        if self._seen is not None:
            seen = self._seen[rows][..., None]
            inputs["past_observed_mask"] = seen[:, : self.context]
        return Batch(
            inputs,
            {"future_values": values[:, self.context :], "future_observed_mask": seen[:, self.context :]},
        )
