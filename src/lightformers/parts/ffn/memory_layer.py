"""Linear layers by hashing: signs of the input choose rows of learned tables (Ding et al., 2024, arXiv 2411.12992).

Arithmetic falls by the number of bits, memory grows by 2^bits / bits. Gathering rows is bound by memory: on a processor
it can be slower than the product it replaces.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightformers.errors import UserError
from lightformers.parts.recording import refuse

Score = Literal["projected", "corner"]


def address(x: Tensor, bits: int, score: Score = "projected") -> tuple[Tensor, Tensor]:
    """x (n, tables * bits) -> codes (n, tables) in [0, 2^bits), scores (n, tables) in float32 or better.

    Bit i of a group z is z_i >= 0, the first the most significant. p = prod_i 1 / (1 + exp(-2 |z_i|)) is the share of
    the chosen corner among all 2^bits under softmax. score: "corner" is p (the paper's text), "projected" is
    p * sum_i |z_i| (the released code, and what it trains with). Gradients reach x through the score alone.
    Raises UserError for whole numbers and groups that do not divide.
    """
    if not x.is_floating_point():
        raise UserError(f"a memory layer takes floating-point inputs, not {x.dtype}")
    if not 1 <= bits <= 16 or x.shape[-1] % bits:
        raise UserError(f"{bits} bits are not in 1 to 16, or do not divide a width of {x.shape[-1]}")
    z = x.unflatten(-1, (-1, bits))
    places = 2 ** torch.arange(bits - 1, -1, -1, device=x.device)
    codes = ((z >= 0) * places).sum(-1)
    size = z.to(torch.promote_types(x.dtype, torch.float32)).abs()
    corner = F.logsigmoid(2 * size).sum(-1).exp()
    return codes, corner if score == "corner" else corner * size.sum(-1)


def read(codes: Tensor, scores: Tensor, tables: Tensor) -> Tensor:
    """sum_k scores_k * tables[k, codes_k]: (n, T), (n, T), (T, rows, out) -> (n, out), without a tensor (n, T, out)."""
    count, rows, _ = tables.shape
    index = codes + rows * torch.arange(count, device=codes.device)
    return F.embedding_bag(
        index, tables.flatten(0, 1), mode="sum", per_sample_weights=scores.to(tables.dtype)
    )


class MemoryLayer(nn.Module):
    """y = sum_k score_k * table_k[code_k] + bias in place of a linear layer. (..., in_features) -> (..., out_features).

    bits: of a code, 1 to 16; in_features / bits tables of 2^bits rows. Scores grow with the input, so it needs a norm
    before it. std: of the start of the tables (bias: 0.001). Rows that are never chosen get no gradient, and still
    decay where the optimizer decays matrices.
    """

    def __init__(
        self, in_features: int, out_features: int, bits: int = 8, score: Score = "projected", bias: bool = True,
        std: float = 0.02,
    ) -> None:  # fmt: skip
        super().__init__()
        if not 1 <= bits <= 16 or in_features % bits:
            raise UserError(f"{bits} bits are not in 1 to 16, or do not divide a width of {in_features}")
        if score not in get_args(Score):
            raise UserError(f"score {score!r} is not one of {', '.join(get_args(Score))}")
        self.in_features, self.out_features, self.bits, self.score = in_features, out_features, bits, score
        self.tables = nn.Parameter(torch.empty(in_features // bits, 2**bits, out_features))
        self.bias = nn.Parameter(torch.empty(out_features)) if bias else None
        nn.init.normal_(self.tables, std=std)
        if self.bias is not None:
            nn.init.normal_(self.bias, std=0.001)

    def forward(self, x: Tensor) -> Tensor:
        refuse("a memory layer")
        return self.read(*address(x.flatten(0, -2), self.bits, self.score)).unflatten(0, x.shape[:-1])

    def read(self, codes: Tensor, scores: Tensor) -> Tensor:
        """What `address` found, looked up: layers of the same input may share it. (n, tables) -> (n, out_features)."""
        out = read(codes, scores, self.tables)
        return out if self.bias is None else out + self.bias.to(out.dtype)

    @property
    def operations(self) -> int:
        """Multiply-adds per position: in for the scores, tables * out for the sum (a linear layer: in * out)."""
        return self.in_features + self.in_features // self.bits * self.out_features

    @property
    def touched(self) -> int:
        """Numbers of the tables that a position reads; all of them must be in memory."""
        return self.in_features // self.bits * self.out_features

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, bits={self.bits}, score={self.score}"


class MemoryFeedForward(nn.Module):
    """M2(LayerNorm(M1(x))), both memory layers, no other activation. (..., width) -> (..., width).

    bits: of M1, which has width / bits tables; M2 has as many, of bits + 2 bits each: its input is that much wider.
    normalize False leaves the LayerNorm out, for ablation.
    """

    def __init__(
        self, width: int, *, bits: int = 8, score: Score = "projected", normalize: bool = True
    ) -> None:
        super().__init__()
        if not 1 <= bits <= 14:
            raise UserError(f"bits are 1 to 14, two more in the second layer; got {bits}")
        inner = width // bits * (bits + 2)
        self.first = MemoryLayer(width, inner, bits, score)
        self.norm = nn.LayerNorm(inner) if normalize else nn.Identity()
        self.second = MemoryLayer(inner, width, bits + 2, score)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.second(self.norm(self.first(x)))
        return out


def operations(model: nn.Module) -> int:
    """Multiply-adds of all memory and linear layers of a model for one position, what attention multiplies left out."""
    linear = sum(m.in_features * m.out_features for m in model.modules() if isinstance(m, nn.Linear))
    return linear + sum(m.operations for m in model.modules() if isinstance(m, MemoryLayer))
