"""The experiment of itransformer on a tiny budget, its arms' sizes, and the world in which one variate leads the next."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from data_sets import needs

from lightformers import reproduce
from lightformers.reproduce import Finding, forecasters, itransformer
from lightformers.tasks.forecasting import Forecasting

ARMS = ("variates as tokens", "time steps as tokens", "linear map of each variate")


def test_experiment_on_a_tiny_budget(tmp_path: Path) -> None:
    needs("etth1", "exchange_rate", "traffic_los_angeles")
    made = reproduce.run("itransformer", budget_seconds=2)
    made.write(tmp_path)  # refuses NaN
    assert Finding.read("itransformer", tmp_path).slug == "itransformer"
    assert len(made.seeds) == 2 and "instead of 300" in made.limits
    rows = {row["arm"]: row for row in made.table}
    for arm in ARMS:
        for name in ("etth1", "exchange_rate", "freeways", "lagged copies"):
            assert len(rows[arm][f"MSE, {name}"]["values"]) == 2
    half = rows["variates as tokens, trained on half of them"]
    assert half["MSE, freeways, sensors left out"]["mean"] > 0
    assert set(rows["variates as tokens, no attention"]) == {"arm", "MSE, lagged copies"}


def test_arms_have_equal_parameters() -> None:
    for channels in (7, 32, 207):
        sizes = {
            arm: forecasters.size(make) for arm, make in itransformer.makers(channels, 96, 96, 128).items()
        }
        assert sizes[ARMS[1]] == pytest.approx(sizes[ARMS[0]], rel=0.02)
        idle = 2 * 2 * (128 * 128 + 128)  # queries and keys of the arm without attention
        assert sizes["variates as tokens, no attention"] - idle == pytest.approx(sizes[ARMS[0]], rel=0.02)


def test_each_copy_is_late() -> None:
    made = itransformer.copies(200, 5, 0)
    for one in range(4):
        apart = made[8:, one + 1] - made[:-8, one]
        assert np.std(apart) < 0.2 < 0.9 < np.std(made[:, one])


def test_halves_are_apart() -> None:
    task = Forecasting.from_values(itransformer.copies(400, 8, 0), None, 8, 24, stride=9)
    half, whole = itransformer.halves(task)
    left = {whole.columns[i] for i in whole.targets}
    assert len(half.columns) == len(left) == 4 and not left & set(half.columns)
    assert set(whole.columns) == left | set(half.columns) and half.borders == whole.borders == task.borders


def test_rivals_forecast_in_the_units_they_read() -> None:
    past = torch.randn(2, 24, 3, generator=torch.Generator().manual_seed(0))
    for make in (
        lambda: forecasters.PerVariate(24, 5),
        lambda: forecasters.TimeTokens(3, 24, 5, 16, 2, 20, 1),
        lambda: forecasters.OneShot(24, 5, 6, 16, 2, 20, 1),
        lambda: forecasters.Again(4, 5),
    ):
        torch.manual_seed(0)
        model = make().eval()
        found = model(past_values=past).prediction
        assert found.shape == (2, 5, 3)
        moved = model(past_values=7 + 10 * past).prediction
        torch.testing.assert_close(moved, 7 + 10 * found, atol=1e-2, rtol=1e-3)
    assert torch.equal(found[:, 4], past[:, -4])
    alone = forecasters.OneShot(24, 5, 6, 16, 2, 20, 1).eval()
    torch.testing.assert_close(alone(past[..., 1:2]).prediction, alone(past).prediction[..., 1:2])


def test_fitted_comes_nearest() -> None:
    def write(n: int) -> torch.nn.Module:
        return torch.nn.Sequential(torch.nn.Linear(5, n), torch.nn.Linear(n, 3))

    for n in (1, 4, 30):
        assert forecasters.fitted(write, forecasters.size(lambda n=n: write(n)) + 3) == n
