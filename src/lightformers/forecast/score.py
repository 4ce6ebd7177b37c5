"""How good forecasts were on windows whose future is known: errors, and comparisons of two forecasters on the same windows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightformers import stats
from lightformers.stats import METRICS, Metric, Scores

Array = NDArray[np.float64]
#: Blocks of time below which a bootstrap over them says nothing.
BLOCKS = 4
#: Mean absolute error over that of the seasonal naive forecast on the training rows (Hyndman and Koehler, 2006).
MASE = Metric("mase", METRICS["mae"].fn, higher_is_better=False)


@dataclass(frozen=True)
class Truth:
    """What came of some windows.

    values: (windows, horizon, targets) in the units of the data, NaN where nothing was observed. groups: (windows,) blocks of
    time that are resampled together. deviation: (targets,) of the training rows. naive: (targets,) mean absolute error of
    the seasonal naive forecast on the training rows.
    """

    values: Array
    groups: NDArray[np.int64]
    deviation: Array
    naive: Array

    def of(self, places: Sequence[int] | NDArray[Any]) -> Truth:
        """Of some windows alone."""
        return Truth(self.values[places], self.groups[places], self.deviation, self.naive)

    def errors(self, forecasts: Array) -> Array:
        """forecast - value, NaN where there is none. Raises ValueError where a forecast is not finite."""
        if not np.isfinite(forecasts).all():
            raise ValueError("a forecast is not finite")
        return forecasts - self.values

    def scores(self, forecasts: Array) -> dict[str, Scores]:
        """mse and mae in deviations of the training rows, and mase."""
        errors = self.errors(forecasts)
        scaled = errors / np.where(self.deviation > 0, self.deviation, 1.0)
        beside = np.abs(errors) / np.where(self.naive > 0, self.naive, np.nan)
        return {
            "mse": _rows(scaled**2, METRICS["mse"], self.groups),
            "mae": _rows(np.abs(scaled), METRICS["mae"], self.groups),
            "mase": _rows(beside, MASE, self.groups),
        }


def _rows(values: Array, metric: Metric, groups: NDArray[np.int64]) -> Scores:
    seen = np.isfinite(values)
    table = np.stack([np.where(seen, values, 0.0).sum((1, 2)), seen.sum((1, 2))], 1)
    return Scores(table.astype(float), metric, groups)


def naive_error(values: Array, season: int) -> Array:
    """(rows, targets) -> (targets,): mean |y_t - y_(t - season)| over what was observed; by one step where that is 0."""
    for apart in (min(season, max(len(values) - 1, 1)), 1):
        steps = np.abs(values[apart:] - values[:-apart])
        seen = np.isfinite(steps)
        found = np.where(seen, steps, 0.0).sum(0) / np.maximum(seen.sum(0), 1)
        if (found > 0).all():
            break
    return np.asarray(found, np.float64)


def told(scores: Scores) -> dict[str, float | None]:
    """Estimate with its 95 % interval, as a report holds it; no interval from fewer than `BLOCKS` blocks of time."""
    return _interval(stats.interval(scores), scores)


def ratio(row: Scores, other: Scores) -> dict[str, float | None] | None:
    """How many times the error of `other` the one of `row` is, paired, with its 95 % interval; None where that is 0."""
    try:
        found = stats.ratio(other, row)  # of errors stats.ratio takes the inverse: this is row / other
    except ZeroDivisionError:
        return None
    return _interval(found, row)


def _interval(found: stats.Interval, scores: Scores) -> dict[str, float | None]:
    few = scores.groups is not None and len(np.unique(scores.groups)) < BLOCKS
    return {
        "estimate": found.estimate, "low": None if few else found.low, "high": None if few else found.high
    }  # fmt: skip
