"""EcoFormer (Liu et al., 2022, arXiv 2209.09004): attention by short codes of signs, which mostly adds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor, nn

from lightformers.errors import UserError
from lightformers.parts.attention.hashing import Hash, ValueBias, code_attention, codes, fit
from lightformers.parts.recording import recorded

#: Picojoules of a 32-bit multiplication and addition (45 nm).
MULTIPLY, ADD = 3.7, 0.9


class EcoFormerAttention(nn.Module):
    """A core (`parts.attention`): queries and keys are one, what comes as k is not read. Both ways only.

    bits: of a code. anchors, near, steps, seed: of the hash, see `hashing.fit`. value_bias: see `hashing.code_attention`.
    The hash is learned from the first batch in training, or by `fit`, and saved with the weights. The paper learns it
    again only every 300 epochs of 30. Raises UserError in evaluation before that.
    """

    reads, second = "qv", False
    anchors: Tensor
    mean: Tensor
    planes: Tensor
    fitted: Tensor

    def __init__(
        self, heads: int, size: int, bits: int = 16, anchors: int = 25, near: int = 10, steps: int = 100,
        value_bias: ValueBias = "all", seed: int = 0,
    ) -> None:  # fmt: skip
        super().__init__()
        if min(bits, anchors, near) < 1 or steps < 0:
            raise UserError(
                f"bits, anchors and near are at least 1, steps at least 0; got {bits}, {anchors}, {near}, {steps}"
            )
        if value_bias not in get_args(ValueBias):
            raise UserError(f"value_bias is one of {', '.join(get_args(ValueBias))}, not {value_bias!r}")
        self.bits, self.near, self.steps, self.seed, self.value_bias = bits, near, steps, seed, value_bias
        self.register_buffer("anchors", torch.zeros(heads, anchors, size))
        self.register_buffer("mean", torch.zeros(heads, anchors))
        self.register_buffer("planes", torch.zeros(heads, bits, anchors))
        self.register_buffer("fitted", torch.zeros((), dtype=torch.bool))

    @property
    def hash(self) -> Hash:
        return Hash(self.anchors, self.mean, self.planes)

    def fit(self, q: Tensor, mask: Tensor | None = None) -> None:
        """Learn the hash from q (batch, heads, n, size), in place. mask: (batch, n) bool. UserError for too few tokens."""
        with torch.autocast(q.device.type, enabled=False):
            found = fit(unit(q), mask, self.bits, self.anchors.shape[1], self.near, self.steps, self.seed)
        for held, new in zip(self.hash, found):
            held.copy_(new)
        self.fitted.fill_(True)

    def forward(self, q: Tensor, k: Tensor | None, v: Tensor, mask: Tensor | None = None) -> Tensor:
        if not recorded() and not bool(self.fitted):
            if not self.training:
                raise UserError("this hash has not been learned: run a batch in training, or call fit(q)")
            self.fit(q, mask)
        with torch.autocast(q.device.type, enabled=False):
            # bf16 cannot tell distances of close vectors apart
            u = unit(q)
            made = Hash(*(t.to(u.dtype) for t in self.hash))
            return code_attention(codes(u, made, mask), v, mask, self.value_bias)

    def equals_softmax(self, n: int) -> bool:
        """Never: codes have no softmax."""
        return False


def unit(q: Tensor) -> Tensor:
    """Vectors of length one, in float32 or better."""
    return nn.functional.normalize(q if q.dtype == torch.float64 else q.float(), dim=-1)


@dataclass(frozen=True)
class Operations:
    """Multiplications and additions of 32 bits, and what they cost."""

    multiplications: int
    additions: int

    @property
    def picojoules(self) -> float:
        return MULTIPLY * self.multiplications + ADD * self.additions


def softmax_operations(n: int, heads: int, size: int) -> Operations:
    """Of softmax attention over n tokens: scores and weighted values. Exponentials and divisions are not counted."""
    count = 2 * n * n * heads * size
    return Operations(count, count)


def linear_operations(n: int, heads: int, size: int, features: int) -> Operations:
    """Of attention by `features` real features a head; how those are made is not counted."""
    count = 2 * n * heads * features * size + n * heads * features
    return Operations(count, count)


def code_operations(n: int, heads: int, size: int, bits: int = 16, anchors: int = 25) -> Operations:
    """Of attention by codes: distances to anchors and planes multiply, products with codes only add."""
    hashing = n * heads * anchors * (size + bits)
    return Operations(hashing, hashing + 2 * n * heads * bits * size + n * heads * bits)
