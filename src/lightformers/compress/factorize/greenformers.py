"""Greenformers: weight matrices and convolutions as thin pairs (Cahyawijaya, 2021, arXiv 2108.10808).

The Low-Rank Transformer factorises every projection of attention and feed-forward (LED units), before training (solver
"random") or after it ("svd", "snmf"); convolutions become CED units. Linformer, with which the thesis compares it, is
`parts.attention.linformer`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from lightformers import anatomy
from lightformers.bundle import Bundle
from lightformers.compress.factorize.low_rank import factors
from lightformers.compress.layers import WHERE, linears
from lightformers.errors import ModelError, UserError
from lightformers.parts.low_rank import LowRankLinear, break_even
from lightformers.parts.low_rank_conv import LowRankConv
from lightformers.steps import Run, Stage

Solver = Literal["svd", "snmf", "random"]
_TINY = 1e-9


def semi_nmf(weight: Tensor, rank: int, iterations: int = 10, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Semi-non-negative W ~ B A with B >= 0: weight (out, in) -> A (rank, in), B (out, rank).

    Multiplicative updates of B and least squares for A in turn (Ding, Li and Jordan, 2010); |W - B A| never grows from
    one iteration to the next. B begins at random.
    """
    matrix = weight.detach().double()
    generator = torch.Generator().manual_seed(seed)
    second = torch.rand(len(matrix), rank, generator=generator, dtype=torch.float64).to(matrix.device) + 0.2
    first = _solve(second, matrix)
    for _ in range(iterations):
        product, gram = matrix @ first.T, first @ first.T
        up = product.clamp(min=0) + second @ (-gram).clamp(min=0)
        down = (-product).clamp(min=0) + second @ gram.clamp(min=0)
        second = second * (up / down.clamp(min=_TINY)).sqrt()
        first = _solve(second, matrix)
    return first.to(weight.dtype), second.to(weight.dtype)


def _solve(second: Tensor, matrix: Tensor) -> Tensor:
    """The A that makes |W - B A| least; of least norm where columns of B depend on each other."""
    return torch.linalg.pinv(second) @ matrix


def pair(
    weight: Tensor, rank: int, solver: Solver, iterations: int = 10, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """weight (out, in) -> A (rank, in), B (out, rank) with B A near W ("svd": nearest)."""
    if solver == "svd":
        return factors(weight.detach(), rank)
    return semi_nmf(weight, rank, iterations, seed)


@dataclass(frozen=True)
class Greenformers:
    """Factorise the projections of all blocks, and convolutions if wanted.

    rank: a whole number, or a share in (0, 1) of each layer's break-even rank `out * in / (out + in)` (rounded down).
    solver: "svd" (nearest in the least-squares sense), "snmf" (semi-non-negative), or "random", fresh weights for
        training from scratch; biases stay in any case.
    where: "attention", "ffn" or both. convolutions: also all convolutions of the model (a patch embedding, say).
    iterations: of "snmf".

    A layer whose pair would hold no fewer weights stays as it is; if that is true of all, an error says so. Layers that
    are low-rank already stay. Compared with `LowRank`: ranks are shares of the break-even rank and no data is looked at.
    What differs from the official code: the break-even rank of a convolution counts its kernel, the singular values are
    shared out by their roots, and "nmf", which needs weights without a sign, is left out. The result needs lightformers
    to load.
    """

    rank: float | int = 0.5
    solver: Solver = "svd"
    where: tuple[str, ...] = ("attention", "ffn")
    convolutions: bool = False
    iterations: int = 10
    stage: ClassVar[Stage] = Stage.FACTORIZE

    def __post_init__(self) -> None:
        object.__setattr__(self, "where", tuple(self.where))
        whole = isinstance(self.rank, int)
        if not math.isfinite(self.rank) or (whole and self.rank < 1) or (not whole and not 0 < self.rank < 1):
            raise UserError(
                f"rank is a whole number from 1 on, or a share in (0, 1) of the break-even rank; got {self.rank}"
            )
        if self.solver not in get_args(Solver):
            raise UserError(f"solver {self.solver!r} is not one of {', '.join(get_args(Solver))}")
        if (not self.where and not self.convolutions) or set(self.where) - set(WHERE):
            raise UserError(
                f"where must be some of {', '.join(WHERE)}, got {', '.join(self.where) or 'nothing'}"
            )
        if self.iterations < 1:
            raise UserError(f"iterations must be at least 1, got {self.iterations}")

    def apply(self, bundle: Bundle, task: Any, run: Run) -> Bundle:
        """Raises ModelError where no layer would become smaller, and for convolutions with groups."""
        model = bundle.model
        shapes: dict[str, tuple[int, int]] = {}
        for path in linears(anatomy.of(model), self.where) if self.where else ():
            if not isinstance(anatomy.get(model, path), LowRankLinear):
                rows, columns = anatomy.linear(model, path)[0].shape
                shapes[path] = (rows, columns)
        kernels = _convolutions(model) if self.convolutions else {}
        shapes |= {path: (conv.out_channels, conv.weight[0].numel()) for path, conv in kernels.items()}
        ranks = {path: self.rank_of(*shape) for path, shape in shapes.items()}
        pays = [path for path, shape in shapes.items() if 1 <= ranks[path] <= break_even(*shape)]
        if not pays:
            raise ModelError(
                f"rank {self.rank} makes none of the {len(shapes)} layers smaller; their break-even ranks reach from "
                f"{min((break_even(*s) for s in shapes.values()), default=0)} to "
                f"{max((break_even(*s) for s in shapes.values()), default=0)}"
            )
        with torch.random.fork_rng():
            torch.manual_seed(run.seed)
            layers = {
                path: self._convolution(kernels[path], ranks[path], run.seed)
                if path in kernels
                else self._linear(*anatomy.linear(model, path), ranks[path], run.seed)
                for path in pays
            }
        for path, layer in layers.items():
            anatomy.surgery.replace(model, path, layer.train(model.training))
        return bundle

    def rank_of(self, out_features: int, in_features: int) -> int:
        """The rank of a layer; 0 where a share of its break-even rank is less than 1."""
        if isinstance(self.rank, int):
            return self.rank
        return int(self.rank * (out_features * in_features // (out_features + in_features)))

    def _linear(self, weight: Tensor, bias: Tensor | None, rank: int, seed: int) -> nn.Module:
        if self.solver != "random":
            return LowRankLinear.from_factors(*pair(weight, rank, self.solver, self.iterations, seed), bias)
        rows, columns = weight.shape
        layer = LowRankLinear(columns, rows, rank, bias is not None, weight.device, weight.dtype)
        _copy(layer.bias, bias)
        return layer

    def _convolution(self, old: Any, rank: int, seed: int) -> nn.Module:
        layer = LowRankConv(
            old.in_channels, old.out_channels, rank, old.kernel_size, old.stride, old.padding, old.dilation,
            old.bias is not None,
        ).to(old.weight)  # fmt: skip
        _copy(layer.bias, old.bias)
        if self.solver != "random":
            first, second = pair(old.weight.flatten(1), rank, self.solver, self.iterations, seed)
            _copy(layer.first, first.view_as(layer.first))
            _copy(layer.second, second.view_as(layer.second))
        return layer


@torch.no_grad()
def _copy(parameter: Tensor | None, value: Tensor | None) -> None:
    if parameter is not None and value is not None:
        parameter.copy_(value)


def _convolutions(model: nn.Module) -> dict[str, Any]:
    found = {n: m for n, m in model.named_modules() if isinstance(m, (nn.Conv1d, nn.Conv2d, nn.Conv3d))}
    for path, conv in found.items():
        if conv.groups > 1 or conv.padding_mode != "zeros" or "weight" not in conv._parameters:
            raise ModelError(
                f"{path} is a convolution with groups, other padding than zeros or a parametrised weight: its kernel "
                "cannot be written as a thin pair"
            )
    return found
