"""The norm of Mamba-2's output: gate, then RMS over groups of channels (Dao and Gu, 2024, arXiv 2405.21060)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightformers.errors import UserError


class GatedRMSNorm(nn.Module):
    """RMSNorm(x * silu(gate)) * weight, each of `groups` groups of channels for itself. (..., width) -> the same.

    Computed in float32 or better. Raises UserError where the groups do not divide the width.
    """

    def __init__(self, width: int, groups: int = 1, eps: float = 1e-5) -> None:
        super().__init__()
        if groups < 1 or width % groups:
            raise UserError(f"{groups} groups do not divide {width} channels")
        self.groups, self.eps = groups, eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        exact = torch.promote_types(x.dtype, torch.float32)
        gated = (x.to(exact) * nn.functional.silu(gate.to(exact))).unflatten(-1, (self.groups, -1))
        normed = nn.functional.rms_norm(gated, gated.shape[-1:], eps=self.eps).flatten(-2)
        return (normed * self.weight.to(exact)).to(x.dtype)
