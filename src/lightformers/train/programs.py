"""Training a Transformer Program: Gumbel samples at a temperature that falls geometrically (arXiv 2306.01128)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from lightformers.bundle import Batch
from lightformers.errors import DataError, UserError
from lightformers.models.language.transformer_programs import PAD, TransformerProgram
from lightformers.train.feed import Feed
from lightformers.train.loop import Progress, Settings, TrainResult, fit

#: A label's index where nothing is asked.
IGNORED = -100


@dataclass
class Annealed:
    """The objective: cross-entropy of each text's labels, averaged per text, at a temperature that falls by every call.

    hot, cold: temperatures of the first and of the last of `steps` calls. Rows of logits without a label count nothing.
    """

    steps: int
    hot: float = 3.0
    cold: float = 0.01
    done: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1 or not 0 < self.cold <= self.hot:
            raise UserError(
                f"temperatures fall from hot to cold above 0 in at least one step, not {self.hot} to {self.cold}"
            )

    def __call__(self, module: nn.Module, batch: Batch) -> Tensor:
        fraction = min(self.done / max(self.steps - 1, 1), 1.0)
        module.temperature = self.hot * (self.cold / self.hot) ** fraction  # type: ignore[assignment]
        self.done += 1
        return per_text(module(**batch.inputs)["logits"], batch.targets["labels"])


def per_text(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy, averaged over each text's labels and then over texts. (batch, ..., labels), (batch, ...)."""
    each = nn.functional.cross_entropy(
        logits.flatten(0, -2), labels.flatten(), reduction="none", ignore_index=IGNORED
    )
    asked = (labels.flatten() != IGNORED).to(each.dtype).view(len(labels), -1)
    means = each.view(len(labels), -1).sum(1) / asked.sum(1).clamp(min=1)
    return means.sum() / (asked.sum(1) > 0).sum().clamp(min=1)


def batches(
    model: TransformerProgram, texts: Sequence[Sequence[str]], labels: Sequence[Sequence[str] | str],
    size: int = 512, seed: int = 0,
) -> Feed:  # fmt: skip
    """Texts (lists of words) with a label per word, or one per text if pooled, in batches of `size`.

    The label `<pad>` asks nothing. Raises DataError where labels do not fit texts or are unknown.
    """
    number = {label: i for i, label in enumerate(model.config.labels) if i in model.config.said} | {
        PAD: IGNORED
    }
    pooled = model.config.pooled
    rows: list[list[str]] = [[str(said)] if pooled else list(said) for said in labels]
    if len(rows) != len(texts) or (not pooled and any(len(a) != len(b) for a, b in zip(texts, rows))):
        raise DataError(
            "every text needs its labels: one per word, or one per text where the model is pooled"
        )
    if unknown := {label for row in rows for label in row if label not in number}:
        raise DataError(f"labels that the model does not say: {', '.join(sorted(unknown)[:5])}")
    ids = model.ids(texts)
    wanted = torch.full((len(rows), max(map(len, rows), default=0)), IGNORED)
    for i, row in enumerate(rows):
        wanted[i, : len(row)] = torch.tensor([number[label] for label in row])

    def pad(items: list[int], _: int) -> Batch:
        return Batch({"input_ids": ids[items]}, {"labels": wanted[items, 0] if pooled else wanted[items]})

    return Feed(range(len(rows)), pad, np.ones(len(rows), dtype=int), size, size, seed=seed)


def train_program(
    model: TransformerProgram, texts: Sequence[Sequence[str]], labels: Sequence[Sequence[str] | str], *,
    steps: int, batch: int = 512, lr: float = 5e-2, hot: float = 3.0, cold: float = 0.01, seed: int = 0,
    progress: Progress | None = None,
) -> TrainResult:  # fmt: skip
    """Train in place, the paper's way: Adam, no decay, constant rate. Gradients are clipped at norm 1, which the paper
    does not do: at low temperatures single samples explode. Afterwards the model is in evaluation mode."""
    feed = batches(model, texts, labels, batch, seed)
    settings = Settings(
        steps=steps, lr=lr, warmup=0.0, schedule="constant", weight_decay=0.0, betas=(0.9, 0.999), precision="fp32",
        dropout=True, seed=seed,
    )  # fmt: skip
    result = fit(model, feed, Annealed(steps, hot, cold), settings, progress)
    model.eval()
    return result
