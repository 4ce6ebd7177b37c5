"""The experiment of structured-ffn runs on a tiny budget and ends in a finding that can be kept."""

from __future__ import annotations

from pathlib import Path

from data_sets import needs

from lightformers import reproduce
from lightformers.reproduce import Finding


def test_experiment_on_a_tiny_budget(tmp_path: Path) -> None:
    needs("tinyshakespeare")
    made = reproduce.run("structured-ffn", budget_seconds=2)
    made.write(tmp_path)  # refuses NaN
    assert Finding.read("structured-ffn", tmp_path).slug == "structured-ffn"
    assert len(made.seeds) == 2 and "instead of 300" in made.limits
    rows = {row["arm"]: row for row in made.table}
    whole, cut = rows["dense"]["parameters"], rows["LowRank"]["parameters"]
    assert rows["LowRank, guided"]["parameters"] == cut  # nothing of the guide is left
    assert whole - cut == 3 * (8 * 128**2 - 2 * 32 * 5 * 128)
