"""Attention as a product of features: Linear Transformer (Katharopoulos et al., 2020, arXiv 2006.16236)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightformers.parts.attention.heads import blocks, precise

_EPS = 1e-6
_CHUNK = 128


def feature_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, causal: bool = False
) -> Tensor:
    """q_i . sum_j k_j v_j' / (q_i . sum_j k_j + 1e-6) for features q, k >= 0 (batch, heads, n, features).

    Sums are taken first, so time grows with n * features * size; with `causal` over j <= i, in chunks. In float32 or
    better, whatever comes in and out.
    """
    kind = v.dtype
    with torch.autocast(v.device.type, enabled=False):
        q, k, v = precise(q, k, v)
        if mask is not None:
            k = k * mask[:, None, :, None].to(k.dtype)
        v = torch.cat([v, torch.ones_like(v[..., :1])], -1)  # the last column is the denominator
        out = _causal(q, k, v) if causal else q @ (k.transpose(-1, -2) @ v)
        return (out[..., :-1] / (out[..., -1:] + _EPS)).to(kind)


def _causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    n = q.shape[2]
    chunk = min(_CHUNK, n)
    qs, ks, vs = (blocks(x, chunk) for x in (q, k, v))
    sums = (ks.transpose(-1, -2) @ vs).cumsum(2)
    before = nn.functional.pad(sums, (0, 0, 0, 0, 1, 0))[:, :, :-1]
    out = (qs @ ks.transpose(-1, -2)).tril() @ vs + qs @ before
    return out.flatten(2, 3)[:, :, :n]


class LinearAttention(nn.Module):
    """Features elu(x) + 1. causal: none sees later ones."""

    reads, second, anywhere = "qkv", False, True

    def __init__(self, heads: int, size: int, causal: bool = False) -> None:
        super().__init__()
        self.causal = causal

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        return feature_attention(nn.functional.elu(q) + 1, nn.functional.elu(k) + 1, v, mask, self.causal)

    def equals_softmax(self, n: int) -> bool:
        return False
