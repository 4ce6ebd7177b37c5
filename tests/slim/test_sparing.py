"""Which blocks a cut leaves out: by sensitivity where time is short, else by what a moment of training makes of them."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lightformers import anatomy
from lightformers.slim import sparing
from lightformers.slim.space import Space
from lightformers.steps import Run

sys.path.append(str(Path(__file__).parent.parent / "compress"))
import steps_world as world


def space(fewest: int) -> Space:
    one = (1.0,)
    return Space(tuple(range(fewest, 5)), one, one, one, one, ())


@pytest.fixture
def session(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Four blocks. Sensitivity spares 1, then 2; no trial is really trained."""
    told: list[str] = []
    progress = SimpleNamespace(trying=told.append, log=told.append)
    settings = SimpleNamespace(seed=0, budget=2000.0, use_labels=False)
    made = SimpleNamespace(
        bundle=world.bundle("bert"), task=world.task("bert"), settings=settings, progress=progress, told=told, brief=False,
        warn=told.append, seconds=[], run=Run,
    )  # fmt: skip
    monkeypatch.setattr(sparing.leave_out, "removal_order", lambda *rest: [1, 2, 0])
    monkeypatch.setattr(sparing.leave_out, "outputs", lambda bundle, *rest: bundle)
    monkeypatch.setattr(sparing.candidates, "prepare", lambda session: None)

    def trained(session: Any, cut: Any, order: Any, seconds: float, before: None) -> Any:
        session.seconds.append(seconds)
        return sorted(order[-cut.blocks :])

    monkeypatch.setattr(sparing.candidates, "trained", trained)
    return made


@pytest.mark.parametrize(("best", "first"), [([0, 3], 1), ([1, 3], 2), ([2, 3], 0)])
def test_the_choice_that_training_brings_nearest_is_taken(
    session: Any, best: list[int], first: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sparing, "even", lambda stack: [0, 1, 2])
    monkeypatch.setattr(sparing.leave_out, "distance", lambda made, reference: 0.1 if made == best else 0.5)
    monkeypatch.setattr(sparing, "early", lambda stack: [2, 0, 1])
    order = sparing.block_order(session, space(1))
    assert sorted(order) == [0, 1, 2, 3] and order[0] == first and sorted(order[-2:]) == best
    assert (
        session.seconds == [30.0] * 3 and "0.100" in session.told[-1] and session.told[-1].count("0.500") == 2
    )


def test_equal_choices_are_tried_once(session: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sparing.leave_out, "distance", lambda made, reference: 0.5)
    monkeypatch.setattr(
        sparing, "early", lambda stack: [0, 1, 2]
    )  # as evenly: the blocks 1 and 2 go by sensitivity too
    sparing.block_order(session, space(1))
    assert len(session.seconds) == 2
    monkeypatch.setattr(sparing, "early", lambda stack: [2, 1, 0])
    assert sparing.block_order(session, space(1))[:2] == [1, 2] and len(session.seconds) == 2


def test_short_runs_and_whole_models_train_nothing(session: Any) -> None:
    session.brief = True
    assert sparing.block_order(session, space(1))[:2] == [1, 2] and not session.seconds
    session.brief = False
    assert sorted(sparing.block_order(session, space(4))) == [0, 1, 2, 3] and not session.seconds


def test_a_choice_that_fails_is_said_and_left_out(session: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*rest: Any) -> Any:
        raise RuntimeError("no memory")

    monkeypatch.setattr(sparing.candidates, "trained", fails)
    monkeypatch.setattr(sparing, "even", lambda stack: [0, 1, 2])
    assert sparing.block_order(session, space(1))[0] == 1
    assert any("no memory" in line for line in session.told)


def stack(depth: int) -> anatomy.Stack:
    return dataclasses.replace(anatomy.of(world.bundle("bert").model).stacks[0], depth=depth)


@pytest.mark.parametrize(
    ("depth", "early", "even"),
    [
        (1, [], []),
        (2, [0], [0]),
        (3, [1, 0], [1, 0]),
        (6, [4, 3, 2, 1], [1, 3, 2, 4]),
        (12, [10, 9, 8, 7, 6, 5, 4, 3], [1, 9, 5, 3, 7, 2, 10, 6]),
    ],
)
def test_orders_by_place(depth: int, early: list[int], even: list[int]) -> None:
    assert sparing.early(stack(depth)) == early and sparing.even(stack(depth)) == even
