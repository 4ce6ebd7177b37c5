"""Second-order information of weights: gradients of a loss, and the inverse of their block-diagonal second moment.

The empirical Fisher matrix `F = damp I + (1/m) sum g g^T`, restricted to blocks of consecutive weights (Kurtic et al.,
2022, arXiv 2203.07259). A weight matrix (out, in) is flattened row by row and cut into (blocks, size), the last one
filled with zeros.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightformers import anatomy
from lightformers.bundle import Batch, Bundle
from lightformers.compress import calibration
from lightformers.errors import DataError, UserError
from lightformers.memory import release
from lightformers.runners.named import named, plain_arguments
from lightformers.steps import Run

#: Gradients that are added to the sums at once: one pass over the sums for so many.
_CHUNK = 16
#: Blocks that are inverted at once, in float64: three times their memory is taken beside them.
_INVERTED = 512


def to_blocks(matrix: Tensor, size: int) -> Tensor:
    """(out, in) -> (blocks, size), row by row, zeros at the end."""
    flat = matrix.reshape(-1)
    return F.pad(flat, (0, -len(flat) % size)).reshape(-1, size)


def from_blocks(blocks: Tensor, shape: Sequence[int]) -> Tensor:
    """The inverse of `to_blocks`."""
    return blocks.reshape(-1)[: int(np.prod(shape))].reshape(*shape)


def inverse(total: Tensor, count: int, damp: float) -> Tensor:
    """`(damp I + total / count)^-1` of each block: (blocks, size, size), sums of g g^T -> the same, float32, in place.

    What rank-one updates (Sherman-Morrison) would give, inverted in float64. Where the sums are so large that their
    own rounding exceeds `damp`, that is taken instead: below it they say nothing, and may not be positive.
    """
    rounding = torch.finfo(torch.float32).eps * total.shape[-1]
    for piece in total.split(_INVERTED):
        mean = piece.double() / count
        floor = (rounding * mean.diagonal(dim1=1, dim2=2).amax(1)).clamp(min=damp)
        mean.diagonal(dim1=1, dim2=2).add_(floor[:, None])
        lower, failed = torch.linalg.cholesky_ex(mean)
        if bool(failed.any()):
            raise UserError(f"the Fisher matrix cannot be inverted with damp {damp}: take a larger one")
        piece.copy_(torch.cholesky_inverse(lower))
    return total


def saliency(weight: Tensor, inverse: Tensor, group: int = 1) -> Tensor:
    """How much the loss rises when a weight, or `group` consecutive ones together, go: half w^T (F^-1_QQ)^-1 w.

    weight: (blocks, size); inverse: (blocks, size, size). Returns (blocks, size // group).
    """
    w = weight.detach().double().reshape(len(weight), -1, group)
    return (0.5 * w * solved(weight, inverse, group)).sum(-1)


def solved(weight: Tensor, inverse: Tensor, group: int) -> Tensor:
    """(F^-1_QQ)^-1 w_Q of every group Q: (blocks, size // group, group), float64."""
    count, size = weight.shape
    w = weight.detach().double().reshape(count, size // group, group)
    if group == 1:
        diagonal = inverse.diagonal(dim1=1, dim2=2).double()
        return w / (diagonal + torch.finfo(torch.float32).eps)[..., None]
    cells = inverse.reshape(count, size // group, group, size // group, group)
    own = cells.diagonal(dim1=1, dim2=3).permute(0, 3, 1, 2).double()
    return torch.linalg.solve(own, w[..., None]).squeeze(-1)


def compensated(weight: Tensor, inverse: Tensor, removed: Tensor, group: int = 1) -> Tensor:
    """The weights that are left, corrected for those that go: `w - F^-1 u`, u = (F^-1_QQ)^-1 w_Q where removed.

    weight, removed (bool): (blocks, size). Removed ones become exactly zero. The corrections of several groups in one
    block are added up; how they influence each other is not looked at.
    """
    u = torch.where(removed, solved(weight, inverse, group).reshape(weight.shape), 0.0)
    change = torch.einsum("bij,bj->bi", inverse, u.to(inverse.dtype))
    return (weight - change.to(weight.dtype)).masked_fill(removed, 0.0)


def estimate(
    gradients: Iterator[Mapping[str, Tensor]], sizes: Mapping[str, int], block: int, damp: float
) -> dict[str, Tensor]:
    """The inverse Fisher blocks of several matrices, from gradients that come one after the other.

    gradients: each path -> (out, in). sizes: path -> out * in. Returns path -> (blocks, block, block) float32.
    """
    totals = {p: torch.zeros(-(-n // block), block, block) for p, n in sizes.items()}
    waiting: dict[str, list[Tensor]] = {p: [] for p in sizes}
    count = 0

    def add() -> None:
        for path, rows in waiting.items():
            if rows:
                g = torch.stack(rows, 1).float()  # (blocks, k, block)
                rows.clear()
                if totals[path].device != g.device:
                    totals[path] = totals[path].to(g.device)
                totals[path].baddbmm_(g.transpose(1, 2), g)

    for number, gradient in enumerate(gradients, 1):
        count = number
        for path in sizes:
            waiting[path].append(to_blocks(gradient[path], block))
        if number % _CHUNK == 0:
            add()
    add()
    waiting.clear()
    release()  # what the forward and backward passes left
    return {p: inverse(totals.pop(p), count, damp) for p in list(totals)}


def sampled_loss(outputs: Mapping[str, Tensor], mask: Tensor | None, generator: torch.Generator) -> Tensor:
    """A loss without labels whose gradients have the model's own Fisher matrix as second moment.

    Logits: targets are drawn from the model's distribution. Vectors: minus the log-likelihood of a Gaussian around
    them. Mean over rows (examples, or tokens that are no padding).
    """
    (name, value), *_ = outputs.items()
    rows = calibration.real_tokens(value, mask).float()
    if name == "logits":
        drawn = torch.multinomial(rows.detach().softmax(-1).cpu(), 1, generator=generator).flatten()
        return F.cross_entropy(rows, drawn.to(rows.device))
    noise = torch.randn(rows.shape, generator=generator).to(rows.device)
    return (rows * noise).sum(-1).mean()


def mini_batches(bundle: Bundle, task: Any, run: Run, count: int, size: int, labels: bool) -> list[list[Any]]:
    """`count` disjoint groups of `size` examples. Raises DataError where the task has fewer."""
    if task is None:
        raise UserError("this step looks at gradients: give a task (Recipe.apply(bundle, task))")
    need = count * size
    if labels:
        rows = list(task.training_examples(True))
        order = np.random.default_rng(run.seed).permutation(len(rows))
        rows = [rows[i] for i in order[:need]]
    else:
        rows = list({id(e): e for e in calibration.examples_of(task, need, run.seed)}.values())
    if len(rows) < need:
        raise DataError(
            f"{count} gradients of {size} examples need {need}, the task has {len(rows)}: set gradients or batch lower"
        )
    return [rows[i : i + size] for i in range(0, need, size)]


def gradients(
    bundle: Bundle, task: Any, run: Run, paths: Sequence[str], groups: Sequence[Sequence[Any]], labels: bool
) -> Iterator[dict[str, Tensor]]:
    """One gradient per mini-batch: path -> (out, in), in eval mode. labels: of the task's loss, else `sampled_loss`."""
    module = bundle.module()
    stored: list[nn.Parameter] = [anatomy.get(bundle.model, p).weight for p in paths]  # type: ignore[misc]
    device = stored[0].device
    generator = torch.Generator().manual_seed(run.seed)
    arguments = plain_arguments(module)
    with _differentiable(bundle.model, stored):
        for rows in groups:
            batch: Batch = task.collate(bundle, list(rows)) if labels else bundle.collate(rows)
            batch = batch.to(device)
            outputs = named(module(**batch.inputs, **arguments))
            if labels:
                loss = task.loss(outputs, batch)
            else:
                loss = sampled_loss(outputs, batch.inputs.get("attention_mask"), generator)
            found = torch.autograd.grad(loss, stored, allow_unused=True)
            yield {
                p: torch.zeros_like(w) if g is None else _oriented(bundle.model, p, w, g)
                for p, w, g in zip(paths, stored, found)
            }


def _oriented(model: nn.Module, path: str, stored: Tensor, gradient: Tensor) -> Tensor:
    """As (out, in), also where the matrix is stored the other way round (gpt2)."""
    return gradient if anatomy.linear(model, path)[0] is stored else gradient.T


@contextmanager
def _differentiable(model: nn.Module, wanted: Sequence[nn.Parameter]) -> Iterator[None]:
    """Eval mode; these parameters need gradients, no others; everything is put back."""
    training = [(m, m.training) for m in model.modules()]
    before = [(p, p.requires_grad) for p in model.parameters()]
    model.eval().requires_grad_(False)
    for p in wanted:
        p.requires_grad_(True)
    try:
        with torch.enable_grad():
            yield
    finally:
        for p, needed in before:
            p.requires_grad_(needed)
        for m, mode in training:
            m.training = mode
