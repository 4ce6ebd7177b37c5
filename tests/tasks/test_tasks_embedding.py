from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from tasks_fakes import FakeRunner, bundle

from lightformers.errors import DataError, ModelError
from lightformers.tasks import Embedding, from_data
from lightformers.tasks.embedding import ranks


def _pairs(n: int, **more: object) -> list[dict[str, object]]:
    return [{"query": f"query {i}", "document": f"document {i}", **more} for i in range(n)]


def _vectors(table: dict[str, list[float]]) -> FakeRunner:
    return FakeRunner(lambda e: {"embedding": np.array(table[e["text"]], dtype=np.float32)})


def _task(verify: list[dict[str, object]], **options: object) -> Embedding:
    return Embedding({"train": _pairs(2), "search": _pairs(2), "verify": verify}, **options)


def test_mrr_by_hand() -> None:
    task = _task(
        [{"query": "a", "document": "A"}, {"query": "b", "document": "B"}, {"query": "c", "document": "C"}]
    )
    runner = _vectors({
        "a": [1, 0, 0], "A": [1, 0, 0],  # rank 1
        "b": [0, 1, 0], "B": [0, 0.9, 0.5], "C": [0, 1, 0],  # C is closer to b: rank 2
        "c": [1, 0.1, 0],  # to c: A is closest, then C at 0.1, then B at less: rank 2
    })  # fmt: skip
    scores = task.evaluate(runner)
    assert scores.metric.name == "mrr"
    assert scores.stats[:, 0].tolist() == [1.0, 0.5, 0.5]
    assert scores.value == pytest.approx(2 / 3)
    assert runner.calls == 1 and {e["role"] for e in runner.seen} == {"query", "document"}


def test_ties_and_nan_count_against_the_model() -> None:
    same = FakeRunner(lambda e: {"embedding": np.ones(4, dtype=np.float32)})
    assert _task(_pairs(5)).evaluate(same).value == pytest.approx(1 / 5)
    broken = FakeRunner(lambda e: {"embedding": np.full(4, np.nan, dtype=np.float32)})
    assert _task(_pairs(5)).evaluate(broken).value == pytest.approx(1 / 5)


def test_copies_of_the_right_document_are_no_rivals() -> None:
    task = _task(
        [{"query": "a", "document": "X"}, {"query": "b", "document": "X"}, {"query": "c", "document": "Y"}]
    )
    runner = _vectors({"a": [1, 0], "b": [1, 0], "c": [0, 1], "X": [1, 0], "Y": [0, 1]})
    assert task.evaluate(runner).stats[:, 0].tolist() == [1, 1, 1]
    assert len(runner.seen) == 5  # X was encoded once


@pytest.mark.parametrize(
    ("n", "pool", "chunk"), [(1, 1000, 4), (7, 3, 2), (50, 50, 7), (50, 13, 64), (33, 32, 5)]
)
def test_ranks_match_a_literal_count(n: int, pool: int, chunk: int) -> None:
    rng = np.random.default_rng(n)
    vectors = rng.normal(size=(2 * n, 3))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    queries, documents = np.arange(n), n + rng.integers(0, n, n)  # some documents are shared
    order = np.random.default_rng(9).permutation(n)
    expected = np.empty(n)
    for p in range(n):
        own = order[p]
        rivals = [order[(p + k) % n] for k in range(1, min(pool, n))]
        right = vectors[queries[own]] @ vectors[documents[own]]
        expected[own] = 1 + sum(
            vectors[queries[own]] @ vectors[documents[r]] >= right
            for r in rivals
            if documents[r] != documents[own]
        )
    assert ranks(vectors, queries, documents, pool, 9, chunk).tolist() == expected.tolist()


def test_pool_and_limit_are_fixed() -> None:
    rng = np.random.default_rng(0)
    table = {f"{kind} {i}": rng.normal(size=8) for kind in ("query", "document") for i in range(60)}
    task = _task(_pairs(60), pool=10)
    first, again = task.evaluate(_vectors(table)), task.evaluate(_vectors(table))
    assert (first.stats == again.stats).all()
    assert 0.2 < first.value < 0.4  # random vectors: H(10) / 10 = 0.29
    assert len(task.evaluate(_vectors(table), limit=20)) == 20
    with pytest.raises(DataError, match="no split 'dev'"):
        task.evaluate(_vectors(table), "dev")


def test_groups_reach_the_scores() -> None:
    verify = [{**p, "group": f"m{i // 2}"} for i, p in enumerate(_pairs(6))]
    same = FakeRunner(lambda e: {"embedding": np.ones(4, dtype=np.float32)})
    assert _task(verify).evaluate(same).groups.tolist() == [0, 0, 1, 1, 2, 2]


def test_agreement_with_the_original() -> None:
    task = Embedding.from_examples([{"text": f"text {i}"} for i in range(40)])
    assert task.metric.name == "agreement"
    original = FakeRunner(lambda e: {"embedding": np.array([1.0, int(e["text"][5:])], dtype=np.float32)})
    with pytest.raises(DataError, match="set_reference"):
        task.evaluate(original)
    task.set_reference(original)
    assert task.evaluate(original).value == pytest.approx(1)
    assert len(task.evaluate(original, limit=4)) == 4
    turned = FakeRunner(lambda e: {"embedding": np.array([-int(e["text"][5:]), 1.0], dtype=np.float32)})
    assert task.evaluate(turned).value == pytest.approx(0, abs=1e-6)
    narrow = FakeRunner(lambda e: {"embedding": np.ones(1, dtype=np.float32)})
    with pytest.raises(ModelError, match="1 numbers, the original's 2"):
        task.evaluate(narrow)


def test_collate_and_loss() -> None:
    task = _task(_pairs(3))
    rows = [
        {"query": "a", "document": "x y"},
        {"query": "b", "document": "z"},
        {"query": "c", "document": "x y"},
    ]
    batch = task.collate(bundle("embedding"), rows)
    assert batch.inputs["input_ids"].shape == (6, 2)
    assert [e["role"] for e in batch.targets["examples"]] == ["query"] * 3 + ["document"] * 3
    vectors = torch.eye(3)[[0, 1, 0, 0, 1, 0]].requires_grad_()
    loss = task.loss({"embedding": vectors}, batch)
    one = np.log(1 + np.exp(-20))  # one negative left each for a and c: z
    two = np.log(1 + 2 * np.exp(-20))
    assert loss.item() == pytest.approx((2 * one + two) / 3, abs=1e-6)
    loss.backward()
    assert torch.isfinite(vectors.grad).all()


def test_training_examples_calibration_workload() -> None:
    task = Embedding.from_examples(_pairs(60))
    assert set(task.training_examples(True)[0]) == {"query", "document"}
    assert set(task.training_examples(False)[0]) == {"text", "role"}
    assert len(task.training_examples(False)) == 2 * len(task.splits["train"])
    assert task.calibration(5) == task.calibration(5) != task.calibration(5, seed=1)
    load = task.workload(2 * len(task.texts("search")) + 1)
    assert {e["role"] for e in load} == {"query", "document"}
    assert len({e["text"] for e in load}) == len(task.texts("search"))


def test_from_file(tmp_path) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_text(
        "".join(json.dumps({"q": f"q {i}", "d": f"d {i}", "page": i // 3}) + "\n" for i in range(60))
    )
    task = from_data("embedding", file, query="q", document="d", group="page", bundle=bundle("embedding"))
    pages = {name: {e["group"] for e in rows} for name, rows in task.splits.items()}
    assert not pages["train"] & pages["verify"] and not pages["search"] & pages["verify"]
    assert sum(len(rows) for rows in task.splits.values()) == 60
    other = from_data("embedding", file, query="q", document="d", group="page", seed=1)
    assert (
        other.fingerprint
        != task.fingerprint
        == from_data("embedding", str(file), query="q", document="d", group="page").fingerprint
    )
    with pytest.raises(
        DataError, match=r"columns there: 'q', 'd', 'page'\. Name two with --query and --document"
    ):
        from_data("embedding", file)
    with pytest.raises(DataError, match="--document is missing"):
        from_data("embedding", file, query="q")
    with pytest.raises(DataError, match="takes no label; it takes query"):
        from_data("embedding", file, label="page")
    texts = tmp_path / "texts.txt"
    texts.write_text("\n\n".join(f"Text number {i}." for i in range(30)))
    plain = from_data("embedding", texts)
    assert not plain.pairs and sum(map(len, plain.splits.values())) == 30
    with pytest.raises(DataError, match="no labels to learn from"):
        plain.training_examples(True)


def test_check() -> None:
    task = _task(_pairs(3))
    task.check(bundle("embedding", max_length=1))
    assert "6 of 6 examples are longer than the model's 1 tokens" in task.warnings[0]
    with pytest.raises(ModelError, match="head for causal-lm"):
        task.check(bundle("causal-lm"))
    bare = bundle("embedding")
    bare.pooling = None
    with pytest.raises(ModelError, match="no pooling"):
        task.check(bare)
