"""Causal language modelling: perplexity over pieces of text."""

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
from lightformers.stats import METRICS, Metric, Scores
from lightformers.tasks import common, pieces

if TYPE_CHECKING:
    from lightformers.bundle import Batch, Bundle, Example


@dataclass
class CausalLM:
    """Examples {"text"}; the metric is perplexity: exp(sum of nats / number of tokens), each from its left context.

    A piece's first token has no context and is not scored. After `set_reference` the nats are divided by the
    *original* tokenizer's number of tokens, so that models with another vocabulary (a trimmed one) stay
    comparable: this measures nats per text. Pieces longer than the model's limit are cut there.
    """

    splits: dict[str, list[Example]]
    seed: int = 0
    warnings: list[str] = field(default_factory=list)
    name: ClassVar[str] = "causal-lm"
    labels: ClassVar[None] = None

    def __post_init__(self) -> None:
        self._tokens: dict[str, np.ndarray] = {}

    @classmethod
    def from_file(
        cls,
        path: str | Path,
        text: str = "text",
        group: str | None = None,
        max_words: int = 180,
        seed: int = 0,
    ) -> CausalLM:
        """Read txt (cut into pieces by lines) or a table with a column of texts (each cut by itself).

        max_words: most words of a piece. Raises DataError.
        """
        splits, notes = pieces.from_file(path, text, group, max_words, seed)
        return cls(splits, seed, notes)

    @classmethod
    def from_examples(
        cls, examples: Mapping[str, Sequence[Example]] | Sequence[Example], seed: int = 0
    ) -> CausalLM:
        """From {"text"} examples, taken as they are: one list (split here), or lists by split name."""
        splits, notes = pieces.from_examples(examples, seed)
        return cls(splits, seed, notes)

    @property
    def metric(self) -> Metric:
        return METRICS["perplexity"]

    @cached_property
    def fingerprint(self) -> str:
        return common.fingerprint(self.splits, {"task": self.name})

    def reduce(self, outputs: Mapping[str, Any], batch: Batch) -> list[tuple[float, int]]:
        """(nats, predicted tokens) per example."""
        logits = torch.as_tensor(_logits(outputs))
        ids, mask = batch.inputs["input_ids"], batch.inputs["attention_mask"].bool()
        out = []
        for i in range(len(ids)):  # row by row: one row of float32 logits at a time
            scored = mask[i, 1:] & mask[i, :-1]
            nats = torch.nn.functional.cross_entropy(
                logits[i, :-1][scored].float(), ids[i, 1:][scored], reduction="sum"
            )
            out.append((float(nats), int(scored.sum())))
        return out

    def set_reference(self, runner: common.Runner, splits: Sequence[str] = ("search", "verify")) -> None:
        """Note the original's number of tokens, which perplexity is divided by from now on. Runs no model."""
        for split in splits:
            encoded = runner.encode(self.splits[split])
            self._tokens[split] = np.array([max(len(e["input_ids"]) - 1, 0) for e in encoded], dtype=float)

    def evaluate(self, runner: common.Runner, split: str = "verify", limit: int | None = None) -> Scores:
        """(nats, tokens) per example."""
        index = common.take(self.splits, split, limit, self.seed)
        chosen = [self.splits[split][i] for i in index]
        stats = np.array(runner(chosen, self.reduce), dtype=float)
        if split in self._tokens:
            stats[:, 1] = self._tokens[split][index]
        return Scores(stats, self.metric, common.groups(chosen))

    def collate(self, bundle: Bundle, examples: Sequence[Example], seed: int = 0) -> Batch:
        return bundle.collate(examples)

    def loss(self, outputs: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """Mean nats per predicted token."""
        mask = batch.inputs["attention_mask"].bool()
        scored = mask[:, 1:] & mask[:, :-1]
        right = batch.inputs["input_ids"][:, 1:][scored]
        return torch.nn.functional.cross_entropy(_logits(outputs)[:, :-1][scored].float(), right)

    def training_examples(self, use_labels: bool) -> list[Example]:
        """The same texts either way: a text is its own label."""
        if not self.splits["train"]:
            raise DataError("the train split is empty: give more data")
        return list(self.splits["train"])

    def calibration(self, n: int, seed: int = 0) -> list[Example]:
        return common.draw(self.splits["train"], n, seed, "calibration texts")

    def workload(self, n: int, seed: int = 0, lengths: common.Lengths = None) -> list[Example]:
        """Pieces of the search split in arrival order. lengths: see `common.with_lengths`."""
        return common.with_lengths(self.splits["search"], n, seed, lengths)

    def check(self, bundle: Bundle) -> None:
        """ModelError where the model does not generate; long pieces become a warning."""
        common.check_head(bundle, self.name)
        common.note(self.warnings, common.truncated(bundle, self.splits["verify"]))


def _logits(outputs: Mapping[str, Any]) -> Any:
    if "logits" not in outputs:
        raise ModelError(
            f"the model gives {sorted(outputs)} and no logits: it has no language-modelling head"
        )
    return outputs["logits"]
