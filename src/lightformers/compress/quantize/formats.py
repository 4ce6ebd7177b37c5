"""Int8 matrix products of every granularity, as pure functions: what the comparisons of papers are made of.

All compute `X W^T` for X (n, h) and W (o, h), exactly as integer hardware would: integers of eight bits, sums in
int32, one multiplication by the steps at the end. Equations: LLM.int8() (arXiv 2208.07339), section 2.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lightformers.errors import UserError
from lightformers.parts.int8 import int8_matmul, quantize_rows


@dataclass(frozen=True)
class Format:
    """A row of the comparison. activations, weights: over what one step is shared. split: outliers apart."""

    activations: Literal["tensor", "row"]
    weights: Literal["tensor", "row"]
    zero_point: bool = False
    split: bool = False


_PLAIN = {
    "absmax": Format("tensor", "tensor"),
    "zero-point": Format("tensor", "tensor", zero_point=True),
    "row-wise": Format("row", "tensor"),
    "vector-wise": Format("row", "row"),
}
#: name -> format; "vector-wise+split" is LLM.int8().
FORMATS: Mapping[str, Format] = {
    **_PLAIN,
    **{
        f"{name}+split": Format(f.activations, f.weights, f.zero_point, split=True)
        for name, f in _PLAIN.items()
    },
}


def absmax(x: Tensor, per: Literal["tensor", "row"] = "row") -> tuple[Tensor, Tensor]:
    """Symmetric int8: x (n, h) -> integers int8 (n, h) in [-127, 127], steps float32 (n, 1); `x ~ q * step`."""
    if per == "row":
        return quantize_rows(x)
    q, step = quantize_rows(x.reshape(1, -1))
    return q.reshape(x.shape), step.expand(len(x), 1)


def zero_point(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Asymmetric int8 over the whole tensor: integers in [-127, 127], step, offset; `x ~ (q - offset) * step`.

    The range [min, max] is mapped onto 254 steps; it always holds 0, which is then exact.
    """
    low, high = x.min().clamp(max=0).float(), x.max().clamp(min=0).float()
    step = (high - low) / 254
    step = torch.where(step == 0, torch.ones_like(step), step)
    offset = (-127 - low / step).round()
    return (x / step + offset).round().clamp(-127, 127).to(torch.int8), step, offset


def outlier_columns(x: Tensor, threshold: float) -> Tensor:
    """Features whose magnitude reaches the threshold in any row: x (n, h) -> bool (h,). Threshold 0: none."""
    if not threshold or not len(x):
        return torch.zeros(x.shape[1], dtype=torch.bool, device=x.device)
    return x.abs().amax(0) >= threshold


def multiply(x: Tensor, weight: Tensor, name: str = "vector-wise+split", threshold: float = 6.0) -> Tensor:
    """`x @ weight.T` in one of `FORMATS`: x (n, h), weight (o, h) -> (n, o) in x's dtype.

    Outliers of a "+split" format are multiplied in x's dtype by the unrounded weight (the paper's form).
    Raises UserError for an unknown format and for NaN or infinity.
    """
    if name not in FORMATS:
        raise UserError(f"unknown format {name!r}; formats: {', '.join(FORMATS)}")
    if not bool(torch.isfinite(x).all() and torch.isfinite(weight).all()):
        raise UserError("cannot quantize NaN or infinity")
    if not len(x):
        return x.new_zeros(0, len(weight))
    chosen = FORMATS[name]
    columns = outlier_columns(x, threshold if chosen.split else 0)
    if bool(columns.all()):
        return x @ weight.t().to(x.dtype)
    inner = x.masked_fill(x.abs() >= threshold, 0) if bool(columns.any()) else x
    product = (
        _affine(inner, weight, columns) if chosen.zero_point else _scaled(inner, weight, columns, chosen)
    )
    apart = x[:, columns] @ weight[:, columns].t().to(x.dtype)
    return product.to(x.dtype) + apart


def _scaled(x: Tensor, weight: Tensor, columns: Tensor, chosen: Format) -> Tensor:
    q, step = absmax(x, chosen.activations)
    w, weight_step = absmax(weight, chosen.weights)
    return int8_matmul(q.masked_fill(columns, 0), w) * step * weight_step.reshape(1, -1)


def _affine(x: Tensor, weight: Tensor, columns: Tensor) -> Tensor:
    # (q - a)(w - b) = qw - a sum(w) - b sum(q) + h a b, each sum an exact integer
    q, step, a = zero_point(x[:, ~columns])
    w, weight_step, b = zero_point(weight[:, ~columns])
    whole = int8_matmul(q, w).double()
    whole = whole - a * w.sum(1, dtype=torch.int32) - b * q.sum(1, keepdim=True, dtype=torch.int32)
    return ((whole + a.double() * b * q.shape[1]) * step * weight_step).float()


def relative_error(approximate: Tensor, exact: Tensor) -> float:
    """`|approximate - exact| / |exact|` in the Frobenius norm; 0 where both are zero."""
    norm = float(exact.float().norm())
    return float((approximate.float() - exact.float()).norm()) / norm if norm else 0.0
