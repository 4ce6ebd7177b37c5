"""Fixed sparse attention: Sparse Transformer (Child et al., 2019, arXiv 1904.10509)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightformers.errors import UserError
from lightformers.parts.attention.heads import blocks, real, softmax
from lightformers.parts.attention.table import positive


def sparse(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, block: int = 128, columns: int = 32,
    causal: bool = False,
) -> Tensor:  # fmt: skip
    """Softmax attention to one's own block and to the last `columns` positions of every other (earlier) block.

    (batch, heads, n, size) each. Time and memory grow with n * (block + n * columns / block), so with n ** 1.5 where
    block is the root of n; no n x n mask is made. What differs from the benchmark's code: it lets everybody see the
    first position of each block as well, and the classification token see and be seen.
    """
    n = q.shape[2]
    block = min(block, n)
    columns = min(columns, block)
    there = real(mask, n, block, q.device)  # (batch, 1, N, block)
    qs, ks, vs = (blocks(x, block) for x in (q, k, v))
    count = qs.shape[2]
    far_k, far_v = (x[..., -columns:, :].flatten(2, 3) for x in (ks, vs))  # (batch, heads, N * columns, size)
    own = torch.arange(count, device=q.device)
    theirs = own.repeat_interleave(columns)
    other = theirs[None] < own[:, None] if causal else theirs[None] != own[:, None]  # (N, N * columns)
    far = (there[..., -columns:].flatten(2)[:, :, None] & other)[:, :, :, None]
    near = there[..., None, :]
    if causal:
        near = near & torch.ones(block, block, dtype=torch.bool, device=q.device).tril()
    near = near.expand(-1, -1, -1, block, -1)
    scores = torch.cat([qs @ ks.transpose(-1, -2), qs @ far_k.transpose(-1, -2)[:, :, None]], -1)
    weights = softmax(scores * q.shape[-1] ** -0.5, torch.cat([near, far.expand(-1, -1, -1, block, -1)], -1))
    out = weights[..., :block] @ vs + weights[..., block:] @ far_v[:, :, None]
    return out.flatten(2, 3)[:, :, :n]


class SparseAttention(nn.Module):
    """`sparse` as a core. block, columns: 128 and 32 (the benchmark: 50 and 10). causal: as in the paper; without it
    all blocks give their last columns to all."""

    reads, second, anywhere = "qkv", False, False

    def __init__(
        self, heads: int, size: int, block: int = 128, columns: int = 32, causal: bool = False
    ) -> None:
        super().__init__()
        positive(block=block, columns=columns)
        if columns > block:
            raise UserError(f"a block of {block} positions has no {columns} columns to show")
        self.block, self.columns, self.causal = block, columns, causal

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        return sparse(q, k, v, mask, self.block, self.columns, self.causal)

    def equals_softmax(self, n: int) -> bool:
        return (not self.causal or n == 1) and (n <= self.block or self.columns == self.block)
