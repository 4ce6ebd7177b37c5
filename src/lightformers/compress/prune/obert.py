"""The Optimal BERT Surgeon: weights go by what the loss loses, and those that stay make up for them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from lightformers import anatomy
from lightformers.bundle import Bundle
from lightformers.compress.layers import linears
from lightformers.compress.prune import fisher, masks, schedule
from lightformers.compress.prune.gradual import check_blocks
from lightformers.compress.prune.schedule import Held
from lightformers.errors import UserError
from lightformers.memory import release
from lightformers.steps import Run, Stage

#: Path of a layer -> which of its Fisher blocks.
Part = dict[str, slice]


@dataclass(frozen=True)
class OptimalBertSurgeon:
    """Second-order pruning with corrected survivors (Kurtic et al., 2022, arXiv 2203.07259).

    Zeroes weights of the projections of attention and feed-forward, over all layers together; embeddings, norms,
    biases and head are never touched. Zeros stay zero when this model is trained further in the same process;
    `PackSparse` stores them small.

    sparsity: share of those weights that is removed in the end, in [0, 1); exact.
    block: 1 removes single weights, 4 four consecutive inputs of a row together (what sparse CPU kernels like).
    gradients: how many mini-batch gradients the Fisher matrix is estimated from. batch: examples of each.
    damp: added to the diagonal of the Fisher matrix. It decides much: too large is magnitude pruning.
    fisher_block: size of the blocks that are inverted; None: 50, or 32 for block > 1. A multiple of `block`.
    rounds: prunings on the cubic schedule from `initial` to `sparsity`; 1 is one-shot.
    recompute: parts of each round, the Fisher matrix estimated anew for each.
    epochs, lr, temperature: distillation after each round, as in `GradualMagnitude`; 0 epochs: none.
    labels: whether gradients are of the task's own loss (the paper); None: where the run uses labels. Without, targets
        are drawn from the model itself: the true Fisher matrix instead of the empirical one.
    memory: GB that inverse Fisher blocks may take at a time (they hold weights * fisher_block numbers). Those that do
        not fit are done in groups, layers and parts of a layer, with the gradients computed twice for each.

    Deviations: blocks are summed and inverted in float64 instead of updated gradient by gradient (the same matrix);
    the mini-batches of all rounds are the same; the optimizer starts anew after each round; embeddings stay frozen
    in the distillation, whose rate comes down to zero instead of a tenth. No speed-up by itself: dense kernels multiply
    zeros too.
    """

    sparsity: float = 0.9
    block: int = 1
    gradients: int = 256
    batch: int = 8
    damp: float = 1e-7
    fisher_block: int | None = None
    rounds: int = 1
    initial: float = 0.7
    recompute: int = 1
    epochs: float = 0.0
    lr: float = 8e-5
    temperature: float = 2.0
    labels: bool | None = None
    memory: float = 4.0
    stage: ClassVar[Stage] = Stage.SPARSIFY

    def __post_init__(self) -> None:
        schedule.check_sparsity(self.sparsity)
        schedule.check_sparsity(self.initial, "initial")
        schedule.targets(min(self.initial, self.sparsity), self.sparsity, self.rounds)
        if min(self.gradients, self.batch, self.recompute, self.block) < 1:
            raise UserError("gradients, batch, recompute and block are whole numbers from 1 on")
        if not self.damp > 0 or not self.memory > 0:
            raise UserError(f"damp and memory must be positive, got {self.damp} and {self.memory}")
        if self.size < self.block or self.size % self.block:
            raise UserError(
                f"a Fisher block of {self.size} weights does not hold whole blocks of {self.block}"
            )

    @property
    def size(self) -> int:
        """Weights in one block of the Fisher matrix."""
        return (
            self.fisher_block
            if self.fisher_block is not None
            else (50 if self.block == 1 else 8 * self.block)
        )

    def apply(self, bundle: Bundle, task: Any, run: Run) -> Bundle:
        """Raises UserError without a task and for blocks that do not divide, DataError for too few examples."""
        found = masks.weights(bundle.model, linears(anatomy.of(bundle.model)))
        check_blocks(found, self.block)
        labels = run.use_labels if self.labels is None else self.labels
        batches = fisher.mini_batches(bundle, task, run, self.gradients, self.batch, labels)
        train = schedule.retraining(
            bundle, task, run, lr=self.lr, epochs=self.epochs, temperature=self.temperature, rounds=self.rounds
        )  # fmt: skip
        groups = self._groups({p: w.numel() for p, w in found.items()})

        def prune(held: Held, sparsity: float) -> None:
            self._prune(bundle, held, sparsity, groups, lambda part: self._inverses(bundle, task, run, held, part, batches, labels))  # fmt: skip

        held = Held(bundle.model, masks.zeros(bundle.model, found))
        steps = schedule.targets(min(self.initial, self.sparsity), self.sparsity, self.rounds)
        schedule.gradually(held, steps, prune, train, self.recompute)
        return bundle

    def _groups(self, sizes: dict[str, int]) -> list[Part]:
        """Fisher blocks whose inverses are held at the same time: as many as fit, of a large layer only a part."""
        fit = math.ceil(self.memory / (4e-9 * self.size**2))
        groups: list[Part] = [{}]
        left = fit
        for path, count in sizes.items():
            at, blocks = 0, -(-count // self.size)
            while at < blocks:
                if not left or (groups[-1] and blocks - at > left and blocks - at <= fit):
                    groups.append({})  # a layer that fits as a whole is not divided
                    left = fit
                step = min(left, blocks - at)
                groups[-1][path] = slice(at, at + step)
                at, left = at + step, left - step
        return groups

    def _inverses(
        self, bundle: Bundle, task: Any, run: Run, held: Held, part: Part, batches: Any, labels: bool
    ) -> dict[str, Tensor]:  # fmt: skip
        found = fisher.gradients(bundle, task, run, list(part), batches, labels)
        # gradients of what is gone do not count: it is decoupled, so no correction brings it back
        masked = (
            {p: fisher.to_blocks(g * held.masks[p].to(g), self.size)[part[p]] for p, g in item.items()}
            for item in found
        )
        sizes = {p: (cut.stop - cut.start) * self.size for p, cut in part.items()}
        return fisher.estimate(masked, sizes, self.size, self.damp)

    def _prune(
        self, bundle: Bundle, held: Held, sparsity: float, groups: list[Part], inverses: Callable[[Part], dict[str, Tensor]]
    ) -> None:  # fmt: skip
        weights = masks.weights(bundle.model, held.masks)
        ranked: dict[str, list[Tensor]] = {p: [] for p in weights}
        known: dict[str, Tensor] = {}

        def look(part: Part) -> None:
            known.clear()  # before the next ones are made: they are the largest that is held
            release()
            known.update(inverses(part))

        for part in groups:
            look(part)
            for p, cut in part.items():
                w = fisher.to_blocks(weights[p].detach(), self.size)[cut]
                ranked[p].append(fisher.saliency(w, known[p], self.block).float())
        if len(groups) > 1:
            known.clear()
        scores = {
            p: fisher.from_blocks(torch.cat(ranked.pop(p)), (w.shape[0], w.shape[1] // self.block))
            for p, w in weights.items()
        }
        new = schedule.choose(scores, sparsity, self.block, "global", held.masks)
        scores.clear()
        kept: dict[str, list[Tensor]] = {p: [] for p in weights}  # corrected; the rest is zero
        for part in groups:
            if len(groups) > 1:
                look(part)  # the weights still stand as they were scored, so the same gradients come again
            for p, cut in part.items():
                cells = (weights[p].detach(), held.masks[p] & ~new[p], new[p])
                w, removed, stays = (fisher.to_blocks(x, self.size)[cut] for x in cells)
                kept[p].append(fisher.compensated(w, known.pop(p), removed, self.block)[stays])
        with torch.no_grad():
            for p, weight in weights.items():
                weight.zero_()
                weight[new[p]] = torch.cat(kept.pop(p))
        held.set(new)
