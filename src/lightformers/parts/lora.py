"""Low-rank adaptation of linear layers that stay as they are (Hu et al., LoRA, 2021, arXiv 2106.09685)."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lightformers.errors import UserError


class LoraLinear(nn.Module):
    """`y = base(x) + (alpha / rank) B A dropout(x)`; (..., in) -> (..., out). At the start equal to base, as B is 0.

    base: a linear layer, or GPT-2's `Conv1D`, whose weight is (in, out); its parameters are frozen. One that holds the
    projections to queries, keys and values together shares A among them. first: A (rank, in); second: B (out, rank).
    dropout: of what A reads, in training. Raises UserError for a rank that is not between 1 and the smaller side.
    """

    def __init__(self, base: nn.Module, rank: int, alpha: float = 16.0, dropout: float = 0.0) -> None:
        super().__init__()
        inputs, outputs = sides(base)
        if not 1 <= rank <= min(inputs, outputs):
            raise UserError(f"rank {rank} is not between 1 and {min(inputs, outputs)}")
        self.base = base.requires_grad_(False)
        self.rank, self.alpha, self.dropout = rank, float(alpha), dropout
        kind: dict[str, Any] = {"device": base.weight.device, "dtype": base.weight.dtype}
        self.first = nn.Parameter(torch.empty(rank, inputs, **kind))
        self.second = nn.Parameter(torch.zeros(outputs, rank, **kind))
        nn.init.kaiming_uniform_(self.first, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        read = nn.functional.dropout(x, self.dropout, self.training) if self.dropout else x
        low = nn.functional.linear(nn.functional.linear(read, self.first), self.second)
        return self.base(x) + self.alpha / self.rank * low

    @torch.no_grad()
    def merged(self) -> nn.Module:
        """The base with the update added to its weights, in place: as fast as it was."""
        update = self.alpha / self.rank * (self.second @ self.first)
        weight: Any = self.base.weight
        weight += update.T if isinstance(self.base, Conv1D) else update
        return self.base

    def extra_repr(self) -> str:
        return f"rank={self.rank}, alpha={self.alpha}, dropout={self.dropout}"


def sides(layer: Any) -> tuple[int, int]:
    """(in, out) of a linear layer or a Conv1D. Raises UserError for others."""
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    if isinstance(layer, Conv1D):
        return layer.nx, layer.nf
    raise UserError(f"low-rank updates go beside linear layers, not a {type(layer).__name__}")


def adapt(root: nn.Module, names: Collection[str], rank: int, alpha: float = 16.0, dropout: float = 0.0) -> list[str]:  # fmt: skip
    """Puts a `LoraLinear` around every linear layer below `root` whose last name is among `names`; returns their paths.

    Raises UserError where there is none, before anything is changed.
    """
    found = [
        path
        for path, module in root.named_modules()
        if path.rpartition(".")[2] in names and isinstance(module, nn.Linear | Conv1D)
    ]
    if not found:
        raise UserError(
            f"there is no linear layer named {' or '.join(sorted(names))} to put low-rank updates beside"
        )
    made = [LoraLinear(root.get_submodule(path), rank, alpha, dropout) for path in found]
    for path, layer in zip(found, made):
        owner, _, last = path.rpartition(".")
        setattr(root.get_submodule(owner), last, layer)
    return found


def merge(root: nn.Module) -> int:
    """Folds every `LoraLinear` below `root` into its base, in place; how many there were."""
    found = [(path, module) for path, module in root.named_modules() if isinstance(module, LoraLinear)]
    for path, layer in found:
        owner, _, last = path.rpartition(".")
        setattr(root.get_submodule(owner), last, layer.merged())
    return len(found)
