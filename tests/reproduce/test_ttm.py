"""The experiment of ttm on a tiny budget, its corpus, and what does not leak."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from data_sets import needs

from lightformers import reproduce
from lightformers.reproduce import Finding, forecasters, series_corpus, ttm
from lightformers.tasks.forecasting import Forecasting


def test_experiment_on_a_tiny_budget(tmp_path: Path) -> None:
    needs("etth1", "ettm1_part", "exchange_rate")
    made = reproduce.run("ttm", budget_seconds=2)
    made.write(tmp_path)  # refuses NaN
    assert Finding.read("ttm", tmp_path).slug == "ttm"
    assert len(made.seeds) == 2 and "instead of 300" in made.limits
    rows = {row["arm"]: row for row in made.table}
    for arm in ("TTM", "without ETTm1"):
        assert len(rows[arm]["zero-shot MSE"]["values"]) == 2
    for arm in ("TTM", "5 % from scratch"):
        assert len(rows[arm]["5 % MSE"]["values"]) == 2
    assert rows["persistence"]["zero-shot MSE"] > 0 and rows["the day before"]["zero-shot MSE"] > 0
    assert made.settings["parameters"] < 1_000_000


def test_the_corpus_holds_no_row_of_the_test_months() -> None:
    needs(*series_corpus.SETS)
    found = {source.name: source for source in series_corpus.sources()}
    assert not any("etth" in name.lower() for name in found) and len(found) == len(series_corpus.SETS) + 8
    assert len(found["ETTm1_part"].values) <= 4 * series_corpus._TEST_HOUR
    assert found["ETTm1_part"].frequency == "15min" and found["beijing_pm25"].frequency == "h"
    assert found["beijing_pm25"].values.shape[0] >= 43_824 and found["exchange_rate"].frequency == "D"
    assert found["traffic_los_angeles"].values.shape == (2016, 207)
    assert found["era5_t2m_uk"].values.shape == (744, 9 * 13)


def test_naive_forecasts_repeat() -> None:
    """A period of 24 is foreseen by the day before, not by the last value."""
    values = np.tile(np.sin(np.arange(24) * 2 * np.pi / 24), 60)[:, None]
    errors = ttm.naive(Forecasting.from_values(values, horizon=48, context=192))
    assert errors["the day before"] < 1e-9 < 0.5 < errors["persistence"]


def test_every_arm_learns() -> None:
    needs("exchange_rate")
    values = np.random.default_rng(0).standard_normal((2000, 1)).cumsum(0)
    task = Forecasting.from_values(values, horizon=48, context=192, stride=100)
    for trial in ttm.trials(task, ("exchange_rate", series_corpus.DRAWN), ttm._TUNING)[1:-1]:
        assert trial.measure(trial.learn(0, 1))["zero-shot MSE"] > 0


def test_arms_have_similar_sizes() -> None:
    def size(arm: str) -> int:
        return forecasters.size(lambda: ttm.TinyTimeMixer(ttm.config(**ttm._ARMS[arm][0])))

    assert size("without levels") == pytest.approx(size("TTM"), rel=0.45)
    assert size("TTM") < 100_000
