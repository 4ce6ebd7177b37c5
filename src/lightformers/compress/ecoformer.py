"""Attention by learned codes of signs in an encoder that is there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, get_args

import torch

from lightformers.bundle import Bundle
from lightformers.compress.swap_attention import SwapAttention
from lightformers.errors import UserError
from lightformers.parts.attention import swapped
from lightformers.parts.attention.hashing import ValueBias
from lightformers.runners.named import plain_arguments
from lightformers.steps import Run, Stage


@dataclass(frozen=True)
class EcoFormer:
    """Swap softmax attention for attention by short codes of signs, whose hash is learned (EcoFormer, Liu et al., 2022,
    arXiv 2209.09004). Cost grows with the length, and most multiplications become additions.

    Queries and keys share the projection of the queries; that of the keys goes. The hash of one block after the other is
    learned from a batch of the task's examples, without labels, and saved with the model. The model gives something else
    than before and must be recovered by training (the paper: 30 epochs at 5e-5); codes pass gradients straight through.
    This machine's kernels multiply by signs all the same: what is saved is counted
    (`parts.attention.ecoformer.code_operations`), not timed.

    bits: of a code, per head. anchors: tokens of the first example that others are compared with; near: how many most and
    least alike tokens teach the hash, so examples need at least 2 * near tokens, the first `anchors`; steps: of descent
    per bit, 0 for random planes. value_bias: "self" for checkpoints of the released code. blocks: which, by place; None:
    all (the paper keeps softmax in the last stage of its backbones). examples: that the hash is learned from.
    """

    bits: int = 16
    anchors: int = 25
    near: int = 10
    steps: int = 100
    value_bias: ValueBias = "all"
    blocks: tuple[int, ...] | None = None
    examples: int = 32
    stage: ClassVar[Stage] = Stage.FACTORIZE

    def __post_init__(self) -> None:
        if self.blocks is not None:
            object.__setattr__(self, "blocks", tuple(self.blocks))
        if min(self.bits, self.anchors, self.near, self.examples) < 1 or self.steps < 0:
            raise UserError("bits, anchors, near and examples are at least 1, steps at least 0")
        if self.value_bias not in get_args(ValueBias):
            raise UserError(f"value_bias is one of {', '.join(get_args(ValueBias))}, not {self.value_bias!r}")

    def apply(self, bundle: Bundle, task: Any, run: Run) -> Bundle:
        """Raises UserError without a task and for examples that are too short, ModelError where `SwapAttention` does."""
        if task is None:
            raise UserError("codes are learned from a task's examples: give a task")
        options = {
            "bits": self.bits, "anchors": self.anchors, "near": self.near, "steps": self.steps,
            "value_bias": self.value_bias, "seed": run.seed,
        }  # fmt: skip
        # on a copy: if examples turn out to be too short, what came is as it was
        made = SwapAttention("ecoformer", options, self.blocks).apply(bundle.copy(), task, run)
        some = next(made.model.parameters())
        batch = made.collate(task.calibration(self.examples, run.seed)).to(some.device)
        training = made.model.training
        module = made.module().eval()
        for part in swapped.cores(made.model).values():
            part.core.train()  # learns from the batch that comes
        with torch.no_grad():
            module(**batch.inputs, **plain_arguments(module))
        made.model.train(training)
        return made

    def note(self, bundle: Bundle) -> str:
        """What the record says."""
        return "Codes of signs do not give what softmax gave: the model must be recovered by training"
