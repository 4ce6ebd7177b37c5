"""Trend, season and residual of training rows by STL (Cleveland et al., 1990): targets for models that decompose.

STL looks both ways, so what it says of a row knows the rows after it. It is therefore fitted on training rows alone, and
its components are only ever targets of training, never inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lightformers.bundle import Batch
from lightformers.errors import MissingExtra, UserError

#: Rows of a cycle by the rate of sampling, as TEMPO's code takes them; any other: DEFAULT.
PERIODS = {"h": 24, "10min": 144}
DEFAULT = 48


@dataclass(frozen=True)
class Components:
    """values: (rows, channels, 3), trend, season and residual of the training rows, in the units that they were given in."""

    values: NDArray[np.float32]

    @classmethod
    def of(cls, rows: NDArray[Any], period: int) -> Components:
        """By STL of every channel. rows: (rows, channels), the training rows alone, in order; NaN is bridged by a line.

        Raises UserError for fewer than two cycles, a period below 2 and a channel without values; MissingExtra without
        statsmodels.
        """
        values = np.asarray(rows, np.float64)
        if values.ndim != 2:
            raise UserError(f"rows are (rows, channels), not {values.shape}")
        if period < 2 or len(values) < 2 * period:
            raise UserError(f"{len(values)} rows do not hold two cycles of {period}")
        try:
            from statsmodels.tsa.seasonal import STL
        except ImportError as error:
            raise MissingExtra("forecasting", "statsmodels") from error
        out = np.empty((*values.shape, 3), np.float32)
        for channel, column in enumerate(values.T):
            found = STL(_bridged(column, channel), period=period).fit()
            out[:, channel] = np.stack([found.trend, found.seasonal, found.resid], 1)
        return cls(out)

    def windows(self, starts: Sequence[int], length: int) -> Tensor:
        """(windows, length, channels, 3), of the rows from each start on. Raises UserError beyond the training rows."""
        if len(starts) and not 0 <= min(starts) <= max(starts) <= len(self.values) - length:
            raise UserError(
                f"components are known of the {len(self.values)} training rows alone; a window of {length} from row "
                f"{max(starts)} is not among them"
            )
        return torch.from_numpy(np.stack([self.values[i : i + length] for i in starts]))


def _bridged(column: NDArray[np.float64], channel: int) -> NDArray[np.float64]:
    seen = np.isfinite(column)
    if seen.all():
        return column
    if not seen.any():
        raise UserError(f"channel {channel} has no values in the training rows")
    places = np.arange(len(column))
    return np.interp(places, places[seen], column[seen])


def objective(components: Components, first: int = 0) -> Callable[[nn.Module, Batch], Tensor]:
    """(model, batch) -> `model.training_loss` with the components of the batch's windows as targets.

    For batches of a forecasting task, whose examples say in "start" at which row they begin; first: the row of the series
    at which `components` begin.
    """

    def loss(module: nn.Module, batch: Batch) -> Tensor:
        model: Any = module
        starts = [int(e["start"]) - first for e in batch.targets["examples"]]
        wanted = components.windows(starts, batch.inputs["past_values"].shape[1])
        found: Tensor = model.training_loss(
            batch.inputs, batch.targets["future_values"], batch.targets.get("future_observed_mask"),
            wanted.to(batch.inputs["past_values"].device),
        )  # fmt: skip
        return found

    return loss
