"""Runners over a workload: throughput, and the latency of one example at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from lightformers.bundle import Example
from lightformers.measure.timing import Timing, compare
from lightformers.runners import Reduce, Runner


@dataclass(frozen=True)
class Workload:
    """Raw examples in order of arrival.

    batch_size: how many arrive together; a runner sorts and batches within these only. None: all at once.
    count_tokenization: whether turning texts into ids is timed; padding always is.
    """

    examples: Sequence[Example]
    batch_size: int | None = None
    count_tokenization: bool = True

    @property
    def arrivals(self) -> list[Sequence[Example]]:
        step = self.batch_size or max(len(self.examples), 1)
        return [self.examples[i : i + step] for i in range(0, len(self.examples), step)]


def _call(runner: Runner, workload: Workload, reduce: Reduce) -> Callable[[], Any]:
    arrivals = workload.arrivals
    if workload.count_tokenization:
        return lambda: [runner(part, reduce) for part in arrivals]
    encoded = [runner.encode(part) for part in arrivals]
    return lambda: [runner.run(part, reduce) for part in encoded]


def time_runners(
    runners: Mapping[str, Runner], workload: Workload, reduce: Reduce, rounds: int = 5, warmup: int = 1
) -> dict[str, Timing]:
    """Time every runner over the whole workload, interleaved."""
    return compare({n: _call(r, workload, reduce) for n, r in runners.items()}, rounds, warmup)


def throughput(timing: Timing, workload: Workload, runner: Runner | None = None) -> dict[str, float]:
    """Examples per second at the median round; with a runner also real tokens per second (padding never counts)."""
    out = {"examples_per_second": len(workload.examples) / timing.median}
    if runner is not None:
        tokens = sum(len(e.get("input_ids", (0,))) for e in runner.encode(workload.examples))
        out["tokens_per_second"] = tokens / timing.median
    return out


def latency(runner: Runner, examples: Sequence[Example], reduce: Reduce, warmup: int = 1) -> Timing:
    """Seconds of each example alone (batch 1), tokenization included. Every length is met untimed before."""
    return latencies({"one": partial(_alone, runner, reduce)}, examples, warmup)["one"]


def latencies(
    calls: Mapping[str, Callable[[Example], object]], examples: Sequence[Example], warmup: int = 1
) -> dict[str, Timing]:
    """Seconds of each example alone, all calls in turn on each example: the timings are paired by example."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for example in examples:
        found = compare({n: partial(c, example) for n, c in calls.items()}, rounds=1, warmup=warmup)
        for name, timing in found.items():
            seconds[name] += timing.seconds
    return {name: Timing(tuple(s)) for name, s in seconds.items()}


def _alone(runner: Runner, reduce: Reduce, example: Example) -> object:
    return runner([example], reduce)
