"""The bootstrap: intervals, paired one-sided bounds, and what a given amount of data can resolve.

A task returns one row of *sufficient statistics* per example (`Scores.stats`); its metric is a function of
their column sums. Accuracy is (correct, 1), MRR is (reciprocal rank, 1), perplexity is (nats, tokens), F1 is
(tp, fp, fn). Resampling rows and summing columns therefore bootstraps every metric with the same few lines,
also those that are not means. Examples that are not independent (functions of one module, overlapping windows
of a series) share a group and are resampled together.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

RESAMPLES = 2000
#: Correlation of per-example scores between a model and its recovered, smaller self. An assumption, worked back from
#: one trial's interval on docstring-to-code retrieval; used only to foresee what data can prove, never to prove it.
FORESEEN_CORRELATION = 0.85


@dataclass(frozen=True)
class Metric:
    """A named function of summed statistics: `fn` maps (..., k) column sums to (...) values."""

    name: str
    fn: Callable[[np.ndarray], np.ndarray]
    higher_is_better: bool = True
    columns: int = 2


def _mean(sums: np.ndarray) -> np.ndarray:
    return sums[..., 0] / np.maximum(sums[..., 1], 1e-12)


def _f1(sums: np.ndarray) -> np.ndarray:
    """F1 from (tp, fp, fn) in the last axis; 1 where there is nothing to find and nothing was found."""
    tp, wrong = sums[..., 0], sums[..., 1] + sums[..., 2]
    return np.where(tp + wrong == 0, 1.0, 2 * tp / np.maximum(2 * tp + wrong, 1e-12))


def macro_f1(classes: int) -> Metric:
    """Mean F1 over `classes`; statistics are (tp, fp, fn) per class, side by side: 3 * classes columns."""

    def fn(sums: np.ndarray) -> np.ndarray:
        return _f1(sums.reshape(*sums.shape[:-1], classes, 3)).mean(-1)

    return Metric("macro-f1", fn, columns=3 * classes)


METRICS: dict[str, Metric] = {
    "accuracy": Metric("accuracy", _mean),
    "mrr": Metric("mrr", _mean),
    "agreement": Metric("agreement", _mean),
    "f1": Metric("f1", _f1, columns=3),
    "perplexity": Metric("perplexity", lambda sums: np.exp(_mean(sums)), higher_is_better=False),
    "log-loss": Metric("log-loss", _mean, higher_is_better=False),
    "mse": Metric("mse", _mean, higher_is_better=False),
    "mae": Metric("mae", _mean, higher_is_better=False),
}


@dataclass(frozen=True)
class Scores:
    """What `task.evaluate(runner)` returns.

    stats: (n, k) float array, one row per example, in the order of the split.
    groups: (n,) integers or None; rows of one group are resampled together.
    """

    stats: np.ndarray
    metric: Metric
    groups: np.ndarray | None = None

    def __post_init__(self) -> None:
        if self.stats.ndim != 2 or len(self.stats) == 0:
            raise ValueError(f"stats must be (n, k) with n > 0, got {self.stats.shape}")
        if not np.isfinite(self.stats).all():
            raise ValueError("scores hold NaN or infinity: the model's outputs are not finite")

    def __len__(self) -> int:
        return len(self.stats)

    @property
    def value(self) -> float:
        return float(self.metric.fn(self.stats.sum(0)))


@dataclass(frozen=True)
class Interval:
    """A two-sided interval around an estimate."""

    estimate: float
    low: float
    high: float


@dataclass(frozen=True)
class Bound(Interval):
    """A comparison of two models: two-sided interval, and `bound`, the one-sided lower bound at the same confidence.

    For ratios more is better whatever the metric's direction: lower-is-better metrics are compared as old / new.
    """

    bound: float


def _grouped(scores: Scores) -> np.ndarray:
    if scores.groups is None:
        return scores.stats
    _, index = np.unique(scores.groups, return_inverse=True)
    sums = np.zeros((index.max() + 1, scores.stats.shape[1]))
    np.add.at(sums, index, scores.stats)
    return sums


def _resample(tables: list[np.ndarray], resamples: int, seed: int) -> list[np.ndarray]:
    """Column sums of `resamples` bootstrap samples, the same rows drawn from every table: each (resamples, k)."""
    n = len(tables[0])
    rng = np.random.default_rng(seed)
    joined = np.concatenate(tables, axis=1)
    sums = np.empty((resamples, joined.shape[1]))
    step = max(1, 4_000_000 // n)  # keeps the table of counts under 32 MB
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        counts = rng.multinomial(n, np.full(n, 1 / n), size=rows)
        sums[start : start + rows] = counts @ joined
    return np.split(sums, np.cumsum([t.shape[1] for t in tables])[:-1], axis=1)


def interval(scores: Scores, confidence: float = 0.95, resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """Two-sided percentile bootstrap interval of the metric."""
    (sums,) = _resample([_grouped(scores)], resamples, seed)
    low, high = np.quantile(scores.metric.fn(sums), [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(scores.value, float(low), float(high))


def _paired(new: Scores, old: Scores, resamples: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    if new.metric.name != old.metric.name or len(new) != len(old):
        raise ValueError(
            f"scores are not paired: {new.metric.name} over {len(new)} against {old.metric.name} over {len(old)}"
        )
    a, b = _resample([_grouped(new), _grouped(old)], resamples, seed)
    return new.metric.fn(a), old.metric.fn(b)


def _bound(estimate: float, samples: np.ndarray, confidence: float) -> Bound:
    low, high, bound = np.quantile(samples, [(1 - confidence) / 2, (1 + confidence) / 2, 1 - confidence])
    return Bound(float(estimate), float(low), float(high), float(bound))


def ratio(
    new: Scores, old: Scores, confidence: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> Bound:
    """Paired bootstrap of new / old (old / new where lower is better)."""
    a, b = _paired(new, old, resamples, seed)
    top, bottom = (a, b) if new.metric.higher_is_better else (b, a)
    whole = (new.value, old.value) if new.metric.higher_is_better else (old.value, new.value)
    if whole[1] == 0 or (bottom == 0).any():
        raise ZeroDivisionError(
            f"the {new.metric.name} of the reference is zero: use a floor on the difference"
        )
    return _bound(whole[0] / whole[1], top / bottom, confidence)


def difference(
    new: Scores, old: Scores, confidence: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> Bound:
    """Paired bootstrap of new - old, signed so that more is better: for scores near zero (`--max-drop`)."""
    a, b = _paired(new, old, resamples, seed)
    sign = 1 if new.metric.higher_is_better else -1
    return _bound(sign * (new.value - old.value), sign * (a - b), confidence)


def resolvable(
    old: Scores, confidence: float = 0.95, n: int | None = None, correlation: float = FORESEEN_CORRELATION
) -> float:
    """The smallest relative loss that `n` examples (default: as many as `old` has) can be expected to resolve.

    An equally good model will have a one-sided bound of about 1 minus this, so a floor above that cannot be
    proven. Foreseen from the spread of the reference and the assumed correlation of paired scores.
    """
    (sums,) = _resample([_grouped(old)], 500, 0)
    values = old.metric.fn(sums)
    spread = float(values.std() / max(abs(values.mean()), 1e-12)) * math.sqrt(len(old) / (n or len(old)))
    return normal_quantile(confidence) * spread * math.sqrt(2 * (1 - correlation))


def normal_quantile(p: float) -> float:
    """Quantile of the standard normal distribution."""
    from statistics import NormalDist

    return NormalDist().inv_cdf(p)
