"""Stand-ins for runners: no model, so that a test's numbers can be worked out by hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from lightformers.bundle import Batch, Bundle, Pooling


@dataclass
class FakeRunner:
    """Answers every example with `answer(example) -> {"embedding" or "logits": array}`, `batch` at a time."""

    answer: Callable[[Mapping[str, Any]], Mapping[str, Any]]
    batch: int = 3
    calls: int = 0
    seen: list[Mapping[str, Any]] = field(default_factory=list)

    def encode(self, examples: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        return [dict(e) for e in examples]

    def run(self, encoded: Sequence[Mapping[str, Any]], reduce: Callable[..., Sequence[Any]]) -> list[Any]:
        self.calls += 1
        self.seen.extend(encoded)
        out: list[Any] = []
        for i in range(0, len(encoded), self.batch):
            part = list(encoded[i : i + self.batch])
            answers = [self.answer(e) for e in part]
            outputs = {k: torch.tensor(np.stack([a[k] for a in answers])) for k in answers[0]}
            out.extend(reduce(outputs, Batch({}, {"examples": part})))
        return out

    def __call__(
        self, examples: Sequence[Mapping[str, Any]], reduce: Callable[..., Sequence[Any]]
    ) -> list[Any]:
        return self.run(self.encode(examples), reduce)


class WordTokenizer:
    """Every word is a token: enough of a tokenizer for `Bundle.encode`."""

    padding_side = "right"
    pad_token_id = 0

    def __call__(self, first: Any, second: Any = None, truncation: bool = False, max_length: int | None = None,
                 is_split_into_words: bool = False, **_: Any) -> dict[str, list[list[int]]]:  # fmt: skip
        rows = [list(t) if is_split_into_words else t.split() for t in first]
        if second is not None:
            rows = [a + b.split() for a, b in zip(rows, second)]
        ids = [[1 + sum(w.encode()) % 997 for w in row] for row in rows]
        return {"input_ids": [i[:max_length] if truncation else i for i in ids]}


def bundle(task: str, labels: Sequence[str] = (), max_length: int | None = None) -> Bundle:
    """A bundle without weights: what `check` and `collate` look at."""
    model = torch.nn.Identity()
    model.config = SimpleNamespace(id2label=dict(enumerate(labels)))  # type: ignore[assignment]
    pooling = Pooling() if task == "embedding" else None
    return Bundle(model, WordTokenizer(), task, pooling, max_length)
