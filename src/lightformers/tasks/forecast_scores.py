"""Forecasts of the same windows side by side: MSE, MAE, MASE, with intervals over blocks of windows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lightformers import stats
from lightformers.errors import DataError
from lightformers.stats import METRICS, Interval, Metric, Scores

if TYPE_CHECKING:
    from lightformers.tasks.forecasting import Forecasting

MASE = Metric("mase", METRICS["mae"].fn, higher_is_better=False)


@dataclass(frozen=True)
class Prediction:
    """values: (windows, horizon, targets), standardised by the task's train rows. chosen: (windows,) which windows of
    the split they are. note: what a reader must know (how many windows, what was found on the way), or ""."""

    name: str
    values: NDArray[np.float32]
    chosen: NDArray[np.int64]
    split: str = "verify"
    note: str = ""


@dataclass(frozen=True)
class Line:
    """One forecast in a table. mase: None where the training rows repeat themselves without error.

    relative: its MSE over that of the table's first forecast, on the windows that both have.
    """

    name: str
    windows: int
    mse: Interval
    mae: Interval
    mase: Interval | None
    relative: float
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, for reports."""
        kept = {
            k: None if v is None else vars(v) for k, v in vars(self).items() if k in ("mse", "mae", "mase")
        }
        return {**vars(self), **kept}


def of_outputs(task: Forecasting, name: str, outputs: Sequence[Any], split: str = "verify") -> Prediction:
    """Forecasts of all windows of a split, (horizon, channels) or (horizon, targets) each, standardised."""
    values = np.stack([np.asarray(o, np.float32) for o in outputs])
    if values.shape[-1] == len(task.columns):
        values = values[..., list(task.targets)]
    if len(values) != len(task.splits[split]):
        raise DataError(f"{len(values)} forecasts for the {len(task.splits[split])} windows of {split}")
    return Prediction(name, values, np.arange(len(values)), split)


def standardised(task: Forecasting) -> NDArray[np.float32]:
    """(rows, targets) of the series, standardised by the train rows; missing values stay NaN."""
    return np.asarray(task.processor(masked=True).standardise(task.series.values)[:, list(task.targets)])


def futures(task: Forecasting, chosen: NDArray[np.int64], split: str = "verify") -> NDArray[np.float32]:
    """(windows, horizon, targets) of what came, standardised; NaN where nothing was observed."""
    first = task.splits[split].starts[chosen] + task.context
    return standardised(task)[first[:, None] + np.arange(task.horizon)]


def errors(task: Forecasting, made: Prediction) -> dict[str, Scores]:
    """Scores by name: mse, mae, and mase where it is defined. Their groups are the blocks of the windows."""
    if made.values.shape != (len(made.chosen), task.horizon, len(task.targets)):
        raise DataError(
            f"{made.name}: {made.values.shape} forecasts for {len(made.chosen)} windows of {task.horizon} rows and "
            f"{len(task.targets)} targets"
        )
    apart = made.values.astype(np.float64) - futures(task, made.chosen, made.split)
    seen = np.isfinite(apart)
    apart = np.where(seen, apart, 0.0)
    counts = seen.sum((1, 2)).astype(np.float64)
    groups = task.splits[made.split].groups[made.chosen]
    out = {
        "mse": Scores(np.stack([(apart**2).sum((1, 2)), counts], 1), METRICS["mse"], groups),
        "mae": Scores(np.stack([np.abs(apart).sum((1, 2)), counts], 1), METRICS["mae"], groups),
    }
    scale = mase_scale(task)
    usable = scale > 0
    if usable.any():
        scaled = (np.abs(apart) / np.where(usable, scale, 1.0))[..., usable].sum((1, 2))
        out["mase"] = Scores(
            np.stack([scaled, seen[..., usable].sum((1, 2)).astype(np.float64)], 1), MASE, groups
        )
    return out


def mase_scale(task: Forecasting) -> NDArray[np.float64]:
    """(targets,) mean absolute error of the seasonal naive forecast one season ahead within the train rows (Hyndman and
    Koehler, 2006), standardised; 0 where it makes none."""
    rows = standardised(task)[: task.borders[0]].astype(np.float64)
    lag = min(season(task), len(rows) - 1)
    apart = np.abs(rows[lag:] - rows[:-lag])
    seen = np.isfinite(apart)
    return np.asarray(np.where(seen, apart, 0.0).sum(0) / np.maximum(seen.sum(0), 1))


def season(task: Forecasting) -> int:
    """Rows of a season: that of the frequency, else the strongest peak of the autocorrelation of the train rows' steps,
    else 1."""
    if task.series.season > 1:
        return task.series.season
    rows = standardised(task)[: task.borders[0]][-4096:].astype(np.float64)
    steps = np.nan_to_num(np.diff(rows, axis=0))
    if len(steps) < 12:
        return 1
    steps = steps - steps.mean(0)
    size = 2 * len(steps)
    power = np.abs(np.fft.rfft(steps, size, axis=0)) ** 2
    like = np.fft.irfft(power, size, axis=0)[: len(steps) // 3]
    like = (like / np.maximum(like[:1], 1e-12)).mean(1)
    inner = like[2:-1]
    peaks = 2 + np.flatnonzero((inner >= like[1:-2]) & (inner > like[3:]))
    return int(peaks[np.argmax(like[peaks])]) if len(peaks) and like[peaks].max() > 0.3 else 1


def table(task: Forecasting, predictions: Sequence[Prediction], confidence: float = 0.95) -> list[Line]:
    """One line a forecast, in order. Intervals are percentiles of a bootstrap over blocks of windows.

    Raises DataError for forecasts of other shapes, or of different splits.
    """
    if len({p.split for p in predictions}) > 1:
        raise DataError("forecasts of different splits cannot be compared")
    out = []
    for made in predictions:
        found = errors(task, made)
        first = predictions[0]
        both, mine, theirs = np.intersect1d(made.chosen, first.chosen, return_indices=True)
        new, old = (_only(task, p, i, both) for p, i in ((made, mine), (first, theirs)))
        out.append(
            Line(
                made.name, len(made.chosen), stats.interval(found["mse"], confidence), stats.interval(found["mae"], confidence),
                stats.interval(found["mase"], confidence) if "mase" in found else None,
                new / old if old else float("nan"), made.note,
            )
        )  # fmt: skip
    return out


def _only(task: Forecasting, made: Prediction, places: NDArray[np.int64], chosen: NDArray[np.int64]) -> float:
    if not len(chosen):
        return 0.0
    return errors(task, Prediction(made.name, made.values[places], chosen, made.split))["mse"].value
