"""Labelled sequences of whole numbers, and pairs of them: what the tasks of Long Range Arena are made of."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lightformers import stats
from lightformers.bundle import Batch
from lightformers.errors import DataError, UserError
from lightformers.stats import Scores

Numbers = NDArray[np.integer[Any]]


@dataclass(frozen=True)
class Sequences:
    """Examples of one split.

    tokens: one array (n,) per example, of numbers from 1; padding is 0. other: the second ones of pairs, or None.
    labels: (examples,) int64. groups: as in `stats.Scores`, or None. Raises DataError where they do not fit together.
    """

    tokens: Sequence[Numbers]
    labels: NDArray[np.int64]
    other: Sequence[Numbers] | None = None
    groups: NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        counts = {len(x) for x in (self.tokens, self.labels, self.other, self.groups) if x is not None}
        if counts == {0} or len(counts) > 1:
            raise DataError(f"there must be as many sequences as labels, and one at least, not {counts}")
        if any(len(t) == 0 for part in (self.tokens, self.other or ()) for t in part):
            raise DataError("a sequence is empty: there is nothing to classify")

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each example; of a pair, those of the longer one."""
        own = [len(t) for t in self.tokens]
        return np.array(own if self.other is None else [max(a, len(b)) for a, b in zip(own, self.other)])

    def batch(self, index: Iterable[int]) -> Batch:
        """These examples, padded to the longest: inputs input_ids and attention_mask (batch, n) int64, of pairs also
        other_ids and other_mask; targets label."""
        chosen = list(index)
        inputs = dict(zip(("input_ids", "attention_mask"), _pad([self.tokens[i] for i in chosen])))
        if self.other is not None:
            inputs |= zip(("other_ids", "other_mask"), _pad([self.other[i] for i in chosen]))
        return Batch(inputs, {"label": torch.from_numpy(self.labels[chosen])})

    @property
    def fingerprint(self) -> str:
        """Of all numbers, their order and their labels."""
        digest = hashlib.sha256(self.labels.tobytes())
        for part in (self.tokens, self.other or ()):
            for t in part:
                digest.update(np.ascontiguousarray(t, np.int32).tobytes() + b"|")
        return digest.hexdigest()[:16]


def _pad(rows: Sequence[Numbers]) -> tuple[Tensor, Tensor]:
    out = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
    for i, row in enumerate(rows):
        out[i, : len(row)] = torch.from_numpy(np.asarray(row, np.int64))
    return out, (out != 0).long()


@dataclass(frozen=True)
class Split:
    """A task's data. train, test: disjoint. classes: how many labels; vocab: one above the largest number; length: the
    longest that a sequence can be. about: what it is, for reports."""

    train: Sequences
    test: Sequences
    classes: int
    vocab: int
    length: int
    about: str = ""

    def __post_init__(self) -> None:
        for part in (self.train, self.test):
            if part.labels.min() < 0 or part.labels.max() >= self.classes:
                raise DataError(f"labels run from {part.labels.min()} to {part.labels.max()}, there are {self.classes} classes")  # fmt: skip
            longest = int(part.lengths.max())
            if longest > self.length:
                raise DataError(f"a sequence of {longest} is longer than {self.length}")
            largest = max(int(t.max()) for t in (*part.tokens, *(part.other or ())))
            if largest >= self.vocab:
                raise DataError(f"number {largest} does not belong to a vocabulary of {self.vocab}")

    @property
    def pairs(self) -> bool:
        """Whether an example is two sequences."""
        return self.train.other is not None

    @property
    def chance(self) -> float:
        """Accuracy of always saying the commonest label of training."""
        common = np.bincount(self.train.labels, minlength=self.classes).argmax()
        return float((self.test.labels == common).mean())


def class_loss(module: nn.Module, batch: Batch) -> Tensor:
    """The objective: cross-entropy in nats of `module(**inputs).logits` (batch, classes)."""
    return nn.functional.cross_entropy(_logits(module, batch).float(), batch.targets["label"])


@torch.no_grad()
def score(
    module: nn.Module, sequences: Sequences, size: int = 64, tick: Callable[[], None] | None = None
) -> Scores:
    """Accuracy; one row per example, in the order of `sequences`. Batches are of similar length. tick: called after each."""
    order = np.argsort(-sequences.lengths, kind="stable")
    right = np.zeros(len(sequences))
    device = next(module.parameters()).device
    training = module.training
    module.eval()
    try:
        for start in range(0, len(order), size):
            index = order[start : start + size]
            batch = sequences.batch(index).to(device)
            right[index] = (_logits(module, batch).argmax(-1) == batch.targets["label"]).cpu().numpy()
            if tick:
                tick()
    finally:
        module.train(training)
    return Scores(np.stack([right, np.ones(len(right))], 1), stats.METRICS["accuracy"], sequences.groups)


def _logits(module: nn.Module, batch: Batch) -> Tensor:
    out: Any = module(**batch.inputs)
    found = out["logits"] if isinstance(out, dict) else getattr(out, "logits", out)
    if not isinstance(found, Tensor) or found.ndim != 2:
        raise UserError(f"the model gives {type(out).__name__} without logits (batch, classes)")
    return found
