"""Training the models of a run within its budget, and the chosen one again on all rows."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from lightformers.bundle import Bundle
from lightformers.errors import UserError
from lightformers.forecast.contenders import Contender
from lightformers.forecast.forecaster import everything, of_bundle
from lightformers.forecast.judging import PARTS, Judge, Said
from lightformers.slim import numbers as n
from lightformers.tasks.forecasting import Forecasting
from lightformers.train import Diverged
from lightformers.train.forecasting import Epochs, Trained, train

#: A training shorter than this says nothing.
LEAST = 0.5
#: Seconds that a budget of too little still gives to training, shared out.
_FLOOR = 3.0
Told = Callable[[str], Callable[[dict[str, Any]], None]]


@dataclass
class Done:
    """A contender that was trained, or that needed none (training None), with what it said. untrained: what to say then."""

    contender: Contender
    said: Said
    training: Trained | None = None
    untrained: str = "The model forecasts as it was saved: nothing was trained on this series."


@dataclass(frozen=True)
class Refit:
    """Whether the forecaster was fitted anew to all rows, and the sentence that says so."""

    done: bool
    text: str
    seconds: float = 0.0


def trained(
    asked: Sequence[Contender], task: Forecasting, judge: Judge, seconds: float, seed: int, told: Told
) -> list[Done]:
    """Every contender, trained for its share of the seconds and judged. One that fails has the reason in its row."""
    learn = [c for c in asked if c.training is not None]
    shares = sum(c.share for c in learn)
    out = []
    for one in asked:
        said = Said(one.name, one.label, "model", of_bundle(one.bundle, task.targets), one.bundle.parameters)
        done = Done(one, said)
        if one.training is not None:
            started = time.monotonic()
            own = max(seconds, _FLOOR) * one.share / shares
            try:
                settings = Epochs(**{**one.training, "seconds": max(own, LEAST), "seed": seed})
                done.training = train(one.bundle, task, settings, told(one.label))
            except Diverged as error:
                said.error = str(error)
            said.seconds = time.monotonic() - started
        if not said.error:
            judged(said, judge)
        out.append(done)
    return out


def judged(said: Said, judge: Judge) -> None:
    """Let a model forecast the windows of both parts."""
    started = time.monotonic()
    mean, deviation = judge.scale
    try:
        for part in PARTS:
            said.take(judge, part, (said.forecaster(judge.task.splits[part]) - mean) / deviation)
    except UserError as error:
        said.error = str(error)
    said.seconds += time.monotonic() - started


def refit(
    done: Done | None, task: Forecasting, wanted: bool, left: float, seed: int, told: Told
) -> tuple[Refit, Bundle | None]:
    """The chosen model, made and trained anew on all rows for as many epochs as were best. done: None for a baseline.

    Returns what to say, and the new bundle, None where the old one stands.
    """
    if done is None:
        return Refit(False, "The baseline was fitted to all rows."), None
    if done.training is None:
        return Refit(False, done.untrained), None
    if not wanted:
        return Refit(
            False, "The model was trained on the train rows alone, as asked for by --no-refit."
        ), None
    one, training = done.contender, done.training
    whole = everything(task)
    larger = len(whole.splits["train"]) / len(task.splits["train"])
    most = int((one.training or {}).get("windows") or 0)
    if most and len(task.splits["train"]) >= most:
        larger = 1.0  # an epoch has as many windows as before
    expected = training.seconds / training.epochs * training.best_epoch * larger
    if expected > left:
        return Refit(
            False,
            f"It was not trained again on all rows: that would take about {n.duration(expected)}, and the budget leaves "
            f"{n.duration(max(left, 0.0))}. Give more --budget.",
        ), None
    assert one.make is not None
    started = time.monotonic()
    made = one.make()
    made.processor = one.bundle.processor
    epochs = training.best_epoch
    try:
        settings = Epochs(**{**(one.training or {}), "epochs": epochs, "patience": epochs, "seed": seed})
        train(made, whole, settings, told(f"{one.label}, all rows"))
    except UserError as error:
        return Refit(False, f"It was not trained again on all rows: {error}"), None
    seconds = time.monotonic() - started
    return Refit(
        True,
        f"After it was judged, the model was trained anew on all {n.count(len(task.series.values))} rows, for {epochs} "
        f"epoch{'s' if epochs > 1 else ''}, as many as were best before; that one forecasts and is saved.",
        seconds,
    ), made
