"""Forecasters judged on the same windows, and the choice among them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightformers.errors import UserError
from lightformers.forecast import score
from lightformers.forecast.forecaster import Array, Forecaster, bounded, futures, taken
from lightformers.forecast.score import BLOCKS, Truth
from lightformers.stats import Scores
from lightformers.tasks.forecasting import Forecasting
from lightformers.tasks.windows import Windows

_PARTS = ("search", "verify")


@dataclass
class Judge:
    """The windows of the search and verify parts, and what came of them. horizon: steps that count, from the first."""

    windows: dict[str, Windows]
    truth: dict[str, Truth]
    horizon: int
    targets: tuple[int, ...]

    @classmethod
    def of(cls, task: Forecasting, horizon: int) -> Judge:
        """All windows, or as many as fit into memory."""
        chosen = list(task.targets)
        rows = task.series.values[: task.borders[0]][:, chosen]
        deviation = np.asarray(task.scale[1])[chosen]
        naive = score.naive_error(rows, task.series.season)
        windows = {name: bounded(task.splits[name], len(chosen)) for name in _PARTS}
        truth = {
            name: Truth(futures(w, chosen)[:, :horizon], w.groups, deviation, naive) for name, w in windows.items()
        }  # fmt: skip
        return cls(windows, truth, horizon, task.targets)

    @property
    def blocks(self) -> int:
        """Blocks of time in the search part."""
        return len(np.unique(self.windows["search"].groups))


@dataclass
class Said:
    """A forecaster and what it said. places: the windows of each part that it was asked about. error: why there is nothing."""

    name: str
    label: str
    kind: str  # "model" or "baseline"
    forecaster: Forecaster | None
    parameters: int | None = None
    seconds: float = 0.0
    places: dict[str, NDArray[Any]] = field(default_factory=dict)
    errors: dict[str, Array] = field(default_factory=dict)
    scores: dict[str, dict[str, Scores]] = field(default_factory=dict)
    error: str = ""

    def ask(self, judge: Judge, most: int | None = None) -> Said:
        """Forecast the windows of both parts, at most so many of each, evenly spread; the time counts to its seconds."""
        started = time.monotonic()
        for part in _PARTS:
            whole = judge.windows[part]
            places = np.arange(len(whole))
            if most is not None and most < len(whole):
                places = np.unique(np.linspace(0, len(whole) - 1, most).round().astype(int))
            assert self.forecaster is not None
            try:
                said = self.forecaster(taken(whole, places))[:, : judge.horizon]
                truth = judge.truth[part].of(places)
                self.scores[part] = truth.scores(said)
            except (UserError, ValueError, np.linalg.LinAlgError) as error:
                self.error = str(error).splitlines()[0]
                break
            self.places[part], self.errors[part] = places, truth.errors(said)
        self.seconds += time.monotonic() - started
        return self

    def mse(self, parts: Sequence[str] = _PARTS) -> Scores:
        """Of these parts together."""
        found = [self.scores[part]["mse"] for part in parts]
        apart = [f.groups + 10**6 * i for i, f in enumerate(found) if f.groups is not None]
        return Scores(np.concatenate([f.stats for f in found]), found[0].metric, np.concatenate(apart))


def beside(judge: Judge, one: Said, other: Said, parts: Sequence[str] = ("verify",)) -> dict[str, Any] | None:
    """How many times the squared error of `other` the one of `one` is, on the windows that both were asked about; with its
    95 % interval where there are blocks enough. None where that of `other` is 0."""
    pairs = []
    for said in (one, other):
        rival = other if said is one else one
        kept = {p: np.isin(said.places[p], rival.places[p]) for p in parts}
        whole = Said(said.name, said.label, said.kind, None)
        for p in parts:
            full = said.scores[p]["mse"]
            assert full.groups is not None
            whole.scores[p] = {"mse": Scores(full.stats[kept[p]], full.metric, full.groups[kept[p]])}
        pairs.append(whole.mse(parts))
    return score.ratio(pairs[0], pairs[1])


def choose(judge: Judge, rows: Sequence[Said]) -> tuple[Said, str]:
    """The one that forecasts where nobody named one, and a sentence where the reader must know how it came to that.

    Chosen by the squared error on the search part, each beside the first of `rows` on the windows that both have; of both
    parts where the search part has too few blocks to choose by. Another is taken if the verify part says, beyond its 95 %
    interval, that it is better.
    """
    there = [r for r in rows if not r.error]
    if not there:
        raise UserError("no forecaster came to an end: " + "; ".join(f"{r.label}: {r.error}" for r in rows))
    few = judge.blocks < BLOCKS
    parts = _PARTS if few else ("search",)

    def error(said: Said) -> float:
        if said is there[0]:
            return 1.0
        found = beside(judge, said, there[0], parts)
        return said.mse(parts).value if found is None else float(found["estimate"])

    best = min(there, key=error)
    if few:
        why = "The series is too short to keep choice and judgement apart: the errors by which it was chosen are those shown."
        return best, why
    sure = [(found["high"], r) for r in there if r is not best and (found := beside(judge, r, best)) and found["high"] is not None and found["high"] < 1]  # fmt: skip
    if not sure:
        return best, ""
    other = min(sure, key=lambda pair: pair[0])[1]
    return other, (
        f"{best.label} was better on the search rows, but the held-out rows, which come later, speak clearly for {other.label}."
    )


def row(judge: Judge, said: Said, chosen: Said) -> dict[str, Any]:
    """What the report holds of a forecaster."""
    base: dict[str, Any] = {
        "name": said.name, "label": said.label, "kind": said.kind, "parameters": said.parameters,
        "seconds": said.seconds, "error": said.error,
    }  # fmt: skip
    if said.error:
        return base
    verify = said.scores["verify"]
    return base | {
        "windows": len(said.places["verify"]), "search": said.scores["search"]["mse"].value,
        **{name: score.told(found) for name, found in verify.items()},
        "ratio": None if said is chosen else beside(judge, said, chosen),
    }  # fmt: skip
