"""Softmax attention by random features: Performer, FAVOR+ (Choromanski et al., 2021, arXiv 2009.14794)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from lightformers.errors import UserError
from lightformers.parts.attention.heads import precise
from lightformers.parts.attention.linear import feature_attention
from lightformers.parts.attention.table import positive

_EPS = 1e-6


def orthogonal(features: int, size: int, seed: int = 0) -> Tensor:
    """(features, size): Gaussian directions, orthogonal within blocks of `size`, with the lengths of Gaussian vectors."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(-(-features // size)):
        turned, signs = torch.linalg.qr(torch.randn(size, size, generator=generator))
        # QR alone prefers one side in every direction, which would bias the estimate (Mezzadri, math-ph/0609050)
        made.append((turned * signs.diagonal().sign()).T)
    lengths = torch.randn(features, size, generator=generator).norm(dim=1, keepdim=True)
    return torch.cat(made)[:features] * lengths


def positive_features(
    x: Tensor, directions: Tensor, most: tuple[int, ...] = (), mask: Tensor | None = None
) -> Tensor:
    """exp(w.x - |x|^2 / 2 - c) / sqrt(m) + 1e-6 with x / size^(1/4): (..., n, size) -> (..., n, m).

    most: dimensions over which the largest w.x is c, against overflow: (-1,) for queries, (-1, -2) for keys (c must
    be one for all keys); () takes none, as causal attention must. mask: (batch, n) bool, where tokens are.
    """
    x = x * x.shape[-1] ** -0.25
    found = x @ directions.to(x.dtype).T
    if most:
        shown = found if mask is None else found.masked_fill(~mask[:, None, :, None], -torch.inf)
        top = shown.detach().amax(most, keepdim=True)
        found = found - torch.where(top.isfinite(), top, 0)
    found = found - x.square().sum(-1, keepdim=True) / 2
    if mask is not None:  # what stands at padding must not overflow
        found = found.masked_fill(~mask[:, None, :, None], 0)
    return (found.exp() + _EPS) * directions.shape[0] ** -0.5


class PerformerAttention(nn.Module):
    """Time and memory grow with n * features.

    features: how many directions; the error of softmax shrinks with their root. They are drawn once from `seed`, saved
    and not redrawn. kernel: "softmax", or "relu": relu(x) + 0.001 without directions, the paper's generalised
    attention and the benchmark's default. causal: none sees later ones; then nothing is taken off exponents, which
    very long queries could overflow.
    """

    reads, second, anywhere = "qkv", False, True
    directions: Tensor | None

    def __init__(
        self, heads: int, size: int, features: int = 256, kernel: Literal["softmax", "relu"] = "softmax",
        causal: bool = False, seed: int = 0,
    ) -> None:  # fmt: skip
        super().__init__()
        positive(features=features)
        if kernel not in ("softmax", "relu"):
            raise UserError(f'kernel is "softmax" or "relu", not {kernel!r}')
        self.causal = causal
        self.register_buffer("directions", orthogonal(features, size, seed) if kernel == "softmax" else None)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        if self.directions is None:
            return feature_attention(q.relu() + 1e-3, k.relu() + 1e-3, v, mask, self.causal)
        with torch.autocast(q.device.type, enabled=False):
            wide_q, wide_k = precise(q, k)
            most = ((), ()) if self.causal else ((-1,), (-1, -2))
            features_q = positive_features(wide_q, self.directions, most[0], mask)
            features_k = positive_features(wide_k, self.directions, most[1], mask)
        return feature_attention(features_q, features_k, v, mask, self.causal)

    def equals_softmax(self, n: int) -> bool:
        return False
