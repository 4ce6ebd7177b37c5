"""Forecasters judged on the same windows, and the choice among them."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightformers import stats
from lightformers.errors import UserError
from lightformers.forecast.forecaster import Array, Forecaster
from lightformers.stats import Scores
from lightformers.tasks import forecast_scores
from lightformers.tasks.forecast_scores import Prediction
from lightformers.tasks.forecasting import Forecasting

#: Blocks of time below which a bootstrap over them says nothing.
BLOCKS = 4
#: And in the search part, from which on it alone decides who forecasts.
ENOUGH = 10
PARTS = ("search", "verify")


@dataclass(frozen=True)
class Judge:
    """The windows of the search and verify parts of a task, of which the first `horizon` steps count."""

    task: Forecasting
    horizon: int

    @property
    def scored(self) -> Forecasting:
        """The task with these steps alone; its windows are those of the whole horizon."""
        made = copy.copy(self.task)
        made.horizon = self.horizon
        return made

    @property
    def scale(self) -> tuple[Array, Array]:
        """Mean and deviation of the targets over the train rows."""
        chosen = list(self.task.targets)
        mean, deviation = (np.asarray(s)[chosen] for s in self.task.scale)
        return mean, np.where(deviation > 0, deviation, 1.0)


@dataclass
class Said:
    """A forecaster and what it said. kind: "model" or "baseline". seconds: what it took, training included.

    By part: places: the windows that it was asked about; errors: forecast - value in the units of the data, (windows,
    horizon, targets), NaN where nothing was observed; scores: mse, mae and, where it is defined, mase.
    note: what a reader must know. error: why there is nothing.
    """

    name: str
    label: str
    kind: str
    forecaster: Forecaster
    parameters: int | None = None
    seconds: float = 0.0
    note: str = ""
    error: str = ""
    places: dict[str, NDArray[np.int64]] = field(default_factory=dict)
    errors: dict[str, Array] = field(default_factory=dict)
    scores: dict[str, dict[str, Scores]] = field(default_factory=dict)

    def take(
        self, judge: Judge, part: str, forecasts: NDArray[Any], places: NDArray[np.int64] | None = None
    ) -> None:
        """Note what was said of these windows of a part (None: of all): (windows, steps, targets), standardised.
        Raises DataError where the numbers do not fit."""
        chosen = np.arange(len(judge.task.splits[part])) if places is None else places
        made = Prediction(self.name, np.asarray(forecasts, np.float32)[:, : judge.horizon], chosen, part)
        self.scores[part] = forecast_scores.errors(judge.scored, made)
        truth = forecast_scores.futures(judge.scored, chosen, part)
        self.places[part], self.errors[part] = chosen, (made.values - truth).astype(float) * judge.scale[1]

    def mse(self, parts: Sequence[str] = PARTS) -> Scores:
        """Of these parts together."""
        found = [self.scores[part]["mse"] for part in parts]
        apart = [f.groups + 10**6 * i for i, f in enumerate(found) if f.groups is not None]
        return Scores(np.concatenate([f.stats for f in found]), found[0].metric, np.concatenate(apart))


def told(scores: Scores) -> dict[str, float | None]:
    """Estimate with its 95 % interval, as a report holds it; no interval from fewer than `BLOCKS` blocks of time."""
    return _interval(stats.interval(scores), scores)


def beside(one: Said, other: Said, parts: Sequence[str] = ("verify",)) -> dict[str, float | None] | None:
    """How many times the squared error of `other` the one of `one` is, on the windows that both were asked about, with its
    95 % interval where there are blocks enough. None where that of `other` is 0."""
    first, second = (_shared(a, b, parts) for a, b in ((one, other), (other, one)))
    try:
        found = stats.ratio(second, first)  # of errors stats.ratio takes the inverse: this is one / other
    except ZeroDivisionError:
        return None
    return _interval(found, first)


def _shared(said: Said, rival: Said, parts: Sequence[str]) -> Scores:
    kept = Said(said.name, said.label, said.kind, said.forecaster)
    for part in parts:
        full, both = said.scores[part]["mse"], np.isin(said.places[part], rival.places[part])
        assert full.groups is not None
        kept.scores[part] = {"mse": Scores(full.stats[both], full.metric, full.groups[both])}
    return kept.mse(parts)


def _interval(found: stats.Interval, scores: Scores) -> dict[str, float | None]:
    few = scores.groups is not None and len(np.unique(scores.groups)) < BLOCKS
    ends = (None, None) if few else (found.low, found.high)
    return {"estimate": found.estimate, "low": ends[0], "high": ends[1]}


def deciding(*rows: Said) -> tuple[str, ...]:
    """The parts that a choice between these looks at: the search part where all have `ENOUGH` blocks of time there, else both.

    Of a short series the search part alone would often choose by chance, and so it would for what was asked about few
    windows, as exponential smoothing is. Then the verify part counts, although the errors shown are of it: they are
    flattered a little by that, and the page says so.
    """
    groups = [r.scores["search"]["mse"].groups for r in rows]
    blocks = min(len(np.unique(g)) for g in groups if g is not None)
    return PARTS[:1] if blocks >= ENOUGH else PARTS


def choose(rows: Sequence[Said]) -> Said:
    """The one that forecasts where nobody named one: of the least squared error on the `deciding` parts, each beside the
    first of `rows` on the windows that both have. Raises UserError where all failed."""
    there = [r for r in rows if not r.error]
    if not there:
        raise UserError("no forecaster came to an end: " + "; ".join(f"{r.label}: {r.error}" for r in rows))
    first = there[0]

    def error(said: Said) -> float:
        found = None if said is first else beside(said, first, deciding(said, first))
        return 1.0 if found is None else float(found["estimate"] or 0.0)

    return min(there, key=error)


def row(said: Said, chosen: Said) -> dict[str, Any]:
    """What the report holds of a forecaster."""
    base: dict[str, Any] = {
        "name": said.name, "label": said.label, "kind": said.kind, "parameters": said.parameters,
        "seconds": said.seconds, "note": said.note, "error": said.error,
    }  # fmt: skip
    if said.error:
        return base
    verify = said.scores["verify"]
    return base | {
        "windows": len(said.places["verify"]), "search": said.scores["search"]["mse"].value,
        **{name: told(verify[name]) if name in verify else None for name in ("mse", "mae", "mase")},
        "ratio": None if said is chosen else beside(said, chosen),
    }  # fmt: skip
