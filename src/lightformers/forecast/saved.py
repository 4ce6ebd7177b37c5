"""Models that a folder holds, for a series that they may not have been made for."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from lightformers.bundle import Bundle, load
from lightformers.errors import DataError, ModelError
from lightformers.forecast.contenders import FAMILIES, MODEL, Contender, masked, outfitted, paced
from lightformers.models import forecasting as presets
from lightformers.processors.series import SeriesProcessor
from lightformers.tasks.forecasting import Forecasting


def folder_of(name: str) -> Path | None:
    """The model's folder that --model means, also by the folder of the run that saved it; None for a name."""
    if name in FAMILIES or name in presets.PRESETS or not Path(name).is_dir():
        return None
    inner = Path(name) / MODEL
    return (
        inner
        if (inner / "config.json").is_file() and not (Path(name) / "config.json").is_file()
        else Path(name)
    )


def opened(folder: str | Path) -> Bundle:
    """The forecaster in a folder. Raises ModelError where it holds none."""
    bundle = load(folder, task="forecasting")
    if not getattr(bundle.model.config, "context_length", None):
        raise ModelError(f"{folder} holds no forecaster: its config.json names no context_length")
    return bundle


def fitted(bundle: Bundle, task: Forecasting, adapt: bool, folder: str) -> Contender:
    """The model of a folder for this series. For the columns that it was made for it keeps its scale; other series are
    standardised by their own training rows. Raises DataError where it cannot read them."""
    held, config = bundle.processor, bundle.model.config
    channels = getattr(config, "num_input_channels", None)
    if channels and channels != len(task.columns):
        raise DataError(
            f"the model in {folder} reads {channels} columns together, the series has {len(task.columns)} "
            f"({', '.join(task.columns)}): train one, without --model {folder}"
        )
    same = (
        isinstance(held, SeriesProcessor) and held.columns == task.columns and held.known in ((), task.known)
    )
    if same and held.prediction_length == task.horizon:
        if task.missing and not held.masked:
            masked(bundle.model)
            bundle.processor = dataclasses.replace(held, masked=True)
    else:
        outfitted(bundle.model, task, bundle)
    kin = [f for f in FAMILIES.values() if f.model.endswith(f":{type(bundle.model).__name__}")]
    label = f"{kin[0].label if kin else type(bundle.model).__name__} ({folder})"
    if not adapt:
        return Contender(folder, label, bundle, None)
    training = paced(kin[0].training if kin else {}, task)
    frozen = kin[0].frozen if kin else ()
    slower = training["lr"] if frozen else training["lr"] / 4
    return Contender(
        folder, label, bundle, {**training, "lr": slower, "frozen": frozen}, make=bundle.copy().copy
    )


def reaching(bundle: Bundle, horizon: int | None) -> int:
    """The steps that a saved model forecasts: made fewer or more where its kind allows that, as near to `horizon` as can be."""
    config: Any = bundle.model.config
    most = getattr(config, "head_length", None) or config.prediction_length
    if type(bundle.model).__name__ == "GPHT" and horizon:
        most = horizon  # it goes on segment by segment
    if horizon and horizon <= most and most != config.prediction_length:
        config.prediction_length = horizon
        if isinstance(bundle.processor, SeriesProcessor):
            bundle.processor = dataclasses.replace(bundle.processor, prediction_length=horizon)
    return int(config.prediction_length)
