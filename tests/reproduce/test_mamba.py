"""The experiment of mamba on a tiny budget, and that its arms are of equal size."""

from __future__ import annotations

from pathlib import Path

from data_sets import needs

from lightformers import reproduce
from lightformers.reproduce import Finding, mamba, recall


def test_experiment_on_a_tiny_budget(tmp_path: Path) -> None:
    needs("tinyshakespeare")
    made = reproduce.run("mamba", budget_seconds=2)
    made.write(tmp_path)  # refuses NaN
    assert Finding.read("mamba", tmp_path).slug == "mamba"
    assert len(made.seeds) == 2 and "instead of 300" in made.limits
    assert [row["arm"] for row in made.table] == ["Mamba", "constant rates", "transformer"]
    for row in made.table:
        assert all(len(cell["values"]) == 2 for cell in row.values() if isinstance(cell, dict))
    assert (
        made.verdict == "inconclusive" and "nothing follows" in made.summary
    )  # nothing is learned in three steps


def test_arms_have_equal_parameters() -> None:
    for vocab in (8, 66):
        sizes = [recall.parameters(layers, vocab, 32) for layers in mamba.arms(vocab).values()]
        assert max(sizes) <= 1.05 * min(sizes)


def test_fitted_comes_nearest() -> None:
    def write(hidden: int) -> recall.Layers:
        return [{"ffn": {"kind": "mlp", "hidden": hidden}}]

    empty = recall.parameters(write(1), 10, 8) - 2 * 8
    for hidden in (1, 7, 40):
        assert recall.fitted(write, empty + 2 * 8 * hidden + 3, 10, 8) == write(hidden)
