"""What all phases of a run share: the request, the store, the clock, and one way to score a model."""

from __future__ import annotations

import gc
import importlib.util
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from lightformers import measure, runners, stats
from lightformers.bundle import Bundle, Example
from lightformers.errors import ModelError
from lightformers.slim.methods import Menu
from lightformers.slim.progress import Progress
from lightformers.slim.settings import Settings
from lightformers.slim.store import Store
from lightformers.stats import Bound, Scores
from lightformers.steps import Deploy, Run


def installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def runtime() -> Literal["openvino", "torch"]:
    """The runtime that quality is scored on and results are deployed to: OpenVINO where it is installed."""
    return "openvino" if installed("openvino") and installed("nncf") else "torch"


@dataclass
class Session:
    """One run of slim. `deadline` is on the monotonic clock. runtime: see `settle`."""

    bundle: Bundle
    task: Any
    settings: Settings
    store: Store
    progress: Progress
    deadline: float
    warnings: list[str] = field(default_factory=list)
    menu: Menu = field(default_factory=Menu)
    runtime: Literal["openvino", "torch"] = field(default_factory=runtime)
    _graphs: dict[tuple[str, bool], Any] = field(default_factory=dict, repr=False)

    def left(self) -> float:
        """Seconds until the budget is spent."""
        return self.deadline - time.monotonic()

    @property
    def brief(self) -> bool:
        """Whether the whole run is to take minutes: then fewer things are tried, and baselines scored on less."""
        return self.settings.budget < 1200

    def warn(self, text: str) -> None:
        """Say it once, and keep it for the report, also of a run that resumes this one."""
        held = self.store.get("warnings") or []
        if text not in held:
            self.store.put("warnings", [*held, text])
        if text not in self.warnings:
            self.warnings.append(text)
            self.progress.log(text)

    def run(self) -> Run:
        """The context of an edit that is not the search's own training."""
        return Run(seed=self.settings.seed, use_labels=self.settings.use_labels)

    # quality -----------------------------------------------------------------------------------
    @property
    def exact(self) -> Deploy:
        """How the original is scored: full precision, sorted batches (order and padding change no result)."""
        return Deploy(
            runtime=self.runtime, precision="fp32", batching="sorted", batch_size=64, max_tokens=4096
        )

    @property
    def brisk(self) -> Deploy:
        """How candidates are scored while searching: bf16, a near-free loss that finalists are then checked for."""
        return Deploy(
            runtime=self.runtime, precision="bf16", batching="sorted", batch_size=64, max_tokens=4096
        )

    def settle(self) -> None:
        """Stay in torch where OpenVINO cannot take the original; said once."""
        try:
            self.runner(self.bundle, self.exact).close()
        except ModelError as error:
            if self.runtime == "torch":
                raise
            self.runtime = "torch"
            self.warn(f"{error}; everything is run, measured and delivered in torch")

    def calibration(self, n: int = 24) -> Sequence[Example]:
        return self.task.calibration(n, seed=self.settings.seed)

    def runner(self, bundle: Bundle, deploy: Deploy) -> runners.Runner:
        """`bundle` run as `deploy`. The original is converted (and quantized) once for each precision."""
        if bundle is not self.bundle or deploy.runtime != "openvino":
            return runners.build(bundle, deploy, self.calibration(deploy.calibration))
        from lightformers.runners.openvino_runner import OpenVINORunner, build_openvino

        key = (deploy.precision, deploy.narrow)
        if key in self._graphs:
            return OpenVINORunner(self._graphs[key], bundle, deploy)
        runner = build_openvino(bundle, deploy, self.calibration(deploy.calibration))
        self._graphs[key] = runner.model
        return runner

    def score(
        self, bundle: Bundle, deploy: Deploy, split: str, key: str, limit: int | None = None,
        through: Callable[[runners.Runner], Any] | None = None,
    ) -> Scores:  # fmt: skip
        """Per-example scores of `bundle` run as `deploy`; kept on disk under `key`. through: stands before the runner."""

        def evaluate() -> Scores:
            runner = self.runner(bundle, deploy)
            try:
                return self.task.evaluate(through(runner) if through else runner, split, limit)
            finally:
                runner.close()
                gc.collect()

        return self.store.scores(key, evaluate, self.task.metric)

    def original(self, split: str, limit: int | None = None) -> Scores:
        """Scores of the original in full precision."""
        key = f"original-{split}" + (f"-{limit}" if limit else "")
        return self.score(self.bundle, self.exact, split, key, limit)

    def compare(self, new: Scores, split: str, confidence: float | None = None) -> Bound:
        """Paired comparison with the original on a split: a ratio, or a difference under `--max-drop`."""
        # a limit also bounds the candidates that a query is ranked among, so both are scored under the same one
        old = self.original(split, limited(self.task, split, len(new)))
        confidence = confidence or self.settings.confidence
        if self.settings.max_drop is not None:
            return stats.difference(new, old, confidence)
        return stats.ratio(new, old, confidence)

    def target(self, trials: Sequence[Mapping[str, Any]]) -> float:
        """The ratio on the search split that makes passing verification likely: the floor and the margin of its bound."""
        known = [t["ratio_interval"] for t in trials if "ratio_interval" in t]
        if not known:
            return self.floor
        margin = float(np.median([k["estimate"] - k["bound"] for k in known]))
        sizes = len(self.task.splits["search"]) / len(self.task.splits["verify"])
        return self.floor + margin * sizes**0.5

    @property
    def floor(self) -> float:
        """What the bound must reach: the floor, or minus the allowed drop."""
        return -self.settings.max_drop if self.settings.max_drop is not None else self.settings.floor


def limited(task: Any, split: str, most: int) -> int | None:
    """`most` as a limit for `task.evaluate`, or None where the split holds no more than that."""
    return most if len(task.splits[split]) > most else None


def interval_dict(value: stats.Interval) -> dict[str, float]:
    return {k: round(float(v), 6) for k, v in vars(value).items()}


def cores() -> int:
    """Cores this process may use."""
    return int(measure.machine()["cores"]["usable"])
