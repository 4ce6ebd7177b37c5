"""Trend, season and residual of training rows by STL (Cleveland et al., 1990): targets for models that decompose.

STL looks both ways, so what it says of a row knows the rows after it. It is therefore fitted on training rows alone, and
its components are only ever targets of training, never inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightformers.bundle import Batch, Bundle
from lightformers.errors import MissingExtra, UserError

if TYPE_CHECKING:
    from lightformers.tasks.forecasting import Forecasting

#: Rows of a cycle where the rate of sampling is not known, as in TEMPO's code. It takes 24 for hours and 144 for ten
#: minutes, which are the seasons of such series here too, and 48 for quarters of an hour, where the season is 96.
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


def of_task(bundle: Bundle, task: Forecasting) -> Callable[[Batch], Tensor] | None:
    """Batch -> components of its windows, (batch, context, channels, 3), for a model whose `decomposition_weight` asks for
    them; None for any other, and where the training rows do not hold two cycles.

    Standardised as the bundle's processor does it. The batches say in targets["start"] at which row a window begins.
    """
    if not getattr(getattr(bundle.model, "config", None), "decomposition_weight", 0):
        return None
    rows = bundle.processor.standardise(task.series.values[: task.borders[0]])
    period = task.series.season if task.series.season > 1 else DEFAULT
    if len(rows) < 2 * period:
        return None
    known = Components.of(rows, period)

    def components(batch: Batch) -> Tensor:
        past = batch.inputs["past_values"]
        return known.windows(batch.targets["start"].tolist(), past.shape[1]).to(past.device)

    return components
