from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from tasks_fakes import FakeRunner, bundle

from lightformers.errors import DataError, ModelError
from lightformers.tasks import TextClassification, from_data


def _write(path, rows, header="text,label"):
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


@pytest.fixture
def reviews(tmp_path):
    return _write(tmp_path / "r.csv", [f"text number {i},{'good' if i % 4 else 'bad'}" for i in range(80)])


def _guess(answer) -> FakeRunner:
    return FakeRunner(lambda e: {"logits": np.array(answer(e), dtype=np.float32)})


def test_accuracy_and_macro_f1_by_hand() -> None:
    verify = [{"text": str(i), "label": y} for i, y in enumerate([0, 0, 0, 1])]
    splits = {"train": verify, "search": verify, "verify": verify}
    always_0 = _guess(lambda e: [1, 0])
    assert TextClassification(splits, ("a", "b")).evaluate(always_0).stats.tolist() == [[1, 1]] * 3 + [[0, 1]]
    macro = TextClassification(splits, ("a", "b"), "macro-f1").evaluate(always_0)
    # a: tp 3, fp 1, fn 0 -> 6/7; b: tp 0, fp 0, fn 1 -> 0
    assert macro.value == pytest.approx((6 / 7 + 0) / 2)
    nothing = _guess(lambda e: [np.nan, 1])
    assert TextClassification(splits, ("a", "b")).evaluate(nothing).value == 0
    assert TextClassification(splits, ("a", "b"), "macro-f1").evaluate(nothing).value == 0


def test_split_is_stratified_and_labels_are_aligned(reviews) -> None:
    task = from_data("text-classification", reviews)
    assert task.labels == ("bad", "good")
    assert {k: len(v) for k, v in task.splits.items()} == {"train": 48, "search": 12, "verify": 20}
    assert Counter(e["label"] for e in task.splits["verify"]) == {1: 15, 0: 5}
    before = task.fingerprint
    task.check(bundle("text-classification", ["Good", "Bad"]))
    assert Counter(e["label"] for e in task.splits["verify"]) == {0: 15, 1: 5}
    assert task.labels == ("Good", "Bad") and task.fingerprint == before and not task.warnings
    task.check(bundle("text-classification", ["Good", "Bad"]))  # checking twice changes nothing
    assert Counter(e["label"] for e in task.splits["verify"]) == {0: 15, 1: 5}


@pytest.mark.parametrize(
    ("values", "model", "expected"),
    [
        (["0", "1"], ["NEGATIVE", "POSITIVE"], {"0": 0, "1": 1}),
        (["1.0", "0.0"], ["LABEL_0", "LABEL_1"], {"0": 0, "1": 1}),
        (["1", "2"], ["LABEL_0", "LABEL_1"], {"1": 0, "2": 1}),
        (["neg", "pos"], ["LABEL_0", "LABEL_1"], {"neg": 0, "pos": 1}),
        (["b", "c"], ["C", "a", "B"], {"b": 2, "c": 0}),
        (["1", "2"], ["no", "maybe", "yes"], {"1": 1, "2": 2}),
    ],
)
def test_labels_and_heads_that_match(tmp_path, values, model, expected) -> None:
    path = _write(tmp_path / "x.csv", [f"t {i},{values[i % 2]}" for i in range(40)])
    task = from_data("text-classification", path, bundle=bundle("text-classification", model))
    names = {f"t {i}": str(values[i % 2]).removesuffix(".0") for i in range(40)}
    for rows in task.splits.values():
        assert all(e["label"] == expected[names[e["text"]]] for e in rows)
    guessed = model[0] == "LABEL_0" and set(expected) != {"0", "1"}
    assert bool(task.warnings) == guessed
    splits = task.splits
    task.check(bundle("text-classification", model))  # checking twice changes nothing
    assert task.splits == splits


def test_labels_and_heads_that_do_not_match(reviews) -> None:
    with pytest.raises(DataError, match=r"Data \(2\): bad, good\. Model \(2\): NEGATIVE, POSITIVE"):
        from_data(
            "text-classification", reviews, bundle=bundle("text-classification", ["NEGATIVE", "POSITIVE"])
        )
    with pytest.raises(DataError, match=r"Model \(3\)"):
        from_data(
            "text-classification",
            reviews,
            bundle=bundle("text-classification", ["LABEL_0", "LABEL_1", "LABEL_2"]),
        )
    with pytest.raises(ModelError, match="head for embedding"):
        from_data("text-classification", reviews, bundle=bundle("embedding"))
    with pytest.raises(ModelError, match="no classification head"):
        from_data("text-classification", reviews).evaluate(FakeRunner(lambda e: {"embedding": np.ones(2)}))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["a,x", "b,"] * 9, "line 3: no label in column 'label' \\(9 of 18 rows\\)"),
        (["a,nan", "b,NaN"], "no row has a label"),
        ([f"t{i},x" for i in range(20)], "one class only \\(x\\)"),
        (["a,", "b,"], "no row has a label"),
        ([",x", " ,y"], "every row lacks 'text'"),
        (["a,x", "b,y"], "2 examples are too few to split"),
        ([], "holds no rows"),
        (["a,x", "b,x,y"], "line 3: 3 fields, but the header names 2"),
    ],
)
def test_wrong_files(tmp_path, rows, message) -> None:
    with pytest.raises(DataError, match=message):
        TextClassification.from_file(_write(tmp_path / "x.csv", rows))


def test_given_splits_pairs_and_unlabelled_test(tmp_path) -> None:
    for name, n in {"train": 40, "validation": 10, "test": 10}.items():
        label = "-1" if name == "test" else None
        rows = [f"{name} {i},other,{label or i % 2}" for i in range(n)]
        _write(tmp_path / f"{name}.tsv", [r.replace(",", "\t") for r in rows], "a\tb\tlabel")
    task = from_data("text-classification", tmp_path, text="a", text_pair="b")
    assert "holds no labels" in task.warnings[0] and "the validation data verifies" in task.warnings[1]
    assert len(task.splits["verify"]) == 10 and len(task.splits["train"]) + len(task.splits["search"]) == 40
    assert set(task.splits["train"][0]) == {"text", "text_pair", "label"}
    assert set(task.training_examples(False)[0]) == {"text", "text_pair"}
    assert set(task.workload(3)[0]) == {"text", "text_pair"}


def test_duplicates_between_splits_are_removed() -> None:
    rows = [{"text": f"t {i}", "label": i % 2} for i in range(10)]
    task = TextClassification.from_examples(
        {"train": [*rows, {"text": "V  0", "label": 1}], "valid": [{"text": "s", "label": 0}, {"text": "T 3", "label": 1}],
         "test": [{"text": "v 0", "label": 1}, {"text": "v 1", "label": 0}]}
    )  # fmt: skip
    assert {k: len(v) for k, v in task.splits.items()} == {"train": 9, "search": 2, "verify": 2}
    assert task.warnings == ["examples that stand in a later split too were removed: 2 from train"]


def test_loss_and_batch() -> None:
    rows = [{"text": f"t {i}", "label": i % 2} for i in range(40)]
    task = TextClassification.from_examples(rows)
    batch = task.collate(
        bundle("text-classification"), [{"text": "a", "label": 0}, {"text": "b c", "label": 1}]
    )
    logits = torch.tensor([[0.0, 0.0], [0.0, 2.0]])
    assert task.loss({"logits": logits}, batch).item() == pytest.approx(
        (np.log(2) + np.log(1 + np.exp(-2))) / 2
    )
    with pytest.raises(DataError, match="unknown metric 'auc'"):
        TextClassification.from_examples(rows, metric="auc")
    with pytest.raises(DataError, match="example 0 has no field 'label'"):
        TextClassification.from_examples([{"text": "a"}])
    with pytest.raises(DataError, match="unknown task 'sorting'; tasks: embedding"):
        from_data("sorting", rows)
