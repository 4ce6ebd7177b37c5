"""The state-space dual of Mamba-2 (Dao and Gu, 2024, arXiv 2405.21060): a scan with one decay per head, in chunks.

    h_t = exp(d_t) * h_{t-1} + B_t x_t'        y_t = C_t' h_t

with a matrix h (N, P) per head. Inside a chunk the scan is a product with a (chunk, chunk) matrix, between chunks states
are carried: nearly all work is matrix products. Chunks are taken a few at a time, so that what is large exists for those
few alone; states at the chunks' beginnings are kept for the backward pass, the rest is computed again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lightformers.errors import UserError

#: Numbers in the (batch, chunks, heads, chunk, chunk) matrices that exist at once.
BLOCK = 2**18


def reference(
    x: Tensor, log_decay: Tensor, b: Tensor, c: Tensor, initial: Tensor | None = None, resets: Tensor | None = None
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The equation itself; arguments and results as `ssd`."""
    share = x.shape[2] // b.shape[2]
    b, c = b.repeat_interleave(share, 2), c.repeat_interleave(share, 2)
    h = x.new_zeros(len(x), x.shape[2], b.shape[3], x.shape[3]) if initial is None else initial
    out = []
    for t in range(x.shape[1]):
        if resets is not None:
            h = h * ~resets[:, t, None, None, None]
        h = torch.exp(log_decay[:, t, :, None, None]) * h + b[:, t, :, :, None] * x[:, t, :, None]
        out.append((c[:, t, :, :, None] * h).sum(2))
    return torch.stack(out, 1), h


def ssd(
    x: Tensor, log_decay: Tensor, b: Tensor, c: Tensor, initial: Tensor | None = None, resets: Tensor | None = None,
    chunk: int = 64,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """y (batch, n, heads, P) and the last state (batch, heads, N, P), in float32 or better, whatever autocast says.

    x: (batch, n, heads, P), n at least 1; log_decay: (batch, n, heads), at most 0; b, c: (batch, n, groups, N), each
    group shared by heads / groups heads that follow each other; initial: (batch, heads, N, P), 0 without. x_t = 0 with
    log_decay_t = 0 leaves the state as it is (padding); where resets (batch, n) is true the state is forgotten before the
    token (a document begins). chunk need not divide n. Differentiable once in all but resets.
    """
    batch, n, heads, size = x.shape
    if chunk < 1 or n == 0:
        raise UserError(f"a chunk of {chunk} over {n} tokens: both must be at least 1")
    if log_decay.shape != (batch, n, heads):
        raise UserError(f"log_decay is {(batch, n, heads)}, not {tuple(log_decay.shape)}")
    if b.shape != c.shape or b.dim() != 4 or b.shape[:2] != (batch, n) or heads % b.shape[2]:
        raise UserError(
            f"b and c are {(batch, n)} + (groups that divide {heads}, N), not {tuple(b.shape)}, {tuple(c.shape)}"
        )
    groups, state = b.shape[2:]
    if initial is not None and initial.shape != (batch, heads, state, size):
        raise UserError(f"the state is {(batch, heads, state, size)}, not {tuple(initial.shape)}")
    chunk = min(chunk, n)
    more = -n % chunk
    exact = torch.promote_types(x.dtype, torch.float32)
    x, log_decay, b, c = (_whole(t.to(exact), more) for t in (x, log_decay, b, c))
    first = None
    if initial is not None:  # (batch, groups, N, heads of a group * P): columns of one matrix product
        first = initial.to(exact).unflatten(1, (groups, -1)).transpose(2, 3).flatten(3)
    counts = None if resets is None else _whole(resets.cumsum(1), more, "last")
    with torch.autocast(x.device.type, enabled=False):
        y, last = _SSD.apply(x, log_decay, b, c, first, counts, chunk)
    last = last.unflatten(3, (heads // groups, size)).transpose(2, 3).flatten(1, 2)
    return y[:, :n], last


def _whole(x: Tensor, more: int, how: str = "zero") -> Tensor:
    """`more` tokens at the end that change nothing, so that chunks divide the length."""
    if not more:
        return x
    end = x[:, -1:].expand(-1, more, *x.shape[2:])
    return torch.cat([x, end if how == "last" else torch.zeros_like(end)], 1)


@dataclass(frozen=True)
class _Block:
    """A few chunks: k chunks of Q tokens, H heads in G groups of J = H / G * P columns."""

    x: Tensor  # (batch, k, Q, H, P)
    b: Tensor  # (batch, k, G, Q, N)
    c: Tensor
    into: Tensor  # (batch, k, Q, H): what is left at a token of the state before its chunk
    outof: Tensor  # what is left at the chunk's end of a token
    decay: Tensor  # (batch, k, H): of the state over the chunk
    mix: Tensor  # (batch, k, H, Q, Q): what is left at token i of token j
    scores: Tensor  # (batch, k, G, Q, Q): C_i' B_j

    @classmethod
    def of(
        cls, x: Tensor, log_decay: Tensor, b: Tensor, c: Tensor, counts: Tensor | None, begun: Tensor | None
    ) -> _Block:
        """counts: (batch, k, Q) documents begun so far; begun: (batch, k), the same before each chunk."""
        s = log_decay.cumsum(2)
        rows = s.transpose(2, 3)
        mix = rows[..., :, None] - rows[..., None, :]
        size = mix.shape[-1]
        mix += torch.full((size, size), -torch.inf, dtype=x.dtype, device=x.device).triu_(1)
        into, outof, decay = s.exp(), (s[:, :, -1:] - s).exp_(), s[:, :, -1].exp()
        if counts is not None and begun is not None:
            mix.masked_fill_((counts[..., :, None] != counts[..., None, :])[:, :, None], -torch.inf)
            into.masked_fill_((counts != begun[..., None])[..., None], 0)
            outof.masked_fill_((counts != counts[..., -1:])[..., None], 0)
            decay = decay.masked_fill((counts[..., -1] != begun)[..., None], 0)
        b, c = b.transpose(2, 3), c.transpose(2, 3)
        return cls(x, b, c, into, outof, decay, mix.exp_(), c @ b.transpose(3, 4))

    def columns(self, x: Tensor) -> Tensor:
        """(batch, k, Q, H, P) -> (batch, k, G, Q, J)."""
        return x.unflatten(3, (self.b.shape[2], -1)).flatten(4).transpose(2, 3)

    def heads(self, x: Tensor) -> Tensor:
        """The inverse of `columns`."""
        return x.transpose(2, 3).unflatten(4, (-1, self.x.shape[4])).flatten(3, 4)

    def weights(self) -> Tensor:
        """(batch, k, H, Q, Q): scores times what is left."""
        groups = self.b.shape[2]
        return (self.mix.unflatten(2, (groups, -1)) * self.scores[:, :, :, None]).flatten(2, 3)

    def spread(self, number: int) -> Tensor:
        """The decay over chunk `number`, beside a state (batch, G, N, J)."""
        decay = self.decay[:, number].unflatten(1, (self.b.shape[2], -1))
        return decay.repeat_interleave(self.x.shape[4], 2)[:, :, None]


def _blocks(x: Tensor, chunk: int) -> list[slice]:
    """Slices of whole chunks over the chunks of x (batch, n, H, P)."""
    count = x.shape[1] // chunk
    several = max(1, BLOCK // (len(x) * x.shape[2] * chunk * chunk))
    return [slice(at, min(at + several, count)) for at in range(0, count, several)]


def _made(
    x: Tensor, log_decay: Tensor, b: Tensor, c: Tensor, counts: Tensor | None, chunk: int, here: slice
) -> _Block:
    cut = (t.unflatten(1, (-1, chunk))[:, here] for t in (x, log_decay, b, c))
    if counts is None:
        return _Block.of(*cut, None, None)
    ends = counts[:, chunk - 1 :: chunk]
    begun = torch.nn.functional.pad(ends, (1, 0))[:, :-1]
    return _Block.of(*cut, counts.unflatten(1, (-1, chunk))[:, here], begun[:, here])


class _SSD(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, log_decay: Tensor, b: Tensor, c: Tensor, initial: Tensor | None, counts: Tensor | None,
        chunk: int,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        count, groups, state = x.shape[1] // chunk, *b.shape[2:]
        states = x.new_empty(len(x), count + 1, groups, state, x.shape[2] // groups * x.shape[3])
        states[:, 0] = 0 if initial is None else initial
        y = torch.empty_like(x, memory_format=torch.contiguous_format)
        out = y.unflatten(1, (-1, chunk))
        for here in _blocks(x, chunk):
            m = _made(x, log_decay, b, c, counts, chunk, here)
            added = m.b.transpose(3, 4) @ m.columns(m.x * m.outof[..., None])
            for number in range(added.shape[1]):
                at = here.start + number
                torch.addcmul(added[:, number], m.spread(number), states[:, at], out=states[:, at + 1])
            far = m.heads(m.c @ states[:, here])
            near = m.weights() @ m.x.transpose(2, 3)
            torch.addcmul(near.transpose(2, 3), far, m.into[..., None], out=out[:, here])
        ctx.save_for_backward(x, log_decay, b, c, counts, states, y)
        ctx.chunk = chunk
        ctx.set_materialize_grads(False)
        return y, states[:, -1].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor | None, dlast: Tensor | None) -> tuple[Tensor | None, ...]:
        x, log_decay, b, c, counts, states, y = ctx.saved_tensors
        with torch.autocast(x.device.type, enabled=False):
            dy = torch.zeros_like(y) if dy is None else dy
            dx, db, dc = torch.empty_like(x), torch.empty_like(b), torch.empty_like(c)
            ddecay = torch.empty_like(log_decay)
            carry = torch.zeros_like(states[:, -1]) if dlast is None else dlast
            cut = [t.unflatten(1, (-1, ctx.chunk)) for t in (dy, y, dx, ddecay, db, dc)]
            for here in reversed(_blocks(x, ctx.chunk)):
                m = _made(x, log_decay, b, c, counts, ctx.chunk, here)
                block = [t[:, here] for t in cut]
                carry = _backward(m, block, states[:, here.start : here.stop + 1], carry)
            if counts is not None:
                ddecay.masked_fill_((counts.diff(dim=1, prepend=counts[:, :1] * 0) != 0)[..., None], 0)
        return dx, ddecay, db, dc, carry if ctx.needs_input_grad[4] else None, None, None


def _backward(m: _Block, block: list[Tensor], states: Tensor, carry: Tensor) -> Tensor:
    """Fill the gradients of a block. states: (batch, k + 1, G, N, J), before each chunk and after the last; carry: what
    the loss asks of the last of them. Returns what it asks of the first."""
    dy, y, dx, ddecay, db, dc = block
    groups = m.b.shape[2]
    seen = m.columns(dy * m.into[..., None])
    asked = m.c.transpose(3, 4) @ seen  # of the state before each chunk, by its own tokens
    after = torch.empty_like(asked)  # of the state after it
    for number in reversed(range(asked.shape[1])):
        after[:, number] = carry
        carry = torch.addcmul(asked[:, number], m.spread(number), carry)
    fed = m.columns(m.x * m.outof[..., None])
    dc_far, db_far = seen @ states[:, :-1].transpose(3, 4), fed @ after.transpose(3, 4)
    dyh, xh = dy.transpose(2, 3).contiguous(), m.x.transpose(2, 3).contiguous()
    near = m.weights().transpose(3, 4) @ dyh
    dscores = (dyh @ xh.transpose(3, 4)).mul_(m.mix).unflatten(2, (groups, -1)).sum(3)
    dc.copy_((dc_far + dscores @ m.b).transpose(2, 3))
    db.copy_((db_far + dscores.transpose(3, 4) @ m.c).transpose(2, 3))
    torch.addcmul(near.transpose(2, 3), m.heads(m.b @ after), m.outof[..., None], out=dx)
    # with s the running sum of log decays, y_i grows with exp(s_i), and what x_j gives falls with it; the state after
    # the chunk grows with exp(s_Q). A log decay is in every s from its token on.
    ds = (dy * y).sum(4) - (dx * m.x).sum(4)
    end = (after * states[:, 1:]).unflatten(4, (-1, m.x.shape[4])).sum((3, 5)).flatten(2)
    ds[:, :, -1] += end
    ddecay.copy_(ds.flip(2).cumsum(2).flip(2))
    return carry
