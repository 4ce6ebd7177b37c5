"""What text and image classification share: predictions, scores, loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from lightformers.errors import DataError, ModelError
from lightformers.stats import METRICS, Metric, Scores, macro_f1
from lightformers.tasks import common
from lightformers.tasks import labels as label_names

if TYPE_CHECKING:
    from lightformers.bundle import Batch, Bundle, Example

KINDS = ("accuracy", "macro-f1")

#: The label of an example that has none: it has no part in the loss.
UNLABELLED = -100


def metric(kind: str, classes: int) -> Metric:
    if kind not in KINDS:
        raise DataError(f"unknown metric {kind!r}; metrics: {', '.join(KINDS)}")
    return METRICS["accuracy"] if kind == "accuracy" else macro_f1(classes)


def reduce(outputs: Mapping[str, Any]) -> list[int]:
    """The predicted class per example; -1, which is never right, where a logit is not finite."""
    if "logits" not in outputs:
        raise ModelError(f"the model gives {sorted(outputs)} and no logits: it has no classification head")
    logits = torch.as_tensor(outputs["logits"]).float()
    predicted = logits.argmax(-1).masked_fill(~torch.isfinite(logits).all(-1), -1)
    return [int(p) for p in predicted]


def scores(
    predicted: Sequence[int], right: Sequence[int], kind: str, classes: int, groups: np.ndarray | None
) -> Scores:
    """(correct, 1) per example, or (tp, fp, fn) for every class."""
    p, r = np.asarray(predicted), np.asarray(right)
    if kind == "accuracy":
        stats = np.stack([p == r, np.ones(len(r))], 1).astype(float)
    else:
        stats = np.zeros((len(r), classes, 3))
        rows = np.arange(len(r))
        stats[rows, r, np.where(p == r, 0, 2)] = 1
        wrong = rows[(p != r) & (p >= 0) & (p < classes)]
        stats[wrong, p[wrong], 1] = 1
        stats = stats.reshape(len(r), -1)
    return Scores(stats, metric(kind, classes), groups)


def evaluate(
    splits: Mapping[str, Sequence[Example]], split: str, limit: int | None, seed: int, runner: common.Runner,
    kind: str, classes: int,
) -> Scores:  # fmt: skip
    chosen = [splits[split][i] for i in common.take(splits, split, limit, seed)]
    predicted = runner(chosen, lambda outputs, batch: reduce(outputs))
    return scores(predicted, [e["label"] for e in chosen], kind, classes, common.groups(chosen))


def loss(outputs: Mapping[str, Tensor], batch: Batch) -> Tensor:
    """Mean cross entropy over the examples that are not `UNLABELLED`; 0 where all are."""
    label = batch.targets["label"]
    total = torch.nn.functional.cross_entropy(
        outputs["logits"].float(), label, ignore_index=UNLABELLED, reduction="sum"
    )
    return total / (label != UNLABELLED).sum().clamp(min=1)


def align(
    splits: Mapping[str, Sequence[Example]], current: tuple[str, ...], bundle: Bundle
) -> tuple[dict[str, list[Example]], tuple[str, ...], str | None]:
    """Splits and label names with the model's numbers, and a warning. Raises DataError where they don't match."""
    moved, new, note = label_names.renumber(current, bundle)
    return (
        {split: [{**e, "label": moved[e["label"]]} for e in rows] for split, rows in splits.items()},
        new,
        note,
    )


def number(
    parts: Mapping[str, Sequence[Example]],
) -> tuple[dict[str, list[Example]], tuple[str, ...]]:
    """Labels as names or numbers -> numbers into the list of names, which comes second."""
    named = {part: [label_names.label_name(e["label"]) for e in rows] for part, rows in parts.items()}
    for part, found in named.items():
        if None in found:
            where = f" of {part}" if part else ""
            raise DataError(f"example {found.index(None)}{where} has no label: label it or leave it out")
    labels = label_names.order(n for found in named.values() for n in found if n is not None)
    label_names.several(labels, "the data")
    index: dict[str | None, int] = {name: i for i, name in enumerate(labels)}
    numbered: dict[str, list[Example]] = {
        part: [{**e, "label": index[n]} for e, n in zip(rows, named[part])] for part, rows in parts.items()
    }
    return numbered, labels
