"""What a task is, and the one door to all of them."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from lightformers.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

    from lightformers.bundle import Batch, Bundle, Example
    from lightformers.stats import Metric, Scores
    from lightformers.tasks.common import Lengths, Runner

_CLASSES = {
    "embedding": ("embedding", "Embedding"),
    "text-classification": ("text_classification", "TextClassification"),
    "token-classification": ("token_classification", "TokenClassification"),
    "causal-lm": ("causal_lm", "CausalLM"),
    "masked-lm": ("masked_lm", "MaskedLM"),
    "image-classification": ("image_classification", "ImageClassification"),
    "forecasting": ("forecasting", "Forecasting"),
    "tabular-classification": ("tabular", "TabularClassification"),
    "tabular-regression": ("tabular", "TabularRegression"),
}
NAMES = tuple(_CLASSES)


class Task(Protocol):
    """Data in three disjoint splits, a loss, a metric. Examples are raw; a bundle makes batches of them."""

    name: str
    splits: dict[str, list[Example]]
    labels: tuple[str, ...] | None
    warnings: list[str]

    @property
    def metric(self) -> Metric: ...

    @property
    def fingerprint(self) -> str:
        """sha256 of data and settings."""

    def reduce(self, outputs: Mapping[str, Any], batch: Batch) -> Sequence[Any]:
        """Outputs of one batch -> one light item per example, in batch order."""

    def set_reference(self, runner: Runner, splits: Sequence[str] = ("search", "verify")) -> None:
        """Note what the metric needs to know of the original; call once, before `evaluate`."""

    def evaluate(self, runner: Runner, split: str = "verify", limit: int | None = None) -> Scores:
        """Scores per example, paired between runners: same split and limit, same rows."""

    def collate(self, bundle: Bundle, examples: Sequence[Example], seed: int = 0) -> Batch:
        """Training examples -> one batch. `seed` is for what a batch draws (the masks of masked-lm)."""

    def loss(self, outputs: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """Supervised loss of named outputs on a batch from `collate`."""

    def training_examples(self, use_labels: bool) -> list[Example]: ...

    def calibration(self, n: int, seed: int = 0) -> list[Example]: ...

    def workload(self, n: int, seed: int = 0, lengths: Lengths = None) -> list[Example]: ...

    def check(self, bundle: Bundle) -> None:
        """Fit the task to the model (label numbers); DataError or ModelError with the way out if they don't fit."""


def from_data(
    task: str,
    data: str | Path | Mapping[str, Sequence[Example]] | Sequence[Example],
    *,
    bundle: Bundle | None = None,
    seed: int = 0,
    **options: Any,
) -> Task:
    """A task from a file, a folder, a hub name, or examples.

    options: what the task's `from_file` takes: columns (text, text_pair, label, query, document, words, group,
    ...) and settings; those that are None are left out. bundle: checked against the data at once.
    Raises DataError or ModelError, saying what to do.
    """
    if task not in _CLASSES:
        raise DataError(f"unknown task {task!r}; tasks: {', '.join(NAMES)}")
    module, name = _CLASSES[task]
    cls = getattr(importlib.import_module(f"lightformers.tasks.{module}"), name)
    make = cls.from_file if isinstance(data, (str, Path)) else cls.from_examples
    given = {key: value for key, value in options.items() if value is not None}
    known = [p for p in inspect.signature(make).parameters if p not in ("path", "examples", "seed")]
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise DataError(f"{task} takes no {', '.join(unknown)}; it takes {', '.join(known)}")
    made: Task = make(data, seed=seed, **given)
    if bundle is not None:
        made.check(bundle)
    return made
