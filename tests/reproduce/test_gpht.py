"""The experiment of gpht on a tiny budget, its arms' sizes, and the windows of its mixture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from data_sets import needs

from lightformers import reproduce
from lightformers.bundle import Bundle
from lightformers.models.forecasting.output import Forecast
from lightformers.reproduce import Finding, forecasters, gpht
from lightformers.tasks.forecasting import Forecasting
from lightformers.train.resolutions import Source


def test_experiment_on_a_tiny_budget(tmp_path: Path) -> None:
    needs("etth1", "ettm1_part", "exchange_rate")
    made = reproduce.run("gpht", budget_seconds=2)
    made.write(tmp_path)  # refuses NaN
    assert Finding.read("gpht", tmp_path).slug == "gpht"
    assert len(made.seeds) == 2 and "instead of 300" in made.limits
    rows = {row["arm"]: row for row in made.table}
    assert len(rows) == 4
    for row in rows.values():
        for horizon in (24, 48):
            assert len(row[f"MSE, {horizon} hours"]["values"]) == 2
    for arm, tuned in ((a, "pre-trained" in a) for a in rows):
        assert ("MSE before tuning, 24 hours" in rows[arm]) == tuned
    assert 0 < made.settings["error of the last day again"]["MSE, 24 hours"] < 2


def test_arms_have_equal_parameters() -> None:
    sizes = [forecasters.size(make) for make in gpht.makers().values()]
    assert max(sizes) <= 1.02 * min(sizes)


def test_tuning_moves_the_heads_alone() -> None:
    time = np.arange(900)
    values = np.stack([np.sin(time / 4), np.cos(time / 4)], 1)
    task = Forecasting.from_values(values, ["a", "b"], 24, 168)
    first, tuned = gpht.pretrained(
        lambda: gpht.stages((4, 1), 1, 16),
        [Source("made up", gpht.made_up(2, 400, 0))],
        task,
        seed=0,
        steps=6,
    )
    moved = {
        name
        for (name, old), new in zip(first.model.named_parameters(), tuned.model.parameters())
        if not torch.equal(old, new)
    }
    assert moved == {f"stages.{i}.head.{kind}" for i in range(2) for kind in ("weight", "bias")}
    later = Forecasting.from_values(values, ["a", "b"], 30, 168)
    found = gpht.errors(tuned, later, (24, 30), gpht.cell)
    assert set(found) == {"MSE, 24 hours", "MSE, 30 hours"} and all(v > 0 for v in found.values())
    whole = forecasters.error(Bundle(Thirty(tuned.model), None), later)
    assert found["MSE, 30 hours"] == pytest.approx(whole, rel=1e-5)


class Thirty(torch.nn.Module):
    """Forecasts 30 steps."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, past_values: torch.Tensor) -> Forecast:
        return Forecast(self.model.forecast(past_values, 30))


def test_made_up_series_differ_and_remember() -> None:
    made = gpht.made_up(3, 500, 1)
    assert made.shape == (500, 3) and np.isfinite(made).all() and made.std(0).min() > 0.2
    later = [np.corrcoef(x[:-1], x[1:])[0, 1] for x in made.T]
    assert min(later) > 0.2 and np.abs(np.corrcoef(made.T)[0, 1:]).max() < 0.9
