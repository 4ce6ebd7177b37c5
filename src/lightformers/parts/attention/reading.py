"""Cross-attention: a sequence that reads another one."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightformers.errors import UserError
from lightformers.parts.initial import linear, residual
from lightformers.parts.mixers.relative import join, split


class CrossAttention(nn.Module):
    """x (batch, n, width) reads memory (batch, m, memory_width) -> (batch, n, width). No positions, no causality.

    there: (batch, m) bool, what of the memory is real. Where nothing is, a learnt key and value are read (`empty`), or with
    empty=False UserError is raised: a softmax over nothing is no number. Raises UserError for heads that do not fit.
    """

    def __init__(
        self, width: int, heads: int, memory_width: int | None = None, bias: bool = False, empty: bool = True, layers: int = 1
    ) -> None:  # fmt: skip
        super().__init__()
        if heads < 1 or width % heads:
            raise UserError(f"{heads} heads do not divide a width of {width}")
        self.heads = heads
        self.query = linear(width, width, bias, 0.02)
        self.key, self.value = (linear(memory_width or width, width, bias, 0.02) for _ in range(2))
        self.out = linear(width, width, bias, residual(0.02, layers))
        self.empty = nn.Parameter(torch.randn(2, width) * 0.02) if empty else None

    def forward(self, x: Tensor, memory: Tensor, there: Tensor | None = None) -> Tensor:
        q, k, v = split(self.query(x), self.heads), self.key(memory), self.value(memory)
        if there is not None:
            nothing = ~there.any(1, keepdim=True)
            if self.empty is not None:
                k, v = (
                    torch.cat([a, e.to(a.dtype).expand(len(a), 1, -1)], 1) for a, e in zip((k, v), self.empty)
                )
                there = torch.cat([there, nothing], 1)
            elif bool(nothing.any()):
                raise UserError("there is nothing to read in some row of the memory")
            there = there[:, None, None]
        y = nn.functional.scaled_dot_product_attention(q, split(k, self.heads), split(v, self.heads), there)
        return self.out(join(y))
