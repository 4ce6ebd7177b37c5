"""The short causal depthwise convolution over time, channels last: y_t = sum_j w_j * x_{t-j} (+ bias).

PyTorch's own wants channels first on the CPU: turning there and back costs more than the few taps. Here each tap is a
multiply-add over rows that lie in the cache.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lightformers.errors import UserError

#: Numbers that are worked on at once.
CHUNK = 2**17


def reference(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """PyTorch's; arguments and results as `causal_convolution`."""
    return torch.nn.functional.conv1d(x.transpose(1, 2), weight[:, None], bias, groups=len(weight)).transpose(
        1, 2
    )


def causal_convolution(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """(batch, kernel - 1 + n, width) -> (batch, n, width), in the type of x, summed in float32 or better.

    The first kernel - 1 places of x are what came before. weight: (width, kernel), the last column belongs to the place
    itself; bias: (width). Differentiable once.
    """
    if weight.dim() != 2 or x.shape[-1] != len(weight) or x.shape[1] < weight.shape[1]:
        raise UserError(
            f"a kernel {tuple(weight.shape)} does not fit {tuple(x.shape)}: (width, kernel), at least kernel places"
        )
    exact = torch.promote_types(x.dtype, torch.float32)
    with torch.autocast(x.device.type, enabled=False):
        y = _Causal.apply(x.to(exact), weight.to(exact), None if bias is None else bias.to(exact))
        return y.to(x.dtype)


def _parts(x: Tensor, n: int) -> list[slice]:
    rows = max(CHUNK // max(len(x) * x.shape[2], 1), 16)
    return [slice(at, min(at + rows, n)) for at in range(0, n, rows)]


class _Causal(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        taps = weight.T.contiguous()
        n = x.shape[1] - len(taps) + 1
        y = x.new_empty(len(x), n, x.shape[2])
        for here in _parts(x, n):
            out = y[:, here]
            torch.mul(x[:, here], taps[0], out=out)
            for j in range(1, len(taps)):
                out.addcmul_(x[:, here.start + j : here.stop + j], taps[j])
            if bias is not None:
                out += bias
        ctx.save_for_backward(x, weight)
        ctx.bias = bias is not None
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        taps = weight.T.contiguous()
        dx, dtaps, dbias = torch.zeros_like(x), torch.zeros_like(taps), x.new_zeros(x.shape[2])
        for here in _parts(x, dy.shape[1]):
            asked = dy[:, here]
            for j in range(len(taps)):
                there = slice(here.start + j, here.stop + j)
                dx[:, there].addcmul_(asked, taps[j])
                dtaps[j] += (asked * x[:, there]).sum((0, 1))
            if ctx.bias:
                dbias += asked.sum((0, 1))
        return dx, dtaps.T, dbias if ctx.bias else None
