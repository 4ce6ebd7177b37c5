"""What tasks share whose examples hold their answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from lightformers.errors import DataError
from lightformers.stats import Metric, Scores
from lightformers.tasks import classify, common

if TYPE_CHECKING:
    from torch import Tensor

    from lightformers.bundle import Batch, Bundle, Example


class Labelled:
    """Base of dataclasses with `splits` of examples. answer: the field of their answers. things: what messages call them."""

    answer: ClassVar[str] = "label"
    things: ClassVar[str] = "texts"
    splits: dict[str, list[Example]]

    def set_reference(self, runner: common.Runner, splits: Sequence[str] = ("search", "verify")) -> None:
        """Nothing to note: the labels are the reference."""

    def collate(self, bundle: Bundle, examples: Sequence[Example], seed: int = 0) -> Batch:
        return bundle.collate(examples)

    def training_examples(self, use_labels: bool) -> list[Example]:
        rows = self.splits["train"]
        return list(rows) if use_labels else common.without(rows, self.answer)

    def calibration(self, n: int, seed: int = 0) -> list[Example]:
        return common.draw(self._without("train"), n, seed, f"calibration {self.things}")

    def workload(self, n: int, seed: int = 0, lengths: common.Lengths = None) -> list[Example]:
        """Examples of the search split in random order; they have no lengths to choose."""
        if lengths:
            raise DataError(f"{self.things} have no lengths in words: leave --lengths away")
        return common.draw(self._without("search"), n, seed, "a workload")

    def _without(self, split: str) -> list[Example]:
        return common.without(self.splits[split], self.answer)


class Classification(Labelled):
    """Base of tasks with one class an example: `labels` names the number of each, `kind` is the metric's name."""

    labels: tuple[str, ...]
    kind: str
    seed: int
    warnings: list[str]
    name: ClassVar[str]

    @property
    def metric(self) -> Metric:
        return classify.metric(self.kind, len(self.labels))

    @cached_property
    def fingerprint(self) -> str:
        return common.fingerprint(
            self.splits, {"task": self.name, "labels": self.labels, "metric": self.kind}
        )

    def reduce(self, outputs: Mapping[str, Any], batch: Batch) -> Sequence[Any]:
        """The predicted class per example."""
        return classify.reduce(outputs)

    def evaluate(self, runner: common.Runner, split: str = "verify", limit: int | None = None) -> Scores:
        """(correct, 1), or (tp, fp, fn) for every class, per example."""
        return classify.evaluate(self.splits, split, limit, self.seed, runner, self.kind, len(self.labels))

    def loss(self, outputs: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """Cross entropy."""
        return classify.loss(outputs, batch)

    def check(self, bundle: Bundle) -> None:
        """Take over the model's label numbers; DataError where labels and head do not match."""
        common.check_head(bundle, self.name)
        _ = self.fingerprint  # of the data as they were read, whatever the model calls the labels
        self.splits, self.labels, note = classify.align(self.splits, self.labels, bundle)
        common.note(self.warnings, note)
