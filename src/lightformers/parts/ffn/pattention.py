"""Pattention: projections as attention over learned parameter tokens (Wang et al., 2024, arXiv 2410.23168).

Appending tokens makes a layer larger and leaves every other shape as it is: a trained model grows.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightformers.errors import UserError

Norm = Literal["l2_norm_gelu", "gelu_l2_norm", "softmax"]
Init = Literal["zero", "random"]
#: Beside the length of a row of scores, as in the authors' JAX code: a row of zeros stays zeros.
_EPS = 1e-5


def pattention(
    x: Tensor, keys: Tensor, values: Tensor, scale: Tensor | float | None = None, norm: Norm = "l2_norm_gelu"
) -> Tensor:
    """a(x K') V. x: (..., in), keys K: (n, in), values V: (n, out) -> (..., out).

    scale: tau, sqrt(n) by default. a, with s = x K' in float32 or better: "l2_norm_gelu" gelu(tau s / |s|),
    "gelu_l2_norm" tau gelu(s) / |gelu(s)|, "softmax" tau^2 softmax(s). gelu is the exact one.
    """
    tau = len(keys) ** 0.5 if scale is None else scale
    scores = F.linear(x, keys)
    s = scores.to(torch.promote_types(scores.dtype, torch.float32))
    if norm == "softmax":
        shares = tau * tau * s.softmax(-1)
    elif norm == "gelu_l2_norm":
        shares = tau * _unit(F.gelu(s))
    else:
        shares = F.gelu(tau * _unit(s))
    return F.linear(shares.to(scores.dtype), values.T)


def _unit(s: Tensor) -> Tensor:
    return s / (torch.linalg.vector_norm(s, dim=-1, keepdim=True) + _EPS)


class Pattention(nn.Module):
    """`pattention` with its own tokens, in place of a linear layer. (..., in_features) -> (..., out_features).

    Holds tokens * (in + out) weights and costs as many multiply-adds per position. It sees the direction of x alone,
    not its length. layers: of the model, for the start: keys normal with std 0.02, values with 2 / (layers sqrt(in)).
    counted: a buffer, the number of tokens that tau is the root of; fewer than there are after growth that kept the
    function (`grow`). A whole number, so that half precision leaves it alone.
    """

    counted: Tensor

    def __init__(
        self, in_features: int, out_features: int, tokens: int, norm: Norm = "l2_norm_gelu", layers: int = 1
    ) -> None:
        super().__init__()
        if tokens < 1 or layers < 1:
            raise UserError(f"parameter tokens and layers are at least 1, got {tokens} and {layers}")
        if norm not in get_args(Norm):
            raise UserError(f"{norm!r} is not one of {', '.join(get_args(Norm))}")
        self.in_features, self.out_features, self.norm, self.layers = in_features, out_features, norm, layers
        self.keys = nn.Parameter(torch.empty(tokens, in_features))
        self.values = nn.Parameter(torch.empty(tokens, out_features))
        self.register_buffer("counted", torch.tensor(tokens))
        _draw(self.keys, self.values, layers)

    @property
    def tokens(self) -> int:
        return len(self.keys)

    def forward(self, x: Tensor) -> Tensor:
        exact = torch.promote_types(x.dtype, torch.float32)
        return pattention(x, self.keys, self.values, self.counted.to(exact).sqrt(), self.norm)

    @torch.no_grad()
    def grow(self, tokens: int, init: Init = "zero", keep: bool = True) -> None:
        """Append tokens up to `tokens` in all, in place; those that are there stay the first. The parameters are new
        tensors: an optimizer must be told (`train.growth`).

        init: keys of the new ones: "zero" (the paper), or "random" as at the start (the released code); values are
            random either way, or nothing would ever learn. keep: tau stays what it was: with keys of zero the function
            is then the same as before, but for "softmax". Raises UserError for fewer tokens than there are.
        """
        if tokens < self.tokens:
            raise UserError(f"{self.tokens} tokens cannot grow to {tokens}")
        if init not in get_args(Init):
            raise UserError(f"init {init!r} is not one of {', '.join(get_args(Init))}")
        more = tokens - self.tokens
        keys, values = (
            self.keys.new_zeros(more, self.in_features),
            self.values.new_empty(more, self.out_features),
        )
        _draw(keys, values, self.layers)
        if init == "zero":
            keys.zero_()
        self.keys = nn.Parameter(torch.cat([self.keys, keys]), self.keys.requires_grad)
        self.values = nn.Parameter(torch.cat([self.values, values]), self.values.requires_grad)
        if not keep:
            self.counted.fill_(tokens)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, tokens={self.tokens}, norm={self.norm}"


def feed_forward(
    width: int, *, tokens: int | None = None, norm: Norm = "l2_norm_gelu", layers: int = 1
) -> Pattention:
    """One Pattention in place of both layers of a feed-forward; tokens: 4 * width by default."""
    return Pattention(width, width, tokens or 4 * width, norm, layers)


@torch.no_grad()
def _draw(keys: Tensor, values: Tensor, layers: int) -> None:
    nn.init.normal_(keys, std=0.02)
    nn.init.normal_(values, std=2 / (layers * keys.shape[-1] ** 0.5))
