"""What forecasts windows, be it a model or a baseline: `forecaster(windows) -> (windows, horizon, targets)`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from lightformers.bundle import Bundle
from lightformers.errors import ModelError
from lightformers.tasks import stamps, windows
from lightformers.tasks.forecasting import Forecasting
from lightformers.tasks.windows import Windows
from lightformers.train.forecasting import forecast
from lightformers.train.windows import WindowFeed

Array = NDArray[np.float64]
#: Windows -> what is forecast of the targets, in the units of the data.
Forecaster = Callable[[Windows], Array]
#: Windows that go through a model at once.
_BATCH = 256
#: Numbers that the forecasts of a split may have; with more, fewer windows are looked at, evenly spread.
_MOST = 1 << 24


def of_bundle(bundle: Bundle, targets: Sequence[int]) -> Forecaster:
    """The model with its processor, in eval mode. Raises ModelError where a forecast is not finite."""

    @torch.inference_mode()
    def said(given: Windows) -> Array:
        feed = WindowFeed(given, bundle.processor, _BATCH)
        model = bundle.model.eval()
        parts = []
        for start in range(0, len(given), _BATCH):
            batch = feed.gather(np.arange(start, min(start + _BATCH, len(given))))
            parts.append(forecast(model(**batch.inputs)).double().numpy())
        made = np.concatenate(parts)
        if not np.isfinite(made).all():
            raise ModelError("the model's forecast is not finite: train it longer or with another --seed")
        chosen = list(targets)
        mean, deviation = np.asarray(bundle.processor.mean), np.asarray(bundle.processor.deviation)
        if made.shape[-1] == len(mean):
            made = made[..., chosen]
        scale = np.where(deviation > 0, deviation, 1.0)
        return np.asarray(made * scale[chosen] + mean[chosen], np.float64)

    return said


def bounded(task: Forecasting) -> None:
    """Leaves so few windows in the search and verify parts, evenly spread, that their forecasts fit into memory."""
    most = max(_MOST // (task.horizon * len(task.targets)), 1)
    for part in ("search", "verify"):
        given = task.splits[part]
        if len(given) > most:
            places = np.unique(np.linspace(0, len(given) - 1, most).round().astype(int))
            task.splits[part] = dataclasses.replace(
                given, starts=given.starts[places], groups=given.groups[places]
            )


def last(task: Forecasting) -> Windows:
    """The window whose future are the last rows of the series."""
    rows, span = len(task.series.values), task.context + task.horizon
    return Windows(
        task.series.values,
        task.series.marks(),
        np.array([rows - span]),
        np.zeros(1, np.int64),
        task.context,
        task.horizon,
    )


def beyond(task: Forecasting, known: Array | None, marked: bool) -> Windows:
    """The window whose past are the last rows: its future holds nothing but the known columns, (steps, known).

    known may be shorter than the horizon. marked: the calendar of the future is read; raises DataError where the stamps keep
    no step.
    """
    values, rows = task.series.values, len(task.series.values)
    ahead = np.full((task.horizon, values.shape[1]), np.nan)
    if known is not None:
        ahead[: len(known), list(task.known)] = known[: task.horizon]
    marks = task.series.marks()
    if marks is not None:
        if marked and task.series.stamps is not None:
            when = stamps.following(task.series.stamps, task.horizon)
            later = stamps.time_features(when, task.series.frequency)
        else:
            later = np.zeros((task.horizon, marks.shape[1]), np.float32)
        marks = np.concatenate([marks, later])
    return Windows(
        np.concatenate([values, ahead]),
        marks,
        np.array([rows - task.context]),
        np.zeros(1, np.int64),
        task.context,
        task.horizon,
    )


def everything(task: Forecasting) -> Forecasting:
    """The task whose train part are all rows. Scale, search and verify parts are as they were: what a model learnt from in
    this task cannot be judged by them."""
    made = dataclasses.replace(task)
    block = max(task.horizon, task.series.season)
    made.splits["train"] = windows.cut(
        task.series.values,
        task.series.marks(),
        (0, len(task.series.values)),
        task.context,
        task.horizon,
        1,
        block,
        task.targets,
    )
    return made
