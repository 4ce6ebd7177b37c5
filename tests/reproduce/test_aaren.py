"""The experiment of aaren on a tiny budget."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from data_sets import needs

from lightformers import reproduce
from lightformers.reproduce import Finding, series


@pytest.fixture
def there() -> None:
    needs("tinyshakespeare", "etth1", "ucr_uea")


def test_the_experiment_ends_in_a_finding(there: None, tmp_path: Path) -> None:
    made = reproduce.run("aaren", budget_seconds=2)
    made.write(tmp_path)
    assert Finding.read("aaren", tmp_path).slug == "aaren" and len(made.seeds) == 2
    rows = {row["arm"]: row for row in made.table}
    assert rows.keys() == {"Aaren", "transformer", "GRU"}
    # two layers of 4 heads, each a peak, a weight and a sum of 8
    assert (
        rows["Aaren"]["bytes of state after 64"]
        == rows["Aaren"]["bytes of state after 2048"]
        == 2 * 4 * 10 * 4
    )
    assert rows["transformer"]["bytes of state after 64"] < rows["transformer"]["bytes of state after 2048"]
    sizes = made.settings["parameters, forecasting"]
    assert sizes["Aaren"] - sizes["transformer"] == 2 * 32  # one vector per layer
    assert abs(sizes["GRU"] / sizes["transformer"] - 1) < 0.05
    assert all(row["etth1, squared error"]["mean"] > 0 for row in rows.values())


def test_windows_of_series_do_not_reach_into_each_other(there: None) -> None:
    parts = series.forecast("etth1", 96, 24, 50)
    inputs, answers = parts["train"]
    assert inputs.shape[1:] == (96, 1) and answers.shape[1:] == (24,) and len(inputs) == len(answers)
    assert inputs.shape[0] % 7 == 0  # every channel for itself
    assert abs(float(inputs.mean())) < 0.1 and abs(float(inputs.std()) - 1) < 0.1
    given, mean, deviation = series.normal(inputs)
    torch.testing.assert_close(given[..., 0] * deviation + mean, inputs[..., 0])
    cases, classes = series.problem("BasicMotions")["train"]
    assert cases.shape == (40, 100, 6) and classes.max() == 3
