"""Image classification: one image, one label."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from torch import Tensor

from lightformers.errors import DataError
from lightformers.stats import Metric, Scores
from lightformers.tasks import classify, common, images
from lightformers.tasks import labels as label_names
from lightformers.tasks.splits import assemble, named

if TYPE_CHECKING:
    from lightformers.bundle import Batch, Bundle, Example


@dataclass
class ImageClassification:
    """Examples {"image": (height, width, 3) uint8, "label": number}; the metric is accuracy or macro-F1.

    labels: the name of each number. `check(bundle)` changes the numbers to the model's.
    """

    splits: dict[str, list[Example]]
    labels: tuple[str, ...]
    kind: str = "accuracy"
    seed: int = 0
    warnings: list[str] = field(default_factory=list)
    name: ClassVar[str] = "image-classification"

    @classmethod
    def from_file(
        cls, path: str | Path, image: str | None = None, label: str | None = None, metric: str = "accuracy",
        seed: int = 0,
    ) -> ImageClassification:  # fmt: skip
        """Read a folder with a folder of images per class (also within train, valid, test), an npz, or a hub name.

        image, label: arrays of the npz or columns of the hub data set, where they have unusual names.
        Raises DataError: no images, unreadable ones, one class only, more than fits into memory.
        """
        parts = images.read(path, image, label)
        notes = []
        for name in [
            n for n, rows in parts.items() if all(label_names.label_name(e["label"]) is None for e in rows)
        ]:
            del parts[name]
            notes.append(f"the {name or 'only'} part of {path} holds no labels and was left out")
        if not parts:
            raise DataError(f"{path}: no image has a label")
        task = cls.from_examples(parts.get("", parts), metric, seed)
        task.warnings[:0] = notes
        return task

    @classmethod
    def from_examples(
        cls,
        examples: Mapping[str, Sequence[Example]] | Sequence[Example],
        metric: str = "accuracy",
        seed: int = 0,
    ) -> ImageClassification:
        """From {"image": array, "label": name or number} examples: one list (split here), or lists by split."""
        parts: dict[str, list[Example]] = {}
        for name, rows in named(examples).items():
            common.require(rows, ("image", "label"))
            parts[name] = [
                {**e, "image": images.rgb(np.asarray(e["image"]), f"{name or 'image'} {i}")}
                for i, e in enumerate(rows)
            ]
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
        return common.draw(common.without(self.splits["train"], "label"), n, seed, "calibration images")

    def workload(self, n: int, seed: int = 0, lengths: common.Lengths = None) -> list[Example]:
        """Images of the search split in random order; they have no lengths to choose."""
        if lengths:
            raise DataError("images have no lengths in words: leave --lengths away")
        return common.draw(common.without(self.splits["search"], "label"), n, seed, "a workload")

    def check(self, bundle: Bundle) -> None:
        """Take over the model's label numbers; DataError where labels and head do not match."""
        common.check_head(bundle, self.name)
        _ = self.fingerprint  # of the data as they were read, whatever the model calls the labels
        self.splits, self.labels, note = classify.align(self.splits, self.labels, bundle)
        common.note(self.warnings, note)


def _keys(example: Example) -> list[bytes]:
    pixels = example["image"]
    return [hashlib.sha256(str(pixels.shape).encode() + pixels.tobytes()).digest()]
