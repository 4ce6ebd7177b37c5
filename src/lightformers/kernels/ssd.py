"""The state-space dual of Mamba-2 (Dao and Gu, 2024, arXiv 2405.21060): a scan with one decay per head, in chunks.

    h_t = exp(d_t) * h_{t-1} + step_t * B_t x_t'        y_t = C_t' h_t

with a matrix h (N, P) per head. Inside a chunk the scan is a product with a (chunk, chunk) matrix, between chunks states
are carried: nearly all work is matrix products. Chunks are taken a few at a time, in buffers that are used over and over, so
that what is large exists for those few alone; states at the chunks' beginnings are kept for the backward pass, the rest
is computed again.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lightformers.errors import UserError

#: Numbers in the (chunks, batch, heads, chunk, chunk) matrices that exist at once.
BLOCK = 2**18
#: Decays inside a chunk are at least exp of this: 1e-26, nothing beside what is near, while numbers that a processor
#: cannot hold in full (below 1e-38) make it a hundred times slower.
FLOOR = -60.0


def reference(
    x: Tensor, log_decay: Tensor, b: Tensor, c: Tensor, step: Tensor | None = None, initial: Tensor | None = None,
    resets: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The equation itself; arguments and results as `ssd`."""
    share = x.shape[2] // b.shape[2]
    b, c = b.repeat_interleave(share, 2), c.repeat_interleave(share, 2)
    h = x.new_zeros(len(x), x.shape[2], b.shape[3], x.shape[3]) if initial is None else initial
    out = []
    for t in range(x.shape[1]):
        if resets is not None:
            h = h * ~resets[:, t, None, None, None]
        fed = x[:, t] if step is None else x[:, t] * step[:, t, :, None]
        h = torch.exp(log_decay[:, t, :, None, None]) * h + b[:, t, :, :, None] * fed[:, :, None]
        out.append((c[:, t, :, :, None] * h).sum(2))
    return torch.stack(out, 1), h


def ssd(
    x: Tensor, log_decay: Tensor, b: Tensor, c: Tensor, step: Tensor | None = None, initial: Tensor | None = None,
    resets: Tensor | None = None, chunk: int = 64,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """y (batch, n, heads, P) and the last state (batch, heads, N, P), in float32 or better, whatever autocast says.

    x: (batch, n, heads, P), n at least 1; log_decay: (batch, n, heads), at most 0; step: of the same shape, a factor on
    x, 1 without; b, c: (batch, n, groups, N), each group shared by heads / groups heads that follow each other; initial:
    (batch, heads, N, P), 0 without. step_t = 0 (or x_t) with log_decay_t = 0 leaves the state as it is (padding); where
    resets (batch, n) is true the state is forgotten before the token (a document begins). chunk need not divide n.
    Differentiable once in all but resets.
    """
    batch, n, heads, size = x.shape
    if chunk < 1 or n == 0:
        raise UserError(f"a chunk of {chunk} over {n} tokens: both must be at least 1")
    for name, given in (("log_decay", log_decay), ("step", step)):
        if given is not None and given.shape != (batch, n, heads):
            raise UserError(f"{name} is {(batch, n, heads)}, not {tuple(given.shape)}")
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
    step = None if step is None else _whole(step.to(exact), more)
    first = None
    if initial is not None:  # (batch, groups, N, heads of a group * P): columns of one matrix product
        first = initial.to(exact).unflatten(1, (groups, -1)).transpose(2, 3).flatten(3)
    counts = None if resets is None else _whole(resets.cumsum(1), more, "last")
    with torch.autocast(x.device.type, enabled=False):
        y, last = _SSD.apply(x, log_decay, b, c, step, first, counts, chunk)
    last = last.unflatten(3, (heads // groups, size)).transpose(2, 3).flatten(1, 2)
    return y[:, :n], last


def _whole(x: Tensor, more: int, how: str = "zero") -> Tensor:
    """`more` tokens at the end that change nothing, so that chunks divide the length."""
    if not more:
        return x
    end = x[:, -1:].expand(-1, more, *x.shape[2:])
    return torch.cat([x, end if how == "last" else torch.zeros_like(end)], 1)


class _Block:
    """A few chunks at a time: k chunks of Q tokens of B rows, H heads in G groups of J = H / G * P columns.

    Chunks come first, so that k * B * G or k * B * H matrices lie one behind the other, as products of many want them.
    Elementwise work sees all of them as (k, B, Q, G, H / G, P): `face`, `by_groups` and `by_heads` are views of that form.
    """

    def __init__(self, x: Tensor, b: Tensor, chunk: int) -> None:
        """x, b: as in `ssd`, of whole chunks."""
        self.rows, n, self.heads, self.size = x.shape
        self.groups, self.state = b.shape[2:]
        self.chunk, self.count, self.share = chunk, n // chunk, self.heads // self.groups
        self.tril = torch.ones(chunk, chunk, dtype=x.dtype, device=x.device).tril_()
        self.like, self.buffers = x, dict[str, Tensor]()

    def parts(self) -> list[slice]:
        """Slices of chunks that are taken together."""
        several = max(1, BLOCK // (self.rows * self.heads * self.chunk**2))
        return [slice(at, min(at + several, self.count)) for at in range(0, self.count, several)]

    def room(self, name: str, *shape: int) -> Tensor:
        """A buffer of that name: fresh memory costs more than a pass over it."""
        size = math.prod(shape)
        if name not in self.buffers or self.buffers[name].numel() < size:
            self.buffers[name] = self.like.new_empty(size)
        return self.buffers[name][:size].view(shape)

    def cut(self, x: Tensor, here: slice) -> Tensor:
        """(batch, n, ...) -> a view (k, B, Q, ...)."""
        return x.unflatten(1, (-1, self.chunk))[:, here].transpose(0, 1)

    def face(self, x: Tensor, here: slice) -> Tensor:
        """(batch, n, H, ...) -> a view (k, B, Q, G, H / G, ...)."""
        return self.cut(x, here).unflatten(3, (self.groups, -1))

    def by_groups(self, x: Tensor) -> Tensor:
        """(k * B * G, Q, J) -> a view (k, B, Q, G, H / G, P)."""
        return x.view(self.k, self.rows, self.groups, self.chunk, self.share, self.size).transpose(2, 3)

    def by_heads(self, x: Tensor) -> Tensor:
        """(k * B * H, Q, P) -> a view (k, B, Q, G, H / G, P)."""
        return x.view(self.k, self.rows, self.groups, self.share, self.chunk, self.size).permute(
            0, 1, 4, 2, 3, 5
        )

    def begin(
        self, log_decay: Tensor, b: Tensor, c: Tensor, step: Tensor | None, counts: Tensor | None, here: slice
    ) -> None:
        """What both passes need of a block: decays, and the products of b and c."""
        s = self.cut(log_decay, here).cumsum(2)
        self.k = here.stop - here.start
        many = self.k * self.rows
        line = s.transpose(2, 3).contiguous()
        self.mix = self.room(
            "mix", self.k, self.rows, self.heads, self.chunk, self.chunk
        )  # left at token i of token j
        torch.sub(line[..., :, None], line[..., None, :], out=self.mix).clamp_(FLOOR, 0).exp_()
        into = s.clamp(min=FLOOR).exp_()  # left at a token of the state before its chunk
        outof = (s[:, :, -1:] - s).clamp_(min=FLOOR).exp_()  # left at the chunk's end of a token
        decay = s[:, :, -1].exp()  # left of a state over the chunk
        mask = self.tril
        if counts is not None:
            ends = torch.nn.functional.pad(counts[:, self.chunk - 1 :: self.chunk], (1, 0))
            begun, ended = ends[:, here].T[..., None], ends[:, here.start + 1 : here.stop + 1].T[..., None]
            now = self.cut(counts, here)
            into.masked_fill_((now != begun)[..., None], 0)
            outof.masked_fill_((now != ended)[..., None], 0)
            decay = decay.masked_fill(ended != begun, 0)
            mask = (self.tril * (now[..., :, None] == now[..., None, :]))[:, :, None]
        self.into, self.outof = (x.unflatten(3, (self.groups, -1))[..., None] for x in (into, outof))
        self.step = None if step is None else self.face(step, here)[..., None]
        self.fed = self.outof if self.step is None else self.outof * self.step
        # (k, B, G, 1, J), beside states (k, B, G, N, J)
        self.decay = decay.repeat_interleave(self.size, 2).unflatten(2, (self.groups, 1, -1))
        self.b, self.c = self.matrices("b", b, here), self.matrices("c", c, here)
        scores = self.room("scores", many * self.groups, self.chunk, self.chunk)
        self.scores = torch.bmm(self.c, self.b.mT, out=scores).view(
            self.k, self.rows, self.groups, self.chunk, -1
        )
        self.scores.mul_(mask)
        self.mask = mask

    def matrices(self, name: str, x: Tensor, here: slice) -> Tensor:
        """b or c of a block, (k * B * G, Q, N)."""
        out = self.room(name, self.k, self.rows, self.groups, self.chunk, self.state)
        return out.copy_(self.cut(x, here).transpose(2, 3)).flatten(0, 2)

    def weights(self, out: Tensor) -> Tensor:
        """Scores times what is left, into `out` of the form of `mix`; (k * B * H, Q, Q)."""
        split = (2, (self.groups, self.share))
        torch.mul(self.mix.unflatten(*split), self.scores[:, :, :, None], out=out.unflatten(*split))
        return out.flatten(0, 2)

    def columns(self, name: str, x: Tensor, factor: Tensor) -> Tensor:
        """x of this block, a face, times a factor -> (k * B * G, Q, J)."""
        out = self.room(name, self.k * self.rows * self.groups, self.chunk, self.share * self.size)
        torch.mul(x, factor, out=self.by_groups(out))
        return out

    def single(self, name: str, x: Tensor, factor: Tensor | None = None) -> Tensor:
        """x of this block, a face, times a factor -> (k * B * H, Q, P)."""
        out = self.room(name, self.k * self.rows * self.heads, self.chunk, self.size)
        if factor is None:
            self.by_heads(out).copy_(x)
        else:
            torch.mul(x, factor, out=self.by_heads(out))
        return out

    def states(self, name: str, more: int = 0) -> Tensor:
        """A buffer (k + more, B, G, N, J)."""
        return self.room(name, self.k + more, self.rows, self.groups, self.state, self.share * self.size)


class _SSD(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, log_decay: Tensor, b: Tensor, c: Tensor, step: Tensor | None, initial: Tensor | None,
        counts: Tensor | None, chunk: int,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        m = _Block(x, b, chunk)
        states = x.new_empty(m.count + 1, m.rows, m.groups, m.state, m.share * m.size)
        states[0] = 0 if initial is None else initial
        y = torch.empty_like(x, memory_format=torch.contiguous_format)
        for here in m.parts():
            m.begin(log_decay, b, c, step, counts, here)
            face = m.face(x, here)
            fed = m.columns("fed", face, m.fed)
            after = states[here.start + 1 : here.stop + 1]
            torch.bmm(m.b.mT, fed, out=after.flatten(0, 2))
            for number in range(m.k):
                after[number].addcmul_(m.decay[number], states[here.start + number])
            near = torch.bmm(
                m.weights(m.mix),
                m.single("x", face, m.step),
                out=m.room("near", m.k * m.rows * m.heads, chunk, m.size),
            )
            far = torch.bmm(m.c, states[here].flatten(0, 2), out=fed)
            torch.addcmul(m.by_heads(near), m.by_groups(far), m.into, out=m.face(y, here))
        ctx.save_for_backward(x, log_decay, b, c, step, counts, states, y)
        ctx.chunk = chunk
        ctx.set_materialize_grads(False)
        return y, states[-1].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor | None, dlast: Tensor | None) -> tuple[Tensor | None, ...]:
        x, log_decay, b, c, step, counts, states, y = ctx.saved_tensors
        with torch.autocast(x.device.type, enabled=False):
            dy = torch.zeros_like(y) if dy is None else dy
            dx, db, dc = (torch.empty_like(t, memory_format=torch.contiguous_format) for t in (x, b, c))
            ddecay = torch.empty_like(log_decay, memory_format=torch.contiguous_format)
            dstep = None if step is None else torch.empty_like(ddecay)
            carry = torch.zeros_like(states[-1]) if dlast is None else dlast
            m = _Block(x, b, ctx.chunk)
            for here in reversed(m.parts()):
                m.begin(log_decay, b, c, step, counts, here)
                faces = [m.face(t, here) for t in (x, y, dy, dx)]
                cuts = [m.cut(t, here) for t in (db, dc, ddecay)]
                steps = None if dstep is None else m.cut(dstep, here)
                carry = _backward(m, states[here.start : here.stop + 1], carry, faces, cuts, steps)
            if counts is not None:
                ddecay.masked_fill_((counts.diff(dim=1, prepend=counts[:, :1] * 0) != 0)[..., None], 0)
        return dx, ddecay, db, dc, dstep, carry if ctx.needs_input_grad[5] else None, None, None


def _backward(
    m: _Block, states: Tensor, carry: Tensor, faces: list[Tensor], cuts: list[Tensor], dstep: Tensor | None
) -> Tensor:
    """Fill the gradients of a block. faces: x, y, dy and, to be filled, dx; cuts: db, dc, ddecay, to be filled; dstep too.
    states: before each chunk and after the last; carry: what the loss asks of the last of them. Returns what it asks of
    the first."""
    (x, y, dy, dx), (db, dc, ddecay) = faces, cuts
    seen = m.columns("seen", dy, m.into)
    asked = m.states("asked", 1)
    torch.bmm(m.c.mT, seen, out=asked[:-1].flatten(0, 2))  # of the state before each chunk, by its own tokens
    asked[-1] = carry
    for number in reversed(range(m.k)):
        asked[number].addcmul_(m.decay[number], asked[number + 1])
    after = asked[1:].flatten(0, 2)  # of the state after each chunk
    fed = m.columns("fed", x, m.fed)
    dc_here = torch.bmm(seen, states[:-1].flatten(0, 2).mT, out=m.room("dc", *m.c.shape))
    db_here = torch.bmm(fed, after.mT, out=m.room("db", *m.b.shape))
    xs, dys = m.single("x", x, m.step), m.single("dy", dy)
    weights = m.weights(m.room("weights", *m.mix.shape))
    dweights = torch.bmm(dys, xs.mT, out=m.room("dweights", *weights.shape)).view(m.mix.shape).mul_(m.mix)
    dscores = dweights.unflatten(2, (m.groups, m.share)).sum(3).mul_(m.mask).flatten(0, 2)
    dc_here.baddbmm_(dscores, m.b)
    db_here.baddbmm_(dscores.mT, m.c)
    for found, out in ((db_here, db), (dc_here, dc)):
        out.copy_(found.view(m.k, m.rows, m.groups, m.chunk, m.state).transpose(2, 3))
    near, far = torch.bmm(weights.mT, dys, out=xs), torch.bmm(m.b, after, out=seen)
    torch.addcmul(m.by_heads(near), m.by_groups(far), m.outof, out=dx)
    # with s the running sum of log decays over the block, y_i grows with exp(s_i), and what x_j gives falls with it; the
    # state after the block grows with the last s. A log decay is in every s from its token on.
    room = m.room("fed", *x.shape)
    lost = torch.mul(dx, x, out=room).sum(5)
    if m.step is not None and dstep is not None:
        dstep.copy_(lost.flatten(3))
        lost *= m.step[..., 0]
        dx *= m.step
    ds = torch.mul(dy, y, out=room).sum(5).sub_(lost).flatten(3).transpose(1, 2).flatten(0, 1)
    end = (asked[-1] * states[-1]).unflatten(3, (m.share, m.size))
    ds[-1] += end.sum((2, 4)).flatten(1)
    ddecay.copy_(ds.flip(0).cumsum(0).flip(0).unflatten(0, (m.k, m.chunk)).transpose(1, 2))
    return asked[0].clone()
