"""Texts made up from texts, and training with them."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import steps_world as world
import torch

from lightformers.bundle import Batch
from lightformers.compress import DropBlocks, Recover
from lightformers.compress.distill import common, made_up
from lightformers.errors import UserError
from lightformers.steps import Recipe, Run
from lightformers.tasks import classify
from lightformers.tasks.text_classification import TextClassification

ROWS = [
    {"text": f"the {a} {b} of a {c} day, and what came after it: {i}", "label": i % 2}
    for i, (a, b, c) in enumerate(
        [("quiet", "end", "long"), ("loud", "start", "short"), ("last", "hour", "grey")] * 8
    )
]


def test_made_up_texts_are_of_the_words_that_are_there() -> None:
    made = made_up.examples(ROWS, 3, seed=1)
    assert len(made) == 3 * len(ROWS) and made == made_up.examples(ROWS, 3, seed=1) != made_up.examples(
        ROWS, 3, seed=2
    )
    known = {w for r in ROWS for w in r["text"].split()}
    assert {w for m in made for w in m["text"].split()} <= known
    assert {m["label"] for m in made} == {made_up.UNLABELLED}
    texts = {r["text"] for r in ROWS}
    assert sum(m["text"] not in texts for m in made) > 0.8 * len(made)
    lengths = [len(m["text"].split()) for m in made]
    whole = len(ROWS[0]["text"].split())
    assert min(lengths) < whole < max(lengths) and min(lengths) >= whole // 3


def test_what_has_no_spaces_is_made_of_characters() -> None:
    rows = [{"text": "天気がいいから散歩しましょう", "role": "query"}, {"text": "今日は雨"}]
    made = made_up.examples(rows, 4)
    assert len(made) == 8 and " " not in "".join(m["text"] for m in made)
    assert set("".join(m["text"] for m in made)) <= set("".join(r["text"] for r in rows))
    assert made[0]["role"] == "query" and "label" not in made[0]


def test_nothing_is_made_of_nothing() -> None:
    assert made_up.examples(ROWS, 0) == [] and made_up.examples([{"text": ""}], 2) == []


def test_examples_without_a_label_have_no_part_in_the_loss() -> None:
    logits = torch.randn(4, 3, requires_grad=True)
    both = Batch({}, {"label": torch.tensor([1, -100, 2, -100])})
    wanted = torch.nn.functional.cross_entropy(logits[[0, 2]], torch.tensor([1, 2]))
    torch.testing.assert_close(classify.loss({"logits": logits}, both), wanted)
    none = classify.loss({"logits": logits}, Batch({}, {"label": torch.full((4,), -100)}))
    none.backward()
    assert float(none.detach()) == 0 and float(logits.grad.abs().sum()) == 0  # type: ignore[union-attr]


@pytest.fixture
def classifier() -> Any:
    bundle = world.bundle("bert-classifier")
    classes = bundle.model.config.num_labels
    rows = [{**r, "label": i % classes} for i, r in enumerate(ROWS)]
    return bundle, TextClassification.from_examples(
        {"train": rows[:16], "search": rows[16:20], "verify": rows[20:]}
    )


@pytest.mark.parametrize("labels", [False, True])
def test_recovery_learns_from_made_up_texts_too(classifier: Any, labels: bool) -> None:
    bundle, task = classifier
    run = Run(dtype="fp32", use_labels=labels)
    plain, more = (common.feed(bundle, task, run, more=n) for n in (0, 3))
    assert len(more.items) == 4 * len(plain.items) == 64
    seen = [place for batch in more.epoch(0) for place in batch]
    assert sorted(seen) == list(range(64))
    step = Recover(epochs=2, made_up=3)
    cut, alone, made = (
        Recipe([DropBlocks(blocks=(0, 3)), *steps]).apply(bundle, task, run)
        for steps in ([], [Recover(epochs=2)], [step])
    )
    assert all(torch.isfinite(p).all() for p in made.model.parameters())
    for other in (cut, alone):  # it was trained, and on more than the texts that are there
        assert any(not torch.equal(a, b) for a, b in zip(made.model.parameters(), other.model.parameters()))


def test_pairs_and_other_tasks_stay_as_they_are(classifier: Any) -> None:
    bundle, task = classifier
    assert not common.single_texts(bundle, [{"text": "a", "text_pair": "b"}])
    assert not common.single_texts(bundle, [{"query": "a", "document": "b"}])
    assert not common.single_texts(dataclasses.replace(bundle, task="causal-lm"), [{"text": "a"}])
    with pytest.raises(UserError, match="made_up"):
        Recipe([DropBlocks(blocks=(0,)), Recover(epochs=1, made_up=-1)]).apply(
            bundle, task, Run(dtype="fp32")
        )
