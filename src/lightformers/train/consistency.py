"""Two passes that must agree: THOR's consistency of experts (Zuo et al., 2021, arXiv 2110.04260), and of dropout."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightformers.bundle import Batch
from lightformers.errors import UserError
from lightformers.parts.routing.thor import stochastic
from lightformers.runners.named import named, plain_arguments


def symmetric_kl(a: Tensor, b: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean of 1/2 [KL(p || q) + KL(q || p)], p and q the softmax of logits a and b, (..., classes), in float32.

    weight: (...) of the rows, as a mask of what is no padding; no rows give 0. The gradient goes through both.
    """
    wide = torch.promote_types(a.dtype, torch.float32)
    p, q = a.to(wide).log_softmax(-1), b.to(wide).log_softmax(-1)
    rows = 0.5 * ((p.exp() - q.exp()) * (p - q)).sum(-1)
    if weight is None:
        return rows.sum() / max(rows.numel(), 1)
    counted = weight.to(rows.dtype)
    return (rows * counted).sum() / counted.sum().clamp(min=1)


def next_tokens(batch: Batch) -> Tensor | None:
    """(batch, length) 1 where a language model predicts a token that is there, from its `attention_mask`; else None."""
    mask = batch.inputs.get("attention_mask")
    if mask is None:
        return None
    there = (mask != 0).long()
    return nn.functional.pad(there[:, 1:] * there[:, :-1], (0, 1))


def every_row(batch: Batch) -> Tensor | None:
    """All rows count: for classification."""
    return None


@dataclass(frozen=True)
class TwoPasses:
    """loss of pass 1 + loss of pass 2 + alpha * `symmetric_kl` of their logits: an objective for training.

    Every pass draws an expert for each `StochasticExperts`, for the whole batch, from (seed, position of the batch); a
    batch without a position draws from torch's generator. With one expert, or none, dropout alone makes the passes
    differ (R-Drop): train with `Settings(dropout=True)`.
    loss: (outputs, batch) -> mean loss, a task's own. alpha: 0 leaves the passes unrelated. The paper sums over tokens
    and divides later; here both are means over tokens, so alpha means the same. counted: which rows agree.
    Experts that neither pass drew have no gradient: our AdamW then leaves them and their moments alone, decay included.
    Encoders are run in both passes, too. Raises UserError for a negative alpha, and where activations are recomputed.
    """

    loss: Callable[[Mapping[str, Tensor], Batch], Tensor]
    alpha: float = 1.0
    counted: Callable[[Batch], Tensor | None] = next_tokens
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.alpha >= 0:
            raise UserError(f"alpha must not be negative, got {self.alpha}")

    def __call__(self, module: nn.Module, batch: Batch) -> Tensor:
        layers, arguments = stochastic(module), plain_arguments(module)
        if layers and any(getattr(m, "gradient_checkpointing", False) for m in module.modules()):
            raise UserError(
                "recomputed activations would draw other experts: switch gradient checkpointing off"
            )
        position = batch.targets.get("position")
        logits, total = [], torch.zeros(())
        try:
            for number in (0, 1):
                draw = None if position is None else random.Random(f"{self.seed} {int(position)} {number}")
                for layer in layers:
                    count = len(layer.experts)
                    layer.choice = draw.randrange(count) if draw else int(torch.randint(count, ()))
                outputs = named(module(**batch.inputs, **arguments))
                logits.append(next(iter(outputs.values())))
                total = self.loss(outputs, batch) + total.to(logits[0].device)
        finally:
            for layer in layers:
                layer.choice = None
        if not self.alpha:
            return total
        return total + self.alpha * symmetric_kl(logits[0], logits[1], self.counted(batch))
