"""The experiment of matmul-free on a tiny budget."""

from __future__ import annotations

from pathlib import Path

from data_sets import needs

from lightformers import reproduce
from lightformers.reproduce import Finding


def test_the_experiment_ends_in_a_finding(tmp_path: Path) -> None:
    needs("tinyshakespeare")
    made = reproduce.run("matmul-free", budget_seconds=2)
    made.write(tmp_path)
    assert Finding.read("matmul-free", tmp_path).slug == "matmul-free" and len(made.seeds) == 2
    rows = {row["arm"]: row for row in made.table}
    plain, ternary, full, bits = rows.values()
    products = 4 * (4 * 96**2 + 3 * 96 * 256) + 96 * 66  # layers and head: one multiply-add per weight
    assert ternary["multiply-adds per token"] == 0 and ternary["additions per token"] == products
    assert full["multiply-adds per token"] == products and full["additions per token"] == 0
    assert plain["multiply-adds per token"] > products  # attention's own
    assert 0 < bits["multiply-adds per token"] < plain["multiply-adds per token"]
    assert ternary["bytes of matrices"] < ternary["bytes in half precision"] / 8
    assert max(row["parameters"] for row in rows.values()) < 1.02 * min(
        row["parameters"] for row in rows.values()
    )
    for row in (ternary, bits):
        assert row["largest difference of a layer when packed"]["mean"] < 1e-5
        packed, plain = row["bits per character, packed"]["mean"], row["bits per character"]["mean"]
        assert abs(packed - plain) < 0.01 * plain
