"""Causal attention whose heads can write nothing (Bondarenko et al., 2023, arXiv 2306.12929), as a mixer with a state."""

from __future__ import annotations

from typing import get_args

import torch
from torch import Tensor, nn

from lightformers.errors import UserError
from lightformers.parts.attention.interface import AttentionSettings, clipped_softmax
from lightformers.parts.attention.quantizable import Gate, HeadGate
from lightformers.parts.attention.softmax import documents, visible
from lightformers.parts.initial import linear, residual
from lightformers.parts.mixers import State, keys, places, starts
from lightformers.parts.mixers.relative import join, split
from lightformers.parts.positions import rotary_size, turn, turns
from lightformers.parts.recording import recorded


class QuantizableMixer(nn.Module):
    """Clipped softmax or gated heads in the decoder. (batch, n, width) -> (batch, n, width).

    low, high, gate, opening: as in `parts.attention.quantizable.QuantizableAttention`; low is -alpha / T with T the
    longest text there will be (`stretch`), whatever the length of the text at hand. rotary, theta, window, bias and the
    start: as in the plain `Attention`, which this is with low 0, high 1 and no gate. Explicit attention: no fused kernel
    can clip, so memory grows with n^2.
    """

    def __init__(
        self, width: int, heads: int, low: float = 0.0, high: float = 1.0, gate: Gate = "none",
        opening: float | None = None, rotary: bool | float = True, theta: float = 10000.0, window: int | None = None,
        bias: bool = False, std: float = 0.02, layers: int = 1,
    ) -> None:  # fmt: skip
        super().__init__()
        if heads < 1 or width % heads:
            raise UserError(f"{heads} heads do not divide a width of {width}")
        if gate not in get_args(Gate):
            raise UserError(f"gate {gate!r} is not one of {', '.join(get_args(Gate))}")
        if window is not None and window < 1:
            raise UserError(f"a window holds at least the token itself, not {window}")
        AttentionSettings(low, high)  # refuses what would leak to masked positions
        self.heads, self.low, self.high, self.theta, self.window = heads, low, high, theta, window
        self.turned = rotary_size(width // heads, rotary)
        self.query, self.key, self.value = (linear(width, width, bias, std) for _ in range(3))
        self.out = linear(width, width, bias, residual(std, layers))
        self.gate = None if gate == "none" else HeadGate(width, heads, gate, opening)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        owner, place = None, torch.arange(x.shape[1], device=x.device)[None]
        if mask is not None and recorded():  # as in `Attention`
            owner = documents(mask)
        elif mask is not None and bool(starts(mask)[:, 1:].any()):
            owner, place = documents(mask), places(mask)
        q, k, v = self._project(x, place)
        return self._write(x, self._weigh(q, k, v, visible(x.shape[1], owner, self.window, True, x.device)))

    def begin(self, batch: int, device: torch.device | str, dtype: torch.dtype) -> State:
        """See `parts.mixers.keys` for what the state holds."""
        size = self.query.out_features // self.heads
        return keys.begin(batch, self.heads, size, device, dtype)

    def extend(self, x: Tensor, state: State, mask: Tensor | None = None) -> tuple[Tensor, State]:
        q, k, v = self._project(x, keys.next_places(state, x.shape[1], mask))
        y, state = keys.extend(q, k, v, state, mask, self.window, weigh=self._weigh)
        return self._write(x, y), state

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        q, k, v = self._project(x[:, None], state["count"][:, None])
        y, state = keys.step(q, k, v, state, self.window, weigh=self._weigh)
        return self._write(x[:, None], y)[:, 0], state

    def _project(self, x: Tensor, place: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = (split(f(x), self.heads) for f in (self.query, self.key, self.value))
        if self.turned:
            cos, sin = turns(place, self.turned, self.theta, q.dtype)
            q, k = turn(q, cos, sin), turn(k, cos, sin)
        return q, k, v

    def _weigh(self, q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None) -> Tensor:
        scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
        if seen is not None:
            scores = scores.masked_fill(~seen, torch.finfo(scores.dtype).min)
        return clipped_softmax(scores, self.low, self.high).to(v.dtype) @ v

    def _write(self, x: Tensor, y: Tensor) -> Tensor:
        if self.gate is not None:
            y = y * self.gate(x)
        out: Tensor = self.out(join(y))
        return out
