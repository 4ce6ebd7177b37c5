"""Attention of candidates for the next state on what was observed (EBWM, Gladstone et al., 2024, arXiv 2406.08862).

Two streams share one set of weights. Observed vectors attend causally among themselves. The candidate behind position i
attends to what was observed up to i and to itself, and to no other candidate: all next states are judged in parallel.
What was observed never depends on a candidate, so its keys and values are computed once for any number of candidates.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightformers.errors import UserError
from lightformers.parts.attention.softmax import attend
from lightformers.parts.initial import linear, residual
from lightformers.parts.mixers.relative import join, split
from lightformers.parts.positions import turn, turns


class TwoStreamAttention(nn.Module):
    """heads: divide the width into an even size. Rotary positions: i of what was observed at i, i + 1 of the candidate.

    Raises UserError for heads that do not fit.
    """

    def __init__(self, width: int, heads: int, layers: int = 1, theta: float = 10000.0) -> None:
        super().__init__()
        if heads < 1 or width % heads or width // heads % 2:
            raise UserError(f"{heads} heads do not cut a width of {width} into even sizes")
        self.heads, self.size, self.theta = heads, width // heads, theta
        self.query, self.key, self.value = (linear(width, width, False, 0.02) for _ in range(3))
        self.out = linear(width, width, False, residual(0.02, layers))

    def observe(
        self, x: Tensor, place: Tensor, owner: Tensor | None, past: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """x (batch, n, width) at `place` (1, n) -> the output and keys and values so far, (batch, heads, all, size).

        owner: (batch, n) numbers of documents, which see themselves alone; None: one each. past: what came before; then
        x is one vector, or past is empty.
        """
        q, k, v = self._project(x, place)
        if past is not None:
            k, v = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
            if q.shape[2] > 1 and past[0].shape[2]:
                raise UserError("after a past, observe one position at a time")
            y = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=q.shape[2] > 1)
        else:
            y = attend(q, k, v, owner)
        return self.out(join(y)), (k, v)

    def judge(self, x: Tensor, place: Tensor, seen: Tensor, observed: tuple[Tensor, Tensor]) -> Tensor:
        """Candidates x (batch, m, width) at `place` (1, m), seen (batch or 1, 1, m, n) bool of what was observed -> the
        same shape. In plain products: fused kernels have no second derivative."""
        q, k, v = self._project(x, place)
        keys, values = observed
        scale = self.size**-0.5
        scores = (q @ keys.mT * scale).masked_fill(~seen, -torch.inf)
        own = (q * k).sum(-1, keepdim=True) * scale
        shares = torch.cat([scores, own], -1).softmax(-1)
        return self.out(join(shares[..., :-1] @ values + shares[..., -1:] * v))

    def _project(self, x: Tensor, place: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        cos, sin = turns(place, self.size, self.theta, x.dtype)
        q, k, v = (split(f(x), self.heads) for f in (self.query, self.key, self.value))
        return turn(q, cos, sin), turn(k, cos, sin), v
