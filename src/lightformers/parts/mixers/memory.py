"""Attention whose projections are looked up in tables (Ding et al., 2024, arXiv 2411.12992)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightformers.parts.ffn.memory_layer import MemoryLayer, Score
from lightformers.parts.mixers import State
from lightformers.parts.mixers.attention import Attention
from lightformers.parts.recording import refuse


class MemoryAttention(nn.Module):
    """`Attention` with a `MemoryLayer` for each of q, k and v, and no output projection: heads are put side by side.

    (batch, n, width) -> (batch, n, width). bits, score: of the memory layers, whose tables start normal with a deviation
    of sqrt(2 / (5 width)). rotary: the share of a head that is turned, a quarter in the released code. window, theta,
    causal: as in `Attention`. Needs a norm before it. The state for decoding is that of attention: only projections
    are cheaper.
    """

    def __init__(
        self, width: int, heads: int, *, bits: int = 8, score: Score = "projected", rotary: bool | float = 0.25,
        theta: float = 10000.0, window: int | None = None, causal: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        self.attention = Attention(width, heads, rotary=rotary, theta=theta, window=window, causal=causal)
        for name in ("query", "key", "value"):
            layer = MemoryLayer(width, width, bits, score, std=(2 / (5 * width)) ** 0.5)
            setattr(self.attention, name, layer)
        self.attention.out = nn.Identity()  # type: ignore[assignment]

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        refuse("attention in memory layers")
        out: Tensor = self.attention(x, mask)
        return out

    def begin(self, batch: int, device: torch.device | str, dtype: torch.dtype) -> State:
        return self.attention.begin(batch, device, dtype)

    def extend(self, x: Tensor, state: State, mask: Tensor | None = None) -> tuple[Tensor, State]:
        return self.attention.extend(x, state, mask)

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        return self.attention.step(x, state)
