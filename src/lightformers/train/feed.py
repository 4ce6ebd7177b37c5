"""Training batches of similar length under a token budget, in an order that depends on the seed alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from lightformers.bundle import Batch, Bundle, Example
from lightformers.errors import DataError


@dataclass
class Feed:
    """Examples (encoded or raw), dealt into batches epoch after epoch without end.

    Each epoch shuffles the examples, sorts them by length inside chunks of about `chunk` batches, cuts at the
    token budget and shuffles the batches: little padding, yet a new mixture in every epoch. The order is a
    pure function of (seed, epoch), so training resumes at a position without replaying.

    pad: (items, seed) -> Batch; the seed is for what a batch draws and differs from batch to batch. lengths: tokens of each example. max_tokens: most padded tokens in a batch;
    max_examples: most examples in a batch. `Batch.targets["index"]` holds the (batch,) places in `items`,
    `Batch.targets["position"]` the batch's own position.
    """

    items: Sequence[Any]
    pad: Callable[[list[Any], int], Batch]
    lengths: np.ndarray
    max_tokens: int = 4096
    max_examples: int = 256
    chunk: int = 64
    seed: int = 0
    _plans: dict[int, list[np.ndarray]] = field(default_factory=dict, repr=False)
    _starts: list[int] = field(default_factory=lambda: [0], repr=False)

    def __post_init__(self) -> None:
        self.lengths = np.asarray(self.lengths, dtype=np.int64)
        if len(self.items) == 0:
            raise DataError("there are no training examples: give the task a train split")
        if len(self.lengths) != len(self.items):
            raise ValueError(f"{len(self.lengths)} lengths for {len(self.items)} examples")
        if self.max_tokens < 1 or self.max_examples < 1:
            raise ValueError("max_tokens and max_examples must be at least 1")

    @classmethod
    def of(cls, bundle: Bundle, examples: Sequence[Example], **options: Any) -> Feed:
        """Encode raw examples with the bundle's own processor."""
        encoded = bundle.encode(examples)
        return cls(
            encoded,
            lambda items, _: bundle.pad(items),
            np.array([bundle.length(e) for e in encoded]),
            **options,
        )

    def epoch(self, number: int) -> list[np.ndarray]:
        """The batches of one epoch: arrays of indices; every example stands in exactly one."""
        rng = np.random.default_rng((self.seed, number))
        order = rng.permutation(len(self.items))
        mean = max(float(self.lengths.mean()), 1.0)
        size = max(int(self.chunk * min(self.max_tokens / mean, self.max_examples)), 1)
        batches: list[np.ndarray] = []
        for start in range(0, len(order), size):
            part = order[start : start + size]
            part = part[np.argsort(self.lengths[part], kind="stable")]
            batches += _cut(part, self.lengths[part], self.max_tokens, self.max_examples)
        return [batches[i] for i in rng.permutation(len(batches))]

    def indices(self, position: int) -> np.ndarray:
        """The examples of the batch at `position`, counted over all epochs."""
        number = 0
        while True:
            if number >= len(self._starts) - 1:
                self._plans = {number: self.epoch(number)}  # one plan at a time is enough
                self._starts.append(self._starts[-1] + len(self._plans[number]))
            if position < self._starts[number + 1]:
                break
            number += 1
        if number not in self._plans:
            self._plans = {number: self.epoch(number)}
        return self._plans[number][position - self._starts[number]]

    def batch(self, position: int) -> Batch:
        """The batch at `position`, padded."""
        index = self.indices(position)
        batch = self.pad([self.items[i] for i in index], hash((self.seed, position)) & 0x7FFFFFFF)
        batch.targets["index"] = torch.from_numpy(np.array(index))
        batch.targets["position"] = position
        return batch


def _cut(order: np.ndarray, lengths: np.ndarray, max_tokens: int, max_examples: int) -> list[np.ndarray]:
    """Cut examples sorted by rising length so that count * longest stays within the budget."""
    batches, start = [], 0
    for i in range(1, len(order) + 1):
        full = i - start >= max_examples
        if i == len(order) or full or (i + 1 - start) * lengths[i] > max_tokens:
            batches.append(order[start:i])
            start = i
    return batches
