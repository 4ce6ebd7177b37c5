"""Linear layers of two thin or block-diagonal factors, from the start (Wei et al., 2024, arXiv 2406.16450).

LowRank is `parts.low_rank.LowRankLinear`; the other two are here, with the paper's starts for all three.
"""

from __future__ import annotations

import warnings
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from lightformers.errors import UserError
from lightformers.parts.ffn.plain import activation_of
from lightformers.parts.low_rank import LowRankLinear, break_even

Form = Literal["low_rank", "block_dense", "block_shuffle"]


def block_diagonal(x: Tensor, blocks: Tensor) -> Tensor:
    """x (n, b * p), blocks (b, q, p) -> (b, n, q): slice i of x goes through block i."""
    b, _, p = blocks.shape
    return torch.bmm(x.reshape(-1, b, p).transpose(0, 1), blocks.transpose(1, 2))


class BlockDenseLinear(nn.Module):
    """`y = U (V_b x) + bias` with V_b block-diagonal, U dense. (..., in_features) -> (..., out_features).

    first: (blocks, rank / blocks, in / blocks); second: (out, rank). Raises UserError where blocks do not divide.
    """

    def __init__(
        self, in_features: int, out_features: int, rank: int, blocks: int, bias: bool = True,
        device: torch.device | str | None = None, dtype: torch.dtype | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        _divides(blocks, in_features=in_features, rank=rank)
        made: Any = {"device": device, "dtype": dtype}
        self.in_features, self.out_features, self.rank, self.blocks = in_features, out_features, rank, blocks
        self.first = nn.Parameter(torch.empty(blocks, rank // blocks, in_features // blocks, **made))
        self.second = nn.Parameter(torch.empty(out_features, rank, **made))
        self.bias = nn.Parameter(torch.zeros(out_features, **made)) if bias else None
        start(self)

    def forward(self, x: Tensor) -> Tensor:
        inner = block_diagonal(x.flatten(0, -2), self.first).transpose(0, 1).flatten(1)
        return nn.functional.linear(inner, self.second, self.bias).unflatten(0, x.shape[:-1])


class BlockShuffleLinear(nn.Module):
    """`y = shuffle(U_b shuffle(V_b x)) + bias`, both block-diagonal: a Monarch matrix. (..., in) -> (..., out).

    first: (blocks, m, in / blocks); second: (blocks, out / blocks, m) with m = min(in, out) / blocks. The shuffles make
    every block of the second see every block of the first. Raises UserError where blocks do not divide in, out and m.
    """

    def __init__(
        self, in_features: int, out_features: int, blocks: int, bias: bool = True,
        device: torch.device | str | None = None, dtype: torch.dtype | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        _divides(blocks, in_features=in_features, out_features=out_features)
        made: Any = {"device": device, "dtype": dtype}
        middle = min(in_features, out_features) // blocks
        self.in_features, self.out_features, self.blocks = in_features, out_features, blocks
        self.first = nn.Parameter(torch.empty(blocks, middle, in_features // blocks, **made))
        self.second = nn.Parameter(torch.empty(blocks, out_features // blocks, middle, **made))
        self.bias = nn.Parameter(torch.zeros(out_features, **made)) if bias else None
        start(self)

    def forward(self, x: Tensor) -> Tensor:
        inner = block_diagonal(x.flatten(0, -2), self.first).transpose(0, 1)
        shuffled = inner.reshape(len(inner), -1, self.blocks).permute(2, 0, 1)
        out = torch.bmm(shuffled, self.second.transpose(1, 2)).permute(1, 2, 0).flatten(1)
        out = out if self.bias is None else out + self.bias.to(out.dtype)
        return out.unflatten(0, x.shape[:-1])


Structured = LowRankLinear | BlockDenseLinear | BlockShuffleLinear
STRUCTURED = (LowRankLinear, BlockDenseLinear, BlockShuffleLinear)


def structured(
    form: Form, in_features: int, out_features: int, rank: int = 0, blocks: int = 1, bias: bool = True
) -> Structured:
    """A linear layer of this form with the paper's start. rank: of low_rank and block_dense; blocks: of the block forms.

    Raises UserError for an unknown form and sizes that do not divide; warns where nothing is saved.
    """
    if form not in get_args(Form):
        raise UserError(f"{form!r} is not one of {', '.join(get_args(Form))}")
    if form != "block_shuffle" and not 1 <= rank <= min(in_features, out_features):
        raise UserError(f"rank {rank} is not between 1 and {min(in_features, out_features)}")
    layer: Structured
    if form == "low_rank":
        if rank > break_even(in_features, out_features):
            warnings.warn(f"rank {rank} saves nothing over {out_features} x {in_features}", stacklevel=2)
        layer = LowRankLinear(in_features, out_features, rank, bias)
        start(layer)
    elif form == "block_dense":
        layer = BlockDenseLinear(in_features, out_features, rank, blocks, bias)
    else:
        layer = BlockShuffleLinear(in_features, out_features, blocks, bias)
    return layer


@torch.no_grad()
def start(layer: Structured) -> None:
    """The paper's start: LowRank by the SVD of a fresh dense matrix (normal, std in^-1/2), cut evenly; each factor or
    block of the others is the orthogonal matrix nearest to a normal one. Biases are zero."""
    if layer.bias is not None:
        layer.bias.zero_()
    if layer.first.is_meta:
        return
    if isinstance(layer, LowRankLinear):
        fresh = torch.empty(layer.out_features, layer.in_features, device=layer.first.device)
        u, s, v = torch.linalg.svd(fresh.normal_(std=layer.in_features**-0.5), full_matrices=False)
        root = s[: layer.rank].sqrt()
        layer.first.copy_(root[:, None] * v[: layer.rank])
        layer.second.copy_(u[:, : layer.rank] * root)
        return
    for factor in (layer.first, layer.second):
        u, _, v = torch.linalg.svd(torch.randn_like(factor, dtype=torch.float32), full_matrices=False)
        factor.copy_(u @ v)


def dense(layer: Structured) -> Tensor:
    """The (out, in) matrix that a structured layer is, shuffles included; differentiable."""
    identity = torch.eye(layer.in_features, device=layer.first.device, dtype=layer.first.dtype)
    out = layer(identity)
    return (out if layer.bias is None else out - layer.bias).T


class StructuredFeedForward(nn.Module):
    """W_2 act(W_1 x) with both matrices structured. (..., width) -> (..., width).

    hidden: the width between, 4 * width by default. form, rank, blocks: see `structured`; by default about a third of the
    weights of the dense layer: rank width / 4 for low_rank, width / 3 with 2 blocks for block_dense, 4 blocks for
    block_shuffle. activation: as in `MLP`. Keep the first layer of a model dense, as the paper does.
    """

    def __init__(
        self, width: int, *, hidden: int | None = None, form: Form = "low_rank", rank: int | None = None,
        blocks: int | None = None, activation: str = "gelu", bias: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        self.activation = activation_of(activation)
        hidden = hidden or 4 * width
        blocks = blocks or {"block_dense": 2, "block_shuffle": 4}.get(form, 1)
        rank = rank or {"low_rank": width // 4, "block_dense": width // 3 // blocks * blocks}.get(form, 0)
        self.up = structured(form, width, hidden, rank, blocks, bias)
        self.down = structured(form, hidden, width, rank, blocks, bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.activation(self.up(x)))


def _divides(blocks: int, **sizes: int) -> None:
    for name, size in sizes.items():
        if blocks < 1 or size < blocks or size % blocks:
            raise UserError(f"{blocks} blocks do not divide {name} = {size}")
