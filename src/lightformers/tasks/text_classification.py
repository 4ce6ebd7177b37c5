"""Text classification: one text or a pair, one label."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from lightformers.errors import DataError
from lightformers.stats import Metric, Scores
from lightformers.tasks import classify, common, data
from lightformers.tasks import labels as label_names
from lightformers.tasks.splits import assemble, named

if TYPE_CHECKING:
    from lightformers.bundle import Batch, Bundle, Example


@dataclass
class TextClassification:
    """Examples {"text", ("text_pair"), "label": number}; the metric is accuracy or macro-F1.

    labels: the name of each number. `check(bundle)` changes the numbers to the model's.
    """

    splits: dict[str, list[Example]]
    labels: tuple[str, ...]
    kind: str = "accuracy"
    seed: int = 0
    warnings: list[str] = field(default_factory=list)
    name: ClassVar[str] = "text-classification"

    @classmethod
    def from_file(
        cls, path: str | Path, text: str = "text", label: str = "label", text_pair: str | None = None,
        group: str | None = None, metric: str = "accuracy", seed: int = 0,
    ) -> TextClassification:  # fmt: skip
        """Read csv, tsv, jsonl, json or parquet, a folder of these, or a hub name.

        text, text_pair, label, group: columns. Raises DataError: missing columns, missing labels, one class only.
        """
        parts: dict[str, list[Example]] = {}
        notes = []
        columns = {"text": text} | ({"text_pair": text_pair} if text_pair else {})
        for name, rows in data.read(path).items():
            names = label_names.column(rows, label)
            if names[0] is None:
                notes.append(f"{rows.source} holds no labels and was left out")
                continue
            parts[name], empty = data.examples(rows, columns, group, {"label": names})
            if empty:
                notes.append(f"{rows.source}: {empty} rows without text were left out")
        if not parts:
            raise DataError(f"{path}: no row has a label in column {label!r}")
        task = cls.from_examples(parts.get("", parts), metric, seed)
        task.warnings[:0] = notes
        return task

    @classmethod
    def from_examples(
        cls,
        examples: Mapping[str, Sequence[Example]] | Sequence[Example],
        metric: str = "accuracy",
        seed: int = 0,
    ) -> TextClassification:
        """From {"text", "label"} examples (label: name or number): one list (split here), or lists by split."""
        parts = named(examples)
        for rows in parts.values():
            common.require(rows, ("text", "label"))
        parts, labels = classify.number(parts)
        splits, notes = assemble(parts, _keys, seed, lambda e: e["label"])
        classify.metric(metric, len(labels))
        return cls(splits, labels, metric, seed, notes)

    @property
    def metric(self) -> Metric:
        return classify.metric(self.kind, len(self.labels))

    @cached_property
    def fingerprint(self) -> str:
        return common.fingerprint(
            self.splits, {"task": self.name, "labels": self.labels, "metric": self.kind}
        )

    def reduce(self, outputs: Mapping[str, Any], batch: Batch) -> list[int]:
        """The predicted class per example."""
        return classify.reduce(outputs)

    def set_reference(self, runner: common.Runner, splits: Sequence[str] = ("search", "verify")) -> None:
        """Nothing to note: the labels are the reference."""

    def evaluate(self, runner: common.Runner, split: str = "verify", limit: int | None = None) -> Scores:
        """(correct, 1), or (tp, fp, fn) for every class, per example."""
        return classify.evaluate(self.splits, split, limit, self.seed, runner, self.kind, len(self.labels))

    def collate(self, bundle: Bundle, examples: Sequence[Example], seed: int = 0) -> Batch:
        return bundle.collate(examples)

    def loss(self, outputs: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """Cross entropy."""
        return classify.loss(outputs, batch)

    def training_examples(self, use_labels: bool) -> list[Example]:
        rows = self.splits["train"]
        return list(rows) if use_labels else common.without(rows, "label")

    def calibration(self, n: int, seed: int = 0) -> list[Example]:
        return common.draw(common.without(self.splits["train"], "label"), n, seed, "calibration texts")

    def workload(self, n: int, seed: int = 0, lengths: common.Lengths = None) -> list[Example]:
        """Texts of the search split in arrival order. lengths: see `common.with_lengths`."""
        return common.with_lengths(self.splits["search"], n, seed, lengths)

    def check(self, bundle: Bundle) -> None:
        """Take over the model's label numbers; DataError where labels and head do not match."""
        common.check_head(bundle, self.name)
        _ = self.fingerprint  # of the data as they were read, whatever the model calls the labels
        self.splits, self.labels, note = classify.align(self.splits, self.labels, bundle)
        common.note(self.warnings, note)
        common.note(self.warnings, common.truncated(bundle, self.splits["verify"]))


def _keys(example: Example) -> list[tuple[str, ...]]:
    return [tuple(common.folded(example[k]) for k in ("text", "text_pair") if k in example)]
