"""The bootstrap: its bounds hold as often as they say, and pairing and groups count."""

from __future__ import annotations

import numpy as np
import pytest

from lightformers import stats
from lightformers.stats import METRICS, Metric, Scores


def mean_scores(values, metric="accuracy", groups=None):
    values = np.asarray(values, dtype=float)
    return Scores(np.stack([values, np.ones_like(values)], 1), METRICS[metric], groups)


def pair(rng, n, metric="mrr", loss=0.0, groups=None):
    """Two models that are right and wrong together; the new one is worse by `loss` on average."""
    old = rng.beta(2, 1, n)
    new = old * (1 - loss) + rng.normal(0, 0.1, n)
    return mean_scores(new, metric, groups), mean_scores(old, metric, groups)


def covered(draw, truth, confidence, worlds=300, **options):
    """How often the one-sided bound lies at or below the true value."""
    rng = np.random.default_rng(1)
    bounds = [
        stats.ratio(*draw(rng), confidence=confidence, resamples=200, **options).bound for _ in range(worlds)
    ]
    return float(np.mean(np.array(bounds) <= truth))


@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_the_one_sided_bound_of_a_mean_covers_as_often_as_it_says(confidence):
    rate = covered(lambda rng: pair(rng, 80, loss=0.05), 0.95, confidence)
    assert abs(rate - confidence) < 3 * np.sqrt(confidence * (1 - confidence) / 300) + 0.01, rate


def test_the_bound_covers_for_a_metric_that_is_no_mean():
    def draw(rng):
        tokens = rng.integers(5, 50, 80)
        old = tokens * rng.normal(3.0, 0.4, 80)
        new = old + tokens * rng.normal(0.05, 0.1, 80)
        table = [Scores(np.stack([x, tokens], 1).astype(float), METRICS["perplexity"]) for x in (new, old)]
        return table[0], table[1]

    rate = covered(draw, np.exp(-0.05), 0.95)  # lower is better: old / new
    assert 0.9 < rate < 0.985, rate


def test_dependent_examples_need_groups():
    """Ten copies of each observation carry no more than one: without groups the bound is far too sure."""

    def draw(rng, grouped):
        new, old = pair(rng, 40, loss=0.05)
        groups = np.repeat(np.arange(40), 10) if grouped else None

        def repeat(scores):
            return Scores(np.repeat(scores.stats, 10, 0), scores.metric, groups)

        return repeat(new), repeat(old)

    assert covered(lambda rng: draw(rng, True), 0.95, 0.95, worlds=120) > 0.9
    assert covered(lambda rng: draw(rng, False), 0.95, 0.95, worlds=120) < 0.8


def test_groups_of_copies_give_the_interval_of_the_single_ones():
    new, old = pair(np.random.default_rng(0), 50)
    groups = np.repeat(np.arange(50), 3)
    tripled = [Scores(np.repeat(s.stats, 3, 0), s.metric, groups) for s in (new, old)]
    assert np.allclose(_tuple(stats.ratio(*tripled)), _tuple(stats.ratio(new, old)))


def _tuple(bound):
    return (bound.estimate, bound.low, bound.high, bound.bound)


def test_pairing_makes_the_bound_tighter():
    rng = np.random.default_rng(0)
    new, old = pair(rng, 300)
    apart = Scores(rng.permutation(new.stats), new.metric)
    assert stats.ratio(new, old).bound > stats.ratio(apart, old).bound + 0.01


def test_a_model_against_itself_is_exactly_one():
    _, old = pair(np.random.default_rng(0), 100)
    assert _tuple(stats.ratio(old, old)) == (1.0, 1.0, 1.0, 1.0)
    assert _tuple(stats.difference(old, old)) == (0.0, 0.0, 0.0, 0.0)


def test_more_is_better_in_both_directions():
    low, high = mean_scores([1.0, 2.0, 3.0], "mse"), mean_scores([2.0, 4.0, 6.0], "mse")
    assert stats.ratio(low, high).estimate == pytest.approx(2.0)  # half the error
    assert stats.ratio(high, low).estimate == pytest.approx(0.5)
    assert stats.difference(low, high).estimate == pytest.approx(2.0)
    low, high = mean_scores([0.2, 0.4]), mean_scores([0.4, 0.8])
    assert stats.ratio(high, low).estimate == pytest.approx(2.0)
    assert stats.difference(low, high).estimate == pytest.approx(-0.3)


def test_order_of_the_numbers_in_a_bound():
    bound = stats.ratio(*pair(np.random.default_rng(3), 100))
    assert bound.low < bound.bound < bound.estimate < bound.high


def test_the_same_seed_gives_the_same_numbers_and_another_gives_others():
    new, old = pair(np.random.default_rng(0), 100)
    assert stats.ratio(new, old, seed=1) == stats.ratio(new, old, seed=1)
    assert stats.ratio(new, old, seed=1) != stats.ratio(new, old, seed=2)


def test_large_tables_are_resampled_in_pieces_with_the_same_law():
    values = np.random.default_rng(0).normal(10, 1, 5000)
    held = stats.interval(mean_scores(values), resamples=1000)  # several pieces: 4e6 // 5000 = 800 rows each
    half = 1.96 * values.std() / np.sqrt(5000)
    assert held.low == pytest.approx(values.mean() - half, abs=0.3 * half)
    assert held.high == pytest.approx(values.mean() + half, abs=0.3 * half)


def test_resolvable_foresees_the_bound_of_an_equally_good_model():
    """Data with the assumed correlation: on average the one-sided bound lies `resolvable` below the estimate."""
    rng, n, r = np.random.default_rng(0), 400, stats.FORESEEN_CORRELATION
    margins, foreseen = [], []
    for _ in range(30):
        shared, a, b = rng.normal(size=(3, n))
        old, new = (0.6 + 0.2 * (np.sqrt(r) * shared + np.sqrt(1 - r) * x) for x in (a, b))
        bound = stats.ratio(mean_scores(new), mean_scores(old), resamples=200)
        margins.append(bound.estimate - bound.bound)
        foreseen.append(stats.resolvable(mean_scores(old)))
    assert np.mean(margins) == pytest.approx(np.mean(foreseen), rel=0.1)


def test_four_times_the_data_resolves_half_the_loss():
    _, old = pair(np.random.default_rng(0), 200)
    assert stats.resolvable(old, n=800) == pytest.approx(stats.resolvable(old) / 2)
    assert stats.resolvable(old, confidence=0.99) > stats.resolvable(old, confidence=0.9)


def test_metrics_against_their_definitions():
    def value(name, *rows):
        return Scores(np.array(rows, dtype=float), METRICS[name]).value

    assert value("accuracy", (1, 1), (0, 1), (1, 1), (0, 1)) == 0.5
    assert value("mrr", (1, 1), (0.25, 1)) == 0.625
    assert value("perplexity", (2 * np.log(4), 2), (np.log(4), 1)) == pytest.approx(4.0)
    assert value("f1", (2, 1, 0), (0, 0, 1)) == pytest.approx(2 * 2 / (2 * 2 + 1 + 1))
    assert value("f1", (0, 0, 0)) == 1.0


def test_macro_f1_is_the_mean_harmonic_mean_of_precision_and_recall():
    rng = np.random.default_rng(0)
    truth, guess = rng.integers(0, 3, 200), rng.integers(0, 3, 200)
    table = np.zeros((200, 3, 3))
    for row, t, g in zip(table, truth, guess):
        if t == g:
            row[t, 0] = 1
        else:
            row[g, 1] = row[t, 2] = 1
    each = []
    for c in range(3):
        precision, recall = (truth[guess == c] == c).mean(), (guess[truth == c] == c).mean()
        each.append(2 * precision * recall / (precision + recall))
    assert Scores(table.reshape(200, 9), stats.macro_f1(3)).value == pytest.approx(np.mean(each))


def test_bad_scores_are_refused():
    with pytest.raises(ValueError, match="NaN"):
        mean_scores([0.1, np.nan])
    with pytest.raises(ValueError, match="n > 0"):
        Scores(np.zeros((0, 2)), METRICS["mrr"])
    with pytest.raises(ValueError, match="not paired"):
        stats.ratio(mean_scores([1, 1]), mean_scores([1, 1, 1]))
    with pytest.raises(ValueError, match="not paired"):
        stats.ratio(mean_scores([1, 1], "mrr"), mean_scores([1, 1]))
    with pytest.raises(ZeroDivisionError, match="difference"):
        stats.ratio(mean_scores([1, 1]), mean_scores([0, 0]))


def test_intervals_widen_with_confidence():
    scores = mean_scores(np.random.default_rng(0).normal(1, 1, 100))
    wide, narrow = stats.interval(scores, 0.99), stats.interval(scores, 0.8)
    assert wide.low < narrow.low < scores.value < narrow.high < wide.high


def test_a_custom_metric_is_bootstrapped_from_its_sums():
    spread = Metric("spread", lambda s: s[..., 1] / s[..., 2] - (s[..., 0] / s[..., 2]) ** 2, columns=3)
    x = np.random.default_rng(0).normal(0, 2, 500)
    held = stats.interval(Scores(np.stack([x, x**2, np.ones_like(x)], 1), spread))
    assert held.low < x.var() < held.high and held.estimate == pytest.approx(x.var())
