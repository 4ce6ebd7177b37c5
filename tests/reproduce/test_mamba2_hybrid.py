"""The experiment of mamba2-hybrid on a tiny budget, and that its arms are of equal size."""

from __future__ import annotations

from pathlib import Path

from data_sets import needs

from lightformers import reproduce
from lightformers.reproduce import Finding, mamba2_hybrid, recall


def test_experiment_on_a_tiny_budget(tmp_path: Path) -> None:
    needs("tinyshakespeare")
    made = reproduce.run("mamba2-hybrid", budget_seconds=2)
    made.write(tmp_path)  # refuses NaN
    assert Finding.read("mamba2-hybrid", tmp_path).slug == "mamba2-hybrid"
    assert len(made.seeds) == 2 and "instead of 300" in made.limits
    held = {row["arm"]: row["kB of state after 2048"] for row in made.table}
    assert held["Mamba-2"] < held["hybrid"] < held["transformer"]
    for row in made.table:
        assert all(len(cell["values"]) == 2 for cell in row.values() if isinstance(cell, dict))


def test_arms_have_equal_parameters() -> None:
    for vocab in (10, 66):
        sizes = [recall.parameters(layers, vocab, 32) for layers in mamba2_hybrid.arms(vocab).values()]
        assert max(sizes) <= 1.03 * min(sizes)
