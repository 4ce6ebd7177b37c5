"""How sure a small model must be: found on planted scores, and who may have a cascade at all."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from lightformers import stats
from lightformers.errors import UserError
from lightformers.slim import cascading, plan
from lightformers.slim.session import Session
from lightformers.slim.settings import Settings
from lightformers.stats import METRICS, Scores

N = 1000


class Planted(Session):
    """A session whose original is always right."""

    def original(self, split: str, limit: int | None = None) -> Scores:
        return scores(np.ones(N))


def scores(right: np.ndarray) -> Scores:
    return Scores(np.stack([right, np.ones(N)], 1).astype(float), METRICS["accuracy"])


def session(**settings: Any) -> Session:
    task: Any = SimpleNamespace(name="text-classification", splits={"search": range(N), "verify": range(N)})
    asked = Settings(**({"allow_custom": True} | settings))
    nothing: Any = None
    return Planted(nothing, task, asked, nothing, nothing, 0.0, runtime="torch")


def test_the_least_share_that_keeps_the_floor() -> None:
    sureness = np.linspace(0.5, 0.999, N)
    right = np.ones(N)
    right[np.arange(0, 120, 2)] = 0  # sixty mistakes among the 120 it is least sure of
    found = cascading.found(session(floor=0.99), scores(right), sureness, cost=1.0, whole=4.0)
    assert found and found["share"] in (0.1, 0.125) and found["cost"] == 1.0 + 4.0 * found["share"]
    asked = sureness < found["sure"]
    assert asked.sum() == round(found["share"] * N)
    assert found["ratio"] >= session(floor=0.99).target([found])
    lower = cascading.found(session(floor=0.95), scores(right), sureness, 1.0, 4.0)
    assert lower and lower["share"] < found["share"]


def test_sure_mistakes_cannot_be_mended() -> None:
    right = np.ones(N)
    right[-50:] = 0
    assert cascading.found(session(floor=0.99), scores(right), np.linspace(0.5, 1, N), 1.0, 4.0) is None


def test_a_share_that_passes_by_chance_counts_for_nothing() -> None:
    sureness = np.linspace(0.5, 0.999, N)
    right, old = np.ones(N), np.ones(N)
    right[200:260] = 0  # the first 20 % are answered without a mistake, the next are not
    one = session(floor=0.99)
    one.original = lambda split, limit=None: scores(old)  # type: ignore[method-assign]
    found = cascading.found(one, scores(right), sureness, 1.0, 4.0)
    assert found and found["share"] >= 0.25


@pytest.mark.parametrize(
    ("settings", "task", "said"),
    [
        ({"allow_custom": False}, "text-classification", "--allow-custom"),
        ({"exclude": ("cascade",)}, "text-classification", "left out"),
        ({"goal": "latency"}, "text-classification", "for batches"),
        ({"goal": "size"}, "text-classification", "for batches"),
        ({"onnx": True}, "text-classification", "ONNX"),
        ({}, "embedding", ""),
    ],
)
def test_who_has_none(settings: dict, task: str, said: str) -> None:
    one = session(**settings)
    one.task.name = task
    assert not cascading.allowed(one)
    assert said in "".join(cascading.closed(one)) and bool(said) == bool(cascading.closed(one))


def test_named_where_it_cannot_be() -> None:
    cascading.check(session(only=("drop-blocks", "cascade")))
    cascading.check(session(only=("drop-blocks",), allow_custom=False))
    for settings, said in (
        ({"only": ("Cascade", "minitron"), "allow_custom": False}, "--allow-custom"),
        ({"only": ("cascade",)}, "name what makes the small model"),
        ({"only": ("cascade", "minitron"), "goal": "size"}, "for batches"),
    ):
        with pytest.raises(UserError, match=said):
            cascading.check(session(**settings))


def test_sureness_is_watched_in_the_order_of_the_examples() -> None:
    class Backwards:
        def __call__(self, examples: Any, reduce: Any) -> list:
            rows = [reduce({"logits": torch.tensor([[0.0, e]])}, None)[0] for e in reversed(examples)]
            return rows[::-1]

    watched = cascading.Watched()
    runner: Any = Backwards()
    told = watched(runner)([0.0, 1.0, 3.0], lambda outputs, batch: [outputs["logits"].argmax().item()])
    assert told[1:] == [1, 1]
    assert watched.sureness == pytest.approx([0.5, 0.7311, 0.9526], abs=1e-4)


def test_promotion_counts_what_the_original_behind_would_cost() -> None:
    trials = [
        {"name": "whole", "cost": 3.0, "ratio": 1.0, "seconds": 30.0},
        {"name": "small", "cost": 1.0, "ratio": 0.9, "seconds": 30.0, "cascade": {"cost": 2.0}},
        {"name": "hopeless", "cost": 0.5, "ratio": 0.5, "seconds": 30.0, "cascade": None},
    ]
    assert [t["name"] for t in plan.promote(trials, 3, 0.999, 10)] == ["small", "whole", "hopeless"]


def test_the_bound_of_a_cascade_is_narrow() -> None:
    """What it shares with the original is compared with itself: that is why it can be proven with little data."""
    rng = np.random.default_rng(0)
    right, old = (rng.random((2, N)) < 0.9).astype(float)
    mixed = np.where(np.arange(N) < 900, old, right)
    alone, behind = (stats.ratio(scores(s), scores(old), 0.95) for s in (right, mixed))
    assert behind.estimate - behind.bound < 0.5 * (alone.estimate - alone.bound)
