"""The experiment of memoryformer runs on a tiny budget and ends in a finding that can be kept."""

from __future__ import annotations

from pathlib import Path

from data_sets import needs

from lightformers import reproduce
from lightformers.reproduce import Finding


def test_experiment_on_a_tiny_budget(tmp_path: Path) -> None:
    needs("tinyshakespeare")
    made = reproduce.run("memoryformer", budget_seconds=2)
    made.write(tmp_path)  # refuses NaN
    assert Finding.read("memoryformer", tmp_path).slug == "memoryformer"
    assert len(made.seeds) == 2 and "instead of 300" in made.limits
    rows = {row["arm"]: row for row in made.table}
    operations = {arm: row["multiply adds per token"] for arm, row in rows.items()}
    assert (
        operations["plain, equal arithmetic"]
        <= operations["memory, 8 bits"]
        < operations["plain, equal width"]
    )
    assert rows["memory, 8 bits"]["parameters"] > 10 * rows["plain, equal width"]["parameters"]
