"""What a forecasting task refuses: series that are too short or say nothing, and models that were made for others."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lightformers.errors import DataError, ModelError
from lightformers.processors.series import SeriesProcessor
from lightformers.stats import METRICS
from lightformers.tasks.common import note
from lightformers.tasks.series import Series

if TYPE_CHECKING:
    from lightformers.bundle import Bundle
    from lightformers.tasks.forecasting import Forecasting

#: The longest context that is chosen where none is asked for.
_LONGEST = 512


def places(found: Series, names: str | Sequence[str] | None, option: str) -> tuple[int, ...]:
    """Places of the named columns. Raises DataError naming those that there are."""
    wanted = [names] if isinstance(names, str) else list(names or ())
    absent = [n for n in wanted if n not in found.columns]
    if absent:
        raise DataError(
            f"no numeric column {absent[0]!r} for --{option}; numeric columns: {', '.join(found.columns)}"
        )
    return tuple(sorted({found.columns.index(n) for n in wanted}))


def largest(found: Series, horizon: int, borders: tuple[int, int, int]) -> int:
    """A context for a series where none is asked for: twice the horizon or season, as far as the train rows allow."""
    season = found.season if found.season > 1 else 12
    wanted = min(max(2 * horizon, 2 * season), max(_LONGEST, 2 * season))
    return max(min(wanted, borders[0] // 3), 2)


def limits(task: Forecasting) -> None:
    """DataError for a horizon, context or series from which nothing can be learned."""
    rows, (first, second, last) = len(task.series.values), task.borders
    if task.horizon < 1 or task.context < 1:
        raise DataError(
            f"the horizon and the context are at least 1 row, not {task.horizon} and {task.context}"
        )
    if task.horizon >= rows:
        raise DataError(
            f"the horizon is {task.horizon} rows, the whole series {rows}: take a shorter one, or give more data"
        )
    if task.kind not in ("mse", "mae"):
        raise DataError(
            f"unknown metric {task.kind!r}; forecasting has mse and mae, not {', '.join(METRICS)}"
        )
    if task.stride is not None and task.stride < 1:
        raise DataError(f"the stride is at least 1 row, not {task.stride}")
    parts = {"train": (first, task.context + task.horizon), "search": (second - first, task.horizon),
             "verify": (last - second, task.horizon)}  # fmt: skip
    for name, (given, needed) in parts.items():
        if given < needed:
            raise DataError(
                f"the series is too short: its {name} part has {given} of {rows} rows, and a context of {task.context} with a "
                f"horizon of {task.horizon} needs at least {needed} there. Give more data, a shorter horizon or context, or "
                "another split"
            )
    if not task.targets:
        raise DataError("every column is known in the future: nothing is left to forecast")
    both = set(task.targets) & set(task.known)
    if both:
        names = ", ".join(task.columns[i] for i in sorted(both))
        raise DataError(f"{names} cannot be a target and known in the future at once")
    _says_something(task)


def _says_something(task: Forecasting) -> None:
    past = task.series.values[: task.borders[0]]
    seen = np.isfinite(past)
    for i in task.targets:
        column = past[seen[:, i], i]
        name = task.columns[i]
        if not len(column):
            raise DataError(
                f"{name} holds no value in the {len(past)} rows to train on: leave it out, or name the columns to forecast "
                "with --target"
            )
        if (column == column[0]).all():
            raise DataError(
                f"{name} is constant ({column[0]:g}) in the {len(past)} rows to train on: there is nothing to forecast. "
                "Leave it out, or name the columns to forecast with --target"
            )
    _, deviation = task.scale
    flat = [task.columns[i] for i in range(len(task.columns)) if i not in task.targets and not deviation[i]]
    if flat:
        note(task.warnings, f"inputs that are constant in the rows to train on: {', '.join(flat)}")


def fit_to(task: Forecasting, bundle: Bundle) -> None:
    """See `Forecasting.check`."""
    config = getattr(bundle.model, "config", None)
    held = bundle.processor
    if held is not None and not isinstance(held, SeriesProcessor):
        raise ModelError(
            f"the bundle's processor is a {type(held).__name__}; a forecaster has a SeriesProcessor, or none yet"
        )
    length = held.context_length if held else getattr(config, "context_length", None)
    horizon = held.prediction_length if held else getattr(config, "prediction_length", None)
    if horizon is not None and horizon != task.horizon:
        raise DataError(
            f"the model forecasts {horizon} rows, the task asks for {task.horizon}: give --horizon {horizon}"
        )
    if length is not None and length != task.context:
        if not task.open_context:
            raise DataError(
                f"the model reads {length} rows of the past, the task gives {task.context}: give --context {length}"
            )
        task.context, before = int(length), task.context
        try:
            limits(task)
        except DataError:
            task.context = before
            raise
        task._cut()
    channels = getattr(config, "num_input_channels", None)
    if channels and channels != len(task.columns):
        raise DataError(
            f"the model was made for {channels} columns, the series has {len(task.columns)} ({', '.join(task.columns)}): "
            "name the ones to use with --columns"
        )
    if held is None:
        bundle.processor = _made_for(task, bundle.model, config)
        bundle.task = bundle.task or task.name
        return
    _same(task, held)


def _made_for(task: Forecasting, model: Any, config: Any) -> SeriesProcessor:
    takes = inspect.signature(model.forward).parameters
    if task.missing and "past_observed_mask" not in takes:
        raise DataError(
            f"the series has missing values, and a {type(model).__name__} takes no past_observed_mask: fill them first"
        )
    marks, known = (bool(getattr(config, name, None)) for name in ("num_time_features", "known_channels"))
    coded = bool(getattr(config, "resolution_prefix", False))
    return task.processor(marks=marks, known=known, coded=coded)


def _same(task: Forecasting, held: SeriesProcessor) -> None:
    if held.columns != task.columns:
        raise DataError(
            f"the model was made for the columns {', '.join(held.columns)}, the series has {', '.join(task.columns)}: "
            "name them, in that order, with --columns"
        )
    forecast = held.targets if held.targets is not None else tuple(range(len(held.columns)))
    beyond = [task.columns[i] for i in task.targets if i not in forecast and i not in held.known]
    if beyond:
        names = ", ".join(held.columns[i] for i in forecast)
        raise DataError(
            f"the model forecasts {names}, not {', '.join(beyond)}: name what it forecasts with --target"
        )
    asked = [held.columns[i] for i in held.known if i not in task.known]
    if asked:
        raise DataError(
            f"the model reads the future of {', '.join(asked)}: say that it is known with --known {','.join(asked)}"
        )
    if held.marks and (found := task.series.marks()) is None:
        raise DataError("the model reads the calendar: name the column of time stamps with --timestamp")
    elif held.marks and found is not None and found.shape[1] != held.marks:
        raise DataError(
            f"the model reads {held.marks} calendar features (frequency {held.frequency or 'unknown'}), this series has "
            f"{found.shape[1]} (frequency {task.series.frequency or 'unknown'})"
        )
    if task.missing and not held.masked:
        raise DataError(
            "the series has missing values, and the model was made for series without: fill them first, or train it on "
            "a series that has some"
        )
    mean, deviation = task.scale
    if not (np.allclose(mean, held.mean, rtol=1e-3) and np.allclose(deviation, held.deviation, rtol=1e-3)):
        note(
            task.warnings,
            "the model standardises by the rows it was trained on, not by these: errors are in its units",
        )
