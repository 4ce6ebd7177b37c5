"""PELA: cut by SVD once, repair by distilling features, hand out as a base for fine-tuning (Guo et al., 2023, arXiv 2310.10700)."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from lightformers import anatomy
from lightformers.bundle import Batch, Bundle
from lightformers.compress.distill import common
from lightformers.compress.factorize.low_rank import factors
from lightformers.compress.layers import WHERE, linears
from lightformers.errors import ModelError, UserError
from lightformers.parts.low_rank import LowRankLinear
from lightformers.runners.named import named, plain_arguments
from lightformers.steps import Run, Stage
from lightformers.train import losses
from lightformers.train.capture import Capture

Norm = Literal["max", "rms"]
#: Matrices with fewer outputs are not factorised.
_LEAST_OUTPUTS = 10


def rank_of(out_features: int, in_features: int, ratio: float) -> int:
    """The rank at which two factors hold 1 / ratio of the matrix: floor(out * in / (ratio * (out + in)))."""
    return math.floor(out_features * in_features / (ratio * (out_features + in_features)))


def perturbation(first: Tensor, second: Tensor, weight: Tensor, epsilon: float, norm: Norm = "max") -> Tensor:
    """(|B A - W| - epsilon)^2: A (r, in), B (out, r), W (out, in) -> scalar; how far the factors have left the original.

    norm "max" is the largest deviation of an entry, whose gradient reaches that entry alone; "rms" their root mean square.
    """
    apart = second @ first - weight
    size = apart.abs().max() if norm == "max" else apart.square().mean().sqrt()
    return (size - epsilon).square()


@dataclass(frozen=True)
class Pela:
    """Factorise the projections of all blocks by SVD, then train all parameters near the original ones.

    ratio: how many times fewer weights each factorised matrix holds, 1 or more. where: "attention", "ffn" or both.
    features: weight of the mean squared difference of the blocks' outputs from the original's, mean over blocks.
    perturbation, epsilon, norm: weight of the mean over layers of `perturbation`, and its fields.
    logits: weight of the mean squared difference of logits. labels: weight of the task's loss where the run uses labels.
    lr, epochs, seconds, share, max_tokens, warmup, weight_decay: as in `Recover`.

    The result is a base for fine-tuning, low-rank from then on. What differs from the paper: unlabelled text or images
    do (its task loss counts only where the run uses labels), padding counts nowhere, and projections that a model holds
    fused are factorised as the one matrix they are. Dropout is off in both models. Needs lightformers to load.
    """

    ratio: float = 2.0
    where: tuple[str, ...] = ("attention", "ffn")
    features: float = 1.0
    perturbation: float = 1.0
    epsilon: float = 1e-3
    norm: Norm = "max"
    logits: float = 0.0
    labels: float = 1.0
    lr: float = 2e-4
    epochs: float = 3.0
    seconds: float | None = None
    share: float = 1.0
    max_tokens: int | None = None
    warmup: float = 0.05
    weight_decay: float = 0.02
    stage: ClassVar[Stage] = Stage.FACTORIZE

    def __post_init__(self) -> None:
        object.__setattr__(self, "where", tuple(self.where))
        if not self.ratio >= 1 or math.isinf(self.ratio):
            raise UserError(
                f"ratio must be at least 1, or the factors hold more than the matrix; got {self.ratio}"
            )
        weights = (self.features, self.perturbation, self.logits, self.labels, self.epsilon)
        if min(weights) < 0 or not 0 < self.share <= 1:
            raise UserError("weights and epsilon must not be negative, share in (0, 1]")
        if not (self.features or self.perturbation or self.logits):
            raise UserError(
                "one of features, perturbation and logits must be positive: there is nothing to train on"
            )
        if self.norm not in get_args(Norm):
            raise UserError(f"norm {self.norm!r} is not one of {', '.join(get_args(Norm))}")
        if not self.where or set(self.where) - set(WHERE):
            raise UserError(
                f"where must be some of {', '.join(WHERE)}, got {', '.join(self.where) or 'nothing'}"
            )

    def apply(self, bundle: Bundle, task: Any, run: Run) -> Bundle:
        """Raises ModelError without a teacher and for ratios that leave no rank, UserError without a task."""
        started = time.monotonic()
        if task is None:
            raise UserError(
                "repairing needs a task: its training examples are what the models are compared on"
            )
        teacher = common.teacher_of(bundle, run)
        own, theirs = anatomy.of(bundle.model), anatomy.of(teacher.model)
        if self.features and own.width != theirs.width:
            raise ModelError(f"features of width {own.width} and {theirs.width} cannot be compared")
        pairs = common.block_map(bundle, teacher) if self.features else []
        vocabulary = common.vocabulary_map(bundle, teacher)
        rows = None if vocabulary is None else torch.tensor(vocabulary, device=run.device)
        run = common.shared(run, self.share, self.seconds)
        batches = common.feed(bundle, task, run, self.max_tokens)
        originals = self.compress(bundle.model)
        layers = [(anatomy.get(bundle.model, p), w.to(run.device)) for p, w in originals.items()]
        arguments = plain_arguments(bundle.module())
        with ExitStack() as stack:
            call = stack.enter_context(common.live(teacher, run.device))
            mine = stack.enter_context(
                Capture(bundle.model, anatomy.of(bundle.model), hidden=[s for s, _ in pairs])
            )
            goal = stack.enter_context(Capture(teacher.model, theirs, hidden=[t for _, t in pairs]))

            def objective(module: nn.Module, batch: Batch) -> Tensor:
                outputs = named(module(**batch.inputs, **arguments))
                loss = self._near(layers)
                if self.features or self.logits:
                    wanted = call(common.translated(batch.inputs, rows))
                    mask = batch.inputs.get("attention_mask")
                    terms = [losses.hidden_mse(mine.hidden(s), goal.hidden(t), mask) for s, t in pairs]
                    loss = loss + self.features * torch.stack(terms).mean() if terms else loss
                    loss = loss + self.logits * self._alike(outputs, wanted, rows, mask)
                if run.use_labels and self.labels:
                    loss = loss + self.labels * task.loss(outputs, batch)
                mine.clear()
                goal.clear()
                return loss

            plan = common.Plan(self.lr, self.epochs, self.warmup, self.weight_decay, "cosine")
            common.train(bundle, batches, objective, plan, run, started)
        return bundle

    def compress(self, model: nn.Module) -> dict[str, Tensor]:
        """Replace the matrices by their factors, in place, and return path -> the original matrix (out, in).

        Raises ModelError where nothing is large enough, where a rank would be 0, or where a layer is factorised already.
        """
        weights = {p: anatomy.linear(model, p) for p in linears(anatomy.of(model), self.where)}
        weights = {p: (w, b) for p, (w, b) in weights.items() if len(w) >= _LEAST_OUTPUTS}
        ranks = {p: rank_of(w.shape[0], w.shape[1], self.ratio) for p, (w, _) in weights.items()}
        if not ranks:
            raise ModelError(f"no matrix has {_LEAST_OUTPUTS} outputs or more: there is nothing to factorise")
        if none := [p for p, r in ranks.items() if r < 1]:
            raise ModelError(f"a ratio of {self.ratio} leaves {none[0]} no rank: take a smaller one")
        originals = {p: w.detach().clone().contiguous() for p, (w, _) in weights.items()}
        new = {
            p: LowRankLinear.from_factors(*factors(w.detach(), ranks[p]), b).train(model.training)
            for p, (w, b) in weights.items()
        }
        for path, layer in new.items():
            anatomy.surgery.replace(model, path, layer)
        return originals

    def _near(self, layers: list[tuple[Any, Tensor]]) -> Tensor:
        if not self.perturbation:
            return layers[0][0].first.new_zeros(())
        with torch.autocast(layers[0][1].device.type, enabled=False):
            terms = [perturbation(m.first, m.second, w, self.epsilon, self.norm) for m, w in layers]
        return self.perturbation * torch.stack(terms).mean()

    def _alike(
        self,
        own: Mapping[str, Tensor],
        wanted: Mapping[str, Tensor],
        rows: Tensor | None,
        mask: Tensor | None,
    ) -> Tensor | float:
        """Mean squared difference of logits (or embeddings); 0.0 where it has no weight."""
        if not self.logits:
            return 0.0
        name = next(iter(own))
        mine, goal = own[name].float(), wanted[name].float()
        if rows is not None and name == "logits" and mine.shape[-1] == len(rows):
            goal = goal[..., rows]
        if mine.dim() == 3 and mask is not None:
            mine, goal = mine[mask.bool()], goal[mask.bool()]
        return (mine - goal).square().mean()
