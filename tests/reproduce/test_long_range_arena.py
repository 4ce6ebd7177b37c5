"""The experiment of Long Range Arena runs on a tiny budget, and its measures are right."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lightformers import reproduce
from lightformers.errors import DataError
from lightformers.reproduce import Finding, common
from lightformers.reproduce import long_range_arena as experiment
from lightformers.tasks import arena


def test_a_tiny_budget(tmp_path: Path) -> None:
    made = reproduce.run("long-range-arena", budget_seconds=2)
    made.write(tmp_path)
    assert Finding.read("long-range-arena", tmp_path).verdict == made.verdict
    assert len(made.seeds) == 2 and "instead of 300" in made.limits
    arms = {row["arm"]: row for row in made.table}
    assert set(arms) == {"softmax", "local", "linear", "linformer", "performer"}
    assert all(row["ms at 512"] > 0 and row["MiB at 512"] > 0 for row in arms.values())
    assert made.verdict == "inconclusive"  # 512 positions say nothing about 4,096


@pytest.mark.parametrize("arm", experiment.ARMS)
def test_models_are_equally_large(arm: str) -> None:
    split = arena.load("listops", low=9, high=65, depth=3, train=8, test=4)
    target = experiment.parameters(experiment.build("softmax", split, experiment.HIDDEN))
    found = experiment.match(lambda hidden: experiment.build(arm, split, hidden), target, step=4)
    assert abs(found.ratio - 1) < 0.02 and found.width >= 64
    model = experiment.build(arm, split, found.width)
    assert model(**split.train.batch(range(4)).inputs).logits.shape == (4, split.classes)


def test_agreement_is_spearmans() -> None:
    from scipy.stats import spearmanr

    rng = np.random.default_rng(0)
    for _ in range(5):
        a, b = rng.integers(0, 6, (2, 11)).astype(float)  # with ties
        assert experiment.agreement(a, b) == pytest.approx(spearmanr(a, b).statistic)
    assert experiment.agreement([1, 1, 1], [1, 2, 3]) == 0


def test_steadiness_tells_tasks_from_noise() -> None:
    """Orders that a second seed repeats and other tasks turn around, and orders that are noise."""
    arms, rng = [str(i) for i in range(11)], np.random.default_rng(0)
    orders = {"a": np.arange(11), "b": np.arange(11)[::-1], "c": rng.permutation(11)}
    clear = {(t, arm): [orders[t][i] + 0.1, orders[t][i] + 0.2] for t in orders for i, arm in enumerate(arms)}
    found = experiment.steadiness(clear)
    assert all(own == pytest.approx(1) and other < 0.5 for own, other in found.values())
    assert reproduce.judge([own - other for own, other in found.values()]) == "holds here"
    noise = {(t, arm): rng.random(2).tolist() for t in orders for arm in arms}
    assert (
        reproduce.judge([own - other for own, other in experiment.steadiness(noise).values()]) != "holds here"
    )


def test_news_are_bytes() -> None:
    clock = common.Clock(2)
    try:
        split = experiment.news(clock)
    except DataError as missing:
        pytest.skip(str(missing))
    assert split.classes == 4 and split.length == 64 and max(split.train.lengths) <= 64
