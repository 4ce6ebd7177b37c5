"""Helpers of structured layers: a dense matrix that assists early in training, and one merged for few tokens."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lightformers.errors import UserError
from lightformers.parts.ffn.structured import Structured, dense


class Guided(nn.Module):
    """Self-guided training (Wei et al., 2024, arXiv 2406.16450): y = share * W x + (1 - share) * layer(x).

    W starts as the dense matrix that the layer is, so that nothing changes at first. (The released code forgets the
    shuffle in that product.) share: 1 at the start, a buffer, so that it is saved; `active` False leaves the
    dense product out. `train.guidance` moves both; then `layer` alone is kept.
    """

    def __init__(self, layer: Structured) -> None:
        super().__init__()
        self.layer = layer
        self.guide = nn.Parameter(dense(layer).detach().clone())
        self.register_buffer("share", torch.ones(()))
        self.active = True

    share: Tensor

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x)
        if not self.active:
            return out
        guided = nn.functional.linear(x, self.guide, self.layer.bias)
        return torch.lerp(out, guided, self.share.to(out.dtype))


class Premerged(nn.Module):
    """A structured layer that multiplies with its merged matrix where a call has few tokens, as in decoding.

    most: tokens of a call up to which the merged matrix is used; where it pays depends on width and machine, measure
    it. Training uses the factors; going to eval mode and loading weights merge anew, as does `refresh` after other
    changes. The merged matrix is no part of a checkpoint. Memory: that of both.
    """

    merged: Tensor

    def __init__(self, layer: Structured, most: int = 16) -> None:
        super().__init__()
        if most < 0:
            raise UserError(f"the number of tokens must not be negative, got {most}")
        self.layer, self.most = layer, most
        self.register_buffer("merged", torch.empty(0), persistent=False)
        self.register_load_state_dict_post_hook(lambda module, _: module.refresh())
        self.refresh()

    def forward(self, x: Tensor) -> Tensor:
        few = x.numel() <= self.most * x.shape[-1]
        if self.training or not few:
            out: Tensor = self.layer(x)
            return out
        return nn.functional.linear(x, self.merged, self.layer.bias)

    @torch.no_grad()
    def refresh(self) -> None:
        """Merge the factors as they are now."""
        self.merged = dense(self.layer).contiguous()

    def train(self, mode: bool = True) -> Any:
        super().train(mode)
        if not mode:
            self.refresh()
        return self
