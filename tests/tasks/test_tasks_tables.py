from __future__ import annotations

import csv
import json
from dataclasses import asdict
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tasks_fakes import FakeRunner, bundle

from lightformers.bundle import Batch, Bundle
from lightformers.errors import DataError, ModelError
from lightformers.processors.schema import Column, Schema
from lightformers.tasks import TabularClassification, TabularRegression, from_data


def _write(path, columns: dict[str, list]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values()))


def _columns(n: int = 80) -> dict[str, list]:
    drawn = np.random.default_rng(0)
    return {
        "age": drawn.integers(20, 70, n).tolist(),
        "share": [f"{v}%" for v in drawn.integers(0, 3, n)],
        "size": [v if i % 7 else "" for i, v in enumerate(drawn.normal(size=n).round(3))],
        "city": drawn.choice(["Rome", "Oslo", "Bonn"], n).tolist(),
        "sure": drawn.choice(["yes", "no"], n).tolist(),
        "target": drawn.choice(["low", "high"], n).tolist(),
    }


def test_kinds_of_columns() -> None:
    """Numbers as text are numbers; percent signs, dates and codes with leading zeros are texts."""
    rows = [
        {"a": str(i), "b": f"{i}%", "c": f"2024-01-{i + 10}", "d": f"0{i}", "e": i % 2 == 0, "f": "?" if i else "1.5e3",
         "g": 5, "h": "NA" if i % 2 else "x", "i": float(i % 2), "j": i % 3}
        for i in range(30)
    ]  # fmt: skip
    schema = Schema.of(rows, categories=["j"])
    kinds = {c.name: c.kind for c in schema.columns}
    assert kinds == {"a": "number", "b": "text", "c": "text", "d": "text", "e": "binary", "f": "number", "g": "number",
                     "h": "binary", "i": "binary", "j": "category"}  # fmt: skip
    cast = schema.cast(rows[:2])
    assert cast[0] == {"a": 0.0, "b": "0%", "c": "2024-01-10", "d": "00", "e": "1", "f": 1500.0, "g": 5.0, "h": "x",
                       "i": "0", "j": "0"}  # fmt: skip
    assert cast[1]["f"] is None and cast[1]["h"] == "NA"
    assert schema.seen(rows[:2]).columns[9] == Column("j", "category", ("0", "1"))
    assert Schema.from_fields(json.loads(json.dumps(asdict(schema)))) == schema


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"b": 1}], "lacks a; it has b"),
        ([{"a": "many"}], "column a holds numbers, and row 1 says 'many'"),
        ([{"a": float("inf")}], "holds infinity in row 1"),
    ],
)
def test_rows_that_do_not_fit(rows, message) -> None:
    with pytest.raises(DataError, match=message):
        Schema.of([{"a": 3}, {"a": 4}]).cast(rows)


def test_classification_of_a_file(tmp_path) -> None:
    _write(tmp_path / "a.csv", _columns())
    task = from_data(
        "tabular-classification",
        tmp_path / "a.csv",
        bundle=bundle("tabular-classification", ["low", "high"]),
    )
    assert {k: len(v) for k, v in task.splits.items()} == {"train": 48, "search": 12, "verify": 20}
    assert task.labels == ("low", "high")
    row = task.splits["train"][0]["row"]
    assert list(row) == ["age", "share", "size", "city", "sure"] and isinstance(row["age"], float)
    assert {c.name: c.kind for c in task.schema.columns}["share"] == "category"
    assert any(e["row"]["size"] is None for e in task.splits["train"])
    right = FakeRunner(lambda e: {"logits": np.eye(2)[e["label"]] * 9.0})
    assert task.evaluate(right).value == 1
    assert set(task.training_examples(False)[0]) == {"row"} == set(task.workload(2)[0])
    same = TabularClassification.from_file(tmp_path / "a.csv", label="target", features="age, city")
    assert list(same.splits["verify"][0]["row"]) == ["age", "city"] and same.fingerprint != task.fingerprint


def test_log_loss_and_f1(tmp_path) -> None:
    _write(tmp_path / "a.csv", _columns())
    task = TabularClassification.from_file(tmp_path / "a.csv", metric="log-loss")
    runner = FakeRunner(lambda e: {"logits": np.log([0.25, 0.75])})
    share = np.mean([e["label"] for e in task.splits["verify"]])
    expected = -share * np.log(0.75) - (1 - share) * np.log(0.25)
    scores = task.evaluate(runner)
    assert scores.value == pytest.approx(expected, abs=1e-6) and not scores.metric.higher_is_better
    broken = task.evaluate(FakeRunner(lambda e: {"logits": np.array([np.nan, 0.0])}))
    assert np.isfinite(broken.value) and broken.value > 30
    f1 = TabularClassification.from_file(tmp_path / "a.csv", metric="macro-f1")
    assert f1.evaluate(FakeRunner(lambda e: {"logits": np.eye(2)[e["label"]]})).value == 1


def test_regression_is_in_standard_units(tmp_path) -> None:
    _write(tmp_path / "a.csv", {**_columns(), "target": (np.arange(80) * 1000.0 + 5e5).tolist()})
    task = from_data("tabular-regression", tmp_path / "a.csv")
    train = np.array([e["label"] for e in task.splits["train"]])
    assert (task.mean, task.deviation) == (train.mean(), train.std())
    right = FakeRunner(lambda e: {"prediction": np.array(e["label"], np.float64)})
    assert task.evaluate(right).value == 0
    off = FakeRunner(lambda e: {"prediction": np.array(e["label"] + 2 * task.deviation)})
    assert task.evaluate(off).value == pytest.approx(4) and not task.metric.higher_is_better
    task.kind = "mae"
    assert task.evaluate(off).value == pytest.approx(2)
    task.kind = "mse"
    model = torch.nn.Identity()
    model.config = SimpleNamespace(target_units=(5e5, 1000.0))  # type: ignore[assignment]
    task.check(Bundle(model, None, "tabular-regression"))
    scaled = FakeRunner(lambda e: {"prediction": np.array((e["label"] - 5e5) / 1000 + 1)})
    assert task.evaluate(scaled).value == pytest.approx((1000 / task.deviation) ** 2)
    label = torch.tensor([6e5])
    assert float(task.loss({"prediction": torch.tensor([101.0])}, Batch({}, {"label": label}))) == pytest.approx(
        (1000 / task.deviation) ** 2, rel=1e-4
    )  # fmt: skip
    with pytest.raises(ModelError, match="no prediction"):
        task.reduce({"logits": torch.zeros(1, 2)}, Batch({}, {}))


def test_folder_groups_and_warnings(tmp_path) -> None:
    columns = _columns()
    _write(tmp_path / "train.csv", columns)
    _write(tmp_path / "test.csv", {k: v[:30] for k, v in _columns(81).items()})
    _write(tmp_path / "valid.csv", {**columns, "target": [""] * 80})
    task = TabularClassification.from_file(tmp_path)
    assert len(task.splits["verify"]) == 30 and "holds no targets" in task.warnings[0]
    _write(tmp_path / "g.csv", {**columns, "who": [i // 4 for i in range(80)], "id": [f"n{i}" for i in range(80)],
                                "number": list(range(80))})  # fmt: skip
    task = TabularClassification.from_file(tmp_path / "g.csv", group="who")
    parts = [{e["group"] for e in rows} for rows in task.splits.values()]
    assert not parts[0] & parts[1] and not parts[0] & parts[2] and "who" not in task.splits["train"][0]["row"]
    assert ["column id" in w for w in task.warnings] == [True, False]
    assert "column number says something else in every row" in task.warnings[1]


def test_equal_rows_are_no_leak_in_a_coarse_table() -> None:
    """A table of few cells repeats itself; in one whose rows all differ, two equal ones are copies."""
    coarse = [{"row": {"a": i % 2, "b": i % 3}, "label": i % 2} for i in range(60)]
    assert sum(map(len, TabularClassification.from_examples(coarse).splits.values())) == 60
    fine = [{"row": {"a": i + 0.5}, "label": i % 2} for i in range(60)]
    task = TabularClassification.from_examples({"train": fine[:50], "test": fine[40:]})
    assert len(task.splits["verify"]) == 20 and "removed" in " ".join(task.warnings)


def test_minus_one_is_a_class() -> None:
    rows = [{"row": {"a": float(i)}, "label": -1 if i % 2 else 1} for i in range(40)]
    assert TabularClassification.from_examples(rows).labels == ("1", "-1")


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({}, {"label": "price"}, "no column 'price'; columns there: 'age', 'share'"),
        ({"target": ["x"] * 80}, {}, "one class only"),
        ({"size": [""] * 80}, {}, "column size holds no value in any row"),
        ({"target": ["", *["a", "b"] * 40][:80]}, {}, r"line 2: no target in column 'target' \(1 of 80"),
        ({"target": [f"{i}.5" for i in range(80)]}, {}, "80 different values in 80 rows.*tabular-regression"),
        ({}, {"features": "age,target"}, "'target' is the target"),
        ({}, {"features": "wage"}, "no column 'wage'"),
        ({}, {"metric": "auc"}, "unknown metric 'auc'"),
        ({"class": ["x"] * 80}, {}, "which column is the target"),
    ],
)
def test_wrong_tables(tmp_path, change, options, message) -> None:
    _write(tmp_path / "a.csv", {**_columns(), **change})
    with pytest.raises(DataError, match=message):
        from_data("tabular-classification", tmp_path / "a.csv", **options)


def test_wrong_targets_of_regression(tmp_path) -> None:
    _write(tmp_path / "a.csv", _columns())
    with pytest.raises(
        DataError, match=r"line 2: the target '(low|high)' is no number.*tabular-classification"
    ):
        TabularRegression.from_file(tmp_path / "a.csv")
    _write(tmp_path / "a.csv", {**_columns(), "target": [3] * 80})
    with pytest.raises(DataError, match="the target is 3 in every training row"):
        TabularRegression.from_file(tmp_path / "a.csv")
    _write(tmp_path / "a.csv", {**_columns(8), "target": list(range(8))})
    with pytest.raises(DataError, match="8 rows are too few"):
        TabularRegression.from_file(tmp_path / "a.csv")
