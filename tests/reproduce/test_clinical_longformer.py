"""The experiment of Clinical-Longformer on a tiny budget."""

from __future__ import annotations

from pathlib import Path

from data_sets import needs

from lightformers import reproduce
from lightformers.reproduce import Finding


def test_experiment_on_a_tiny_budget(tmp_path: Path) -> None:
    needs("tinyshakespeare")
    made = reproduce.run("clinical-longformer", budget_seconds=2)
    made.write(tmp_path)  # refuses NaN
    assert Finding.read("clinical-longformer", tmp_path).slug == "clinical-longformer"
    assert len(made.seeds) == 2 and "instead of 300" in made.limits
    rows = {row["arm"]: row for row in made.table}
    assert rows.keys() == {
        "short",
        "positions copied",
        "positions new",
        "short, cut",
        "windows",
        "windows and global token",
    }
    for row in made.table:
        assert all(len(cell["values"]) == 2 for cell in row.values() if isinstance(cell, dict))
    # before anything was learnt with copied positions, the short part of a text is read almost as before
    short = rows["short"]["loss at 64"]["mean"]
    assert abs(rows["positions copied"]["loss at 64"]["mean"] - short) < 0.3
    assert all(
        0 <= rows[a]["accuracy"]["mean"] <= 1 for a in ("short, cut", "windows", "windows and global token")
    )
