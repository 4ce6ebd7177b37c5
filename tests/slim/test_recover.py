"""Rounds of recovery: a candidate goes on from its own last weights, also where a round left it out."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lightformers.slim import candidates, search
from lightformers.slim.session import Session
from lightformers.slim.store import Store


class Told(SimpleNamespace):
    """As much of a progress display as is spoken to."""

    def trying(self, line: str) -> None:
        self.said = line


@pytest.fixture
def session(tmp_path: Path) -> Any:
    store = Store(tmp_path / "out")
    interval = SimpleNamespace(estimate=0.9, low=0.8, high=1.0, bound=0.85, confidence=0.95)
    return SimpleNamespace(
        store=store, progress=Told(), brisk=None, settings=SimpleNamespace(seed=0), out=store.out,
        score=lambda *rest, **more: SimpleNamespace(value=1.0), compare=lambda *rest: interval, warn=lambda line: pytest.fail(line),
    )  # fmt: skip


def test_a_candidate_that_sat_out_a_round_goes_on(session: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[Path | None] = []

    def trained(session: Any, cut: Any, order: Any, seconds: float, before: Path | None) -> Any:
        begun.append(before)
        return None

    monkeypatch.setattr(search.candidates, "trained", trained)
    monkeypatch.setattr(search.candidates, "keep", lambda cut, model, path: None)
    monkeypatch.setattr(search.candidates, "deployed", lambda cut, brisk: brisk)
    monkeypatch.setattr(search, "interval_dict", vars)
    monkeypatch.setattr(search.cascading, "allowed", lambda session: False)
    first = {"name": "2 blocks", "rung": 0, "cut": {"blocks": 2}, "cost": 1.0, "seconds": 0.0}
    once = search.recover(session, first, 1, 5.0, (0, 1))
    last = search.recover(session, once, 3, 40.0, (0, 1))
    assert begun[0] is None and begun[1] == search.checkpoint(session, "2 blocks", 1)
    assert last["rung"] == 3 and last["seconds"] == 45.0


def test_what_was_warned_of_is_still_known_when_the_run_is_resumed(tmp_path: Path) -> None:
    nothing: Any = None
    for said in (["first"], ["first", "then"]):
        store = Store(tmp_path / "out")
        one = Session(
            nothing, nothing, nothing, store, SimpleNamespace(log=lambda line: None), 0.0, runtime="torch"
        )  # type: ignore[arg-type]
        one.warn(said[-1])
        assert store.get("warnings") == said and one.warnings == said[-1:]
        store.close()


def test_a_resumed_recovery_starts_from_the_cuts_it_started_from(session: Any) -> None:
    """More trials without training would put others on the frontier, and these would be trained anew."""
    session.store.begin("3 blocks", 0, {"seconds": 0.0})
    session.store.end("3 blocks", 0, {"distance": 0.1, "cost": 1.0})
    session.store.put("rungs", [{"count": 1, "seconds": 5.0}])
    nothing: Any = None  # nothing is tried, so nothing is asked of the space
    found = search.cheap(session, nothing, (0, 1), nothing, 10)
    assert [t["name"] for t in found] == ["3 blocks"]


@pytest.mark.parametrize(
    ("budget", "rows", "said"),
    [(1800, 7000, 10), (100, 7000, 0), (9000, 7000, 16), (10**6, 100_000, 3), (1800, 10**6, 0)],
)
def test_texts_are_made_up_where_training_would_see_each_too_often(
    session: Any, budget: int, rows: int, said: int
) -> None:
    """A batch of 32 takes a quarter of a second: 7,000 texts are an epoch of 16 seconds."""
    texts = [{"text": "one of them"}] * rows
    session.store.put("seconds_per_batch", 0.25)
    session.settings = SimpleNamespace(seed=0, budget=budget, batch=32, use_labels=False)
    session.bundle = SimpleNamespace(task="text-classification")
    session.task = SimpleNamespace(training_examples=lambda labels: texts)
    assert candidates.made_up(session) == said
    session.bundle.task = "causal-lm"
    assert candidates.made_up(session) == 0
