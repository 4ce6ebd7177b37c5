"""The experiment of masformer on a tiny budget."""

from __future__ import annotations

from pathlib import Path

from data_sets import needs

from lightformers import reproduce
from lightformers.reproduce import Finding


def test_experiment_on_a_tiny_budget(tmp_path: Path) -> None:
    needs("tinyshakespeare")
    made = reproduce.run("masformer", budget_seconds=2)
    made.write(tmp_path)  # refuses NaN
    assert Finding.read("masformer", tmp_path).slug == "masformer"
    assert len(made.seeds) == 2 and "instead of 300" in made.limits
    rows = {row["arm"]: row for row in made.table}
    for row in made.table:
        assert all(len(cell["values"]) == 2 for cell in row.values() if isinstance(cell, dict))
        assert 0 <= row["recall"]["mean"] <= 1
    assert {"full", "local", "2 full, bottom"} <= rows.keys()
    assert (
        rows["full"]["scores_computed"]
        == 1
        > rows["2 full, bottom"]["scores_computed"]
        > rows["local"]["scores_computed"]
    )
    # its weights are those of the full one, so at once nothing but what is out of sight is lost
    assert rows["full"]["loss at once"]["values"] != rows["local"]["loss at once"]["values"]
