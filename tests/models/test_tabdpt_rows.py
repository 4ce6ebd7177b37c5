"""TabDPT on rows of a table: the processor that holds what answers, and a bundle that is ready without training."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

import lightformers as lf
from lightformers.errors import DataError, UserError
from lightformers.export import huggingface
from lightformers.models.tabular.tabdpt import TabDPT, TabDPTConfig
from lightformers.processors.schema import Column, Row, Schema
from lightformers.processors.tabdpt import TabDPTProcessor
from lightformers.runners import build
from lightformers.steps import Deploy
from lightformers.train.tabdpt import PACKAGED, learn


def model(features: int = 8) -> TabDPT:
    torch.manual_seed(0)
    return TabDPT(TabDPTConfig(features, 16, 24, 2, 2)).eval()


def people(count: int = 40, seed: int = 0) -> list[Row]:
    rng = np.random.default_rng(seed)
    return [
        {
            "age": float(rng.integers(18, 80)),
            "smokes": bool(rng.integers(2)),
            "town": str(rng.choice(["Bonn", "Jena", "Kiel"])),
            "income": None if rng.random() < 0.1 else float(rng.normal(3e4, 5e3)),
        }
        for _ in range(count)
    ]


def labels(rows: list[Row], classes: int = 2) -> np.ndarray:
    return np.arange(len(rows)) % classes


def logits(bundle: lf.Bundle, rows: list[Row]) -> torch.Tensor:
    with torch.no_grad():
        (out,) = bundle.model(**bundle.collate([{"row": r} for r in rows]).inputs).values()
    return out


def test_cells_become_numbers() -> None:
    rows = people()
    made = TabDPTProcessor.fit(rows, labels(rows), Schema.of(rows), 8)
    raw = made.matrix(
        [
            {"age": 30, "smokes": 1.0, "town": "Jena"},
            {"age": "41", "town": "Rome", "smokes": False, "income": 5.0},
        ]
    )
    np.testing.assert_array_equal(raw[0], [30, 1, 0, 1, 0, math.nan])
    np.testing.assert_array_equal(raw[1], [41, 0, math.nan, math.nan, math.nan, 5])
    x = made.encode_examples([{"row": {}}])[0]["x"]
    assert (x == 0).all() and x.shape == (8,)  # nothing known: the mean of every column, and padding
    by_number = TabDPTProcessor.fit(rows, labels(rows), Schema.of(rows), 8, encoding="ordinal")
    assert by_number.matrix([{"town": "Kiel"}])[0, 2] == 2 and len(by_number.mean) == 4
    narrow = TabDPTProcessor.fit(rows, labels(rows), Schema.of(rows), 5)
    assert len(narrow.mean) == 4  # a column per town would not fit


def test_scales_are_of_labelled_rows_without_outliers() -> None:
    rows: list[Row] = [{"a": float(v)} for v in (*range(50), 10**6)]
    made = TabDPTProcessor.fit(rows, labels(rows), Schema.of(rows), 4)
    inner = np.arange(50)
    assert made.low[0] == pytest.approx(inner.mean() - 4 * inner.std())
    assert made.context_x[-1, 0] == made.encode_examples([{"row": {"a": 1e9}}])[0]["x"][0]
    before = made.context_x.copy()
    made.encode_examples([{"row": {"a": 1e9}}] * 100)  # rows that are asked change no scale
    np.testing.assert_array_equal(made.context_x, before)


def test_neighbours_are_the_nearest() -> None:
    rows = people(50)
    made = TabDPTProcessor.fit(rows, labels(rows), Schema.of(rows), 8, context=30, neighbours=7)
    encoded = made.encode_examples([{"row": r} for r in people(6, seed=3)])
    for item in encoded:
        distance = np.square(made.context_x - item["x"]).sum(1)
        assert set(item["neighbours"]) == set(np.argsort(distance)[:7])
    inputs, _ = made.pad_encoded(encoded)
    assert inputs["context_x"].shape == (6, 7, 8) and inputs["context_y"].shape == (6, 7)
    out = logits(
        learn(rows, labels(rows), 2, Schema.of(rows), weights=model(), context=7, neighbours=7),
        people(6, seed=3),
    )
    assert out.shape == (6, 2) and torch.isfinite(out).all()


def test_more_columns_than_the_model_has_are_reduced() -> None:
    rng = np.random.default_rng(0)
    hidden = rng.standard_normal((60, 3))
    values = hidden @ rng.standard_normal((3, 12))
    rows: list[Row] = [{f"c{j}": float(v) for j, v in enumerate(line)} for line in values]
    made = TabDPTProcessor.fit(rows, labels(rows), Schema.of(rows), 8)
    scaled = (values - values.mean(0)) / values.std(0)
    wanted = np.linalg.svd(scaled, full_matrices=False)[1]
    np.testing.assert_allclose(np.linalg.norm(made.context_x, axis=0)[:3], wanted[:3], rtol=1e-3)
    assert np.abs(made.context_x[:, 3:]).max() < 1e-3
    with pytest.raises(DataError, match="12 columns are more than the 8"):
        learn(rows, labels(rows), 2, Schema.of(rows), weights=model(), pca=False)


def test_labels_and_other_rows_change_no_answer() -> None:
    rows = people()
    bundle = learn(rows, labels(rows, 3), 3, Schema.of(rows), weights=model())
    asked = people(5, seed=9)
    one = bundle.collate([{"row": r, "label": 0} for r in asked])
    two = bundle.collate([{"row": r, "label": 2} for r in asked])
    assert all(torch.equal(one.inputs[k], two.inputs[k]) for k in one.inputs) and set(one.inputs) == {
        "context_x",
        "context_y",
        "x",
    }
    assert one.targets["label"].tolist() == [0] * 5
    together = logits(bundle, asked)
    assert together.shape == (5, 3)
    for i, row in enumerate(asked):
        torch.testing.assert_close(logits(bundle, [row])[0], together[i], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("context", [1024, 6])
@pytest.mark.parametrize("classes", [3, None])
def test_a_saved_bundle_answers_alike(tmp_path: Path, context: int, classes: int | None) -> None:
    rows, asked = people(), people(4, seed=5)
    targets = labels(rows, 3) if classes else 100 + 5 * np.arange(len(rows), dtype=np.float64)
    bundle = learn(rows, targets, classes, Schema.of(rows), weights=model(), context=context, neighbours=None)
    if classes:
        bundle.model.config.id2label = dict(enumerate(["red", "green", "blue"]))  # type: ignore[union-attr]
    huggingface.save(bundle, tmp_path / "saved", allow_custom=False)
    again = lf.load(tmp_path / "saved")
    if classes:
        assert again.model.config.id2label == {0: "red", 1: "green", 2: "blue"}  # type: ignore[union-attr]
    assert again.task == bundle.task == ("tabular-classification" if classes else "tabular-regression")
    torch.testing.assert_close(logits(again, asked), logits(bundle, asked))
    assert again.collate(again.processor.samples(3)).inputs["x"].shape == (3, 8)
    huggingface.save(without_processor(bundle), tmp_path / "saved")
    assert not (
        tmp_path / "saved" / "processor.safetensors"
    ).exists()  # a later export leaves nothing of the first


def without_processor(bundle: lf.Bundle) -> lf.Bundle:
    return lf.Bundle(bundle.model, None, bundle.task)


@pytest.mark.slow
@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"])
@pytest.mark.parametrize("options", [{}, {"context": 20, "neighbours": 9}])
def test_every_runtime_answers_alike(runtime: str, options: dict[str, int]) -> None:
    rows, asked = people(60), [{"row": r} for r in people(7, seed=4)]
    bundle = learn(rows, labels(rows, 3), 3, Schema.of(rows), weights=model(), **options)  # type: ignore[arg-type]
    runner = build(bundle, Deploy(runtime, "fp32", batch_size=3), asked)  # type: ignore[arg-type]
    found = np.stack(runner(asked, lambda out, _: list(np.asarray(out["logits"]))))
    np.testing.assert_allclose(found, logits(bundle, [e["row"] for e in asked]).numpy(), atol=1e-5)


def test_predictions_of_numbers_are_in_their_units() -> None:
    rows = people()
    targets = np.random.default_rng(0).standard_normal(len(rows))
    small = learn(rows, targets, None, Schema.of(rows), weights=model())
    large = learn(rows, 1e6 + 1e3 * targets, None, Schema.of(rows), weights=model())
    asked = people(4, seed=2)
    torch.testing.assert_close(logits(large, asked), 1e6 + 1e3 * logits(small, asked), atol=2.0, rtol=0)


def test_tables_that_cannot_answer_are_refused() -> None:
    rows = people(6)
    schema = Schema.of(rows)
    with pytest.raises(DataError, match="no labelled rows"):
        learn([], np.zeros(0, np.int64), 2, schema, weights=model())
    with pytest.raises(DataError, match="one class"):
        learn(rows, np.ones(6, np.int64), 2, schema, weights=model())
    with pytest.raises(DataError, match="missing or infinite"):
        learn(rows, np.array([1.0, 2, 3, 4, 5, math.nan]), None, schema, weights=model())
    with pytest.raises(DataError, match="at least one row must answer"):
        learn(rows, labels(rows), 2, schema, weights=model(), context=0)
    with pytest.raises(DataError, match="holds an infinity"):
        learn([{**r, "age": math.inf} for r in rows], labels(rows), 2, schema, weights=model())
    with pytest.raises(DataError, match="a cell is none"):
        learn([{**r, "age": "old"} for r in rows], labels(rows), 2, schema, weights=model())
    texts = Schema((Column("note", "text"),))
    with pytest.raises(DataError, match="all columns are free text"):
        learn([{"note": "x"}] * 4, np.arange(4) % 2, 2, texts, weights=model())
    with pytest.warns(UserWarning, match="free text are left out: note"):
        learn(rows, labels(rows), 2, Schema((*schema.columns, *texts.columns)), weights=model())
    with pytest.raises(UserError, match="at least one order"):
        learn(rows, labels(rows), 2, schema, weights=model(), permutations=0)
    bundle = learn(rows, labels(rows), 2, schema, weights=model())
    with pytest.raises(DataError, match='"row"'):
        bundle.collate([{"age": 3}])


def planted(count: int, squares: int, seed: int) -> tuple[list[Row], np.ndarray]:
    """A chessboard: no line tells its colours apart."""
    x = np.random.default_rng(seed).uniform(0, squares, (count, 2))
    return [{"a": float(a), "b": float(b)} for a, b in x], np.floor(x).sum(1).astype(np.int64) % 2


def right(bundle: lf.Bundle, rows: list[Row], y: np.ndarray) -> float:
    return float((logits(bundle, rows).argmax(-1).numpy() == y).mean())


def test_packaged_weights_answer_without_training() -> None:
    rows, y = planted(256, 2, 0)
    asked, wanted = planted(200, 2, 1)
    known = learn(rows, y, 2, Schema.of(rows))
    assert right(known, asked, wanted) > 0.85
    torch.manual_seed(0)
    blank = learn(rows, y, 2, Schema.of(rows), weights=TabDPT(known.model.config))
    assert right(blank, asked, wanted) < 0.7
    line = np.array([r["a"] + 2 * r["b"] for r in rows]), np.array([r["a"] + 2 * r["b"] for r in asked])  # type: ignore[operator]
    found = logits(learn(rows, line[0], None, Schema.of(rows)), asked).numpy()
    assert np.corrcoef(found, line[1])[0, 1] > 0.97


def test_neighbours_answer_what_any_rows_cannot() -> None:
    """A finer board: 48 near rows tell the colour of a square, 48 rows of anywhere do not."""
    rows, y = planted(2000, 6, 0)
    asked, wanted = planted(150, 6, 1)
    near = learn(rows, y, 2, Schema.of(rows), context=48, neighbours=48, permutations=2)
    anywhere = learn(rows[:48], y[:48], 2, Schema.of(rows), permutations=2)
    assert right(near, asked, wanted) > right(anywhere, asked, wanted) + 0.2


def test_packaged_weights_are_small() -> None:
    assert PACKAGED.stat().st_size < 1_150_000
