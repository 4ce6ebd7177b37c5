"""Image classification: one image, one label."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from lightformers.errors import DataError
from lightformers.tasks import classify, common, images
from lightformers.tasks import labels as label_names
from lightformers.tasks.labelled import Classification
from lightformers.tasks.splits import assemble, named

if TYPE_CHECKING:
    from lightformers.bundle import Example


@dataclass
class ImageClassification(Classification):
    """Examples {"image": (height, width, 3) uint8, "label": number}; the metric is accuracy or macro-F1.

    labels: the name of each number. `check(bundle)` changes the numbers to the model's.
    """

    splits: dict[str, list[Example]]
    labels: tuple[str, ...]
    kind: str = "accuracy"
    seed: int = 0
    warnings: list[str] = field(default_factory=list)
    name: ClassVar[str] = "image-classification"
    things: ClassVar[str] = "images"

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


def _keys(example: Example) -> list[bytes]:
    pixels = example["image"]
    return [hashlib.sha256(str(pixels.shape).encode() + pixels.tobytes()).digest()]
