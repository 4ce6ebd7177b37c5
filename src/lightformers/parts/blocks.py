"""Steps shared by blocks of a matrix, rounding to a format, and gradients that pass straight through it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightformers.parts.number_formats import NumberFormat
from lightformers.parts.number_formats import power_of_two as two_to

#: (rows, columns) that share a step; 0 stands for all of them. (0, 0): tensor; (1, 0): row; (1, 64): 64 of a row.
Block = tuple[int, int]
#: Power-of-two steps are stored as their exponents in eight bits.
_SHIFTS = (-126, 126)


def grid(shape: tuple[int, int], block: Block) -> tuple[int, int]:
    """How many blocks there are along both sides; the last of a side may be ragged. Raises ValueError below 0."""
    if min(block) < 0:
        raise ValueError(f"block {block} has negative sides")
    return tuple(-(-n // (side or n)) if n else 0 for n, side in zip(shape, block))  # type: ignore[return-value]


def peaks(x: Tensor, block: Block) -> Tensor:
    """Largest magnitude of each block: (rows, columns) -> `grid`, float32. Ragged blocks count what they hold."""
    rows, columns = grid((x.shape[0], x.shape[1]), block)
    high, wide = (side or n for side, n in zip(block, x.shape))
    padded = torch.nn.functional.pad(
        x.detach().abs().float(), (0, columns * wide - x.shape[1], 0, rows * high - x.shape[0])
    )
    return padded.view(rows, high, columns, wide).amax((1, 3))


def spread(step: Tensor, block: Block, shape: tuple[int, int], rows: slice | None = None) -> Tensor:
    """Steps of blocks -> one that multiplies a matrix of this shape (or some of its rows); views where it can."""
    high, wide = block
    if high and step.shape[0] > 1:
        chosen = torch.arange(shape[0], device=step.device)[rows or slice(None)] // high
        step = step[chosen]
    if wide and step.shape[1] > 1:
        step = step.repeat_interleave(wide, 1)[:, : shape[1]]
    return step


def steps_of(peak: Tensor, form: NumberFormat, power_of_two: bool = False) -> Tensor:
    """The step at which a peak is the largest level; 1 for a peak of zero.

    power_of_two: the smallest power of two that is at least this step, so nothing is clipped.
    """
    step = peak.float() / form.max
    step = torch.where(step > 0, step, torch.ones_like(step))
    return two_to(exponents(step)) if power_of_two else step


def exponents(step: Tensor) -> Tensor:
    """The least k with `2^k >= step`, within -126 to 126, int32; exact at powers of two."""
    mantissa, exponent = torch.frexp(step.float())
    return torch.where(mantissa == 0.5, exponent - 1, exponent).clamp(*_SHIFTS)


class _Straight(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, rounded: Tensor, limit: Tensor | float) -> Tensor:
        ctx.save_for_backward(x.abs() <= limit)
        return rounded

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (inside,) = ctx.saved_tensors
        return grads[0] * inside, None, None


def straight_through(x: Tensor, rounded: Tensor, limit: Tensor | float = float("inf")) -> Tensor:
    """`rounded`, with the gradient of x where |x| <= limit and none elsewhere (Bengio et al., arXiv 1308.3432)."""
    if not (torch.is_grad_enabled() and x.requires_grad):
        return rounded
    out: Tensor = _Straight.apply(x, rounded, limit)
    return out


def fake_quantize(x: Tensor, step: Tensor, form: NumberFormat) -> Tensor:
    """x rounded to `level * step`, in x's dtype; step broadcasts. Clipped numbers get no gradient."""
    with torch.no_grad():
        rounded = (form.round(x.float() / step) * step).to(x.dtype)
    if not (torch.is_grad_enabled() and x.requires_grad):
        return rounded
    return straight_through(x, rounded, (form.max * step).to(x.dtype))


def quantize_matrix(
    weight: Tensor, form: NumberFormat, block: Block = (1, 0), power_of_two: bool = False
) -> tuple[Tensor, Tensor]:
    """Round to nearest at the step of each block's peak: (rows, columns) -> levels float32, steps `grid`."""
    step = steps_of(peaks(weight, block), form, power_of_two)
    spread_step = spread(step, block, (weight.shape[0], weight.shape[1]))
    return form.round(weight.detach().float() / spread_step), step
