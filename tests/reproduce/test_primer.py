"""The experiment of primer on a tiny budget."""

from __future__ import annotations

from pathlib import Path

import pytest
from data_sets import needs

from lightformers import reproduce
from lightformers.reproduce import Finding, primer


def test_the_experiment_ends_in_a_finding(tmp_path: Path) -> None:
    needs("tinyshakespeare")
    made = reproduce.run("primer", budget_seconds=2)
    made.write(tmp_path)
    assert Finding.read("primer", tmp_path).slug == "primer" and len(made.seeds) == 2
    rows = {row["arm"]: row for row in made.table}
    assert rows.keys() == {
        "ReLU",
        "squared ReLU",
        "convolution",
        "Primer-EZ",
        "one layer",
        "one layer, convolution",
    }
    assert rows["ReLU"]["times fewer steps to ReLU's loss"]["mean"] == 1
    assert rows["Primer-EZ"]["parameters"] - rows["ReLU"]["parameters"] == 4 * 9 * 96


def test_all_arms_have_like_parameters() -> None:
    names = ("ReLU", "GELU", "SwiGLU", "squared ReLU", "convolution", "Primer-EZ", "Primer")
    sizes = {arm: sum(p.numel() for p in primer.build(arm, 66, 0).parameters()) for arm in names}
    assert max(sizes.values()) < 1.01 * min(sizes.values()), sizes


def test_steps_to_a_loss() -> None:
    slow = [10 - 0.05 * t for t in range(100)]
    fast = [10 - 0.10 * t for t in range(100)]
    assert primer.sooner(slow, slow) == 1
    assert primer.sooner(slow, fast) == pytest.approx(2, rel=0.1)
    assert primer.sooner(fast, slow) == pytest.approx(0.5, rel=0.1)
