"""Rows of a table: a class or a number for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from lightformers.errors import DataError, ModelError
from lightformers.processors.schema import Schema, number
from lightformers.stats import METRICS, Metric, Scores
from lightformers.tasks import classify, common, tables
from lightformers.tasks import labels as label_names
from lightformers.tasks.labelled import Classification, Labelled

if TYPE_CHECKING:
    from lightformers.bundle import Batch, Bundle, Example

#: A probability below this is read as this: one sure mistake must not outweigh everything.
_LEAST = 1e-15


@dataclass
class TabularClassification(Classification):
    """Examples {"row": {column: number, text or None}, "label": number}; accuracy, macro-F1 or log-loss (nats, lower is better).

    labels: the name of each number. schema: the columns, with the values that stand in training rows.
    `check(bundle)` changes the numbers to the model's.
    """

    splits: dict[str, list[Example]]
    labels: tuple[str, ...]
    schema: Schema
    kind: str = "accuracy"
    seed: int = 0
    warnings: list[str] = field(default_factory=list)
    name: ClassVar[str] = "tabular-classification"
    things: ClassVar[str] = "rows of a table"

    @classmethod
    def from_file(
        cls, path: str | Path, target: str | None = None, features: Sequence[str] | str | None = None,
        group: str | None = None, metric: str = "accuracy", label: str | None = None, seed: int = 0,
    ) -> TabularClassification:  # fmt: skip
        """Read csv, tsv, jsonl, json or parquet, a folder of these by split, or a hub name.

        target (or label): the column of the classes. features: the columns to predict from; None: all others.
        group: column of what belongs together. Raises DataError: columns that are not there or hold nothing, missing
        targets, one class only, too few rows.
        """
        parts, notes = tables.read(path, target or label, features, group)
        task = cls.from_examples(parts.get("", parts), metric, seed)
        task.warnings[:0] = notes
        return task

    @classmethod
    def from_examples(
        cls, examples: Mapping[str, Sequence[Example]] | Sequence[Example], metric: str = "accuracy", seed: int = 0
    ) -> TabularClassification:  # fmt: skip
        """From {"row", "label"} examples (label: name or number): one list (split here), or lists by split."""
        names: tuple[str, ...] = ()

        def numbered(parts: dict[str, list[Example]]) -> dict[str, list[Example]]:
            nonlocal names
            parts, names = _number(parts)
            return parts

        splits, schema, notes = tables.split(examples, numbered, seed, lambda e: e["label"])
        unknown = sorted(
            {e["label"] for rows in splits.values() for e in rows} - {e["label"] for e in splits["train"]}
        )
        if unknown:
            notes.append(f"no training row has the class {', '.join(names[u] for u in unknown)}")
        _metric(metric, len(names))
        return cls(splits, names, schema, metric, seed, notes)

    @property
    def metric(self) -> Metric:
        return _metric(self.kind, len(self.labels))

    def reduce(self, outputs: Mapping[str, Any], batch: Batch) -> Sequence[Any]:
        """The predicted class per example; for log-loss the logarithms of all classes' probabilities."""
        predicted = classify.reduce(outputs)
        if self.kind != "log-loss":
            return predicted
        return list(torch.as_tensor(outputs["logits"]).double().log_softmax(-1).numpy())

    def evaluate(self, runner: common.Runner, split: str = "verify", limit: int | None = None) -> Scores:
        """(correct, 1), (tp, fp, fn) for every class, or (nats, 1), per example."""
        chosen = [self.splits[split][i] for i in common.take(self.splits, split, limit, self.seed)]
        right = [e["label"] for e in chosen]
        found = runner(chosen, self.reduce)
        groups = common.groups(chosen)
        if self.kind != "log-loss":
            return classify.scores(found, right, self.kind, len(self.labels), groups)
        nats = -np.array([row[r] for row, r in zip(found, right)])
        worst = -np.log(_LEAST)
        nats = np.minimum(np.nan_to_num(nats, nan=worst, posinf=worst), worst)
        return Scores(np.stack([nats, np.ones(len(nats))], 1), self.metric, groups)


@dataclass
class TabularRegression(Labelled):
    """Examples {"row": {column: number, text or None}, "label": number in the units of the data}.

    The metric, mse or mae, is of the target standardised by the training rows (`mean`, `deviation`); lower is better, and
    1 is what the mean of the training rows gets in mse. schema: as in `TabularClassification`. units: mean and deviation
    that a model's prediction is standardised by, its `config.target_units`; `check(bundle)` takes them over.
    """

    splits: dict[str, list[Example]]
    schema: Schema
    mean: float
    deviation: float
    kind: str = "mse"
    seed: int = 0
    warnings: list[str] = field(default_factory=list)
    units: tuple[float, float] = (0.0, 1.0)
    labels: ClassVar[tuple[str, ...] | None] = None
    name: ClassVar[str] = "tabular-regression"
    things: ClassVar[str] = "rows of a table"

    @classmethod
    def from_file(
        cls, path: str | Path, target: str | None = None, features: Sequence[str] | str | None = None,
        group: str | None = None, metric: str = "mse", label: str | None = None, seed: int = 0,
    ) -> TabularRegression:  # fmt: skip
        """As `TabularClassification.from_file`. DataError also for a target that is no number, or the same in every row."""
        parts, notes = tables.read(path, target or label, features, group)
        task = cls.from_examples(parts.get("", parts), metric, seed)
        task.warnings[:0] = notes
        return task

    @classmethod
    def from_examples(
        cls, examples: Mapping[str, Sequence[Example]] | Sequence[Example], metric: str = "mse", seed: int = 0
    ) -> TabularRegression:  # fmt: skip
        """From {"row", "label"} examples: one list (split here), or lists by split."""
        if metric not in ("mse", "mae"):
            raise DataError(f"unknown metric {metric!r}; metrics: mse, mae")
        splits, schema, notes = tables.split(examples, _numbers, seed, None)
        train = np.array([e["label"] for e in splits["train"]])
        if train.std() == 0:
            raise DataError(f"the target is {train[0]:g} in every training row: nothing to predict")
        return cls(splits, schema, float(train.mean()), float(train.std()), metric, seed, notes)

    @property
    def metric(self) -> Metric:
        return METRICS[self.kind]

    @cached_property
    def fingerprint(self) -> str:
        return common.fingerprint(self.splits, {"task": self.name, "metric": self.kind})

    def reduce(self, outputs: Mapping[str, Any], batch: Batch) -> list[float]:
        """The prediction per example, as the model gives it."""
        return [float(p) for p in torch.as_tensor(_prediction(outputs)).double()]

    def evaluate(self, runner: common.Runner, split: str = "verify", limit: int | None = None) -> Scores:
        """(standardised error, squared or absolute, 1) per example."""
        chosen = [self.splits[split][i] for i in common.take(self.splits, split, limit, self.seed)]
        mean, deviation = self.units
        found = np.array(runner(chosen, self.reduce)) * deviation + mean
        error = (found - np.array([e["label"] for e in chosen])) / self.deviation
        error = error**2 if self.kind == "mse" else np.abs(error)
        return Scores(np.stack([error, np.ones(len(error))], 1), self.metric, common.groups(chosen))

    def loss(self, outputs: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """Mean squared error of the standardised target."""
        mean, deviation = self.units
        label = (batch.targets["label"].double() - mean) / deviation
        error = _prediction(outputs).float() - label.float()
        return (error * (deviation / self.deviation)).square().mean()

    def check(self, bundle: Bundle) -> None:
        """Take over the units of the model's prediction; ModelError for a model of something else."""
        common.check_head(bundle, self.name)
        mean, deviation = getattr(getattr(bundle.model, "config", None), "target_units", None) or (0.0, 1.0)
        self.units = float(mean), float(deviation)


def _metric(kind: str, classes: int) -> Metric:
    if kind not in (*classify.KINDS, "log-loss"):
        raise DataError(f"unknown metric {kind!r}; metrics: {', '.join(classify.KINDS)}, log-loss")
    return METRICS[kind] if kind == "log-loss" else classify.metric(kind, classes)


def class_name(value: Any) -> str | None:
    """`labels.label_name`, but -1 is a class here: tables often call the two classes -1 and 1."""
    found = label_names.label_name(value)
    return found if found is not None or number(value) != -1 else "-1"


def _number(parts: Mapping[str, Sequence[Example]]) -> tuple[dict[str, list[Example]], tuple[str, ...]]:
    """Classes as names or numbers -> numbers into the list of names, which comes second."""
    found = {part: [class_name(e["label"]) for e in rows] for part, rows in parts.items()}
    for part, rows in parts.items():
        if None in found[part]:
            at = found[part].index(None)
            raise DataError(f"{rows[at].get('at', f'example {at}')}: no label: label it or leave it out")
    every = [n for names in found.values() for n in names if n is not None]
    labels = label_names.order(every)
    label_names.several(labels, "the data")
    if len(labels) > max(2, len(every) / 2):
        raise DataError(
            f"the target has {len(labels)} different values in {len(every)} rows, too many to be classes: "
            "if they are numbers, use --task tabular-regression"
        )
    index: dict[str | None, int] = {name: i for i, name in enumerate(labels)}
    return {
        part: [{**e, "label": index[n]} for e, n in zip(rows, found[part])] for part, rows in parts.items()
    }, labels


def _numbers(parts: Mapping[str, Sequence[Example]]) -> dict[str, list[Example]]:
    """Targets as floats. Raises DataError for the first that is none."""
    out: dict[str, list[Example]] = {}
    for part, rows in parts.items():
        values = [number(e["label"]) for e in rows]
        wrong = [i for i, v in enumerate(values) if v is None or not np.isfinite(v)]
        if wrong:
            example = rows[wrong[0]]
            raise DataError(
                f"{example.get('at', f'example {wrong[0]}')}: the target {example['label']!r} is no number "
                f"({len(wrong)} of {len(rows)} rows), and regression needs numbers. For classes use --task "
                "tabular-classification"
            )
        out[part] = [{**e, "label": v} for e, v in zip(rows, values)]
    return out


def _prediction(outputs: Mapping[str, Any]) -> Any:
    if "prediction" not in outputs:
        raise ModelError(
            f"the model gives {sorted(outputs)} and no prediction: it is not made for regression"
        )
    return outputs["prediction"]
