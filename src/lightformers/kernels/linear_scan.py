"""The elementwise linear recurrence h_t = a_t * h_{t-1} + b_t over time.

What S4D-like layers, gated linear units over time (HGRN, MLGRU) and exponential averages share. One time step after
another would be all overhead where rows are short: a long sequence is then cut into lanes that advance together, and the
state at the end of each lane is carried through the next one. There is no division: a_t may be 0 (a new document).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lightformers.errors import UserError

#: Numbers that one call of an elementwise operation should have to work on, so that calling it is not what costs.
ENOUGH = 2**14
#: Rows of so many numbers go step by step: with lanes there is twice the work.
LONG = 2048


def reference(a: Tensor, b: Tensor, initial: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The equation itself; arguments and results as `linear_scan`."""
    h = torch.zeros_like(b[:, 0]) if initial is None else initial
    out = []
    for t in range(b.shape[1]):
        h = a[:, t] * h + b[:, t]
        out.append(h)
    return torch.stack(out, 1), h


def linear_scan(a: Tensor, b: Tensor, initial: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """h_t = a_t * h_{t-1} + b_t for t = 1..n, with h_0 = initial (or 0).

    a, b: (batch, n, ...), n at least 1; initial: (batch, ...). a_t = 0 forgets what came before (a new document), and
    a_t = 1 with b_t = 0 leaves the state as it is (padding). Returns all h (batch, n, ...) and the last one (batch, ...),
    in float32 or better. Differentiable once in everything; memory is linear in n.
    """
    if a.shape != b.shape or b.dim() < 2 or b.shape[1] == 0:
        raise UserError(
            f"a scan needs a and b of one shape (batch, n, ...), not {tuple(a.shape)}, {tuple(b.shape)}"
        )
    if initial is not None and initial.shape != b.shape[:1] + b.shape[2:]:
        raise UserError(
            f"the state of {tuple(b.shape)} is without its second dimension, not {tuple(initial.shape)}"
        )
    exact = torch.promote_types(torch.promote_types(a.dtype, b.dtype), torch.float32)
    a, b = a.to(exact), b.to(exact)
    first = None if initial is None else initial.to(exact).reshape(len(initial), -1)
    rest = b.shape[2:]
    flat = (len(b), b.shape[1], math.prod(rest))
    h, last = _LinearScan.apply(a.reshape(flat), b.reshape(flat), first)
    return h.unflatten(2, rest) if rest else h.squeeze(2), last.unflatten(1, rest) if rest else last.squeeze(
        1
    )


class _LinearScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, initial: Tensor | None) -> tuple[Tensor, Tensor]:
        h = scan(a, b, torch.empty_like(b, memory_format=torch.contiguous_format), initial)
        ctx.save_for_backward(a, h, initial)
        ctx.set_materialize_grads(False)
        return h, h[:, -1].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dh: Tensor | None, dlast: Tensor | None) -> tuple[Tensor | None, ...]:
        a, h, initial = ctx.saved_tensors
        if dh is None:
            dh = torch.zeros_like(h)
        # the adjoint runs backwards in time: g_t = dh_t + a_{t+1} * g_{t+1}
        g = torch.empty_like(h)
        torch.add(dh[:, -1], 0 if dlast is None else dlast, out=g[:, -1])
        scan(a[:, 1:], dh[:, :-1], g[:, :-1], g[:, -1], backwards=True)
        da = None
        if ctx.needs_input_grad[0]:
            da = torch.empty_like(h)
            torch.mul(g[:, 1:], h[:, :-1], out=da[:, 1:])
            da[:, 0] = 0 if initial is None else g[:, 0] * initial
        return da, g, None if initial is None else a[:, 0] * g[:, 0]


def scan(
    a: Tensor, b: Tensor, out: Tensor, initial: Tensor | None = None, *, backwards: bool = False
) -> Tensor:
    """`linear_scan` of (batch, n, row) into `out`, which may be `b` itself, without a gradient. For kernels.

    backwards: from the last time to the first, h_t = a_t * h_{t+1} + b_t. initial: (batch, row). n may be 0.
    """
    n, row = b.shape[1], b.shape[0] * b.shape[2]
    lanes = min(-(-ENOUGH // max(row, 1)), math.isqrt(n))
    if lanes < 2 or row >= LONG:
        _steps(a, b, out, initial, 1, backwards)
        return out
    length = n // lanes
    body = lanes * length
    first, then = (slice(n - body, n), slice(0, n - body)) if backwards else (slice(0, body), slice(body, n))
    cut = [x[:, first].unflatten(1, (lanes, length)) for x in (a, b, out)]
    _lanes(cut[0], cut[1], cut[2], initial, backwards)
    edge = out[:, n - body] if backwards else out[:, body - 1]
    _steps(a[:, then], b[:, then], out[:, then], edge, 1, backwards)
    return out


def _lanes(a: Tensor, b: Tensor, out: Tensor, initial: Tensor | None, backwards: bool) -> None:
    """(batch, lanes, length, row): all lanes at once as if each began anew, then each with what the one before left."""
    head, behind = (-1, slice(None, -1)) if backwards else (0, slice(1, None))
    begin = None
    if initial is not None:
        begin = torch.zeros_like(out[:, :, 0])
        begin[:, head] = initial
    _steps(a, b, out, begin, 2, backwards)
    reach = torch.empty_like(
        a[:, behind], memory_format=torch.contiguous_format
    )  # the product of a since the lane's begin
    _products(a[:, behind], reach, backwards)
    cells = list(zip(reach.unbind(1), out[:, behind].unbind(1)))
    before = out[:, head]
    for product, cell in reversed(cells) if backwards else cells:
        cell.addcmul_(product, before[:, :1] if backwards else before[:, -1:])
        before = cell


def _steps(a: Tensor, b: Tensor, out: Tensor, before: Tensor | None, dim: int, backwards: bool) -> None:
    cells = list(zip(a.unbind(dim), b.unbind(dim), out.unbind(dim)))
    for factor, term, cell in reversed(cells) if backwards else cells:
        if before is None:
            cell.copy_(term)
        else:
            torch.addcmul(term, factor, before, out=cell)
        before = cell


def _products(a: Tensor, out: Tensor, backwards: bool) -> None:
    cells = list(zip(a.unbind(2), out.unbind(2)))
    before = None
    for factor, cell in reversed(cells) if backwards else cells:
        if before is None:
            cell.copy_(factor)
        else:
            torch.mul(factor, before, out=cell)
        before = cell
