"""The store: what survives a kill, what is refused, what is retried."""

from __future__ import annotations

import numpy as np
import pytest

from lightformers.errors import UserError
from lightformers.slim.store import ATTEMPTS, Store, discard
from lightformers.stats import METRICS, Scores


def test_facts_are_made_once(tmp_path):
    calls = []
    first = Store(tmp_path)
    assert first.once("x", lambda: calls.append(1) or {"a": [1, 2]}) == {"a": [1, 2]}
    first.close()
    assert Store(tmp_path).once("x", lambda: calls.append(1) or {}) == {"a": [1, 2]}
    assert calls == [1]


def test_scores_round_trip_with_groups(tmp_path):
    scores = Scores(np.random.rand(5, 2) + 1, METRICS["mrr"], np.array([0, 0, 1, 2, 2]))
    store = Store(tmp_path)
    store.scores("k", lambda: scores, METRICS["mrr"])
    again = Store(tmp_path).scores("k", lambda: pytest.fail("scored twice"), METRICS["mrr"])
    assert np.array_equal(again.stats, scores.stats) and np.array_equal(again.groups, scores.groups)


def test_a_trial_in_flight_is_retried_once_then_left_alone(tmp_path):
    for attempt in range(ATTEMPTS):
        store = Store(tmp_path)  # each process that dies leaves the trial running
        assert store.begin("a", 1, {"n": attempt})
        store.close()
    store = Store(tmp_path)
    assert not store.begin("a", 1, {})
    trial = store.trial("a", 1)
    assert trial["state"] == "failed" and "twice" in trial["error"]


def test_a_finished_trial_is_not_begun_again(tmp_path):
    store = Store(tmp_path)
    assert store.begin("a", 0, {"x": 1})
    store.end("a", 0, {"ratio": 0.9})
    assert not store.begin("a", 0, {})
    assert store.trial("a", 0) == {"x": 1, "ratio": 0.9, "id": 1, "name": "a", "rung": 0, "state": "complete"}


def test_another_model_or_machine_is_refused_with_the_way_out(tmp_path):
    prints = {"model": "m", "data": "d", "request": "r", "machine": "c"}
    store = Store(tmp_path)
    assert store.claim(prints) is False
    assert store.claim(prints) is True
    with pytest.raises(UserError, match=r"another model and machine.*--restart"):
        store.claim(prints | {"model": "n", "machine": "x"})
    store.close()
    discard(tmp_path)
    assert Store(tmp_path).claim(prints | {"model": "n"}) is False
