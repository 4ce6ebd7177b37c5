"""Batches of windows, gathered from one standardised table: no Python work per window."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightformers.bundle import Batch
from lightformers.errors import DataError
from lightformers.processors.series import FREQUENCIES, SeriesProcessor
from lightformers.tasks.windows import Windows


@dataclass
class WindowFeed:
    """Windows of a series, dealt into shuffled batches epoch after epoch without end; a `train.loop.Batches`.

    The batches are those that the processor makes of the same examples (`Bundle.collate`). The order is a pure function
    of (seed, epoch). size: windows of a batch; the last of an epoch may be smaller. most: at most so many windows an
    epoch, others in each; None: all.
    """

    windows: Windows
    processor: SeriesProcessor
    size: int = 32
    seed: int = 0
    most: int | None = None
    _tables: dict[str, Tensor] = field(init=False, repr=False)
    _order: tuple[int, np.ndarray] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if not len(self.windows):
            raise DataError(
                "there are no windows to train on: give more data, or a shorter context or horizon"
            )
        if self.size < 1 or (self.most is not None and self.most < 1):
            raise DataError("a batch and an epoch hold at least one window")
        made, processor = self.windows, self.processor
        table = processor.standardise(made.values)
        seen = np.isfinite(table)
        if not processor.masked and not seen[_covered(made)].all():
            raise DataError(
                "a window holds missing values, and this model was made for series without: fill them first"
            )
        self._tables = {
            "values": torch.from_numpy(np.where(seen, table, np.float32(0))), "seen": torch.from_numpy(seen)
        }  # fmt: skip
        if processor.marks:
            if made.marks is None or made.marks.shape[1] != processor.marks:
                raise DataError("this model reads the calendar: give the series a timestamp column")
            self._tables["marks"] = torch.from_numpy(np.ascontiguousarray(made.marks))

    @property
    def epoch(self) -> int:
        """Windows of an epoch."""
        return min(len(self.windows), self.most or len(self.windows))

    @property
    def batches(self) -> int:
        """Batches of an epoch."""
        return -(-self.epoch // self.size)

    def indices(self, position: int) -> np.ndarray:
        """The windows of the batch at `position`, counted over all epochs."""
        epoch, place = divmod(position, self.batches)
        if self._order is None or self._order[0] != epoch:
            drawn = np.random.default_rng((self.seed, epoch)).permutation(len(self.windows))[: self.epoch]
            self._order = (epoch, drawn)
        return self._order[1][place * self.size : (place + 1) * self.size]

    def batch(self, position: int) -> Batch:
        """The batch at `position`."""
        return self.gather(self.indices(position))

    def gather(self, chosen: np.ndarray) -> Batch:
        """The batch of these windows, in this order."""
        made, processor = self.windows, self.processor
        starts = torch.from_numpy(np.asarray(made.starts[chosen], np.int64))
        rows = starts[:, None] + torch.arange(made.context + made.horizon)
        split = made.context
        values, seen = self._tables["values"][rows], self._tables["seen"][rows]
        inputs: dict[str, Tensor] = {"past_values": values[:, :split]}
        if processor.masked:
            inputs["past_observed_mask"] = seen[:, :split]
        if "marks" in self._tables:
            marks = self._tables["marks"][rows]
            inputs["past_time_features"], inputs["future_time_features"] = marks[:, :split], marks[:, split:]
        if processor.coded:
            number = FREQUENCIES.index(processor.frequency) if processor.frequency in FREQUENCIES else 0
            inputs["frequency"] = torch.full((len(starts),), number)
        targets: dict[str, Any] = {
            "start": starts,
            "future_values": values[:, split:],
            "future_observed_mask": seen[:, split:],
        }
        if processor.known:
            hidden = torch.ones(values.shape[-1], dtype=torch.bool)
            hidden[list(processor.known)] = False
            inputs["future_values"] = values[:, split:].masked_fill(hidden, 0.0)
        return Batch(inputs, targets)


def _covered(windows: Windows) -> np.ndarray:
    """(rows,) whether a row is in the past of a window."""
    edges = np.zeros(len(windows.values) + 1, np.int64)
    np.add.at(edges, windows.starts, 1)
    np.add.at(edges, windows.starts + windows.context, -1)
    return np.cumsum(edges)[:-1] > 0
