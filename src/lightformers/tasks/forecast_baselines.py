"""What a forecaster must beat: the last value, the last season, a linear map, exponential smoothing.

Each makes forecasts of the windows of a split from what lies before them. Values are standardised by the train rows.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from lightformers.errors import MissingExtra
from lightformers.tasks.forecast_scores import Line, Prediction, season, standardised, table

if TYPE_CHECKING:
    from lightformers.tasks.forecasting import Forecasting

__all__ = ["Line", "Prediction", "all_of", "ets", "linear", "naive", "seasonal_naive", "table"]

#: Ridge penalties that are tried, as shares of the mean of the Gram matrix's diagonal.
_PENALTIES = (1e-6, 1e-4, 1e-3, 1e-2, 0.1, 1.0)
_MOST = 20_000  # training windows of the linear map; more change nothing
_ROWS = 16_384  # rows of a chunk of its least squares


def all_of(task: Forecasting, split: str = "verify", smoothing: bool = True) -> list[Prediction]:
    """The four baselines, seasonal naive first. smoothing: fit ETS too, which takes seconds and needs statsmodels."""
    made = [seasonal_naive(task, split), naive(task, split), linear(task, split)]
    return [*made, ets(task, split)] if smoothing else made


def naive(task: Forecasting, split: str = "verify") -> Prediction:
    """The last observed value, for the whole horizon."""
    held, chosen, ends = _history(task, split)
    values = np.repeat(_forward(held)[ends - 1][:, None], task.horizon, 1)
    return Prediction("naive", values, chosen, split)


def seasonal_naive(task: Forecasting, split: str = "verify", lag: int | None = None) -> Prediction:
    """The last season again and again. lag: its rows; None: `forecast_scores.season`.

    Where a value of it is missing, that of a season before is taken, and the last observed one where there is none.
    """
    lag = season(task) if lag is None else lag
    if lag <= 1:
        made = naive(task, split)
        return Prediction(
            "seasonal naive", made.values, made.chosen, split, "no season was found: the last value"
        )
    held, chosen, ends = _history(task, split)
    plain, seasonal = _forward(held), held.copy()
    for start in range(lag, len(held), lag):  # only ever from the past
        part = seasonal[start : start + lag]
        part[:] = np.where(np.isfinite(part), part, seasonal[start - lag : start - lag + len(part)])
    rows = ends[:, None] - lag + np.arange(task.horizon) % lag
    found = np.where(rows[..., None] >= 0, seasonal[np.maximum(rows, 0)], np.nan)
    values = np.where(np.isfinite(found), found, plain[ends - 1][:, None]).astype(np.float32)
    return Prediction("seasonal naive", values, chosen, split, f"a season of {lag} rows")


def linear(task: Forecasting, split: str = "verify") -> Prediction:
    """Ridge regression from the window to the horizon: one map for all channels (Zeng et al., arXiv 2205.13504).

    The window's last value, or its mean, is taken off before and put back after; that and the penalty are what does
    best on the search split. Closed form: least squares over (window, channel) pairs, at most 20,000 windows.
    """
    held = _forward(standardised(task)).astype(np.float64)
    starts = task.splits["train"].starts
    starts = starts[:: -(-len(starts) // _MOST)]
    best: tuple[float, NDArray[np.float64], Literal["last", "mean"]] | None = None
    search = task.splits["search"].starts
    search = search[:: -(-len(search) // 1000)]
    centres: tuple[Literal["last", "mean"], ...] = ("last", "mean")
    for centre in centres:
        gram, cross = _normal(task, held, starts, centre)
        values, vectors = np.linalg.eigh(gram)
        turned, scale = vectors.T @ cross, np.trace(gram) / len(gram)
        for penalty in _PENALTIES:
            weights = vectors @ (turned / (np.maximum(values, 0.0) + penalty * scale + 1e-12)[:, None])
            past, future, _ = _pairs(task, held, search, centre)
            error = float(((past @ weights - future) ** 2).mean())
            if best is None or error < best[0]:
                best = (error, weights, centre)
    assert best is not None
    _, weights, centre = best
    chosen = np.arange(len(task.splits[split]))
    out = []
    for start in range(0, len(chosen), 512):
        part = task.splits[split].starts[start : start + 512]
        past, _, middle = _pairs(task, held, part, centre)
        made = past @ weights + middle
        out.append(made.reshape(len(part), -1, task.horizon).transpose(0, 2, 1).astype(np.float32))
    gaps = "; missing values were filled with the last observed one to fit it" if task.missing else ""
    taken = "last value" if centre == "last" else "mean"
    return Prediction("linear", np.concatenate(out), chosen, split, f"ridge, less the window's {taken}{gaps}")


def _pairs(
    task: Forecasting, held: NDArray[np.float64], starts: NDArray[np.int64], centre: str
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Past (n, context), future (n, horizon) and what was taken off, (n, 1), for all (window, channel) pairs."""
    rows = held[starts[:, None] + np.arange(task.context + task.horizon)].transpose(0, 2, 1)
    rows = rows.reshape(-1, task.context + task.horizon)
    past = rows[:, : task.context]
    middle = past[:, -1:] if centre == "last" else past.mean(1, keepdims=True)
    return past - middle, rows[:, task.context :] - middle, middle


def _normal(
    task: Forecasting, held: NDArray[np.float64], starts: NDArray[np.int64], centre: str
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """past' past and past' future, summed in chunks."""
    gram, cross = np.zeros((task.context, task.context)), np.zeros((task.context, task.horizon))
    step = max(_ROWS // held.shape[1], 1)
    for first in range(0, len(starts), step):
        past, future, _ = _pairs(task, held, starts[first : first + step], centre)
        gram += past.T @ past
        cross += past.T @ future
    return gram, cross


def ets(
    task: Forecasting, split: str = "verify", windows: int = 40, seconds: float = 60.0, lag: int | None = None
) -> Prediction:
    """Exponential smoothing with damped trend and additive season (Holt and Winters), fitted to each window's own past.

    windows: at most so many, evenly over the split, because every window and channel is a fit. seconds: no more are
    begun after them. A fit that fails counts as the last value, and the note says how many did. Raises MissingExtra
    without statsmodels.
    """
    try:
        from statsmodels.tsa.holtwinters import ExponentialSmoothing
    except ImportError as error:
        raise MissingExtra("forecasting", "statsmodels") from error
    import warnings

    lag = season(task) if lag is None else lag
    seasonal = lag > 1 and 2 * lag <= task.context
    held, everything, ends = _history(task, split)
    filled = _forward(held).astype(np.float64)
    places = np.unique(np.linspace(0, len(everything) - 1, min(windows, len(everything))).round().astype(int))
    order = np.random.default_rng(0).permutation(places)  # cut short, they are still spread over the split
    made: dict[int, NDArray[np.float64]] = {}
    failed, started = 0, time.monotonic()
    for place in order:
        if made and time.monotonic() - started > seconds:
            break
        end = int(ends[place])
        out = np.empty((task.horizon, filled.shape[1]))
        for i in range(filled.shape[1]):
            past = filled[end - task.context : end, i]
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    model = ExponentialSmoothing(
                        past, trend="add", damped_trend=True, seasonal="add" if seasonal else None,
                        seasonal_periods=lag if seasonal else None, initialization_method="estimated",
                    )  # fmt: skip
                    out[:, i] = model.fit().forecast(task.horizon)
                if not np.isfinite(out[:, i]).all():
                    raise ValueError("not finite")
            except (ValueError, np.linalg.LinAlgError):
                out[:, i] = past[-1]
                failed += 1
        made[int(place)] = out
    chosen = np.array(sorted(made))
    note = f"{len(chosen)} of {len(everything)} windows" + (f", season {lag}" if seasonal else ", no season")
    if failed:
        note += f"; {failed} of {len(chosen) * filled.shape[1]} fits failed and repeat the last value"
    return Prediction("ETS", np.stack([made[i] for i in chosen]).astype(np.float32), chosen, split, note)


def _history(
    task: Forecasting, split: str
) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.int64]]:
    """Standardised targets (rows, targets), the split's windows, and the row at which each one's future begins."""
    windows = task.splits[split]
    return standardised(task), np.arange(len(windows)), windows.starts + windows.context


def _forward(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Missing values -> the last observed one before; 0, the mean, before the first."""
    seen = np.isfinite(rows)
    last = np.maximum.accumulate(np.where(seen, np.arange(len(rows))[:, None], -1), 0)
    found = np.take_along_axis(rows, np.maximum(last, 0), 0)
    return np.where(last >= 0, found, np.float32(0)).astype(np.float32)
