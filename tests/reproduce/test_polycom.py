"""The experiment of polycom runs on a tiny budget and ends in a finding that can be kept."""

from __future__ import annotations

from pathlib import Path

from data_sets import needs

from lightformers import reproduce
from lightformers.reproduce import Finding


def test_experiment_on_a_tiny_budget(tmp_path: Path) -> None:
    needs("tinyshakespeare")
    made = reproduce.run("polycom", budget_seconds=2)
    made.write(tmp_path)  # refuses NaN
    assert Finding.read("polycom", tmp_path).slug == "polycom"
    assert len(made.seeds) == 2 and "instead of 300" in made.limits
    rows = {row["arm"]: row for row in made.table}
    assert rows.keys() == {"SwiGLU", "GELU", "ReLU", "PolyReLU", "PolyNorm"}
    assert rows["SwiGLU"]["parameters"] == rows["GELU"]["parameters"]
    assert rows["PolyNorm"]["parameters"] == rows["GELU"]["parameters"] + 4 * 4
    assert all(1 <= row["effective rank"]["mean"] <= 516 for row in rows.values())
