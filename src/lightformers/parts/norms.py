"""RMSNorm that trains quickly on a CPU."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightformers.kernels.rms_norm import rms_norm
from lightformers.parts.recording import eager


class RMSNorm(nn.RMSNorm):
    """`nn.RMSNorm`, for wherever that is expected: (..., width) -> the same, in fewer passes and calls."""

    def forward(self, x: Tensor) -> Tensor:
        quick = x.dtype in (torch.float32, torch.float64) and eager(x)
        if quick and self.weight is not None and self.weight.dtype == x.dtype and self.eps is not None:
            return rms_norm(x, self.weight, self.eps)
        return super().forward(x)
