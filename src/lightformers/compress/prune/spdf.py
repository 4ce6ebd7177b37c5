"""SPDF: pre-train under a fixed random mask, then drop the mask and fine-tune all weights."""

from __future__ import annotations

import dataclasses
import math
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lightformers import anatomy
from lightformers.anatomy.access import features
from lightformers.bundle import Batch, Bundle
from lightformers.compress.distill import common
from lightformers.compress.layers import linears
from lightformers.compress.prune import masks, schedule
from lightformers.compress.prune.masks import Masks
from lightformers.errors import DataError, ModelError, UserError
from lightformers.runners.named import named, plain_arguments
from lightformers.steps import Run, Stage
from lightformers.train.schedules import Schedule


def random_mask(
    shape: tuple[int, int], sparsity: float, generator: torch.Generator, min_per_row: int = 0
) -> Tensor:
    """A bool (out, in) that removes exactly `round(sparsity * out * in)` entries, drawn uniformly.

    min_per_row: entries that every row keeps. Raises UserError where these are more than may stay.
    """
    rows, columns = shape
    gone = round(sparsity * rows * columns)
    if min_per_row > columns or rows * min_per_row > rows * columns - gone:
        raise UserError(
            f"{min_per_row} weights in each of {rows} rows are more than a sparsity of {sparsity} leaves of "
            f"{rows} x {columns}: lower one of them"
        )
    chance = torch.rand(rows, columns, generator=generator)
    if min_per_row:
        chance.scatter_(1, chance.topk(min_per_row, dim=1).indices, math.inf)
    return masks.smallest({"": chance}, gone)[""]


def random_masks(model: nn.Module, sparsity: float, seed: int = 0, min_per_row: int = 0) -> Masks:
    """The same sparsity in every projection of attention and feed-forward; each part of a fused one by itself.

    Seeded per layer: a mask does not depend on what other layers there are. Raises UserError outside [0, 1).
    """
    schedule.check_sparsity(sparsity)
    found = anatomy.of(model)
    parts: dict[str, list[Tensor]] = {}
    for block in found.blocks:
        for attention in (block.attention, block.cross_attention):
            if attention and attention.qkv and attention.fused in ("thirds", "per_head", "kv"):
                for piece in "qkv":
                    path, rows = anatomy.rows(attention, piece)
                    parts.setdefault(path, []).append(rows)
    out: Masks = {}
    for number, path in enumerate(linears(found)):
        weight = anatomy.linear(model, path)[0]
        generator = torch.Generator().manual_seed(seed * 1_000_003 + number)
        mask = torch.ones(weight.shape, dtype=torch.bool)
        for rows in parts.get(path, [torch.arange(len(weight))]):
            mask[rows] = random_mask((len(rows), weight.shape[1]), sparsity, generator, min_per_row)
        out[path] = mask.to(weight.device)
    return out


def dead_rows(chosen: Mapping[str, Tensor]) -> int:
    """Rows that keep no weight: outputs that are constant until the mask is dropped."""
    return sum(int((~m.any(1)).sum()) for m in chosen.values())


@torch.no_grad()
def initialise(model: nn.Module, seed: int = 0, std: float = 0.02) -> None:
    """Fresh weights as the paper has them: truncated normal, cut at two deviations; biases zero, layer norms one.

    What writes to the residual stream gets std / sqrt(2 * blocks). One-dimensional weights of other norms are left.
    """
    found = anatomy.of(model)
    residual = {
        id(anatomy.get(model, path).weight)
        for b in found.blocks
        for path in (b.attention and b.attention.o, b.feed_forward and b.feed_forward.down)
        if path
    }
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            deviation = std / math.sqrt(2 * len(found.blocks)) if id(parameter) in residual else std
            fresh = torch.empty(parameter.shape)
            nn.init.trunc_normal_(fresh, 0.0, deviation, -2 * deviation, 2 * deviation, generator=generator)
            parameter.copy_(fresh)
        elif name.rpartition(".")[2] == "bias":
            parameter.zero_()
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.reset_parameters()


def flops_per_token(model: nn.Module, length: int, sparsity: float = 0.0) -> int:
    """Forward flops per token at sequence length `length` (two per multiply-add); training takes three times as many.

    Projections count their share that is not masked; the products inside attention and the head count in full.
    """
    found = anatomy.of(model)
    dense = sum(math.prod(features(anatomy.get(model, p))) for p in linears(found))
    inside = sum(4 * length * b.attention.out_features for b in found.blocks if b.attention)
    head = 2 * math.prod(features(anatomy.get(model, found.head))) if found.head else 0
    return round(2 * dense * (1 - sparsity)) + inside + head


@dataclass(frozen=True)
class SparsePretraining:
    """Train on the task's own loss with most weights held at zero (Thangarasa et al., 2023, arXiv 2303.10464).

    The mask is random, fixed, and the same share in every projection of attention and feed-forward; embeddings,
    positions, norms, biases and head are dense. Afterwards it is dropped: what was masked starts at zero and learns in
    whatever training follows, with a new optimizer. Starts from the weights the model has; `initialise` gives the
    paper's fresh ones. Needs labels unless the task is a language model's.

    sparsity: share that is masked, in [0, 1). min_per_row: weights that each row keeps at least.
    rescale: divide the weights that stay by sqrt(1 - sparsity), which keeps the variance of outputs (not the paper).
    keep_mask: leave the mask in force, for sparse fine-tuning (the paper's rival).
    lr, epochs, seconds, share, max_tokens, warmup, weight_decay, schedule: as in `Recover`.

    Deviations: the cosine schedule ends at zero instead of a tenth; beta2 is 0.98 instead of 0.95. Dense kernels
    multiply the zeros too: the flops that `flops_per_token` counts are saved only where a sparse kernel runs.
    """

    sparsity: float = 0.75
    min_per_row: int = 0
    rescale: bool = False
    keep_mask: bool = False
    lr: float = 6e-4
    epochs: float = 1.0
    seconds: float | None = None
    share: float = 1.0
    max_tokens: int | None = None
    warmup: float = 0.15
    weight_decay: float = 0.1
    schedule: Schedule = "cosine"
    stage: ClassVar[Stage] = Stage.ADAPT

    def __post_init__(self) -> None:
        schedule.check_sparsity(self.sparsity)
        if self.min_per_row < 0 or self.lr <= 0 or not 0 < self.share <= 1:
            raise UserError("min_per_row must not be negative, lr must be positive, share in (0, 1]")

    def apply(self, bundle: Bundle, task: Any, run: Run) -> Bundle:
        """Raises UserError without a task, DataError where labels are needed and the run uses none."""
        if task is None:
            raise UserError("pre-training needs a task: its loss is what is trained on")
        if bundle.processor is None:
            raise ModelError("pre-training needs the bundle's tokenizer or image processor")
        if bundle.task not in common.LANGUAGE_MODELS and not run.use_labels:
            raise DataError(
                f"pre-training a model for {bundle.task} needs labels: allow them with Run(use_labels=True)"
            )
        started = time.monotonic()
        chosen = random_masks(bundle.model, self.sparsity, run.seed, self.min_per_row)
        masks.weights(bundle.model, chosen)  # NaN is refused before anything is changed
        run = dataclasses.replace(common.shared(run, self.share, self.seconds), use_labels=True)
        batches = common.feed(bundle, task, run, self.max_tokens)
        if dead := dead_rows(chosen):
            warnings.warn(
                f"{dead} outputs keep no weight at all at sparsity {self.sparsity}: set min_per_row",
                stacklevel=2,
            )
        held = schedule.Held(bundle.model, chosen)
        if self.rescale:
            with torch.no_grad():
                for path in chosen:
                    anatomy.linear(bundle.model, path)[0].div_(math.sqrt(1 - self.sparsity))
        arguments = plain_arguments(bundle.module())

        def objective(module: nn.Module, batch: Batch) -> Tensor:
            loss: Tensor = task.loss(named(module(**batch.inputs, **arguments)), batch)
            return loss

        plan = common.Plan(self.lr, self.epochs, self.warmup, self.weight_decay, self.schedule)
        try:
            common.train(bundle, batches, objective, plan, run, started)
            held.enforce()
        finally:
            if not self.keep_mask:
                held.release()
        return bundle
