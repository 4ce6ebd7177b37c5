"""The experiment of combiner on a tiny budget."""

from __future__ import annotations

from pathlib import Path

from data_sets import needs

from lightformers import reproduce
from lightformers.reproduce import Finding


def test_experiment_on_a_tiny_budget(tmp_path: Path) -> None:
    needs("tinyshakespeare")
    made = reproduce.run("combiner", budget_seconds=2)
    made.write(tmp_path)  # refuses NaN
    assert Finding.read("combiner", tmp_path).slug == "combiner"
    assert len(made.seeds) == 2 and "instead of 300" in made.limits
    rows = {row["arm"]: row for row in made.table}
    for row in made.table:
        assert all(len(cell["values"]) == 2 for cell in row.values() if isinstance(cell, dict))
        assert 0 <= row["recall"]["mean"] <= 1
    assert len(rows) == 5
    assert len({rows[arm]["parameters"] for arm in rows}) == 1  # equal parameters
    assert made.settings["seconds of a layer by length"].keys() >= rows.keys()
