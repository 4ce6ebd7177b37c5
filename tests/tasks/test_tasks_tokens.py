from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from tasks_fakes import TinyRunner, bundle, tiny

from lightformers.bundle import Batch
from lightformers.errors import DataError
from lightformers.tasks import TokenClassification, from_data
from lightformers.tasks.conll import entities, iob2, words_and_tags


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ("O O", set()),
        ("B-A I-A O B-B", {(0, 2, "A"), (3, 4, "B")}),
        ("B-A B-A", {(0, 1, "A"), (1, 2, "A")}),
        ("I-A I-A O", set()),  # continues nothing
        ("B-A I-B I-B", {(0, 1, "A")}),
        ("B-A I-B I-A", {(0, 1, "A")}),
        ("B-A O I-A", {(0, 1, "A")}),
        ("B-x-y I-x-y", {(0, 2, "x-y")}),
        ("PER PER O LOC PER", {(0, 2, "PER"), (3, 4, "LOC"), (4, 5, "PER")}),
        ("", set()),
    ],
)
def test_strict_entities(tags: str, expected: set) -> None:
    assert entities(tags.split()) == expected


def test_other_schemes_become_iob2() -> None:
    assert iob2(["S-A", "B-A", "I-A", "E-A", "U-B", "L-B"]) == (
        ["B-A", "B-A", "I-A", "I-A", "B-B", "I-B"],
        False,
    )
    assert iob2(["I-A", "I-A", "B-A", "O", "I-B"]) == (["B-A", "I-A", "B-A", "O", "B-B"], True)


def test_spans_become_tags() -> None:
    text = "Ann Lee, of New-York."
    spans = [{"start": 0, "end": 7, "label": "PER"}, {"start": 12, "end": 20, "label": "LOC"}]
    words, tags, torn = words_and_tags(text, spans, "f, line 1")
    assert words == ["Ann", "Lee", ",", "of", "New", "-", "York", "."]
    assert tags == ["B-PER", "I-PER", "O", "O", "B-LOC", "I-LOC", "I-LOC", "O"] and torn == 0
    assert words_and_tags("abcdef", [{"start": 1, "end": 3, "label": "X"}], "")[1:] == (["B-X"], 1)
    for wrong, message in [
        ([{"start": 3, "end": 99, "label": "X"}], "line 1: span 3:99 does not lie"),
        ([{"start": 3, "end": 3, "label": "X"}], "span 3:3"),
        ([{"start": 7, "end": 9, "label": "X"}, {"start": 7, "end": 8, "label": "X"}], "overlaps"),
        ([{"start": 11, "end": 12, "label": "X"}], "holds no word"),
        ([{"from": 1}], 'needs "start", "end" and "label"'),
    ]:
        with pytest.raises(DataError, match=message):
            words_and_tags(text, wrong, "f, line 1")


NAMES = ("O", "B-A", "I-A", "B-B", "I-B")


class Answers:
    """Gives each example the tags in its field "say", for as many words as these are."""

    def __call__(self, examples, reduce):
        out = []
        for e in examples:
            starts = torch.full((1, 2 * len(e["say"]) + 2), -1)
            logits = torch.zeros(1, starts.shape[1], len(NAMES))
            for word, tag in enumerate(e["say"]):
                starts[0, 1 + 2 * word] = word  # every word has two sub-tokens
                logits[0, 1 + 2 * word, NAMES.index(tag)] = 1
                logits[0, 2 + 2 * word, 1] = 9  # what a second sub-token says must not count
            out += reduce({"logits": logits}, Batch({}, {"word_starts": starts, "examples": [e]}))
        return out


def _example(right: str, say: str) -> dict:
    tags = right.split()
    return {"words": ["w"] * len(tags), "labels": [NAMES.index(t) for t in tags], "say": say.split()}


def test_f1_by_hand() -> None:
    verify = [
        _example("B-A I-A O B-B", "B-A I-A O B-A"),  # one right, one wrong, one missed
        _example("O O O", "O B-B I-B"),  # one wrong
        _example("O O B-A", "O"),  # truncated: one missed
        _example("B-A O", "I-A O"),  # strict: missed, nothing found
        _example("B-B B-A", "B-B B-A"),  # two right
    ]
    task = TokenClassification({"train": verify, "search": verify, "verify": verify}, NAMES)
    scores = task.evaluate(Answers())
    assert scores.stats.tolist() == [[1, 1, 1], [0, 1, 0], [0, 0, 1], [0, 0, 1], [2, 0, 0]]
    assert scores.value == pytest.approx(6 / 11)  # 2 * 3 / (2 * 3 + 2 + 3)
    words = TokenClassification(task.splits, NAMES, "accuracy").evaluate(Answers())
    assert words.stats.tolist() == [[3, 4], [1, 3], [1, 3], [1, 2], [2, 2]]


def _conll(path, n=40, tag="PER"):
    path.write_text("\n".join(f"Name{i} B-{tag}\nof I-{tag}\nx O\n" for i in range(n)))
    return path


def test_conll_file_with_a_model(tmp_path) -> None:
    task = from_data("token-classification", _conll(tmp_path / "a.txt"))
    assert task.labels == ("B-PER", "I-PER", "O")
    model = tiny("token-classification", ["O", "B-LOC", "I-LOC", "B-PER", "I-PER"])
    task.check(model)
    task.check(model)
    assert task.splits["train"][0]["labels"] == [3, 4, 0]
    runner = TinyRunner(model)
    found = runner(task.splits["verify"][:3], task.reduce)
    assert [len(f) for f in found] == [3, 3, 3]
    assert len(task.evaluate(runner)) == len(task.splits["verify"])
    batch = task.collate(model, task.training_examples(True)[:3])
    outputs = model.module()(**batch.inputs)
    loss = task.loss(outputs, batch)
    starts, total = batch.targets["word_starts"], []
    for row in range(3):
        for place in np.flatnonzero(starts[row] >= 0):
            right = [3, 4, 0][starts[row, place]]
            total.append(-torch.log_softmax(outputs["logits"][row, place], -1)[right].item())
    assert len(total) == 9 and loss.item() == pytest.approx(np.mean(total), rel=1e-5)
    loss.backward()
    assert set(task.training_examples(False)[0]) == {"words"} == set(task.workload(2, lengths=[4])[0])


def test_jsonl_words_and_spans(tmp_path) -> None:
    file = tmp_path / "a.jsonl"
    rows = [{"tokens": ["a", str(i)], "tags": ["B-X", "I-X" if i % 2 else "O"]} for i in range(40)]
    file.write_text("\n".join(map(json.dumps, rows)))
    assert from_data("token-classification", file).labels == ("B-X", "I-X", "O")
    rows = [{"text": f"see Bob{i} now", "spans": [{"start": 4, "end": 6, "label": "P"}]} for i in range(40)]
    file.write_text("\n".join(map(json.dumps, rows)))
    task = from_data("token-classification", file)
    assert task.splits["train"][0]["words"][0] == "see" and task.splits["train"][0]["labels"] == [1, 0, 1]
    assert task.warnings == ["40 spans cut through a word; they were widened to whole words"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"tokens": ["a"], "tags": ["O", "O"]}, "line 1: 1 words in 'tokens', but 2 tags in 'tags'"),
        ({"tokens": ["a"]}, "no column 'tags'; columns there: 'tokens'"),
        ({"sentence": "a", "tags": []}, "no column 'tokens'; columns there: 'sentence', 'tags'"),
        ({"text": "a b", "spans": "none"}, "needs a list of spans"),
        ({"tokens": ["a", "b"], "tags": ["O", None]}, "word 1 has no label"),
        ({"tokens": ["a", "b"], "tags": ["O", "O"]}, "one class only"),
    ],
)
def test_wrong_rows(tmp_path, row, message) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text(json.dumps(row) + "\n")
    with pytest.raises(DataError, match=message):
        from_data("token-classification", file)


def test_tags_and_heads(tmp_path) -> None:
    file = _conll(tmp_path / "a.conll")
    with pytest.raises(DataError, match=r"Data \(3\): B-PER, I-PER, O\. Model \(3\): O, B-LOC, I-LOC"):
        from_data(
            "token-classification", file, bundle=bundle("token-classification", ["O", "B-LOC", "I-LOC"])
        )
    file.write_text("a I-X\nb I-X\n\n" * 3 + "c O\n" + "".join(f"\nd{i} O\n" for i in range(30)))
    task = from_data("token-classification", file)
    assert "now start with B-" in task.warnings[-1] and task.labels == ("B-X", "I-X", "O")
