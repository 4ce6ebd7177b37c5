"""The experiment of ftp on a tiny budget."""

from __future__ import annotations

from pathlib import Path

import torch
from data_sets import needs

from lightformers import reproduce
from lightformers.reproduce import Finding
from lightformers.reproduce.ftp import probe


def test_experiment_on_a_tiny_budget(tmp_path: Path) -> None:
    needs("ag_news")
    made = reproduce.run("ftp", budget_seconds=0.3)
    made.write(tmp_path)
    assert Finding.read("ftp", tmp_path).slug == made.slug
    assert len(made.seeds) == 2 and "instead of 300" in made.limits
    for row in made.table:
        assert 3 < row["next-token loss"]["mean"] < 8 and 0 <= row["topics right"]["mean"] <= 1
        assert -1 <= row["cosine of random pairs"]["mean"] <= 1
    sizes = {row["arm"]: row["parameters"] for row in made.table}
    assert 0.85 < sizes["future token prediction"] / sizes["transformer"] < 1.15


def test_the_probe_tells_apart_what_a_line_can() -> None:
    g = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 3, (300,), generator=g)
    vectors = torch.randn(300, 6, generator=g) + 4 * torch.nn.functional.one_hot(labels, 6)
    assert probe(vectors[:200], labels[:200], vectors[200:], labels[200:]) > 0.9
    assert probe(vectors[:200], labels[torch.randperm(200, generator=g)], vectors[200:], labels[200:]) < 0.7
