"""Intervals by split conformal prediction (Vovk et al., 2005; Lei et al., 2018), for every step of the horizon by itself.

A forecast's interval is as wide as its errors were on windows that the model did not learn from: half the width at a step is
the ceil((n + 1) level)-th smallest absolute error of that step among n windows. Windows of a series overlap and series change,
so the guarantee of exchangeable data does not hold; what the intervals cover is therefore measured on later windows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightformers.errors import DataError
from lightformers.stats import METRICS, Metric, Scores

COVERAGE = Metric("coverage", METRICS["accuracy"].fn)
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Widths:
    """half: (horizon, targets), half of the interval's width at each step. neighbours: to how many steps on either side the
    errors were taken from, where a step's own were too few. short: even all steps together were: the largest error stands.
    """

    half: Array
    neighbours: int = 0
    short: bool = False

    def bounds(self, forecast: Array) -> tuple[Array, Array]:
        """(..., horizon, targets) -> the lower and the upper end."""
        return forecast - self.half, forecast + self.half


def needed(level: float) -> int:
    """Errors without which no interval of this level has an end: the least n with ceil((n + 1) level) <= n."""
    return math.ceil(level / (1 - level) - 1e-9)


def widths(errors: Array, level: float) -> Widths:
    """errors: (windows, horizon, targets), NaN where nothing was observed. level: share to be covered, in (0, 1).

    A step with fewer errors than `needed` borrows those of its neighbours. Raises DataError for a target without errors.
    """
    if not 0 < level < 1:
        raise ValueError(f"a level is in (0, 1), not {level}")
    _, horizon, targets = errors.shape
    half = np.empty((horizon, targets))
    most, short = 0, False
    for t in range(targets):
        if not np.isfinite(errors[:, :, t]).any():
            raise DataError("nothing was observed where the intervals are to be learnt: give more data")
        for h in range(horizon):
            reach, found = 0, _there(errors[:, h : h + 1, t])
            while len(found) < needed(level) and reach < horizon:
                reach += 1
                found = _there(errors[:, max(h - reach, 0) : h + reach + 1, t])
            rank = math.ceil((len(found) + 1) * level - 1e-9)
            half[h, t] = np.sort(found)[min(rank, len(found)) - 1]
            most, short = max(most, reach), short or rank > len(found)
    return Widths(half, most, short)


def _there(values: Any) -> Array:
    flat = np.abs(np.asarray(values, np.float64)).ravel()
    return flat[np.isfinite(flat)]


def coverage(errors: Array, found: Widths, groups: NDArray[Any] | None = None) -> Scores:
    """How many of the observed values lie within: (inside, observed) per window, for an interval by the bootstrap."""
    seen = np.isfinite(errors)
    inside = seen & (np.abs(np.where(seen, errors, 0.0)) <= found.half)
    return Scores(np.stack([inside.sum((1, 2)), seen.sum((1, 2))], 1).astype(float), COVERAGE, groups)
