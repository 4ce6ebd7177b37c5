"""Linear layers and embeddings that run from packed matrices of few bits.

Some rows at a time are unpacked through a table of 256 entries and multiplied, so a whole matrix of floats never
exists. No fast kernel exists yet: this saves memory and disk, and takes more time than a float layer.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lightformers.parts.activation_quantizer import ActivationQuantizer, build
from lightformers.parts.blocks import Block, quantize_matrix
from lightformers.parts.number_formats import number_format
from lightformers.parts.packed_bits import PackedMatrix

#: Rows that are unpacked at a time.
_ROWS = 256


class _Product(torch.autograd.Function):
    """x (n, in) -> (n, out) through a packed matrix: no float copy of it outlives a piece of rows."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, matrix: PackedMatrix, *held: Tensor) -> Tensor:
        ctx.matrix = matrix
        pieces = [x @ matrix.values(rows).to(x.dtype).t() for rows in _pieces(matrix.rows)]
        return torch.cat(pieces, 1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        matrix, grad = ctx.matrix, grads[0]
        total = None
        for rows in _pieces(matrix.rows):
            part = grad[:, rows] @ matrix.values(rows).to(grad.dtype)
            total = part if total is None else total.add_(part)
        return total, None, None, None


def _pieces(rows: int) -> list[slice]:
    return [slice(start, min(start + _ROWS, rows)) for start in range(0, rows, _ROWS)]


class PackedLinear(nn.Module):
    """Linear layer on a packed weight. (..., in) -> (..., out). The weight is frozen; input and bias get gradients.

    form, block, power_of_two: of the weight (out, in), see `PackedMatrix`.
    input, output: `args` of an `ActivationQuantizer` for what comes in and what goes out, or None.
    """

    #: Models that look at `layer.weight.dtype` (t5) find no float matrix here, and skip their check.
    weight = None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        form: str,
        block: Block = (1, 0),
        power_of_two: bool = False,
        bias: bool = True,
        input: dict[str, Any] | None = None,
        output: dict[str, Any] | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.matrix = PackedMatrix(out_features, in_features, form, block, power_of_two, device)
        self.bias = nn.Parameter(torch.zeros(out_features, device=device, dtype=dtype)) if bias else None
        self.input, self.output = build(input), build(output)

    @classmethod
    def from_levels(
        cls, levels: Tensor, step: Tensor, bias: Tensor | None, form: str, block: Block = (1, 0),
        power_of_two: bool = False, input: ActivationQuantizer | None = None, output: ActivationQuantizer | None = None,
    ) -> PackedLinear:  # fmt: skip
        """From levels (out, in) of the format and their steps; device is that of the levels."""
        out_features, in_features = levels.shape
        layer = cls(in_features, out_features, form, block, power_of_two, False, device=levels.device)
        layer.matrix.fill(levels, step)
        if bias is not None:
            layer.bias = nn.Parameter(bias.detach().clone())
        layer.input, layer.output = (None if q is None else q.to(levels.device) for q in (input, output))
        return layer

    @classmethod
    def from_weight(
        cls, weight: Tensor, bias: Tensor | None, form: str, block: Block = (1, 0), power_of_two: bool = False,
        input: ActivationQuantizer | None = None, output: ActivationQuantizer | None = None,
    ) -> PackedLinear:  # fmt: skip
        """Round weight (out, in) to the nearest at the step of each block's peak. NaN or infinity raises."""
        if not bool(torch.isfinite(weight).all()):
            raise ValueError("the weight holds NaN or infinity")
        levels, step = quantize_matrix(weight, number_format(form), block, power_of_two)
        return cls.from_levels(levels, step, bias, form, block, power_of_two, input, output)

    @property
    def args(self) -> dict[str, Any]:
        """What a manifest needs to rebuild this layer."""
        return {
            "in_features": self.in_features,
            "out_features": self.out_features,
            **self.matrix.matrix_args(),
            "bias": self.bias is not None,
            "input": None if self.input is None else self.input.args,
            "output": None if self.output is None else self.output.args,
        }

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] != self.in_features:
            raise ValueError(f"the input has {x.shape[-1]} features, this layer takes {self.in_features}")
        if self.input is not None:
            x = self.input(x)
        out = _Product.apply(
            x.reshape(-1, self.in_features), self.matrix, self.matrix.packed, self.matrix.step
        )
        out = out.reshape(*x.shape[:-1], self.out_features)
        out = out if self.bias is None else out + self.bias.to(out.dtype)
        return out if self.output is None else self.output(out)

    def extra_repr(self) -> str:
        return ", ".join(f"{key}={value}" for key, value in self.args.items())


class PackedEmbedding(nn.Module):
    """Embedding on a packed table: ids (...) -> (..., width) in `dtype`. Frozen.

    Arguments as in `PackedLinear`. output: `args` of an `ActivationQuantizer`, or None.
    """

    weight = None

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        form: str,
        block: Block = (1, 0),
        power_of_two: bool = False,
        output: dict[str, Any] | None = None,
        dtype: str = "float32",
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        if dtype not in ("float32", "float16", "bfloat16"):
            raise TypeError(f"an embedding gives no {dtype}")
        self.num_embeddings, self.embedding_dim = num_embeddings, embedding_dim
        self.padding_idx: int | None = None
        self.matrix = PackedMatrix(num_embeddings, embedding_dim, form, block, power_of_two, device)
        self.output = build(output)
        self.dtype: torch.dtype = getattr(torch, dtype)

    @classmethod
    def from_levels(
        cls, levels: Tensor, step: Tensor, form: str, block: Block = (1, 0), power_of_two: bool = False,
        output: ActivationQuantizer | None = None, dtype: torch.dtype = torch.float32,
    ) -> PackedEmbedding:  # fmt: skip
        """From levels (rows, width) of the format and their steps."""
        name = str(dtype).removeprefix("torch.")
        rows, width = levels.shape
        made = cls(rows, width, form, block, power_of_two, None, name, levels.device)
        made.matrix.fill(levels, step)
        made.output = None if output is None else output.to(levels.device)
        return made

    @property
    def args(self) -> dict[str, Any]:
        """What a manifest needs to rebuild this part."""
        return {
            "num_embeddings": self.num_embeddings,
            "embedding_dim": self.embedding_dim,
            **self.matrix.matrix_args(),
            "output": None if self.output is None else self.output.args,
            "dtype": str(self.dtype).removeprefix("torch."),
        }

    def forward(self, index: Tensor) -> Tensor:
        out = self.matrix.gather(index).to(self.dtype)
        return out if self.output is None else self.output(out)

    def _apply(self, fn: Any, recurse: bool = True) -> PackedEmbedding:
        super()._apply(fn, recurse)
        self.dtype = fn(torch.zeros((), dtype=self.dtype, device=self.matrix.packed.device)).dtype
        return self

    def extra_repr(self) -> str:
        return ", ".join(f"{key}={value}" for key, value in self.args.items())
