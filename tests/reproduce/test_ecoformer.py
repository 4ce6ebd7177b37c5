"""The experiment of EcoFormer on a tiny budget."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from data_sets import needs

from lightformers import reproduce
from lightformers.reproduce import Finding, ecoformer


def test_experiment_on_a_tiny_budget(tmp_path: Path) -> None:
    needs("cifar10")
    made = reproduce.run("ecoformer", budget_seconds=2)
    made.write(tmp_path)  # refuses NaN
    assert Finding.read("ecoformer", tmp_path).slug == "ecoformer"
    assert len(made.seeds) == 2 and "instead of 300" in made.limits
    rows = {row["arm"]: row for row in made.table}
    assert rows.keys() == {"softmax", "learned codes", "random codes"}
    assert all(0 <= row["accuracy"]["mean"] <= 1 for row in made.table)
    learned, random = (rows[a]["follows attention"]["mean"] for a in ("learned codes", "random codes"))
    assert -1 <= random <= 1 and learned != random
    assert rows["learned codes"]["microjoules"] < 0.5 * rows["softmax"]["microjoules"]
    assert rows["learned codes"]["microjoules_at_1024"] < 0.05 * rows["softmax"]["microjoules_at_1024"]


def test_rank_correlation() -> None:
    a = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    assert ecoformer._rank_correlation(a, a.exp()) == pytest.approx(1)
    assert ecoformer._rank_correlation(a, -a) == pytest.approx(-1)
    assert ecoformer._rank_correlation(a, torch.tensor([[1.0, 1.0, 2.0, 2.0]])) == pytest.approx(0.8**0.5)
