"""Attention among what hashes alike: Reformer (Kitaev et al., 2020, arXiv 2001.04451)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightformers.errors import UserError
from lightformers.parts.attention.heads import neighbours
from lightformers.parts.attention.table import positive

#: The score of a position with itself: it attends to itself where it sees nothing else.
_SELF = -1e4


def hashed(q: Tensor, rotations: Tensor, mask: Tensor | None = None) -> Tensor:
    """Buckets of vectors: argmax over [qR, -qR]. q (batch, heads, n, size), rotations (rounds, size, buckets / 2) ->
    (batch, heads, rounds, n) whole numbers; padding is in a last bucket of its own."""
    with torch.no_grad():
        turned = torch.einsum("bhnd,rdk->bhrnk", q, rotations.to(q.dtype))
        if not turned.shape[-1]:
            found = torch.zeros(turned.shape[:-1], dtype=torch.long, device=q.device)
        else:
            found = torch.cat([turned, -turned], -1).argmax(-1)
        if mask is not None:
            found = found.masked_fill(~mask[:, None, None], 2 * turned.shape[-1] + 1)
        return found


def hashed_attention(
    q: Tensor, v: Tensor, rotations: Tensor, mask: Tensor | None = None, chunk: int = 64
) -> Tensor:
    """Attention among queries, which are keys as well, of one's bucket. (batch, heads, n, size) -> the same.

    In each round positions are sorted by bucket, then by place, and cut into chunks; one sees those of its bucket in its
    own chunk and the one before. Keys are queries of length one, and scores are not scaled further (as in the authors'
    code and in transformers). Rounds are joined by softmax over their log-sum-exp. Time and memory grow with
    n * chunk * rounds, and n log n for sorting. The first chunk has none before it (the authors': the last).
    """
    n = q.shape[2]
    chunk = min(chunk, n)
    buckets = hashed(q, rotations, mask)
    order = (buckets * n + torch.arange(n, device=q.device)).argsort(-1)
    more = -n % chunk

    def sort(x: Tensor) -> Tensor:
        """(batch, heads, n, size) -> (batch, heads, rounds, chunks, chunk, size)."""
        wide = x[:, :, None].expand(*order.shape[:3], *x.shape[2:])
        taken = wide.gather(3, order[..., None].expand_as(wide))
        return nn.functional.pad(taken, (0, 0, 0, more)).unflatten(3, (-1, chunk))

    def label(x: Tensor) -> Tensor:
        return nn.functional.pad(x, (0, more), value=-1).unflatten(3, (-1, chunk))

    def before(x: Tensor) -> Tensor:
        """Positions of the chunk before and one's own."""
        wide = neighbours(x, 3)
        return wide.narrow(4, 0, 2 * chunk)

    qs, vs = sort(q), sort(v)
    keys = qs * (qs.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * q.shape[-1] ** -0.5
    place, own = label(order), label(buckets.gather(-1, order))
    # moved by one, so that the zeros before the first chunk are nobody's place and bucket
    theirs, alike = before(place + 1)[..., None, :], before(own + 1)[..., None, :]
    scores = qs @ before(keys).transpose(-1, -2)
    scores = scores.masked_fill(theirs == (place + 1)[..., None], _SELF)
    scores = scores.masked_fill(alike != (own + 1)[..., None], torch.finfo(scores.dtype).min)
    total = scores.logsumexp(-1, keepdim=True)
    out = (scores - total).exp() @ before(vs)
    back = order.argsort(-1)[..., None]
    out = out.flatten(3, 4).gather(3, back.expand(*back.shape[:-1], v.shape[-1]))
    total = total.flatten(3, 4).gather(3, back)
    return (out * total.softmax(2)).sum(2)


class ReformerAttention(nn.Module):
    """`hashed_attention` as a core; queries are keys, so it has no keys of its own.

    buckets: even, or 1 for all in one; chunk: positions of a chunk (the benchmark: 10 buckets, chunks of 10; the
    benchmark's code multiplies scores by the root of the size); rounds: hashes, drawn once from `seed`.
    """

    reads, second, anywhere = "qv", False, False
    rotations: Tensor

    def __init__(
        self, heads: int, size: int, buckets: int = 16, chunk: int = 64, rounds: int = 2, seed: int = 0
    ) -> None:
        super().__init__()
        positive(buckets=buckets, chunk=chunk, rounds=rounds)
        if buckets > 1 and buckets % 2:
            raise UserError(f"buckets lie opposite to each other: an even number or 1, not {buckets}")
        self.chunk = chunk
        drawn = torch.randn(rounds, size, buckets // 2, generator=torch.Generator().manual_seed(seed))
        self.register_buffer("rotations", drawn)

    def forward(self, q: Tensor, k: Tensor | None, v: Tensor, mask: Tensor | None = None) -> Tensor:
        return hashed_attention(q, v, self.rotations, mask, self.chunk)

    def equals_softmax(self, n: int) -> bool:
        return n == 1  # keys are normalised queries
