"""The experiment of thor runs on a tiny budget and ends in a finding that can be kept."""

from __future__ import annotations

from pathlib import Path

from data_sets import needs

from lightformers import reproduce
from lightformers.reproduce import Finding


def test_experiment_on_a_tiny_budget(tmp_path: Path) -> None:
    needs("tinyshakespeare")
    made = reproduce.run("thor", budget_seconds=2)
    made.write(tmp_path)  # refuses NaN
    assert Finding.read("thor", tmp_path).slug == "thor"
    assert len(made.seeds) == 2 and "instead of 300" in made.limits
    rows = {row["arm"]: row for row in made.table}
    assert rows["THOR"]["parameters"] == rows["random experts"]["parameters"]
    assert rows["Switch router"]["parameters"] - rows["THOR"]["parameters"] == 2 * 2 * 128
    assert 0 <= rows["THOR"]["next tokens on which experts agree"]["mean"] <= 1
    assert "next tokens on which experts agree" not in rows["Switch router"]
