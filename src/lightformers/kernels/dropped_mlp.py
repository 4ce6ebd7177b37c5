"""Two linear layers with GELU between and dropout after each, over the rows or over the columns of a matrix.

Over the columns ("left") nothing is transposed: the weights stand on the left of the product. Without gradients the hidden
layer is made block by block, so that it never leaves the cache. In training on the processor
the hidden dropout happens before GELU, as a summand of -1e9, which both GELU and its gradient make exactly 0: the mask is
written where the product is added to it, is not kept, and its factor 1 / (1 - p) goes into the second product.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from lightformers.kernels.dropout import draw, dropout, eager, spread

_OFF = -1e9
#: Numbers of the hidden layer that are made at once where no gradient needs them: a megabyte or two of cache.
_BLOCK = 2**18


def linear(x: Tensor, weight: Tensor, bias: Tensor, left: bool) -> Tensor:
    """x (rows, in) -> (rows, out); from the left x (in, columns) -> (out, columns). weight: (out, in)."""
    return torch.matmul(weight, x) + bias[:, None] if left else F.linear(x, weight, bias)


def reference(
    x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, p: float = 0.0, left: bool = False
) -> Tensor:
    """Layer by layer. w1: (hidden, in), w2: (out, hidden), b1, b2: vectors; x, left: see `linear`."""
    hidden = dropout(F.gelu(linear(x, w1, b1, left)), p)
    return dropout(linear(hidden, w2, b2, left), p)


def dropped_mlp(
    x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, p: float = 0.0, left: bool = False
) -> Tensor:
    """`reference`, with less memory and time where p is not 0. Under autocast its type is that of the products."""
    if not x.numel() or not eager(x):
        return reference(x, w1, b1, w2, b2, p, left)
    given = (x, w1, b1, w2, b2)
    kind = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
    if p:
        return _MLP.apply(*given, p, left, kind)  # type: ignore[no-any-return]
    if torch.is_grad_enabled() and any(t.requires_grad for t in given):
        return reference(*given, left=left)
    with torch.autocast("cpu", enabled=False):
        return _blocks(x.to(kind), w1.to(kind), b1.to(kind), w2.to(kind), b2.to(kind), left)


def _blocks(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, left: bool) -> Tensor:
    """`reference` without dropout, some rows (columns) at a time."""
    count, size = x.shape[1 if left else 0], max(_BLOCK // len(w1), 16)
    out = x.new_empty((len(w2), count) if left else (count, len(w2)))
    room = x.new_empty(len(w1) * min(size, count))
    for start in range(0, count, size):
        part = slice(start, min(start + size, count))
        many = part.stop - start
        hidden = room[: len(w1) * many].view((-1, many) if left else (many, -1))
        if left:
            torch.addmm(b1[:, None], w1, x[:, part], out=hidden)
            torch.addmm(b2[:, None], w2, torch.ops.aten.gelu_(hidden), out=out[:, part])
        else:
            torch.addmm(b1, x[part], w1.T, out=hidden)
            torch.addmm(b2, torch.ops.aten.gelu_(hidden), w2.T, out=out[part])
    return out


class _MLP(Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, p: float, left: bool, kind: torch.dtype
    ) -> Tensor:  # fmt: skip
        with torch.autocast("cpu", enabled=False):
            x, w1, b1, w2, b2 = (t.to(kind) for t in (x, w1, b1, w2, b2))
            shape = (w1.shape[0], x.shape[1]) if left else (x.shape[0], w1.shape[0])
            bits, factor = draw(shape[0] * shape[1], p)
            before = spread(bits, shape, kind, _OFF, 0.0).add_(b1[:, None] if left else b1)
            before = before.addmm_(w1, x) if left else before.addmm_(x, w1.T)
            hidden = F.gelu(before)
            if left:
                out = torch.addmm(b2[:, None], w2, hidden, alpha=factor)
            else:
                out = torch.addmm(b2, hidden, w2.T, alpha=factor)
            bits, scale = draw(out.numel(), p)
            mask = spread(bits, out.shape, kind, 0.0, scale)
        ctx.save_for_backward(x, w1, w2, before, hidden, mask)
        ctx.factor, ctx.left = factor, left
        return out.mul_(mask)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, w1, w2, before, hidden, mask = ctx.saved_tensors
        left = ctx.left
        with torch.autocast("cpu", enabled=False):
            g = grads[0] * mask
            scaled = w2 * ctx.factor
            if left:
                gw2, back = torch.mm(g, hidden.T), torch.mm(scaled.T, g)
            else:
                gw2, back = torch.mm(g.T, hidden), torch.mm(g, scaled)
            back = torch.ops.aten.gelu_backward(back, before)
            along = 1 if left else 0
            if left:
                gw1, gx = torch.mm(back, x.T), torch.mm(w1.T, back) if ctx.needs_input_grad[0] else None
            else:
                gw1, gx = torch.mm(back.T, x), torch.mm(back, w1) if ctx.needs_input_grad[0] else None
            return gx, gw1, back.sum(along), gw2.mul_(ctx.factor), g.sum(along), None, None, None
