"""What all rows of a comparison share: the original's scores and runners, the load, and one way to score and time."""

from __future__ import annotations

import gc
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from lightformers import measure, memory, runners, stats
from lightformers.bundle import Bundle, Example
from lightformers.compare.settings import Settings
from lightformers.errors import DataError
from lightformers.slim.progress import Progress
from lightformers.slim.session import installed, interval_dict, limited
from lightformers.stats import Scores
from lightformers.steps import Deploy

#: Training examples that stand in for the search split in the eyes of steps.
SHOWN = 1000
#: Seconds of a pass of the original over the load.
PASS = 2.0


class Apart:
    """A task as steps see it: its search split is taken from the end of the training data.

    Methods are judged on the real search split, so none may have decided on it.
    """

    def __init__(self, task: Any) -> None:
        self._task = task
        self.splits = {"train": task.splits["train"], "search": task.splits["train"][-SHOWN:], "verify": []}

    def __getattr__(self, name: str) -> Any:
        if name == "_task":  # a copy that is being built has none yet
            raise AttributeError(name)
        return getattr(self._task, name)


@dataclass
class Session:
    """One comparison. out: the folder that holds it."""

    bundle: Bundle
    task: Any
    settings: Settings
    out: Path
    progress: Progress
    warnings: list[str] = field(default_factory=list)
    _runners: dict[str, Any] = field(default_factory=dict, repr=False)

    def prepare(self) -> None:
        """Check the data against the model, and note the original's outputs where the metric is agreement."""
        self.task.check(self.bundle)
        self.warnings += list(getattr(self.task, "warnings", ()))
        found = len(self.task.splits["search"])
        if found < 20:
            raise DataError(f"the search split holds {found} examples; at least 20 are needed to compare")
        runner = self.runner(self.bundle, self.plain)
        if hasattr(self.task, "set_reference"):
            self.task.set_reference(runner, ("search",))
        if self.original.metric.fn(self.original.stats.sum(0)) == 0:
            raise DataError(
                f"the {self.task.metric.name} of the original is zero: there is nothing to keep. Is it the right task?"
            )

    @property
    def plain(self) -> Deploy:
        """How everything is scored and timed: eager fp32, sorted batches, the one way that runs every method."""
        return Deploy(batching="sorted", batch_size=self.settings.batch)

    @property
    def graph(self) -> Deploy | None:
        """How what loads in plain transformers is timed besides: OpenVINO as it comes, where it is installed."""
        if not installed("openvino"):
            return None
        default = "bf16" if measure.machine()["isa"].get("avx512_bf16") else "fp32"
        return Deploy("openvino", default, "sorted", self.settings.batch)  # type: ignore[arg-type]

    def runner(self, bundle: Bundle, deploy: Deploy) -> runners.Runner:
        """`bundle` run so; the original's runners are kept."""
        if bundle is not self.bundle:
            return runners.build(bundle, deploy)
        if deploy.runtime not in self._runners:
            self._runners[deploy.runtime] = runners.build(bundle, deploy)
        kept: runners.Runner = self._runners[deploy.runtime]
        return kept

    def close(self) -> None:
        """Let go of the original's runners."""
        for runner in self._runners.values():
            runner.close()
        self._runners.clear()

    def score(self, bundle: Bundle) -> Scores:
        """Per-example scores on the search split, of the same examples for all."""
        limit = self.settings.examples and limited(self.task, "search", self.settings.examples)
        runner = self.runner(bundle, self.plain)
        try:
            found: Scores = self.task.evaluate(runner, "search", limit)
            return found
        finally:
            if bundle is not self.bundle:
                runner.close()

    @cached_property
    def original(self) -> Scores:
        """The original's scores."""
        self.progress.trying("quality of the original")
        return self.score(self.bundle)

    def quality(self, bundle: Bundle) -> dict[str, Any]:
        """The metric with its interval, and the paired ratio to the original's (more is better)."""
        scores = self.score(bundle)
        return {
            "quality": interval_dict(stats.interval(scores)),
            "ratio": interval_dict(stats.ratio(scores, self.original)),
        }

    @cached_property
    def load(self) -> list[Example]:
        """Examples in order of arrival: 2 to 16 batches, as many as the original passes in about PASS seconds."""
        batch = self.settings.batch
        one = self.task.workload(batch, seed=self.settings.seed)
        runner = self.runner(self.bundle, self.plain)
        timing = measure.time_runners({"it": runner}, measure.Workload(one), self.task.reduce, 1)["it"]
        batches = int(min(16, max(2, PASS / timing.median)))
        found: list[Example] = self.task.workload(batch * batches, seed=self.settings.seed)
        return found

    def speed(self, bundle: Bundle, deploy: Deploy, rounds: int | None = None) -> dict[str, Any]:
        """Examples a second, and how many times as fast as the original: both in turn on one load, tokenization counted."""
        new = self.runner(bundle, deploy)
        pair = {"original": self.runner(self.bundle, deploy), "method": new}
        try:
            timings = measure.time_runners(
                pair, measure.Workload(self.load), self.task.reduce, rounds or self.settings.rounds
            )
        finally:
            if bundle is not self.bundle:
                new.close()
            gc.collect()
            memory.release()
        found = measure.paired(timings["original"], timings["method"])
        return {
            "throughput": len(self.load) / timings["method"].median,
            "speedup": interval_dict(found),
        }

    def alone(self, deploy: Deploy) -> dict[str, Any]:
        """Examples a second of the original."""
        timing = measure.time_runners(
            {"it": self.runner(self.bundle, deploy)},
            measure.Workload(self.load),
            self.task.reduce,
            self.settings.rounds,
        )["it"]
        return {"throughput": len(self.load) / timing.median}
