"""The baselines of `tasks.forecast_baselines` as forecasters of any window, judged beside the models."""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from lightformers.errors import MissingExtra, reason
from lightformers.forecast.forecaster import Array, Forecaster
from lightformers.forecast.judging import PARTS, Judge, Said
from lightformers.tasks import forecast_baselines
from lightformers.tasks.forecast_scores import Prediction
from lightformers.tasks.forecasting import Forecasting
from lightformers.tasks.windows import Windows

Make = Callable[..., Prediction]
_NAMES = {
    "seasonal-naive": ("Seasonal naive", forecast_baselines.seasonal_naive),
    "naive": ("Naive", forecast_baselines.naive),
    "ridge": ("Linear (ridge)", forecast_baselines.linear),
    "ets": ("ETS", forecast_baselines.ets),
}
NAMES = tuple(_NAMES)
NAMES = tuple(_NAMES)
#: Windows of both parts together that ETS is fitted to, at most.
_SMOOTHED = 80
#: Seconds that ETS gets at least.
_LEAST = 1.0


def judged(judge: Judge, seconds: float, told: Callable[[str], Any] = lambda name: None) -> list[Said]:
    """All baselines on the windows of both parts. seconds: for ETS, which is fitted to each window, so that few are taken.
    One that fails has the reason in its row."""
    task = judge.task
    asked = _asking(task, [task.splits[part] for part in PARTS])
    first = len(task.splits[PARTS[0]])
    out = []
    for name, (label, make) in _NAMES.items():
        told(label)
        started = time.monotonic()
        said = Said(name, label, "baseline", forecaster(name, task))
        more = {"windows": _SMOOTHED, "seconds": max(seconds, _LEAST)} if name == "ets" else {}
        try:
            made = make(asked, "asked", **more)
            for part, low, high in ((PARTS[0], 0, first), (PARTS[1], first, len(asked.splits["asked"]))):
                mine = (made.chosen >= low) & (made.chosen < high)
                said.take(judge, part, made.values[mine], made.chosen[mine] - low)
            said.note = made.note
        except MissingExtra as error:
            said.error = str(error)
        except (ValueError, np.linalg.LinAlgError) as error:
            said.error = reason(error)
        said.seconds = time.monotonic() - started
        out.append(said)
    return out


def forecaster(name: str, task: Forecasting) -> Forecaster:
    """A baseline that forecasts any windows of the series, in the units of the data; what it learns it learns from the
    task's train part."""

    def said(windows: Windows) -> Array:
        more = {"windows": len(windows), "seconds": float("inf")} if name == "ets" else {}
        made = _NAMES[name][1](_asking(task, [windows]), "asked", **more)
        chosen = list(task.targets)
        mean, deviation = (np.asarray(s)[chosen] for s in task.scale)
        return np.asarray(made.values * np.where(deviation > 0, deviation, 1.0) + mean, np.float64)

    return said


def _asking(task: Forecasting, windows: list[Windows]) -> Forecasting:
    """The task with these windows as the part "asked"; all of one table of values, which may go on beyond the series."""
    made = copy.copy(task)
    joined = dataclasses.replace(
        windows[0], starts=np.concatenate([w.starts for w in windows]),
        groups=np.concatenate([w.groups for w in windows]),
    )  # fmt: skip
    made.series = dataclasses.replace(task.series, values=joined.values, stamps=None)
    made.splits = {**task.splits, "asked": joined}
    return made
