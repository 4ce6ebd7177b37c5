"""Attention to a few mixtures of all positions: Linformer (Wang et al., 2020, arXiv 2006.04768)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from lightformers.errors import UserError
from lightformers.parts.attention.heads import attend
from lightformers.parts.attention.table import positive, within


def pooling(rank: int, length: int) -> Tensor:
    """(rank, length): row r takes the mean over its share of the positions; the identity where rank is length."""
    place = torch.arange(length) * rank // length
    rows = nn.functional.one_hot(place, rank).T.float()
    return rows / rows.sum(1, keepdim=True)


class LinformerAttention(nn.Module):
    """Keys and values are projected from `length` positions to `rank`. Time and memory grow with n * rank.

    Fewer positions than `length` use the first columns of the projections; keys and values of padding count as zero.
    No causal form exists: a mixture of positions holds later ones.

    share_heads: one projection for all heads, share_kv: for keys and values (the benchmark: both; rank 16, text 32).
    start: projections begin random, as in the paper, or as means of neighbours ("pool"; the identity at full rank).
    """

    reads, second, anywhere = "qkv", False, False

    def __init__(
        self, heads: int, size: int, length: int = 512, rank: int = 32, share_heads: bool = True,
        share_kv: bool = False, start: Literal["random", "pool"] = "random",
    ) -> None:  # fmt: skip
        super().__init__()
        positive(length=length, rank=rank)
        if rank > length or start not in ("random", "pool"):
            raise UserError(
                f'rank lies between 1 and length, start is "random" or "pool"; got {rank}, {length}, {start!r}'
            )
        self.length = length
        shape = (1 if share_heads else heads, rank, length)

        def begin() -> nn.Parameter:
            if start == "pool":
                return nn.Parameter(pooling(rank, length).expand(shape).clone())
            return nn.Parameter(torch.randn(shape) * rank**-0.5)

        self.keys = begin()
        self.values = None if share_kv else begin()

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        n = q.shape[2]
        within(n, self.length, "linformer")
        if mask is not None:
            k, v = (x * mask[:, None, :, None].to(x.dtype) for x in (k, v))
        keys, values = self.keys, self.keys if self.values is None else self.values
        return attend(q, keys[..., :n].to(k.dtype) @ k, values[..., :n].to(v.dtype) @ v)

    def equals_softmax(self, n: int) -> bool:
        """At full length alone: with fewer positions, mixtures of nothing take their share of the softmax."""
        held = [self.keys] if self.values is None else [self.keys, self.values]
        whole = self.keys.shape[1] == self.length == n
        return whole and all(bool((p == torch.eye(n, device=p.device)).all()) for p in held)
