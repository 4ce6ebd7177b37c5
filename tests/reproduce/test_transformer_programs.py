"""The experiment of transformer-programs on a tiny budget."""

from __future__ import annotations

from pathlib import Path

from lightformers import reproduce
from lightformers.reproduce import Finding


def test_experiment_on_a_tiny_budget(tmp_path: Path) -> None:
    made = reproduce.run("transformer-programs", budget_seconds=0.3)
    made.write(tmp_path)
    assert Finding.read("transformer-programs", tmp_path).slug == made.slug
    assert len(made.seeds) == 2 and "instead of 300" in made.limits
    rows = {row["arm"]: row for row in made.table}
    for task in ("reverse", "hist", "sort"):
        column = f"accuracy, {task}"
        assert rows["written Python program"][column] == rows["Transformer Program"][column]
        assert rows["standard transformer"][column]["mean"] > 0
    assert "differ from the hard networks in no word" in made.summary
