"""Plain softmax attention as a core: the measure of all others."""

from __future__ import annotations

from torch import Tensor, nn


class FullAttention(nn.Module):
    """softmax(qk' / sqrt(size)) v over all tokens, by torch's fused kernel. Time grows with n * n."""

    reads, second, anywhere = "qkv", False, True

    def __init__(self, heads: int, size: int) -> None:
        super().__init__()

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        seen = None if mask is None else mask[:, None, None, :]
        return nn.functional.scaled_dot_product_attention(q, k, v, seen)

    def equals_softmax(self, n: int) -> bool:
        return True
