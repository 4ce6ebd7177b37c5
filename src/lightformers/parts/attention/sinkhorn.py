"""Attention to blocks that are sorted first: Sparse Sinkhorn Attention (Tay et al., 2020, arXiv 2002.11296)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightformers.errors import UserError
from lightformers.parts.attention.heads import attend, blocks, precise, real
from lightformers.parts.attention.table import positive, within

_NOTHING = -1e9


def balanced(scores: Tensor, there: Tensor, rounds: int) -> Tensor:
    """Sinkhorn normalisation in logarithms: (..., blocks, blocks) scores -> weights whose rows, and with more rounds
    columns, sum to 1. there: (..., blocks) bool, blocks that take part. rounds 0: softmax over rows alone."""
    hidden = ~(there[..., :, None] & there[..., None, :])
    (scores,) = precise(scores)
    scores = scores.masked_fill(hidden, _NOTHING)
    for _ in range(rounds):
        scores = (scores - scores.logsumexp(-2, keepdim=True)).masked_fill(hidden, _NOTHING)
        scores = (scores - scores.logsumexp(-1, keepdim=True)).masked_fill(hidden, _NOTHING)
    return scores.softmax(-1).masked_fill(hidden, 0)


def sorted_attention(
    q: Tensor, k: Tensor, v: Tensor, weight: Tensor, mask: Tensor | None = None, block: int = 64, rounds: int = 8
) -> Tensor:  # fmt: skip
    """Attention inside one's own block, plus attention to the block that sorting brings there.

    (batch, heads, n, size) each. weight (most blocks, size) maps the sum of a block's keys to a score for each block
    that could stand in its place; sorted blocks are mixtures by the balanced scores. Time and memory grow with
    n * (block + n / block). The benchmark's code loses the sorting (its sum does not join the blocks with the scores).
    """
    n = q.shape[2]
    there = real(mask, n, block, q.device)
    qs, ks, vs = (blocks(x, block) for x in (q, k, v))
    shown = there[..., None].to(k.dtype)
    ks, vs = ks * shown, vs * shown
    scores = ks.sum(3) @ weight[: ks.shape[2]].to(k.dtype).T
    order = balanced(scores, there.any(-1), rounds).to(k.dtype)

    def sort(x: Tensor) -> Tensor:
        return (order @ x.flatten(3)).unflatten(3, (block, -1))

    mixed = order @ shown.squeeze(-1) > 0  # places that no block fills stay empty
    own = attend(qs, ks, vs, there[..., None, :])
    other = attend(qs, sort(ks), sort(vs), mixed[..., None, :])
    return (own + other).flatten(2, 3)[:, :, :n]


class SinkhornAttention(nn.Module):
    """`sorted_attention` as a core.

    block: positions of a block (the benchmark: 50); length: most positions; rounds: of balancing (0, a softmax, is
    what the benchmark's code does).
    """

    reads, second, anywhere = "qkv", False, False

    def __init__(self, heads: int, size: int, block: int = 64, length: int = 4096, rounds: int = 8) -> None:
        super().__init__()
        positive(block=block, length=length)
        if rounds < 0:
            raise UserError(f"rounds of balancing are at least 0, not {rounds}")
        self.block, self.length, self.rounds = block, length, rounds
        self.weight = nn.Parameter(torch.randn(-(-length // block), size) * size**-0.5)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        within(q.shape[2], self.length, "sinkhorn")
        return sorted_attention(q, k, v, self.weight, mask, self.block, self.rounds)

    def equals_softmax(self, n: int) -> bool:
        return False
