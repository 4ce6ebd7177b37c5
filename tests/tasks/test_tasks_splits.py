from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from lightformers.errors import DataError
from lightformers.tasks import common
from lightformers.tasks.splits import assemble, named, role, split


def _rows(n: int, **fields: object) -> list[dict[str, object]]:
    return [{"text": f"t{i}", **fields} for i in range(n)]


def _keys(example) -> list[str]:
    return [example["text"]]


def test_stratified_within_one_example_per_class() -> None:
    rows = [{"text": str(i), "label": 0 if i < 7 else 1 if i < 40 else 2} for i in range(200)]
    cut = split(rows, 3, lambda e: e["label"])
    assert sorted(e["text"] for part in cut.values() for e in part) == sorted(e["text"] for e in rows)
    for name, share in {"train": 0.6, "search": 0.15, "verify": 0.25}.items():
        found = Counter(e["label"] for e in cut[name])
        for label, size in {0: 7, 1: 33, 2: 160}.items():
            assert abs(found[label] - share * size) <= 1
    assert split(rows, 3, lambda e: e["label"]) == cut != split(rows, 4, lambda e: e["label"])


@pytest.mark.parametrize("sizes", [[1] * 90, [30, *[1] * 70], list(range(1, 25))])
def test_groups_stay_whole(sizes: list[int]) -> None:
    rows = [{"text": f"{g} {i}", "group": g} for g, size in enumerate(sizes) for i in range(size)]
    cut = split(rows)
    seen = [{e["group"] for e in part} for part in cut.values()]
    assert len(set().union(*seen)) == sum(map(len, seen)) == len(sizes)
    assert abs(len(cut["verify"]) - 0.25 * len(rows)) <= max(sizes) / 2 + 1


def test_too_little() -> None:
    with pytest.raises(DataError, match="2 groups are too few to split: nothing left for"):
        split([*_rows(9, group="a"), *_rows(9, group="b")])
    with pytest.raises(DataError, match="no examples were read"):
        assemble({"": []}, _keys)


def test_given_splits_keep_their_roles() -> None:
    parts = {n: [{"text": f"{n} {i}"} for i in range(20)] for n in ("train", "search", "verify")}
    splits, notes = assemble(parts, _keys)
    assert splits == parts and not notes
    splits, notes = assemble({"train": parts["train"], "verify": parts["verify"]}, _keys)
    assert (
        splits["verify"] == parts["verify"]
        and len(splits["train"]) == 16
        and len(splits["search"]) == 4
        and not notes
    )
    splits, notes = assemble({"train": parts["train"], "search": parts["search"]}, _keys)
    assert splits["verify"] == parts["search"] and "the validation data verifies" in notes[0]
    splits, notes = assemble({"search": parts["search"], "verify": parts["verify"]}, _keys)
    assert (
        splits["verify"] == parts["verify"] and len(splits["train"]) == 16 and "no training data" in notes[0]
    )
    splits, _ = assemble({"verify": parts["verify"]}, _keys)
    assert {k: len(v) for k, v in splits.items()} == {"train": 12, "search": 3, "verify": 5}


def test_later_splits_keep_what_is_double() -> None:
    parts = {"train": _rows(4), "search": _rows(2), "verify": [{"text": "t0"}, {"text": "t0"}]}
    splits, notes = assemble(parts, _keys)
    assert [[e["text"] for e in splits[n]] for n in ("train", "search", "verify")] == [
        ["t2", "t3"],
        ["t1"],
        ["t0", "t0"],
    ]
    assert notes == ["examples that stand in a later split too were removed: 1 from search, 2 from train"]
    with pytest.raises(DataError, match="the train split is empty once"):
        assemble({"train": _rows(1), "search": _rows(2), "verify": _rows(1)}, _keys)


def test_names_of_splits() -> None:
    assert [role(n) for n in ("Train", "dev", "TEST", "extra")] == ["train", "search", "verify", None]
    assert list(named({"train": [], "validation": [], "test": []})) == ["train", "search", "verify"]
    with pytest.raises(DataError, match=r"unknown splits \['all'\]"):
        named({"all": []})


def test_samples_are_nested_and_sorted() -> None:
    splits = {"verify": _rows(50), "search": []}
    few, more = (common.take(splits, "verify", n, 0) for n in (5, 20))
    assert set(few) < set(more) and list(few) == sorted(few)
    assert common.take(splits, "verify", 80, 0).tolist() == list(range(50))
    with pytest.raises(DataError, match="search split is empty"):
        common.take(splits, "search", None, 0)


def test_groups_as_numbers() -> None:
    assert common.groups(_rows(3)) is None
    rows = [{"group": "b"}, {"group": 1}, {}, {"group": "b"}, {}]
    assert common.groups(rows).tolist() == [0, 1, 2, 0, 3]


def test_workloads_of_chosen_lengths() -> None:
    rows = [{"text": " ".join(["w"] * n), "label": 0} for n in range(1, 31)]
    assert set(common.with_lengths(rows, 4, 0, None)[0]) == {"text"}

    def sizes(lengths: common.Lengths, n: int = 40) -> list[int]:
        return [len(e["text"].split()) for e in common.with_lengths(rows, n, 0, lengths)]

    assert set(sizes((5, 8))) == {5, 6, 7, 8}
    assert sizes([3, 50, 120], 4) == [3, 50, 120, 3]
    made = sizes((100, 110))
    assert min(made) >= 100 and max(made) <= 110 and len(set(made)) > 5
    assert sizes((5, 8)) == sizes((5, 8))
    words = [{"words": ["a", "b"], "labels": [0, 0]}]
    assert common.with_lengths(words, 1, 0, [5], "words") == [{"words": ["a", "b", "a", "b", "a"]}]
    with pytest.raises(DataError, match="start at 1"):
        sizes((0, 3))


def test_fingerprint_sees_every_change() -> None:
    base = {"verify": [{"image": np.zeros((2, 2), np.uint8), "label": 1}]}
    first = common.fingerprint(base, {"a": 1})
    assert first == common.fingerprint(
        {"verify": [{"label": 1, "image": np.zeros((2, 2), np.uint8)}]}, {"a": 1}
    )
    changed = [
        common.fingerprint(base, {"a": 2}),
        common.fingerprint({"verify": [{"image": np.zeros((1, 4), np.uint8), "label": 1}]}, {"a": 1}),
        common.fingerprint({"verify": [{"image": np.ones((2, 2), np.uint8), "label": 1}]}, {"a": 1}),
        common.fingerprint({"search": base["verify"]}, {"a": 1}),
    ]
    assert len({first, *changed}) == 5
