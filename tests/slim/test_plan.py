"""The plan: how time is shared, who goes on, what stepping back costs."""

from __future__ import annotations

import pytest

from lightformers.slim import plan


def trial(name: str, ms: float, ratio: float, seconds: float = 30.0) -> dict:
    return {"name": name, "cost": ms, "ratio": ratio, "seconds": seconds}


@pytest.mark.parametrize("training", [25, 60, 200, 900, 5000, 40000])
@pytest.mark.parametrize("candidates", [1, 2, 5, 30])
@pytest.mark.parametrize("overhead", [0.0, 5.0])
@pytest.mark.parametrize("batch", [None, 0.3, 0.004])
def test_rungs_spend_what_there_is_and_not_more(training, candidates, overhead, batch):
    rounds = plan.rungs(training, candidates, overhead, batch)
    spent = sum(r.count * (r.seconds + overhead) for r in rounds)
    assert spent == pytest.approx(training)
    counts = [r.count for r in rounds]
    assert counts == sorted(counts, reverse=True)
    assert rounds[0].count <= candidates
    assert all(r.seconds >= (3.5 if batch == 0.004 else 7) for r in rounds)


def test_small_models_are_tried_in_more_forms():
    assert [r.count for r in plan.rungs(140, 9, 5.0)] == [1]
    assert [r.count for r in plan.rungs(140, 9, 5.0, 0.3)] == [1]
    assert [r.count for r in plan.rungs(140, 9, 5.0, 0.004)] == [5, 3, 1]


def test_no_time_no_rungs():
    assert plan.rungs(10, 5) == []
    assert plan.rungs(1000, 0) == []


def test_promotion_prefers_the_fastest_that_will_reach_the_target():
    trials = [trial("slow", 3, 0.999), trial("able", 2, 0.98), trial("fast", 1, 0.80)]
    assert [t["name"] for t in plan.promote(trials, 1, target=0.97, seconds=100)] == ["able"]
    assert [t["name"] for t in plan.promote(trials, 3, target=0.97, seconds=100)] == ["able", "slow", "fast"]


def test_when_none_is_able_the_best_goes_on():
    trials = [trial("a", 1, 0.5), trial("b", 2, 0.7)]
    assert [t["name"] for t in plan.promote(trials, 1, target=0.99, seconds=10)] == ["b"]


def test_foreseen_is_monotone_in_time_and_never_passes_one():
    values = [plan.foreseen(0.9, 30, total) for total in (30, 60, 300, 3000)]
    assert values == sorted(values) and values[0] == pytest.approx(0.9) and values[-1] < 1
    assert plan.foreseen(1.02, 30, 300) == 1.02


def test_pareto_and_spread():
    points = [{"cost": m, "distance": d} for m, d in ((1, 9), (2, 5), (3, 6), (4, 1), (5, 2), (8, 0))]
    frontier = plan.pareto(points)
    assert [p["cost"] for p in frontier] == [1, 2, 4, 8]
    chosen = plan.spread(points, 2)
    assert len(chosen) == 2 and all(p in frontier for p in chosen) and chosen[0] == frontier[0]
    assert plan.spread(points, 10) == frontier


def test_little_training_tries_only_what_moved_little():
    points = [{"cost": m, "distance": d} for m, d in ((1, 0.6), (2, 0.2), (3, 0.09), (4, 0.0))]
    kept = [len(plan.recoverable(points, passes)) for passes in (30, 100, 1500, 6000, 9000)]
    assert kept == [1, 1, 3, 4, 4]
    assert plan.recoverable([], 100) == []


def test_a_high_floor_tries_less_and_labels_try_more():
    points = [{"cost": 10 - d, "distance": d / 20} for d in range(21)]
    kept = [len(plan.recoverable(points, 1000, floor)) for floor in (0.9, 0.97, 0.99, 0.999)]
    assert kept == sorted(kept, reverse=True) and kept[0] > kept[2] > kept[3] >= 1
    assert plan.recoverable(points, 250, 0.9) == plan.recoverable(points, 250)
    assert len(plan.recoverable(points, 100, 0.99, labels=True)) > len(plan.recoverable(points, 100))


@pytest.mark.parametrize("tests", [1, 2, 3, 4])
def test_confidences_err_together_as_one(tests):
    shares = [1 - c for c in plan.confidences(0.95, tests)]
    assert len(shares) == tests
    assert sum(shares) == pytest.approx(0.05)
    assert shares == sorted(shares, reverse=True)
