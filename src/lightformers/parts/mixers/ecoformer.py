"""EcoFormer (Liu et al., 2022, arXiv 2209.09004) as a mixer of an encoder."""

from __future__ import annotations

from torch import Tensor, nn

from lightformers.errors import UserError
from lightformers.parts.attention.ecoformer import EcoFormerAttention
from lightformers.parts.attention.hashing import ValueBias
from lightformers.parts.mixers.relative import join, split


class EcoFormer(nn.Module):
    """Attention by codes of signs, both ways; queries and keys are one projection. (batch, n, width) -> the same.

    Cost grows with n. The hash is learned from the first batch in training; before that, evaluation raises UserError.
    bits, anchors, near, steps, value_bias: see `parts.attention.ecoformer`. layer: moves the seed of the hash.
    What stands at padding (mask 0, either side) is in no sum.
    """

    def __init__(
        self, width: int, heads: int = 4, bits: int = 16, anchors: int = 25, near: int = 10, steps: int = 100,
        value_bias: ValueBias = "all", bias: bool = True, seed: int = 0, layer: int = 0,
    ) -> None:  # fmt: skip
        super().__init__()
        if heads < 1 or width % heads:
            raise UserError(f"{heads} heads do not divide a width of {width}")
        self.heads = heads
        self.core = EcoFormerAttention(
            heads, width // heads, bits, anchors, near, steps, value_bias, seed + layer
        )
        self.query_key, self.value, self.out = (nn.Linear(width, width, bias=bias) for _ in range(3))
        for linear in (self.query_key, self.value, self.out):
            nn.init.xavier_uniform_(linear.weight)
            if bias:
                nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        there = None if mask is None else mask != 0
        u, v = split(self.query_key(x), self.heads), split(self.value(x), self.heads)
        out: Tensor = self.out(join(self.core(u, None, v, there)))
        return out
