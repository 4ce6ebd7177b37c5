"""Attention inside blocks, the simplest there is (Long Range Arena, Tay et al., 2020, arXiv 2011.04006)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightformers.parts.attention.heads import attend, blocks, real
from lightformers.parts.attention.table import positive


def local(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, block: int = 64, causal: bool = False
) -> Tensor:
    """Softmax attention to the positions of one's own block of `block` neighbours. (batch, heads, n, size) each.

    Time and memory grow with n * block. Blocks are contiguous; the benchmark's code, by a transposed reshape, takes
    positions that are a number of blocks apart.
    """
    n = q.shape[2]
    block = min(block, n)
    seen = real(mask, n, block, q.device)[..., None, :]
    if causal:
        seen = seen & torch.ones(block, block, dtype=torch.bool, device=q.device).tril()
    return attend(blocks(q, block), blocks(k, block), blocks(v, block), seen).flatten(2, 3)[:, :, :n]


class LocalAttention(nn.Module):
    """`local` as a core. block: positions of a block (the benchmark: 20, images 64). causal: none sees later ones."""

    reads, second, anywhere = "qkv", False, False

    def __init__(self, heads: int, size: int, block: int = 64, causal: bool = False) -> None:
        super().__init__()
        positive(block=block)
        self.block, self.causal = block, causal

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        return local(q, k, v, mask, self.block, self.causal)

    def equals_softmax(self, n: int) -> bool:
        return n <= self.block and (not self.causal or n == 1)
