"""A linear layer with weights stored in eight bits and outlier features multiplied in the input's own precision.

LLM.int8() (Dettmers et al., 2022, arXiv 2208.07339), with the semantics of its library.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

Outliers = Literal["batch", "sequence", "token"]
#: Rows that are quantized and multiplied at a time: the pieces stay in the cache, which halves the time.
_ROWS = 256
#: Products of two int8 sum exactly in float32 up to this many: h * 127^2 < 2^24.
_EXACT = 1040


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Symmetric int8 with one step per row: (n, h) -> int8 (n, h) in [-127, 127], steps float32 (n, 1).

    `x ~ q * step`; rounding is half to even. A row of zeros gets the step 1/127, so nothing divides by zero.
    """
    peak = x.abs().amax(dim=1, keepdim=True).float()
    peak = torch.where(peak == 0, torch.ones_like(peak), peak)
    return (x * (127.0 / peak)).round_().to(torch.int8), peak / 127.0


def int8_matmul(x: Tensor, weight: Tensor) -> Tensor:
    """Exact integer product: int8 (n, h), int8 (o, h) -> int32 (n, o)."""
    if 0 in x.shape or 0 in weight.shape:
        return x.new_zeros(x.shape[0], weight.shape[0], dtype=torch.int32)
    if _integer_kernel(x.device.type) and _fits(x, weight):
        return torch._int_mm(x, weight.t())
    product = torch.zeros(len(x), len(weight), dtype=torch.int32, device=x.device)
    for a, b in zip(x.split(_EXACT, 1), weight.split(_EXACT, 1)):
        product += (a.float() @ b.float().t()).to(torch.int32)
    return product


def _fits(x: Tensor, weight: Tensor) -> bool:
    if x.device.type == "cpu":
        return x.shape[1] > 1  # torch 2.13 returns garbage for a single input feature
    # cuBLAS wants more than 16 rows and the two other sizes in multiples of 8
    return x.shape[0] > 16 and x.shape[1] % 8 == 0 and weight.shape[0] % 8 == 0


@lru_cache(maxsize=4)
def _integer_kernel(device: str) -> bool:
    """Whether `torch._int_mm` is there and exact: without VNNI some kernels saturate sums of pairs at 16 bits."""
    if device not in ("cpu", "cuda"):
        return False
    try:
        ones = torch.full((32, 64), 127, dtype=torch.int8, device=device)
        return bool((torch._int_mm(ones, -ones.t()) == -127 * 127 * 64).all())
    except (AttributeError, RuntimeError):
        return False


def outlier_mask(x: Tensor, threshold: float, outliers: Outliers) -> Tensor | None:
    """Which values are multiplied apart: bool, broadcastable to x (batch, length, h), or None if there are none.

    "batch": a feature whose magnitude reaches the threshold anywhere in the batch, everywhere in it (the paper).
    "sequence": the same per sequence. "token": only the values that reach it themselves.
    """
    large = x.abs() >= threshold
    if not bool(large.any()):
        return None
    if outliers == "token":
        return large
    return large.any(dim=1, keepdim=True) if outliers == "sequence" else large.any(dim=(0, 1), keepdim=True)


class _Multiply(torch.autograd.Function):
    """x (batch, length, h) -> (batch, length, o) through frozen int8 weights."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, layer: Int8Linear, quantized: Tensor, step: Tensor, half: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(quantized, step)
        rows = x.flatten(0, 1)
        # piece by piece: a copy of the whole input would cost more than the product
        peaks = torch.cat([piece.abs().amax(1) for piece in rows.split(_ROWS)]) if len(rows) else rows[:, 0]
        if not bool(torch.isfinite(peaks).all()):
            raise ValueError("the input of an int8 layer holds NaN or infinity")
        split = bool(layer.threshold) and bool((peaks >= layer.threshold).any())
        mask = outlier_mask(x, layer.threshold, layer.outliers) if split else None
        flat = None if mask is None else mask.expand(*x.shape).flatten(0, 1)
        out = torch.empty(len(rows), len(quantized), dtype=x.dtype, device=x.device)
        for start in range(0, len(rows), _ROWS):
            piece = rows[start : start + _ROWS]
            if flat is None:
                q, scale = quantize_rows(piece)
            else:
                # small values of outlier features still count for the row's step, as in the library
                q, scale = quantize_rows(piece.masked_fill(piece.abs() >= layer.threshold, 0))
                q.masked_fill_(flat[start : start + _ROWS], 0)
            product = int8_matmul(q, quantized)
            out[start : start + _ROWS] = product * scale * step
        if flat is not None:
            columns = flat.any(0).nonzero().flatten()
            apart = rows[:, columns].masked_fill(~flat[:, columns], 0)
            weight = half[:, columns] if half is not None else quantized[:, columns] * step[:, None]
            out += apart @ weight.to(x.dtype).t()
        return out.unflatten(0, x.shape[:2])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        quantized, step = ctx.saved_tensors
        weight = (quantized * step[:, None]).to(grads[0].dtype)
        return grads[0] @ weight, None, None, None, None


class Int8Linear(nn.Module):
    """Linear layer on int8 weights, with the outlier split of LLM.int8(). (..., in) -> (..., out).

    threshold: magnitude from which a feature is multiplied in the input's precision; 0 switches the split off.
    outliers: over what a feature counts as an outlier (see `outlier_mask`). "batch" is the paper's: the result of a
        sequence then depends on what else is in the batch; "token" does not.
    half: also hold the weights in fp16 and use those for the outliers (the paper), instead of dequantized int8
        (its library, and the default).

    Buffers `quantized` int8 (out, in) and `step` float32 (out,) are frozen; gradients reach the input and the bias.
    Differs from the library: the outliers multiply in the input's dtype, not always in fp16.
    """

    #: Models that look at `layer.weight.dtype` (t5) find no float matrix here, and skip their check.
    weight = None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        threshold: float = 6.0,
        outliers: Outliers = "batch",
        half: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if outliers not in get_args(Outliers):
            raise ValueError(f"outliers {outliers!r} is not one of {', '.join(get_args(Outliers))}")
        if not threshold >= 0:
            raise ValueError(f"threshold {threshold} is negative")
        self.in_features, self.out_features = in_features, out_features
        self.threshold, self.outliers = float(threshold), outliers
        self.quantized: Tensor
        self.step: Tensor
        self.half_weight: Tensor | None
        shape = (out_features, in_features)
        self.register_buffer("quantized", torch.zeros(shape, dtype=torch.int8, device=device))
        self.register_buffer("step", torch.ones(out_features, dtype=torch.float32, device=device))
        self.register_buffer(
            "half_weight", torch.zeros(shape, dtype=torch.float16, device=device) if half else None
        )
        self.bias = nn.Parameter(torch.zeros(out_features, device=device, dtype=dtype)) if bias else None

    @classmethod
    def from_weight(
        cls,
        weight: Tensor,
        bias: Tensor | None,
        threshold: float = 6.0,
        outliers: Outliers = "batch",
        half: bool = False,
    ) -> Int8Linear:
        """Quantize weight (out, in). Device and the bias' dtype are kept. NaN or infinity raises."""
        if not bool(torch.isfinite(weight).all()):
            raise ValueError("the weight holds NaN or infinity")
        out_features, in_features = weight.shape
        layer = cls(
            in_features,
            out_features,
            bias is not None,
            threshold,
            outliers,
            half,
            weight.device,
            weight.dtype,
        )
        with torch.no_grad():
            quantized, step = quantize_rows(weight.detach().float())
            layer.quantized.copy_(quantized)
            layer.step.copy_(step.squeeze(1))
            if layer.half_weight is not None:
                layer.half_weight.copy_(weight)
            if bias is not None:
                layer.bias.copy_(bias)  # type: ignore[union-attr]
        return layer

    @property
    def args(self) -> dict[str, Any]:
        """What a manifest needs to rebuild this layer."""
        return {
            "in_features": self.in_features,
            "out_features": self.out_features,
            "bias": self.bias is not None,
            "threshold": self.threshold,
            "outliers": self.outliers,
            "half": self.half_weight is not None,
        }

    def dequantized(self) -> Tensor:
        """The weights that the integers stand for, float32 (out, in)."""
        return self.quantized * self.step[:, None]

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] != self.in_features:
            raise ValueError(f"the input has {x.shape[-1]} features, this layer takes {self.in_features}")
        leading = x.shape[0] if x.dim() > 2 else 1  # the rest is the length of a sequence
        shaped = x.reshape(leading, math.prod(x.shape[:-1]) // max(leading, 1), self.in_features)
        out = _Multiply.apply(shaped, self, self.quantized, self.step, self.half_weight)
        out = out.reshape(*x.shape[:-1], self.out_features)
        return out if self.bias is None else out + self.bias.to(out.dtype)

    def _apply(self, fn: Any, recurse: bool = True) -> Int8Linear:
        # .half() and .bfloat16() must not round the steps: they move, but stay float32
        step, half = self.step, self.half_weight
        super()._apply(fn, recurse)
        self.step = step.to(self.step.device)
        if half is not None and self.half_weight is not None:
            self.half_weight = half.to(self.half_weight.device)
        return self

    def extra_repr(self) -> str:
        return ", ".join(f"{key}={value}" for key, value in self.args.items())
