"""The experiment of ebwm on a tiny budget."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from data_sets import needs

from lightformers import reproduce
from lightformers.reproduce import Finding
from lightformers.reproduce.ebwm import area


def test_experiment_on_a_tiny_budget(tmp_path: Path) -> None:
    needs("tinyshakespeare")
    made = reproduce.run("ebwm", budget_seconds=0.3)
    made.write(tmp_path)
    assert Finding.read("ebwm", tmp_path).slug == made.slug
    assert len(made.seeds) == 2 and "instead of 300" in made.limits
    rows = {row["arm"]: row for row in made.table}
    mine, equal = rows["energy-based transformer"], rows["transformer, equal updates"]
    assert mine["updates"] == equal["updates"]
    assert 0.98 < mine["parameters"] / equal["parameters"] < 1.02
    assert all(0 <= row["true against random"]["mean"] <= 1 for row in made.table)
    assert len(made.plots["loss after each step"]["loss"]) == 8


def test_area_under_the_curve() -> None:
    assert area(torch.tensor([2.0, 3.0]), torch.tensor([0.0, 1.0])) == 1
    assert area(torch.tensor([1.0, 1.0]), torch.tensor([1.0])) == 0.5
    a, b = torch.tensor([0.0, 2.0, 2.0]), torch.tensor([1.0, 2.0])
    literal = ((a[:, None] > b).double() + 0.5 * (a[:, None] == b).double()).mean()
    assert area(a, b) == pytest.approx(float(literal))
