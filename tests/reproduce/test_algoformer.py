"""The experiment of algoformer on a tiny budget."""

from __future__ import annotations

from pathlib import Path

from lightformers import reproduce
from lightformers.reproduce import Finding


def test_experiment_on_a_tiny_budget(tmp_path: Path) -> None:
    made = reproduce.run("algoformer", budget_seconds=0.3)
    made.write(tmp_path)
    assert Finding.read("algoformer", tmp_path).slug == made.slug
    assert len(made.seeds) == 2 and "instead of 300" in made.limits
    rows = {row["arm"]: row for row in made.table}
    assert rows["least squares on phi(x)"]["error at the last point"]["mean"] < 1e-3
    assert rows["AlgoFormer"]["parameters"] == rows["standard, 3 layers (equal parameters)"]["parameters"]
    assert rows["always 0"]["error"]["mean"] > 0
