from __future__ import annotations

import numpy as np
import pytest
import torch
from series_world import ForecastRunner, hours, repeat, waves

from lightformers import stats
from lightformers.bundle import Bundle
from lightformers.errors import DataError
from lightformers.tasks import Forecasting
from lightformers.tasks.forecast_baselines import all_of, ets, linear, naive, seasonal_naive, table
from lightformers.tasks.forecast_scores import Prediction, errors, futures, mase_scale, of_outputs, season


def _task(
    values: np.ndarray | None = None, horizon: int = 30, context: int = 60, stamped: bool = True, **options
):
    values = waves(600) if values is None else values
    names = [f"c{i}" for i in range(values.shape[1])]
    stamps = hours(len(values)) if stamped else None
    return Forecasting.from_values(values, names, horizon, context, stamps=stamps, **options)


def _scaled(task) -> np.ndarray:
    return task.processor(masked=True).standardise(task.series.values)


def test_naive_is_what_the_task_scores() -> None:
    """The table's numbers are those of `task.evaluate` for the same forecasts."""
    task = _task()
    bundle = Bundle(torch.nn.Identity(), task.processor(), "forecasting")
    scores = task.evaluate(ForecastRunner(bundle, repeat(30)))
    line = table(task, [naive(task)])[0]
    assert line.mse.estimate == pytest.approx(scores.value, rel=1e-6) and line.windows == len(scores)
    assert line.mse.low == pytest.approx(stats.interval(scores).low, rel=1e-6) and line.relative == 1.0


def test_seasonal_naive_against_a_loop() -> None:
    task, scaled = _task(), _scaled(_task())
    made = seasonal_naive(task)
    assert made.note == "a season of 24 rows"
    for w in (0, 7, len(made.chosen) - 1):
        end = task.splits["verify"].starts[w] + 60
        wanted = [scaled[end - 24 + h % 24] for h in range(30)]
        np.testing.assert_allclose(made.values[w], wanted, rtol=1e-6)


def test_seasonal_naive_looks_only_back() -> None:
    """Missing values come from a season before; nothing after the forecast's start changes it."""
    values = waves(600)
    holed = values.copy()
    holed[470:480, 0] = np.nan
    task = _task(holed)
    made, w = seasonal_naive(task), int(np.flatnonzero(task.splits["verify"].starts + 60 == 490)[0])
    np.testing.assert_allclose(made.values[w, 4:14, 0], _scaled(task)[446:456, 0], rtol=1e-6)
    changed = holed.copy()
    changed[490:] = 99.0
    other = _task(np.where(np.arange(600)[:, None] < 490, holed, changed), split=(420, 450, 600))
    same = _task(holed, split=(420, 450, 600))
    place = int(np.flatnonzero(same.splits["verify"].starts + 60 == 490)[0])
    for make in (naive, seasonal_naive, linear):
        np.testing.assert_array_equal(make(other).values[place], make(same).values[place])


def test_a_season_is_found() -> None:
    phase = np.arange(900)[:, None] * 2 * np.pi / 17
    task = _task(np.sin(phase) + 0.2 * np.random.default_rng(0).standard_normal((900, 2)), stamped=False)
    assert season(task) == 17
    drawn = np.random.default_rng(0).standard_normal((900, 2)).cumsum(0)
    walk = _task(drawn, stamped=False)
    assert season(walk) == 1 and "no season" in seasonal_naive(walk).note
    np.testing.assert_array_equal(seasonal_naive(walk).values, naive(walk).values)


def test_the_linear_map_finds_a_planted_one() -> None:
    """A series that continues linearly from its past is forecast without error; ridge against numpy's own solution."""
    drawn = np.random.default_rng(0)
    values = np.zeros((1500, 2))
    values[:2] = drawn.standard_normal((2, 2))
    for i in range(2, 1500):  # a wave without damping: two steps of the past say the next one exactly
        values[i] = 2 * np.cos(0.3) * values[i - 1] - values[i - 2]
    values += 1e-3 * drawn.standard_normal(values.shape)
    task = _task(values, horizon=5, context=12, stamped=False)
    line = table(task, [linear(task), naive(task)])
    assert line[0].mse.estimate < 1e-4 < line[1].mse.estimate / 100 and line[1].relative > 1000


def test_mase_by_hand() -> None:
    task = _task()
    rows = _scaled(task)[:420].astype(np.float64)
    scale = np.abs(rows[24:] - rows[:-24]).mean(0)
    np.testing.assert_allclose(mase_scale(task), scale, rtol=1e-6)
    made = naive(task)
    apart = np.abs(made.values - futures(task, made.chosen)) / scale
    assert errors(task, made)["mase"].value == pytest.approx(apart.mean(), rel=1e-6)
    flat = np.tile(np.arange(24.0)[:, None], (30, 2))  # repeats itself exactly: nothing to divide by
    exact = _task(flat)
    assert mase_scale(exact).tolist() == [0.0, 0.0] and table(exact, [naive(exact)])[0].mase is None


def test_exponential_smoothing_and_the_table() -> None:
    task = _task(horizon=12)
    made = [*all_of(task, smoothing=False), ets(task, windows=2)]
    lines = table(task, made)
    assert [line.name for line in lines] == ["seasonal naive", "naive", "linear", "ETS"]
    assert lines[3].windows == 2 and "2 of 109 windows, season 24" in lines[3].note
    assert lines[3].relative < 1.5 and lines[1].relative > 5
    assert all(line.mse.low <= line.mse.estimate <= line.mse.high for line in lines[:3])
    assert set(lines[0].to_dict()["mse"]) == {"estimate", "low", "high"}


def test_only_targets_are_forecast() -> None:
    task = _task(waves(600, 3), target="c1", known="c2")
    for made in all_of(task, smoothing=False):
        assert made.values.shape == (len(task.splits["verify"]), 30, 1)
    whole = of_outputs(task, "model", np.zeros((len(task.splits["verify"]), 30, 3)))
    assert whole.values.shape[-1] == 1


def test_bad_forecasts() -> None:
    task = _task()
    with pytest.raises(DataError, match="forecasts for the"):
        of_outputs(task, "model", np.zeros((3, 30, 2)))
    with pytest.raises(DataError, match="different splits"):
        table(task, [naive(task), naive(task, "search")])
    with pytest.raises(DataError, match="forecasts for 2 windows"):
        table(task, [Prediction("model", np.zeros((2, 29, 2), np.float32), np.arange(2))])
