"""The door to elastic models: train, keep, pick within a budget, extract, show."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest
import steps_world as world
import torch

import lightformers as lf
from lightformers.bundle import Bundle
from lightformers.compress.elastic.matformer import MatFormer
from lightformers.compress.elastic.size import Nesting, Size
from lightformers.compress.elastic.space import Space
from lightformers.elastic import Budget, Elastic, frontier, picking
from lightformers.errors import ModelError, UserError

METHOD = MatFormer(ratios=(0.25, 0.5, 1.0))


def logits(bundle: Bundle, task: Any) -> torch.Tensor:
    with torch.no_grad():
        return bundle.model(**bundle.collate(task.splits["verify"][:4]).inputs)["logits"]


def test_budgets_are_read_as_people_write_them() -> None:
    assert Budget.parse("params=10M") == Budget("params", 10e6)
    assert Budget.parse(" Params = 1.5k") == Budget("params", 1500)
    assert Budget.parse("params=2b") == Budget("params", 2e9) and Budget.parse("params=12") == Budget(
        "params", 12
    )
    assert Budget.parse("latency=5ms") == Budget("latency", 5)
    assert Budget.parse("latency=0.5s") == Budget("latency", 500)
    assert str(Budget("params", 1e7)) == "10,000,000 weights" and str(Budget("latency", 5)) == "5 ms"
    for text in (
        "10M",
        "params=",
        "params=10ms",
        "latency=5",
        "latency=5M",
        "size=3",
        "params=0",
        "params=-3",
    ):
        with pytest.raises(UserError, match="is no budget"):
            Budget.parse(text)


def test_saved_and_loaded_it_is_the_same(trained: tuple[Elastic, Bundle, Any], tmp_path: Path) -> None:
    made, _, task = trained
    made.save(tmp_path / "e")
    again = Elastic.load(tmp_path / "e", "text-classification")
    assert again.space == made.space and again.method == made.method
    size = made.space.smallest
    assert torch.equal(logits(again.extract(size), task), logits(made.extract(size), task))
    with pytest.raises(UserError, match="no elastic model"):
        Elastic.load(tmp_path)
    held = json.loads((tmp_path / "e" / "elastic.json").read_text())
    for change, why in (
        ({"elastic": 2}, "newer lightformers"),
        ({"method": {"name": "magic", "fields": {}}}, "unknown method"),
        ({"method": {"name": "matformer", "fields": {"colour": 1}}}, "no field colour"),
        ({"whole": held["whole"] | {"width": 64}}, "another model"),
        ({"space": {"blocks": [4]}}, "damaged"),
    ):
        (tmp_path / "e" / "elastic.json").write_text(json.dumps(held | change))
        with pytest.raises(UserError, match=why):
            Elastic.load(tmp_path / "e", "text-classification")
    (tmp_path / "e" / "elastic.json").write_text("{")
    with pytest.raises(ModelError, match="damaged"):
        Elastic.load(tmp_path / "e")


def test_an_extracted_size_is_a_standard_model_with_equal_outputs(
    trained: tuple[Elastic, Bundle, Any], tmp_path: Path
) -> None:
    made, _, task = trained
    for size in (made.space.smallest, Size(4, (4,) * 4, (32,) * 4, 32)):
        small = made.extract(size)
        inputs = small.collate(task.splits["verify"][:4]).inputs
        with torch.no_grad():
            assert torch.allclose(made.outputs(size, **inputs)["logits"], logits(small, task), atol=1e-5)
        lf.export.save(small, tmp_path / str(size.channels[0]))
        again = lf.load(tmp_path / str(size.channels[0]), "text-classification")
        assert torch.equal(logits(again, task), logits(small, task))
        assert small.parameters == made.parameters(size) == small.history[-1]["size_after"]
    with pytest.raises(ModelError, match="none of this model's sizes"):
        made.extract(Size(3, (4,) * 3, (32,) * 3, 32))


def test_depth_is_remembered_as_the_origin_of_blocks() -> None:
    bundle = world.bundle("bert-classifier")
    space = Space((2, 4), (4,), (32,), channels=(64,), alike=True, nesting=Nesting(depth="spread"))
    small = Elastic(bundle, space, METHOD).extract(space.smallest)
    assert next(iter(small.origin.blocks.values())) == (0, 2)


def test_the_most_weights_within_a_budget_without_a_task(trained: tuple[Elastic, Bundle, Any]) -> None:
    made = Elastic(trained[0].bundle, replace(trained[0].space, channels=(32, 64)), METHOD)
    whole, least = (made.parameters(s) for s in (made.space.largest, made.space.smallest))
    assert made.pick(f"params={whole}").size == made.space.largest
    assert made.pick(f"params={least}").size == made.space.smallest
    picked = made.pick(f"params={whole - 1}")
    assert picked.parameters == made.parameters(picked.size)
    every = [made.parameters(size) for size in made.space]
    assert picked.parameters == max(n for n in every if n < whole)
    native = made.pick(f"params={whole - 1}", native=True)
    assert native.size == Size(
        4, (4,) * 4, (32,) * 4, 32
    )  # unequal blocks do not reload in plain transformers
    with pytest.raises(UserError, match=f"the smallest possible takes {least:,} weights"):
        made.pick("params=10")
    with pytest.raises(UserError, match="give a task"):
        made.pick("latency=5ms")


def test_the_best_is_taken_and_not_only_the_largest(
    trained: tuple[Elastic, Bundle, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    made, _, task = trained
    best = Size(4, (4,) * 4, (32, 64, 64, 64), 32)
    scored = []

    def quality(self: Elastic, size: Size, *_: Any) -> Any:
        scored.append(size)
        return type("Scores", (), {"value": -sum(abs(a - b) for a, b in zip(size.channels, best.channels))})

    monkeypatch.setattr(Elastic, "_scores", quality)
    picked = made.pick(f"params={made.parameters(made.space.largest)}", task, number=30)
    assert picked.size == best and picked.quality == 0
    assert len(scored) == len(set(scored)) == 30 == len(picked.tried)  # none is scored twice
    monkeypatch.undo()
    real = made.pick(f"params={made.parameters(made.space.largest)}", task, number=3)
    runner = lf.runners.build(made.extract(real.size))
    assert real.quality == task.evaluate(runner, "search").value == max(q for _, q in real.tried)


def test_latency_is_predicted_then_measured(
    trained: tuple[Elastic, Bundle, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    made, _, task = trained
    timed = []

    def times(self: Elastic, sizes: list[Size], *_: Any) -> list[float]:
        """A machine on which every inner channel costs a hundredth of a millisecond, and 96 or more twice that."""
        timed.append(list(sizes))
        return [sum(s.channels) / 100 for s in sizes]

    monkeypatch.setattr(Elastic, "_times", times)
    picked = made.pick("latency=1.3ms", task, number=4)
    assert sum(picked.size.channels) <= 130 and picked.latency_ms == sum(picked.size.channels) / 100
    assert len(timed[0]) == picking.GRID and timed[1:] == [[picked.size]]
    with pytest.raises(UserError, match=r"the smallest possible takes 0\.64 ms"):
        made.pick("latency=0.5ms", task)
    monkeypatch.setattr(
        Elastic, "_times", lambda self, sizes, *_: [0.1 if len(sizes) > 1 else 9.0 for _ in sizes]
    )
    with pytest.raises(UserError, match="measured within 5 ms: the smallest takes 9 ms"):
        made.pick("latency=5ms", task, number=2)
    monkeypatch.undo()
    assert 0 < (made.pick("latency=10s", task, number=2).latency_ms or 0) < 10_000


def test_candidates_reach_from_end_to_end_and_children_stay_inside() -> None:
    spaces = [
        Space((2, 3, 4), (2, 4), (16, 32), ratios=(0.5, 1.0, 2.0)),
        Space((2, 3, 4), (2, 4), (16, 32), ratios=(0.5, 1.0, 2.0), alike=True),
        Space((12,), (4,), (32,), channels=(8, 16, 32, 64)),
    ]
    rng = np.random.default_rng(0)
    for space in spaces:
        found = picking.candidates(space, 40, rng)
        assert len(found) == len(set(found)) == min(40, space.count)
        assert space.smallest in found and space.largest in found
        for size in found:
            assert size in space and picking.mutated(size, space, rng) in space
    total = [sum(s.channels) for s in picking.candidates(spaces[2], 40, rng)]
    assert (
        sum(t < 200 for t in total) > 4 and sum(t > 500 for t in total) > 4
    )  # drawn alone, none would be there


def test_the_prediction_is_exact_where_the_machine_is_linear() -> None:
    sizes = [Size(b, (4,) * b, (c,) * b, 32) for b in (2, 4) for c in (16, 64)]
    weights = [1000 * s.blocks + 10 * sum(s.channels) for s in sizes]
    ms = [1 + 0.5 * s.blocks + 2 * w / 1e6 for s, w in zip(sizes, weights)]
    predict = picking.Predictor.fit(sizes, weights, ms)
    other = Size(3, (4,) * 3, (32,) * 3, 32)
    assert predict(other, 3960) == pytest.approx(1 + 1.5 + 2 * 3960 / 1e6)
    assert predict(sizes[1], 10**9) == ms[1]  # what was timed is not predicted


def test_the_frontier_is_a_page_of_its_own(trained: tuple[Elastic, Bundle, Any], tmp_path: Path) -> None:
    made, _, task = trained
    facts = made.frontier(task, tmp_path, number=3)
    assert json.loads((tmp_path / "frontier.json").read_text()) == facts
    weights = [row["parameters"] for row in facts["rows"]]
    assert len(weights) == 3 and weights == sorted(weights) and weights[-1] == made.bundle.parameters
    runner = lf.runners.build(made.bundle)
    assert facts["rows"][-1]["quality"]["estimate"] == task.evaluate(runner, "verify").value
    assert all(row["latency_ms"] > 0 for row in facts["rows"])
    page = (tmp_path / "frontier.html").read_text()
    assert "://" not in page.split('<script type="text/plain"')[0] and "default-src 'none'" in page
    for axis in ("parameters", "latency"):
        figure = frontier.chart(facts, axis)
        go.Figure(_painted(figure))  # raises on what plotly does not know
        assert len(figure["data"][1]["x"]) == 3
    evil = facts | {"method": "<script>alert(1)</script>"}
    assert "<script>alert" not in frontier.render(evil)


def _painted(value: Any) -> Any:
    from lightformers.slim.charts import PALETTE

    if isinstance(value, str) and value.startswith("@"):
        return PALETTE[value[1:]][0]
    if isinstance(value, list):
        return [_painted(v) for v in value]
    return {k: _painted(v) for k, v in value.items()} if isinstance(value, dict) else value


def test_methods_are_a_closed_table() -> None:
    from lightformers.compress import elastic as methods

    for name in methods.METHODS:
        made = methods.method(name)
        assert methods.name_of(made) == name and hasattr(made, "space") and hasattr(made, "train")
    assert methods.method("matformer", {"ratios": [0.5, 1.0]}) == MatFormer(ratios=(0.5, 1.0))
    with pytest.raises(UserError, match="unknown method 'magic'"):
        methods.method("magic")
    with pytest.raises(UserError, match="none of the known methods"):
        methods.name_of(object())  # type: ignore[arg-type]
