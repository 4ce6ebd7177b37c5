"""Softmax-weighted means of all prefixes of a sequence: attention of one query, as it grows token by token.

Feng et al. (2024, arXiv 2405.13956). A segment is held as (m, u, w): its largest score, the sum of exp(score - m), and
the sum of values weighted so. Two segments make one, in any grouping:

    m = max(m_a, m_b),    u = u_a exp(m_a - m) + u_b exp(m_b - m),    w likewise;    the mean is w / u
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lightformers.errors import UserError
from lightformers.kernels.chunks import cut, exact, joined

#: Tokens of a block.
BLOCK = 32
#: The score of nothing: finite, so that the difference of two of them is a number.
NOTHING = -1e30


class Segment(NamedTuple):
    """m, u: (batch, heads, ...); w: (batch, heads, ..., size). No gradient flows through m: w / u depends on none."""

    m: Tensor
    u: Tensor
    w: Tensor

    @property
    def mean(self) -> Tensor:
        """w / u, and 0 for a segment of nothing."""
        return self.w / torch.where(self.u > 0, self.u, 1.0)[..., None]


def nothing(
    batch: int,
    heads: int,
    size: int,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Segment:
    """The segment without tokens."""
    u = torch.zeros(batch, heads, device=device, dtype=dtype)
    return Segment(torch.full_like(u, NOTHING), u, u.new_zeros(batch, heads, size))


def join(a: Segment, b: Segment) -> Segment:
    """Two neighbours as one."""
    m = torch.maximum(a.m, b.m).detach()
    left, right = (a.m - m).exp(), (b.m - m).exp()
    return Segment(m, a.u * left + b.u * right, a.w * left[..., None] + b.w * right[..., None])


def reference(
    scores: Tensor,
    values: Tensor,
    mask: Tensor | None = None,
    state: Segment | None = None,
    starts: Tensor | None = None,
) -> tuple[Tensor, Segment]:
    """The equation token by token. Arguments and results as in `prefix_softmax`."""
    kind = _check(scores, values, mask, state, starts)
    empty = nothing(len(scores), scores.shape[1], values.shape[-1], values.device, kind)
    held, out = empty if state is None else state, []
    for t in range(scores.shape[2]):
        if starts is not None:
            begins = starts[:, t, None]
            held = Segment(
                *(
                    torch.where(begins if x.dim() == 2 else begins[..., None], e, x)
                    for e, x in zip(empty, held)
                )
            )
        token = step(scores[:, :, t].to(kind), values[:, :, t].to(kind), held)
        if mask is not None:
            there = mask[:, t, None] != 0
            token = Segment(
                *(torch.where(there if x.dim() == 2 else there[..., None], x, h) for x, h in zip(token, held))
            )
        held = token
        out.append(held.mean)
    return torch.stack(out, 2).to(values.dtype), held


def step(score: Tensor, value: Tensor, state: Segment) -> Segment:
    """One token more: score (batch, heads), value (batch, heads, size)."""
    kind = exact(state.u)
    return join(state, Segment(score.to(kind), torch.ones_like(state.u), value.to(kind)))


def prefix_softmax(
    scores: Tensor,
    values: Tensor,
    mask: Tensor | None = None,
    state: Segment | None = None,
    starts: Tensor | None = None,
    block: int = BLOCK,
) -> tuple[Tensor, Segment]:
    """(means (batch, heads, n, size), the segment of all tokens): out_i = sum_j<=i softmax(scores_1..i)_j values_j.

    scores: (batch, heads, n). values: (batch, heads, n, size). mask: (batch, n), 0 at padding, which counts as nothing;
    the mean of nothing is 0. state: what came before the first token. starts: (batch, n) bool, true where a document
    starts: nothing is before it. Prefixes within blocks are one product each; the blocks' totals are a sequence of
    segments again, block times shorter: time and memory are linear in n. It runs in float32 or better, outputs have the
    dtype of values. Raises UserError for shapes that do not agree and blocks below 2.
    """
    kind = _check(scores, values, mask, state, starts)
    if block < 2:
        raise UserError(f"a block needs at least 2 tokens, not {block}")
    score, value, one = scores.to(kind), values.to(kind), torch.ones_like(scores, dtype=kind)
    if mask is not None:
        there = (mask != 0)[:, None]
        score, one, value = score.masked_fill(~there, NOTHING), one * there, value * there[..., None]
    leaves = Segment(score, one, value)
    if state is not None:
        leaves = Segment(*(torch.cat([s[:, :, None], x], 2) for s, x in zip(state, leaves)))
        if starts is not None:
            starts = torch.nn.functional.pad(starts, (1, 0))
    begins = None if starts is None else starts[:, None]
    with torch.autocast(values.device.type, enabled=False):  # the products of matrices too are exact
        m, u, w = _prefixes(leaves, begins, block)
    out = Segment(m, u, w).mean[:, :, -scores.shape[2] :]
    return out.to(values.dtype), Segment(m[:, :, -1].clone(), u[:, :, -1].clone(), w[:, :, -1].clone())


def _prefixes(leaves: Segment, begins: Tensor | None, block: int) -> Segment:
    """Segments (batch, heads, n) in a row -> those of all prefixes, from the last document's start on."""
    n = leaves.m.shape[2]
    block = min(block, n)
    m, u, w = (cut(x, block) for x in leaves)
    number = None if begins is None else cut(begins.long(), block).cumsum(-1)
    later = torch.ones(block, block, dtype=torch.bool, device=m.device).triu(1)
    shut = later if number is None else later | (number[..., :, None] != number[..., None, :])
    scores = m[..., None, :].masked_fill(shut, -torch.inf)
    top = scores.detach().amax(-1)
    sums = (scores - top[..., None]).exp() @ torch.cat([w, u[..., None]], -1)
    inner = Segment(top, sums[..., -1], sums[..., :-1])
    if n > block:
        ends = Segment(top[..., -1], inner.u[..., -1], inner.w[..., -1, :])
        whole = _prefixes(ends, None if number is None else number[..., -1] > 0, block)
        before = Segment(*(torch.cat([x[:, :, :1], x[:, :, :-1]], 2).unsqueeze(3) for x in whole))
        first = torch.arange(m.shape[2], device=m.device)[:, None] == 0
        closed = first if number is None else first | (number > 0)
        before = Segment(
            before.m.expand_as(top).masked_fill(closed, NOTHING),
            before.u.masked_fill(closed, 0.0),
            before.w.masked_fill(closed[..., None], 0.0),
        )
        inner = join(before, inner)
    return Segment(*(joined(x, n) for x in inner))


def _check(
    scores: Tensor, values: Tensor, mask: Tensor | None, state: Segment | None, starts: Tensor | None
) -> torch.dtype:
    if scores.dim() != 3 or values.shape[:3] != scores.shape or values.dim() != 4 or not scores.shape[2]:
        raise UserError(
            f"scores must be (batch, heads, n) and values (batch, heads, n, size), not {tuple(scores.shape)} and "
            f"{tuple(values.shape)}"
        )
    rows = (scores.shape[0], scores.shape[2])
    for name, given in (("mask", mask), ("starts of documents", starts)):
        if given is not None and given.shape != rows:
            raise UserError(f"the {name} is {tuple(given.shape)}, not {rows}: (batch, n)")
    if state is not None and state.w.shape != (*scores.shape[:2], values.shape[3]):
        raise UserError(f"the state is of {tuple(state.w.shape)}: it belongs to another model or batch")
    return exact(values)
