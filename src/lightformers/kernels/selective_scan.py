"""Mamba's selective scan (Gu and Dao, 2023, arXiv 2312.00752), in memory linear in the length.

    h_t = exp(delta_t * A) * h_{t-1} + delta_t * u_t * B_t        y_t = <C_t, h_t>

with a state of N numbers for each of E channels. What is large, the (batch, length, N, E) decays and states, exists for
one chunk of time at a time; of each chunk its first state is kept, and the rest is computed again in the backward pass.
A chunk is chosen so short that it stays in a processor's cache, where a pass over it costs little.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lightformers.errors import UserError
from lightformers.kernels.linear_scan import scan

#: Numbers in one (batch, chunk, N, E) buffer; two or three of them are worked on at once.
CHUNK = 2**17
#: A chunk is at least so long: the states kept for the backward pass are one for each chunk.
LEAST = 16


def reference(
    u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, initial: Tensor | None = None, resets: Tensor | None = None
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The equation itself; arguments and results as `selective_scan`."""
    h = u.new_zeros(len(u), *a.T.shape) if initial is None else initial
    out = []
    for t in range(u.shape[1]):
        if resets is not None:
            h = h * ~resets[:, t, None, None]
        h = torch.exp(delta[:, t, None] * a.T) * h + (delta * u)[:, t, None] * b[:, t, :, None]
        out.append((c[:, t, :, None] * h).sum(1))
    return torch.stack(out, 1), h


def selective_scan(
    u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, initial: Tensor | None = None, resets: Tensor | None = None
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """y (batch, n, E) and the last state (batch, N, E), in float32 or better, whatever autocast says.

    u, delta: (batch, n, E), n at least 1; a: (E, N), negative; b, c: (batch, n, N), shared by the channels; initial:
    (batch, N, E), 0 without. delta = 0 leaves the state as it is (padding); where resets (batch, n) is true the state
    is forgotten before the token (a document begins). Differentiable once in all but resets.
    """
    batch, n, width = u.shape
    state = a.shape[-1]
    if delta.shape != u.shape or a.shape != (width, state) or n == 0:
        raise UserError(
            f"u and delta are (batch, n, {width}), a is ({width}, N), not {tuple(delta.shape)}, {tuple(a.shape)}"
        )
    if b.shape != (batch, n, state) or c.shape != b.shape:
        raise UserError(f"b and c are {(batch, n, state)}, not {tuple(b.shape)} and {tuple(c.shape)}")
    if initial is not None and initial.shape != (batch, state, width):
        raise UserError(f"the state is {(batch, state, width)}, not {tuple(initial.shape)}")
    exact = torch.promote_types(u.dtype, torch.float32)
    with torch.autocast(u.device.type, enabled=False):
        y, last = _SelectiveScan.apply(
            u.to(exact), delta.to(exact), a.to(exact).T.contiguous(), b.to(exact), c.to(exact),
            None if initial is None else initial.to(exact), resets,
        )  # fmt: skip
    return y, last


class _Chunk:
    """The decays and states of one chunk of time, in buffers that all chunks use in turn."""

    def __init__(self, u: Tensor, a: Tensor, length: int) -> None:
        self.a, self.room = a, (len(u), length, *a.shape)
        self.decay, self.h = u.new_empty(self.room), u.new_empty(self.room)

    def states(
        self, u: Tensor, delta: Tensor, b: Tensor, resets: Tensor | None, before: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """decay, h (batch, m, N, E), and delta * u (batch, m, E)."""
        m = u.shape[1]
        decay, h = self.decay[:, :m], self.h[:, :m]
        torch.mul(delta[:, :, None], self.a, out=decay).exp_()
        if resets is not None:
            decay[resets] = 0
        fed = delta * u
        torch.mul(fed[:, :, None], b[..., None], out=h)
        scan(decay.flatten(2), h.flatten(2), h.flatten(2), before.flatten(1))
        return decay, h, fed


def _length(u: Tensor, a: Tensor) -> int:
    return min(max(CHUNK // max(len(u) * a.numel(), 1), LEAST), u.shape[1])


class _SelectiveScan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, initial: Tensor | None, resets: Tensor | None
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        length = _length(u, a)
        chunk, y = _Chunk(u, a, length), torch.empty_like(u, memory_format=torch.contiguous_format)
        before = u.new_zeros(len(u), *a.shape) if initial is None else initial.clone()
        kept = [before]
        for at in range(0, u.shape[1], length):
            here = slice(at, at + length)
            _, h, _ = chunk.states(u[:, here], delta[:, here], b[:, here], _cut(resets, here), kept[-1])
            y[:, here] = (c[:, here, None] @ h).squeeze(2)
            kept.append(h[:, -1].clone())
        last = kept.pop()
        ctx.save_for_backward(u, delta, a, b, c, resets, *kept)
        ctx.set_materialize_grads(False)
        return y, last

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor | None, dlast: Tensor | None) -> tuple[Tensor | None, ...]:
        u, delta, a, b, c, resets, *kept = ctx.saved_tensors
        with torch.autocast(u.device.type, enabled=False):
            dy = torch.zeros_like(u) if dy is None else dy
            carry = torch.zeros_like(kept[0]) if dlast is None else dlast
            du, ddelta, da = torch.empty_like(u), torch.empty_like(u), torch.zeros_like(a)
            db, dc = torch.empty_like(b), torch.empty_like(b)
            length = _length(u, a)
            chunk = _Chunk(u, a, length)
            room = torch.empty_like(chunk.h)
            for number in reversed(range(len(kept))):
                here, before = slice(number * length, (number + 1) * length), kept[number]
                x, step, out, into = u[:, here], delta[:, here], dy[:, here], b[:, here]
                decay, h, fed = chunk.states(x, step, into, _cut(resets, here), before)
                dc[:, here] = (h @ out[..., None]).squeeze(3)
                # g_t, what the loss asks of h_t, runs backwards in time
                g = room[:, : x.shape[1]]
                torch.mul(c[:, here, :, None], out[:, :, None], out=g)
                g[:, -1] += carry
                later = g[:, :-1].flatten(2)
                scan(decay[:, 1:].flatten(2), later, later, g[:, -1].flatten(1), backwards=True)
                carry = decay[:, 0] * g[:, 0]
                db[:, here] = (g @ fed[..., None]).squeeze(3)
                dfed = (into[:, :, None] @ g).squeeze(2)
                decay[:, 1:].mul_(h[:, :-1])
                decay[:, 0].mul_(before)
                asked = decay.mul_(g)  # of delta_t * A
                through = torch.mul(asked, a, out=h).sum(2)
                da += asked.mul_(step[:, :, None]).sum((0, 1))
                torch.mul(dfed, step, out=du[:, here])
                ddelta[:, here] = through.addcmul_(dfed, x)
        return du, ddelta, da, db, dc, carry if ctx.needs_input_grad[5] else None, None


def _cut(resets: Tensor | None, here: slice) -> Tensor | None:
    return None if resets is None else resets[:, here]
