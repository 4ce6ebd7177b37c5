"""The experiment of wide attention runs on a tiny budget, on the real data."""

from __future__ import annotations

from pathlib import Path

import pytest
from data_sets import needs

from lightformers import reproduce
from lightformers.models.matching import parameters
from lightformers.reproduce import Finding, wide_attention
from lightformers.reproduce.wide_attention import Arm
from lightformers.tasks.listops import listops

LISTS = {"listops": listops(0, 20, 10, low=9, high=65, depth=3)}


def test_a_tiny_budget(tmp_path: Path) -> None:
    needs("trec")
    made = reproduce.run("wide-attention", budget_seconds=2)
    made.write(tmp_path)
    assert Finding.read("wide-attention", tmp_path).verdict == made.verdict
    assert len(made.seeds) == 2 and "instead of 300" in made.limits
    arms = {row["arm"]: row for row in made.table}
    assert set(arms) == {"attention, 4x4", "attention, 1x16"}
    assert arms["attention, 1x16"]["parameters"] < arms["attention, 4x4"]["parameters"]


def test_arms_differ_in_nothing_but_their_aspect() -> None:
    deep, flat = (wide_attention.build(Arm("listops", "attention", s), LISTS) for s in ("4x4", "1x16"))
    for model, layers, heads in ((deep, 4, 4), (flat, 1, 16)):
        rows = model.config.layers
        assert len(rows) == layers and {r["mixer"]["heads"] for r in rows} == {heads}
        assert {(r["mixer"]["head_size"], r["ffn"]["hidden"]) for r in rows} == {(16, 128)}
    hidden = wide_attention._hidden()
    equal = wide_attention.build(Arm("listops", "attention", "1x16, equal parameters"), LISTS, hidden)
    assert abs(parameters(equal) / parameters(deep) - 1) < 0.02


@pytest.mark.parametrize("kind", ["local", "linear"])
def test_other_attentions_can_be_deep_and_wide(kind: str) -> None:
    for shape in ("4x4", "1x16"):
        model = wide_attention.build(Arm("listops", kind, shape), LISTS)
        out = model(**LISTS["listops"].train.batch(range(4)).inputs).logits
        assert out.shape == (4, 10)
