"""Rotary positions: pairs of entries turned by an angle. Its gradient is the turn back, which autograd does not know."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function


def reference(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """(..., d) with the first 2 h entries turned in pairs (i, i + h); cos, sin: (..., h), whatever broadcasts."""
    half = cos.shape[-1]
    first, second = x[..., :half], x[..., half : 2 * half]
    turned = [first * cos - second * sin, second * cos + first * sin]
    rest = [x[..., 2 * half :]] if x.shape[-1] > 2 * half else []
    return torch.cat(turned + rest, -1).to(x.dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """`reference` with its gradient in the same passes; cos and sin have x's dtype and no gradient."""
    return _Rotate.apply(x, cos, sin)  # type: ignore[no-any-return]


class _Rotate(Function):
    @staticmethod
    def forward(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        half = cos.shape[-1]
        first, second = x[..., :half], x[..., half : 2 * half]
        out = torch.empty_like(x)
        torch.mul(first, cos, out=out[..., :half]).addcmul_(second, sin, value=-1)
        torch.mul(second, cos, out=out[..., half : 2 * half]).addcmul_(first, sin)
        if 2 * half < x.shape[-1]:
            out[..., 2 * half :] = x[..., 2 * half :]
        return out

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return rotate(grads[0], cos, -sin), None, None
