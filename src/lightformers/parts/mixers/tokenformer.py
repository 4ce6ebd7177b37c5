"""Attention whose four projections are attention over parameter tokens (Wang et al., 2024, arXiv 2410.23168)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightformers.parts.ffn.pattention import Norm, Pattention
from lightformers.parts.mixers import State
from lightformers.parts.mixers.attention import Attention


class TokenformerAttention(nn.Module):
    """`Attention` with a `Pattention` for each of q, k, v and the output. (batch, n, width) -> (batch, n, width).

    tokens: of each of them, width by default, so that all hold 8 width^2 weights, twice a plain attention's. rotary:
    the share of a head that is turned, a quarter in the paper. window, theta, causal: as in `Attention`.
    The paper's norm before it has no weights; the one of our decoder has.
    """

    def __init__(
        self, width: int, heads: int, *, tokens: int | None = None, rotary: bool | float = 0.25, theta: float = 10000.0,
        window: int | None = None, causal: bool = True, norm: Norm = "l2_norm_gelu", layers: int = 1,
    ) -> None:  # fmt: skip
        super().__init__()
        self.attention = Attention(width, heads, rotary=rotary, theta=theta, window=window, causal=causal)
        for name in ("query", "key", "value", "out"):
            setattr(self.attention, name, Pattention(width, width, tokens or width, norm, layers))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        out: Tensor = self.attention(x, mask)
        return out

    def begin(self, batch: int, device: torch.device | str, dtype: torch.dtype) -> State:
        return self.attention.begin(batch, device, dtype)

    def extend(self, x: Tensor, state: State, mask: Tensor | None = None) -> tuple[Tensor, State]:
        return self.attention.extend(x, state, mask)

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        return self.attention.step(x, state)
