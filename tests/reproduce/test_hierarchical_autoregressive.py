"""The experiment of hierarchical-autoregressive on a tiny budget."""

from __future__ import annotations

from pathlib import Path

from data_sets import needs

from lightformers import reproduce
from lightformers.reproduce import Finding
from lightformers.reproduce.hierarchical_autoregressive import noisy


def test_experiment_on_a_tiny_budget(tmp_path: Path) -> None:
    needs("wikitext2_small", "multi30k_en_de")
    made = reproduce.run("hierarchical-autoregressive", budget_seconds=0.3)
    made.write(tmp_path)
    assert Finding.read("hierarchical-autoregressive", tmp_path).slug == made.slug
    assert len(made.seeds) == 2 and "instead of 300" in made.limits
    for row in made.table:
        assert 1 < row["bits per byte"]["mean"] < 12 and row["updates"]["mean"] >= 1
    sizes = [row["parameters"] for row in made.table]
    assert max(sizes) / min(sizes) < 1.6


def test_noise_changes_letters_alone() -> None:
    text = "Some letters, 123 numbers! " * 20
    assert noisy(text, 0.0, 0) == text
    damaged = noisy(text, 0.3, 0)
    assert damaged != text and noisy(text, 0.3, 0) == damaged
    assert sum(c.isdigit() for c in damaged) == sum(c.isdigit() for c in text)
