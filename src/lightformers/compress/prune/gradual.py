"""Gradual magnitude pruning: the baseline that every other score must beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from lightformers import anatomy
from lightformers.bundle import Bundle
from lightformers.compress.layers import linears
from lightformers.compress.prune import masks, schedule
from lightformers.compress.prune.schedule import Held, Scope
from lightformers.errors import UserError
from lightformers.steps import Run, Stage


def magnitude(weight: Tensor, block: int = 1) -> Tensor:
    """Sum of squares of each `block` consecutive inputs: (out, in) -> (out, in // block); orders as |w| for block 1."""
    return weight.detach().float().square().reshape(weight.shape[0], -1, block).sum(-1)


def check_blocks(weights: dict[str, Tensor], block: int) -> None:
    """Raises UserError unless `block` is at least 1 and divides the inputs of every layer."""
    if block < 1:
        raise UserError(f"block is a number of weights from 1 on, got {block}")
    if wrong := [p for p, w in weights.items() if w.shape[1] % block]:
        raise UserError(
            f"blocks of {block} do not divide the {weights[wrong[0]].shape[1]} inputs of {wrong[0]}; choose another"
        )


@dataclass(frozen=True)
class GradualMagnitude:
    """Remove the smallest weights in several rounds, distilling from the original in between.

    Zhu & Gupta, 2017, arXiv 1710.01878; with transformers and distillation, Kurtic & Alistarh, 2022, arXiv 2210.06384.

    sparsity: share of the weights of attention and feed-forward that is removed in the end, in [0, 1); exact.
    block: weights of so many consecutive inputs go together. scope: "global" or "layer".
    rounds: prunings on the cubic schedule from `initial` to `sparsity`; 1 is one-shot.
    epochs: training after each round, where the run has no budget (which is divided among the rounds otherwise);
        0: none, and no teacher is needed. lr: peak of each round's learning rate. temperature: of the distillation.
    """

    sparsity: float = 0.9
    block: int = 1
    scope: Scope = "global"
    rounds: int = 1
    initial: float = 0.7
    epochs: float = 0.0
    lr: float = 8e-5
    temperature: float = 2.0
    stage: ClassVar[Stage] = Stage.SPARSIFY

    def __post_init__(self) -> None:
        schedule.check_sparsity(self.sparsity)
        schedule.check_sparsity(self.initial, "initial")
        schedule.targets(min(self.initial, self.sparsity), self.sparsity, self.rounds)

    def apply(self, bundle: Bundle, task: Any, run: Run) -> Bundle:
        """Raises UserError for blocks that do not divide, ModelError for layers that are replaced already."""
        found = masks.weights(bundle.model, linears(anatomy.of(bundle.model)))
        check_blocks(found, self.block)
        train = schedule.retraining(
            bundle, task, run, lr=self.lr, epochs=self.epochs, temperature=self.temperature, rounds=self.rounds
        )  # fmt: skip

        def prune(held: Held, sparsity: float) -> None:
            weights = masks.weights(bundle.model, held.masks)
            scores = {p: magnitude(w, self.block) for p, w in weights.items()}
            held.set(schedule.choose(scores, sparsity, self.block, self.scope, held.masks))

        held = Held(bundle.model, masks.zeros(bundle.model, found))
        steps = schedule.targets(min(self.initial, self.sparsity), self.sparsity, self.rounds)
        schedule.gradually(held, steps, prune, train)
        return bundle
