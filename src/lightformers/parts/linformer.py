"""Linformer (Wang et al., 2020, arXiv 2006.04768): attention to a few mixtures of all positions."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightformers.errors import UserError


class LinformerAttention(nn.Module):
    """Self-attention of an encoder whose keys and values are projected from `length` positions to `rank`.

    (batch, n, width) -> (batch, n, width) for n <= length; time and memory grow with n * rank. No causal form exists:
    a mixture of positions holds later ones.
    share_heads: one projection for all heads. share_kv: keys and values are projected alike.
    """

    def __init__(
        self, width: int, heads: int, length: int, rank: int, share_heads: bool = True, share_kv: bool = False
    ) -> None:
        super().__init__()
        if width % heads or not 1 <= rank <= length:
            raise UserError(
                f"{heads} heads must divide the width {width}, and rank {rank} lie between 1 and {length}"
            )
        self.heads, self.length, self.rank = heads, length, rank
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        shape = (1 if share_heads else heads, rank, length)
        self.project_keys = nn.Parameter(torch.randn(shape) * rank**-0.5)
        self.project_values = self.project_keys if share_kv else nn.Parameter(torch.randn(shape) * rank**-0.5)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """mask: (batch, n), 0 at padding, whose keys and values count as zero. UserError for n > length."""
        n = x.shape[1]
        if n > self.length:
            raise UserError(f"{n} positions are more than the {self.length} that this Linformer was made for")
        q, k, v = (
            f(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.query, self.key, self.value)
        )
        if mask is not None:
            k, v = (t * mask[:, None, :, None].to(t.dtype) for t in (k, v))
        k, v = self.project_keys[..., :n] @ k, self.project_values[..., :n] @ v
        states = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.out(states.transpose(1, 2).flatten(2))
