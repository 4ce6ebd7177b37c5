"""The benchmark series themselves: window counts, and a number that the literature has for a forecast without a model."""

from __future__ import annotations

import numpy as np
import pytest
from data_sets import needs

from lightformers.tasks import Forecasting
from lightformers.tasks.forecasting import ett


def _repeated(task: Forecasting) -> tuple[float, float]:
    """MSE and MAE of the last value, repeated, over all test windows."""
    mean, deviation = task.scale
    scaled = ((task.series.values - mean) / deviation).astype(np.float32).astype(np.float64)
    first, last = task.borders[1:]
    apart = np.stack(
        [scaled[s : s + task.horizon] - scaled[s - 1] for s in range(first, last - task.horizon + 1)]
    )
    return float((apart**2).mean()), float(np.abs(apart).mean())


def test_etth1_as_in_the_papers() -> None:
    """Zeng et al. (AAAI 2023, arXiv 2205.13504), table 2, row "Repeat": 1.295 and 0.713 at horizon 96."""
    needs("etth1")
    task = ett("ETTh1", 96, 336)
    assert {k: len(v) for k, v in task.splits.items()} == {"train": 8209, "search": 2785, "verify": 2785}
    assert task.series.frequency == "h" and not task.warnings and task.columns[-1] == "OT"
    square, absolute = _repeated(task)
    assert square == pytest.approx(1.295, abs=1e-3) and absolute == pytest.approx(0.713, abs=1e-3)
    assert len(ett("etth1", 192, 96).splits["verify"]) == 2881 - 192


@pytest.mark.parametrize(
    ("name", "columns", "frequency", "windows"),
    [
        ("ettm1_part", 7, "15min", 3911 - 24 + 1),
        ("exchange_rate", 8, "", 1517 - 24 + 1),
        ("national_illness", 7, "W", 193 - 24 + 1),
        ("weather_part", 21, "10min", 599 - 24 + 1),
    ],
)
def test_the_others(name, columns, frequency, windows) -> None:
    needs(name)
    task = ett(name, 24, 48)
    assert len(task.columns) == columns and task.series.frequency == frequency
    assert len(task.splits["verify"]) == windows


def test_a_series_with_missing_values_and_its_calendar_in_columns() -> None:
    needs("beijing_pm25")
    from lightformers import reproduce

    task = Forecasting.from_file(
        reproduce.data("beijing_pm25") / "beijing_pm25.csv.gz", 24, 72, target="pm2.5", split=(26304, 35064, 43824)
    )  # fmt: skip
    assert (
        task.series.frequency == "h"
        and task.missing
        and "No" not in task.columns
        and "cbwd" not in task.columns
    )
    assert str(task.series.stamps[0]) == "2010-01-01T00:00:00" and task.columns[task.targets[0]] == "pm2.5"
