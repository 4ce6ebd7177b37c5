"""Parts of a residual stream whose mean is zero: norms that subtract none, and what keeps it zero.

Pre-RMSNorm and Pre-CRMSNorm (Jiang et al., 2023, arXiv 2305.14858). Written in torch operations: no fused kernel of
these norms exists for the CPU, while `LayerNorm` has one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def rms_norm(x: Tensor, eps: float) -> Tensor:
    """`x / sqrt(mean(x^2) + eps)` over the last axis, in float32 for half inputs; equals LayerNorm at mean zero."""
    wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(x.dtype)


def crms_norm(x: Tensor, eps: float) -> Tensor:
    """RMSNorm of a zero-mean vector of d entries from its first d - 1: (..., d - 1) -> (..., d - 1).

    The missing entry is minus the sum of the others; the divisor is d.
    """
    wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    squares = wide.square().sum(-1, keepdim=True) + wide.sum(-1, keepdim=True).square()
    return (wide * torch.rsqrt(squares / (x.shape[-1] + 1) + eps)).to(x.dtype)


class RMSNorm(nn.Module):
    """`rms_norm(x) * weight + bias`; affine=False has neither. (..., width) -> (..., width)."""

    def __init__(self, width: int, eps: float = 1e-5, affine: bool = True, bias: bool = True) -> None:
        super().__init__()
        self.width, self.eps = width, eps
        self.weight = nn.Parameter(torch.ones(width)) if affine else None
        self.bias = nn.Parameter(torch.zeros(width)) if affine and bias else None

    @property
    def args(self) -> dict[str, Any]:
        """What a manifest needs to rebuild this part."""
        affine = {"affine": self.weight is not None, "bias": self.bias is not None}
        return {"width": self.width, "eps": self.eps, **affine}

    def _affine(self, normed: Tensor) -> Tensor:
        out = normed if self.weight is None else normed * self.weight
        return out if self.bias is None else out + self.bias

    def forward(self, x: Tensor) -> Tensor:
        return self._affine(rms_norm(x, self.eps))

    def extra_repr(self) -> str:
        return ", ".join(f"{key}={value}" for key, value in self.args.items())


class CRMSNorm(RMSNorm):
    """`crms_norm(x)` of a stream of width - 1. (..., width - 1) -> (..., width - 1), or all `width` with expand.

    With expand the missing entry is put back and weight and bias (width,) are applied: what comes out is LayerNorm's
    output, so a head behind it need not change. Without, there is neither weight nor bias.
    """

    def __init__(
        self, width: int, eps: float = 1e-5, expand: bool = False, affine: bool = True, bias: bool = True
    ) -> None:
        super().__init__(width, eps, affine and expand, bias)
        self.expand = expand

    @property
    def args(self) -> dict[str, Any]:
        return {**super().args, "expand": self.expand}

    def forward(self, x: Tensor) -> Tensor:
        normed = crms_norm(x, self.eps)
        if not self.expand:
            return normed
        return self._affine(torch.cat([normed, -normed.sum(-1, keepdim=True)], -1))


class StreamEntry(nn.Module):
    """Stands in for the dropout behind the embeddings: dropout, then the mean is taken off each vector.

    compress: also leave out the last entry, which the others determine. (..., width) -> (..., width or width - 1).
    Embedding tables stay as they are (a tied one has a second role), and class tokens, positions, registers and
    prompts are covered alike.
    """

    def __init__(self, p: float = 0.0, compress: bool = False) -> None:
        super().__init__()
        self.p, self.compress = p, compress

    @property
    def args(self) -> dict[str, Any]:
        """What a manifest needs to rebuild this part."""
        return {"p": self.p, "compress": self.compress}

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.dropout(x, self.p, self.training)
        mean = x.mean(-1, keepdim=True)
        return x[..., :-1] - mean if self.compress else x - mean

    def extra_repr(self) -> str:
        return f"p={self.p}, compress={self.compress}"


class ZeroMeanLinear(nn.Module):
    """A linear layer whose output has mean zero whatever is trained: re-centred at each forward.

    (..., in_features) -> (..., out_features). Holds `raw` (out, in) and `bias`; gradients lose their mean direction.
    """

    #: The matrix that is multiplied is not the stored one: whoever looks for `weight` is to find none.
    weight = None

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.raw = nn.Parameter(torch.empty(out_features, in_features))
        self.bias = nn.Parameter(torch.zeros(out_features)) if bias else None
        nn.init.normal_(self.raw, std=in_features**-0.5)

    @property
    def args(self) -> dict[str, Any]:
        """What a manifest needs to rebuild this layer."""
        sizes = {"in_features": self.in_features, "out_features": self.out_features}
        return {**sizes, "bias": self.bias is not None}

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias - self.bias.mean()
        return nn.functional.linear(x, self.raw - self.raw.mean(0), bias)

    def extra_repr(self) -> str:
        return ", ".join(f"{key}={value}" for key, value in self.args.items())
