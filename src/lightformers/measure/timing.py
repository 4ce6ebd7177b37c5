"""Timing things against each other, interleaved, on a machine that is never quite quiet."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from lightformers.stats import Interval


@dataclass(frozen=True)
class Timing:
    """Seconds of every round, in round order, so that two timings of one `compare` are paired."""

    seconds: tuple[float, ...]

    @property
    def min(self) -> float:
        return min(self.seconds)

    @property
    def median(self) -> float:
        return float(np.median(self.seconds))

    @property
    def quantiles(self) -> dict[str, float]:
        """Seconds at 10, 50 and 90 percent of the rounds."""
        low, middle, high = np.quantile(self.seconds, [0.1, 0.5, 0.9])
        return {"p10": float(low), "p50": float(middle), "p90": float(high)}


def compare(
    runners: Mapping[str, Callable[[], object]],
    rounds: int = 5,
    warmup: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Timing]:
    """Time calls in turn: every round runs each once, beginning with another one each round.

    Drift of the machine (heat, neighbours) so falls on all alike. warmup: untimed calls of each beforehand.
    """
    if rounds < 1 or warmup < 0:
        raise ValueError("rounds must be at least 1 and warmup at least 0")
    names = list(runners)
    for name in names:
        for _ in range(warmup):
            runners[name]()
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for r in range(rounds):
        first = r % len(names) if names else 0
        for name in names[first:] + names[:first]:
            start = clock()
            runners[name]()
            seconds[name].append(clock() - start)
    return {name: Timing(tuple(s)) for name, s in seconds.items()}


def paired(
    old: Timing, new: Timing, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> Interval:
    """How many times faster `new` is than `old`: the median over rounds of old / new, with its bootstrap interval.

    Both must come from one `compare`. Raises ValueError where the numbers of rounds differ.
    """
    if len(old.seconds) != len(new.seconds):
        raise ValueError(f"timings are not paired: {len(old.seconds)} rounds against {len(new.seconds)}")
    ratios = np.array(old.seconds) / np.array(new.seconds)
    drawn = np.random.default_rng(seed).integers(0, len(ratios), (resamples, len(ratios)))
    low, high = np.quantile(np.median(ratios[drawn], axis=1), [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(np.median(ratios)), float(low), float(high))
