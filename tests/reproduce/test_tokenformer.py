"""The experiment of tokenformer runs on a tiny budget and ends in a finding that can be kept."""

from __future__ import annotations

from pathlib import Path

from data_sets import needs

from lightformers import reproduce
from lightformers.reproduce import Finding


def test_experiment_on_a_tiny_budget(tmp_path: Path) -> None:
    needs("tinyshakespeare")
    made = reproduce.run("tokenformer", budget_seconds=2)
    made.write(tmp_path)  # refuses NaN
    assert Finding.read("tokenformer", tmp_path).slug == "tokenformer"
    assert len(made.seeds) == 2 and "instead of 300" in made.limits
    rows = {row["arm"]: row for row in made.table}
    large = rows["large from scratch"]["parameters"]
    assert rows["grown, keys of zero"]["parameters"] == large
    assert large - rows["small, continued"]["parameters"] == 4 * 16 * 96 * 128
    assert "changed the loss by" in made.summary
