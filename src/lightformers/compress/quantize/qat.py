"""Quantization-aware training: latent float weights that are rounded in every forward, and packed at the end."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from lightformers.parts.activation_quantizer import ActivationQuantizer
from lightformers.parts.blocks import Block, quantize_matrix, straight_through
from lightformers.parts.number_formats import number_format
from lightformers.parts.packed_layers import PackedEmbedding, PackedLinear

Per = Literal["matrix", "row"]
#: A weight this far below the mean magnitude of its matrix is zero (ternary weight networks, arXiv 1605.04711).
THRESHOLD = 0.7


def ternary(weight: Tensor, per: Per = "matrix") -> tuple[Tensor, Tensor]:
    """Levels -1, 0, 1 and their step: zero up to 0.7 mean|w|, the others share the mean of their magnitudes.

    weight (rows, columns) -> levels of its shape, steps (1, 1) or (rows, 1), float32. All zeros give step 0.
    """
    size = weight.detach().float().abs()
    mean = size.mean(1, keepdim=True) if per == "row" else size.mean().reshape(1, 1)
    kept = size > THRESHOLD * mean
    total, count = size * kept, kept.sum(1, keepdim=True)
    total = total.sum(1, keepdim=True)
    if per == "matrix":
        total, count = total.sum().reshape(1, 1), count.sum().reshape(1, 1)
    return weight.detach().float().sign() * kept, total / count.clamp(min=1)


def binary(weight: Tensor, per: Per = "matrix") -> tuple[Tensor, Tensor]:
    """Levels -1 and 1 (zero counts as 1), and the mean magnitude as their step."""
    size = weight.detach().float().abs()
    step = size.mean(1, keepdim=True) if per == "row" else size.mean().reshape(1, 1)
    return number_format("binary").round(weight.detach().float()), step


def rounded(weight: Tensor, form: str, per: Per = "matrix") -> tuple[Tensor, Tensor]:
    """Levels and steps of a weight: ternary and binary as above, others at the step of their largest magnitude."""
    if form == "ternary":
        return ternary(weight, per)
    if form == "binary":
        return binary(weight, per)
    return quantize_matrix(weight, number_format(form), _block(per))


def _block(per: Per) -> Block:
    return (1, 0) if per == "row" else (0, 0)


class _Latent(nn.Module):
    """What both layers share: a float `weight` that is trained, and its rounded form that is computed with."""

    def __init__(self, weight: Tensor, form: str, per: Per, clip: float | None) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.detach().clone())
        self.form, self.per, self.clip = form, per, clip

    def levels(self) -> tuple[Tensor, Tensor]:
        """What the weight is rounded to: levels and steps."""
        weight = self.weight.detach()
        return rounded(
            weight if self.clip is None else weight.clamp(-self.clip, self.clip), self.form, self.per
        )

    def quantized(self) -> Tensor:
        """The rounded weight; gradients pass straight to the latent one where it is within +-clip."""
        levels, step = self.levels()
        limit = float("inf") if self.clip is None else self.clip
        return straight_through(self.weight, (levels * step).to(self.weight.dtype), limit)


class LatentLinear(_Latent):
    """Linear layer for quantization-aware training. `packed()` is what is left after it."""

    def __init__(
        self, weight: Tensor, bias: Tensor | None, form: str, per: Per = "matrix", clip: float | None = 2.5,
        input: ActivationQuantizer | None = None,
    ) -> None:  # fmt: skip
        super().__init__(weight, form, per, clip)
        self.out_features, self.in_features = weight.shape
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone())
        self.input = input

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x if self.input is None else self.input(x), self.quantized(), self.bias)

    def packed(self) -> PackedLinear:
        """The same layer on the packed weight."""
        levels, step = self.levels()
        return PackedLinear.from_levels(
            levels, step, self.bias, self.form, _block(self.per), input=self.input
        )


class LatentEmbedding(_Latent):
    """Embedding for quantization-aware training, one step per row."""

    def __init__(self, weight: Tensor, form: str, clip: float | None = 2.5) -> None:
        super().__init__(weight, form, "row", clip)
        self.num_embeddings, self.embedding_dim = weight.shape
        self.padding_idx: int | None = None

    def forward(self, index: Tensor) -> Tensor:
        # only the rows that are looked up: rounding the whole table in every forward would cost more than the model
        rows = self.weight[index].flatten(0, -2)
        clipped = rows.detach() if self.clip is None else rows.detach().clamp(-self.clip, self.clip)
        levels, step = rounded(clipped, self.form, "row")
        limit = float("inf") if self.clip is None else self.clip
        return straight_through(rows, (levels * step).to(rows.dtype), limit).view(*index.shape, -1)

    def packed(self) -> PackedEmbedding:
        """The same table, packed."""
        levels, step = self.levels()
        return PackedEmbedding.from_levels(levels, step, self.form, (1, 0), dtype=self.weight.dtype)


def pack_all(model: nn.Module) -> int:
    """Replace every latent layer by its packed form, in place; returns how many there were."""
    found = [(n, m) for n, m in model.named_modules() if isinstance(m, (LatentLinear, LatentEmbedding))]
    with torch.no_grad():
        for name, module in found:
            owner, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(owner), leaf, module.packed())
    return len(found)
