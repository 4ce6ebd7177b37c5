"""The tasks of Long Range Arena: bytes and pixels as numbers, splits that share nothing, plain refusals."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lightformers.bundle import Batch
from lightformers.errors import DataError, UserError
from lightformers.tasks import arena
from lightformers.tasks.arena import ARENA, encode, load
from lightformers.tasks.sequences import Sequences, Split, class_loss, score


@pytest.fixture
def functions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small installed packages: every function says its module."""

    def some(part: str) -> list[tuple[str, str]]:
        return [
            (f"{package}/{part}{module}.py", f"{package} {part} {module} {i}")
            for package in ("json", "asyncio", "alpha", "beta", "gamma", "tiny")
            for module in range(2 if package != "tiny" else 1)
            for i in range(15 if package != "tiny" else 3)
        ]

    monkeypatch.setattr(arena, "python_functions", lambda: (some("train"), some("test")))


def said(tokens: np.ndarray) -> str:
    return bytes((tokens - 1).astype(np.uint8)).decode()


def test_bytes() -> None:
    assert encode("aé", 10).tolist() == [98, 196, 170] and encode("abc", 2).tolist() == [98, 99]


@pytest.mark.usefixtures("functions")
def test_text_asks_for_the_package() -> None:
    split = load("text", "small", train=80, test=40)
    assert split.classes == 4 and "tiny" not in split.about and "python" in split.about
    names = split.about.split(": ")[1].split(", ")
    for part, role in ((split.train, "train"), (split.test, "test")):
        assert np.bincount(part.labels).tolist() == [len(part) // 4] * 4
        for tokens, label in zip(part.tokens, part.labels.tolist()):
            package, where, *_ = said(tokens).split()
            assert where == role and ("python" if package in ("json", "asyncio") else package) == names[label]


@pytest.mark.usefixtures("functions")
def test_retrieval_asks_for_one_module() -> None:
    split = load("retrieval", "small", train=60, test=30)
    assert split.pairs and split.classes == 2
    for part, role in ((split.train, "train"), (split.test, "test")):
        assert part.other is not None and abs(part.labels.mean() - 0.5) < 0.01
        for one, other, label in zip(part.tokens, part.other, part.labels.tolist()):
            a, b = said(one).split(), said(other).split()
            assert (a[:3] == b[:3]) == bool(label) and a != b and a[1] == b[1] == role


def test_digits_come_with_scikit_learn() -> None:
    pytest.importorskip("sklearn")
    split = load("image")
    assert (split.length, split.classes, split.vocab) == (64, 10, 18) and len(split.train) == 1400
    assert {len(t) for t in split.train.tokens} == {64} and min(int(t.min()) for t in split.train.tokens) == 1


def test_pictures_become_grey_and_smaller(tmp_path: Path) -> None:
    pictures = np.zeros((10, 32, 32, 3), np.uint8)
    pictures[5:, :16, :, 1] = 100  # the upper half is green
    np.savez(tmp_path / "p.npz", x=pictures, y=np.arange(10) // 5)
    split = load("image", source=tmp_path / "p.npz")
    assert (split.length, len(split.train), len(split.test)) == (256, 8, 2)
    for tokens, label in zip(split.train.tokens, split.train.labels.tolist()):
        assert set(tokens[:128].tolist()) == {round(58.7) + 1 if label else 1} and set(tokens[128:].tolist()) == {1}  # fmt: skip
    with pytest.raises(DataError, match="does not make one of 12"):
        load("image", source=tmp_path / "p.npz", side=12)


def test_a_users_own_texts(tmp_path: Path) -> None:
    rows = [{"text": f"text {i}", "text_pair": f"other {i}", "label": "yes" if i % 2 else "no"} for i in range(50)]  # fmt: skip
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    split = load("text", source=file)
    assert (len(split.train), len(split.test), split.classes) == (40, 10, 2)
    texts = {said(t) for t in (*split.train.tokens, *split.test.tokens)}
    assert len(texts) == 50
    for tokens, label in zip(split.train.tokens, split.train.labels.tolist()):
        assert int(said(tokens).split()[1]) % 2 == label
    assert load("text", "paper", source=file, train=7).length == 4000
    pairs = load("retrieval", source=file)
    assert pairs.pairs and pairs.train.other is not None
    assert all(
        said(a).split()[1] == said(b).split()[1] for a, b in zip(pairs.train.tokens, pairs.train.other)
    )


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        (lambda: load("chess"), "not one of listops"),
        (lambda: load("text", "huge"), "not one of small, paper"),
        (lambda: load("listops", source="x.csv"), "generated"),
        (lambda: load("text", "paper"), "needs long texts.*--data text=FILE"),
        (lambda: load("listops", breadth=3), "no size breadth; it has train"),
        (lambda: load("text", source="/nowhere/x.csv"), "no file"),
    ],
)
def test_what_cannot_be_had_is_said(wrong: object, why: str) -> None:
    with pytest.raises(UserError, match=why):
        wrong()  # type: ignore[operator]


def test_every_task_has_both_scales() -> None:
    for row in ARENA.values():
        assert set(row.sizes) == {"small", "paper"} and row.summary


def test_data_that_does_not_fit_is_refused() -> None:
    rows, labels = [np.array([1, 2])] * 3, np.array([0, 1, 0])
    with pytest.raises(DataError, match="as many sequences as labels"):
        Sequences(rows, labels[:2])
    with pytest.raises(DataError, match="empty"):
        Sequences([*rows[:2], np.array([], int)], labels)
    part = Sequences(rows, labels)
    for sizes, why in (
        ((1, 5, 5), "1 classes"),
        ((2, 2, 5), "vocabulary of 2"),
        ((2, 5, 1), "longer than 1"),
    ):
        with pytest.raises(DataError, match=why):
            Split(part, part, *sizes)


class Counts(nn.Module):
    """Logits are how often each of three numbers occurs, padding left out by the mask."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        each = nn.functional.one_hot(input_ids, 4) * attention_mask[..., None]
        return {"logits": self.scale * each.sum(1)[:, 1:].float()}


def test_batches_are_padded_and_scores_stay_in_order() -> None:
    rows = [np.array([1, 1, 2]), np.array([3]), np.array([2, 2, 2, 2, 1]), np.array([3, 3, 1])]
    part = Sequences(rows, np.array([0, 2, 1, 0]), groups=np.array([0, 0, 1, 1]))
    batch = part.batch([0, 2])
    assert batch.inputs["input_ids"].tolist() == [[1, 1, 2, 0, 0], [2, 2, 2, 2, 1]]
    assert batch.inputs["attention_mask"].sum(1).tolist() == [3, 5] and batch.targets["label"].tolist() == [
        0,
        1,
    ]
    found = score(Counts(), part, size=3)
    assert found.stats[:, 0].tolist() == [1, 1, 1, 0] and found.groups is not None
    assert Split(part, part, 3, 4, 5).chance == 0.5
    pair = Sequences(rows, part.labels, other=rows[::-1])
    assert set(pair.batch([1]).inputs) == {"input_ids", "attention_mask", "other_ids", "other_mask"}
    assert pair.lengths.tolist() == [3, 5, 5, 3]
    wanted = nn.functional.cross_entropy(torch.tensor([[2.0, 1, 0], [0, 0, 1]]), torch.tensor([0, 2]))
    assert torch.allclose(class_loss(Counts(), part.batch([0, 1])), wanted)
    with pytest.raises(UserError, match="without logits"):
        class_loss(nn.Identity(), Batch({"input": torch.ones(2, 3, 4)}, {"label": torch.zeros(2)}))
