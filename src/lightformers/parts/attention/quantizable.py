"""Self-attention whose heads can write exactly nothing, so that no activation has to grow an outlier for it."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from lightformers.errors import UserError
from lightformers.parts.attention.interface import AttentionSettings, clipped_softmax

Gate = Literal["none", "linear", "mlp", "all-heads", "constant"]
State = tuple[Tensor, Tensor]


def stretch(alpha: float, length: int) -> float:
    """The lower end -alpha / T of a clipped softmax, T the longest sequence there will be; alpha of 2 to 4 transfers.

    T stays the longest when a sequence is shorter, and when keys are cached. Raises UserError for alpha < 0, T < 1.
    """
    if alpha < 0 or length < 1:
        raise UserError(
            f"the softmax is stretched by -alpha / length, alpha >= 0, length >= 1; got {alpha}, {length}"
        )
    return -alpha / length


class HeadGate(nn.Module):
    """How far each head is open at each position: x (B, L, width) -> (B, H, L, 1) in (0, 1).

    kind: "linear" reads a head's slice of x (d -> 1), "mlp" too (d -> d/4 -> ReLU -> 1), "all-heads" reads all of it
        (width -> H), "constant" reads nothing.
    opening: the probability that all gates start at on average, by the bias; None: the linear layer's own start
        (about one half). unchanged: gates start near `opening` and are divided by it, so an existing model starts as
        it was: for fine-tuning.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        kind: Gate = "linear",
        opening: float | None = None,
        unchanged: bool = False,
    ) -> None:
        super().__init__()
        if opening is not None and not 0 < opening < 1:
            raise UserError(f"opening is a probability in (0, 1), got {opening}")
        if unchanged and opening is None:
            raise UserError("to start unchanged, say how far the gates start open: opening=...")
        size = width // heads
        if kind == "mlp" and size % 4:
            raise UserError(f"the mlp gate has a quarter of the head size, and {size} is no multiple of 4")
        self.kind, self.heads, self.scale = kind, heads, 1 / opening if unchanged and opening else 1.0
        inner, outer = {
            "linear": (None, (heads, 1, size)),
            "mlp": ((heads, size // 4, size), (heads, 1, size // 4)),
            "all-heads": (None, (1, heads, width)),
            "constant": (None, None),
        }[kind]
        self.first = None if inner is None else nn.Parameter(torch.empty(inner))
        self.first_bias = None if inner is None else nn.Parameter(torch.zeros(inner[:2]))
        self.last = None if outer is None else nn.Parameter(torch.empty(outer))
        self.bias = nn.Parameter(torch.zeros(heads))
        for weight in (self.first, self.last):
            if weight is not None and unchanged:
                nn.init.normal_(weight, std=0.01)
            elif weight is not None:
                nn.init.uniform_(weight, -(weight.shape[-1] ** -0.5), weight.shape[-1] ** -0.5)
        if opening is not None:
            nn.init.constant_(self.bias, math.log(opening / (1 - opening)))
        elif outer is not None:
            nn.init.uniform_(self.bias, -(outer[-1] ** -0.5), outer[-1] ** -0.5)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        if self.last is None:
            logits = x.new_zeros(batch, self.heads, length)
        elif self.kind == "all-heads":
            logits = (x @ self.last[0].t()).transpose(1, 2)
        else:
            parts = x.view(batch, length, self.heads, width // self.heads)
            if self.first is not None and self.first_bias is not None:
                parts = torch.relu(torch.einsum("blhd,hkd->blhk", parts, self.first) + self.first_bias)
            logits = torch.einsum("blhk,hok->bhl", parts, self.last)
        return self.scale * torch.sigmoid(logits + self.bias[:, None])[..., None]


class QuantizableAttention(nn.Module):
    """Self-attention with clipped softmax or gated heads (Bondarenko et al., 2023, arXiv 2306.12929).

    x (B, L, width), mask (B, L) of ones and zeros or None -> (B, L, width).

    low, high: the softmax is `clip((high - low) softmax + low, 0, 1)`, low <= 0 (see `stretch`), high >= 1; its rows no
        longer sum to 1 and are not renormalised. gate, opening, unchanged: see `HeadGate`; the gate reads what the
        projections read and multiplies each head before the output projection. The paper uses one or the other.
    causal: each position sees itself and those before it; then `step` runs one position after the other.
    dropout: of probabilities, after clipping.
    Not built: gates that average their logit over the sequence. Explicit attention, no fused kernel can clip.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        low: float = 0.0,
        high: float = 1.0,
        gate: Gate = "none",
        opening: float | None = None,
        unchanged: bool = False,
        causal: bool = False,
        dropout: float = 0.0,
        bias: bool = True,
    ) -> None:
        super().__init__()
        if heads < 1 or width % heads:
            raise UserError(f"{heads} heads do not divide a width of {width}")
        if gate not in get_args(Gate):
            raise UserError(f"gate {gate!r} is not one of {', '.join(get_args(Gate))}")
        AttentionSettings(low, high)  # refuses what would leak to masked positions
        self.heads, self.size, self.causal = heads, width // heads, causal
        self.low, self.high, self.dropout = low, high, dropout
        self.q, self.k, self.v, self.o = (nn.Linear(width, width, bias=bias) for _ in range(4))
        self.gate = None if gate == "none" else HeadGate(width, heads, gate, opening, unchanged)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        length = x.shape[1]
        seen = None if mask is None else mask.bool()[:, None, None, :]
        if self.causal:
            before = torch.ones(length, length, dtype=torch.bool, device=x.device).tril()
            seen = before if seen is None else seen & before
        return self._attend(x, self._split(self.k(x)), self._split(self.v(x)), seen)

    def step(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """One position: x (B, width), the keys and values so far -> (B, width), keys and values with this one."""
        if not self.causal:
            raise UserError("only causal attention runs step by step")
        row = x[:, None]
        key, value = self._split(self.k(row)), self._split(self.v(row))
        if state is not None:
            key, value = torch.cat([state[0], key], 2), torch.cat([state[1], value], 2)
        return self._attend(row, key, value, None)[:, 0], (key, value)

    def probabilities(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """What each position gives to each other, (B, H, L, L), exact zeros included."""
        seen = None if mask is None else mask.bool()[:, None, None, :]
        if self.causal:
            before = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).tril()
            seen = before if seen is None else seen & before
        return self._weights(self._split(self.q(x)), self._split(self.k(x)), seen)

    def _weights(self, query: Tensor, key: Tensor, seen: Tensor | None) -> Tensor:
        scores = query @ key.transpose(-1, -2) * self.size**-0.5
        if seen is not None:
            scores = scores.masked_fill(~seen, torch.finfo(scores.dtype).min)
        weights = clipped_softmax(scores, self.low, self.high)
        # a row that sees nothing has equal scores everywhere
        return weights if seen is None else weights.masked_fill(~seen, 0)

    def _attend(self, x: Tensor, key: Tensor, value: Tensor, seen: Tensor | None) -> Tensor:
        weights = self._weights(self._split(self.q(x)), key, seen)
        out = nn.functional.dropout(weights, self.dropout, self.training) @ value
        if self.gate is not None:
            out = out * self.gate(x)
        return self.o(out.transpose(1, 2).flatten(2))

    def _split(self, x: Tensor) -> Tensor:
        return x.view(x.shape[0], x.shape[1], self.heads, self.size).transpose(1, 2)
