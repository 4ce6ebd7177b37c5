"""Learned polynomials as activations: PolyReLU and PolyNorm (Zhuo et al., 2024, arXiv 2411.03884).

Both keep nothing for the backward pass but their input, and compute in float32 or better. The coefficients of a layer
are shared by its channels and start at 1 / order, the constant at 0. weight: (order,), the highest power first.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lightformers.errors import UserError
from lightformers.parts.recording import recorded

#: Numbers that are worked on at a time on a processor.
_PIECE = 1 << 16


def poly_relu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """sum_k a_k relu(x)^k + a_0, element by element. weight: (r,) = a_r, ..., a_1; bias: (1,) = a_0. Raises UserError
    for whole numbers."""
    _check(x, weight)
    if recorded():
        return _plain(_ReLUForm(), x, weight, bias)
    out: Tensor = _PolyReLU.apply(x, weight, bias)
    return out


def poly_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-6) -> Tensor:
    """sum_k a_k n(x^k) + a_0 with n(v) = v / sqrt(mean(v^2) + eps) over the last dimension. See `poly_relu`.

    It mixes channels: where they are divided over experts or devices, call it with all of one token's.
    """
    _check(x, weight)
    if x.shape[-1] == 1:
        warnings.warn("PolyNorm over one channel sees no more than its sign", stacklevel=2)
    if recorded():
        return _plain(_NormForm(eps), x, weight, bias)
    out: Tensor = _PolyNorm.apply(x, weight, bias, eps)
    return out


class PolyReLU(nn.Module):
    """`poly_relu` with its own coefficients; (...) -> (...). order: the highest power, 1 or more.

    Cubes of large inputs grow fast: keep a norm before the layer, and float16 away.
    """

    def __init__(self, order: int = 3) -> None:
        super().__init__()
        self.weight, self.bias = _coefficients(order)

    def forward(self, x: Tensor) -> Tensor:
        return poly_relu(x, self.weight, self.bias)


class PolyNorm(nn.Module):
    """`poly_norm` with its own coefficients; (..., channels) -> (..., channels). order: as in `PolyReLU`.

    The scale of x matters through eps alone, so the layer before gets no gradient along its own scale.
    """

    def __init__(self, order: int = 3, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.weight, self.bias = _coefficients(order)

    def forward(self, x: Tensor) -> Tensor:
        return poly_norm(x, self.weight, self.bias, self.eps)


def ungated(inner: int) -> int:
    """The width of a feed-forward of two matrices that holds as many weights as a gated one of width `inner`: 3/2 of
    it. Raises UserError for odd ones."""
    if inner < 2 or inner % 2:
        raise UserError(f"a gated width of {inner} has no whole three halves: take an even one")
    return 3 * inner // 2


def _coefficients(order: int) -> tuple[nn.Parameter, nn.Parameter]:
    if order < 1:
        raise UserError(f"a polynomial needs an order of at least 1, not {order}")
    return nn.Parameter(torch.full((order,), 1 / order)), nn.Parameter(torch.zeros(1))


def _check(x: Tensor, weight: Tensor) -> None:
    if not x.is_floating_point():
        raise UserError(f"polynomial activations take floating-point inputs, not {x.dtype}")
    if weight.ndim != 1 or not len(weight):
        raise UserError(
            f"the coefficients are one vector from the highest power on, not {tuple(weight.shape)}"
        )


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _plain(form: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """In one piece and without gradients of our own: what other runtimes can read."""
    out: Tensor = form.forward(_wide(x), _wide(weight)) + bias
    return out.to(x.dtype)


def _pieces(x: Tensor) -> tuple[Tensor, ...]:
    """(rows, channels) in pieces that stay in a processor's cache while a dozen operations go over them."""
    rows = max(_PIECE // max(x.shape[1], 1), 1) if x.device.type == "cpu" else max(len(x), 1)
    return x.split(rows)


def _forward(ctx: Any, form: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    ctx.save_for_backward(x, weight)
    a, out = _wide(weight), torch.empty(x.shape, dtype=x.dtype, device=x.device)
    rows, into = x.reshape(-1, x.shape[-1]), out.view(-1, x.shape[-1])
    for piece, place in zip(_pieces(rows), _pieces(into)):
        place.copy_(form.forward(_wide(piece), a).add_(bias))
    return out


def _backward(ctx: Any, form: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    x, weight = ctx.saved_tensors
    a, dx = _wide(weight), torch.empty(x.shape, dtype=x.dtype, device=x.device)
    tensors = (x.reshape(-1, x.shape[-1]), grad.reshape(-1, x.shape[-1]), dx.view(-1, x.shape[-1]))
    dweight, dbias = torch.zeros_like(a), torch.zeros_like(a[:1])
    for piece, g, place in zip(*map(_pieces, tensors)):
        slope, sums = form.backward(_wide(piece), a, _wide(g))
        place.copy_(slope)
        dweight += torch.stack(sums[::-1])
        dbias += _wide(g).sum()
    return dx, dweight.to(weight.dtype), dbias.to(weight.dtype)


class _ReLUForm:
    """sum_k a_k relu(v)^k without the constant, and its gradients: by v, and for a_1, a_2, ..."""

    @staticmethod
    def forward(v: Tensor, a: Tensor) -> Tensor:
        u = v.relu()
        out = u * a[0]
        for k in range(1, len(a)):
            out = out.add_(a[k]).mul_(u)
        return out

    @staticmethod
    def backward(v: Tensor, a: Tensor, g: Tensor) -> tuple[Tensor, list[Tensor]]:
        u, order = v.relu(), len(a)
        slope, sums, power = torch.full_like(u, float(order)) * a[0], [], g
        for k in range(1, order + 1):
            power = power * u
            sums.append(power.sum())
            if k < order:
                slope = slope.mul_(u).add_((order - k) * a[k])
        return slope.mul_(g).mul_(v > 0), sums


@dataclass(frozen=True)
class _NormForm:
    """sum_k a_k v^k / sqrt(mean(v^2k) + eps) without the constant, and its gradients as in `_ReLUForm`."""

    eps: float

    def scales(self, v: Tensor, order: int) -> list[Tensor]:
        square = power = v * v
        out = []
        for k in range(1, order + 1):
            out.append((power.mean(-1, keepdim=True) + self.eps).rsqrt())
            power = power * square if k < order else power
        return out

    def forward(self, v: Tensor, a: Tensor) -> Tensor:
        order, scales = len(a), self.scales(v, len(a))
        out = v * (scales[-1] * a[0])
        for k in range(1, order):
            out = out.add_(scales[order - 1 - k] * a[k]).mul_(v)
        return out

    def backward(self, v: Tensor, a: Tensor, g: Tensor) -> tuple[Tensor, list[Tensor]]:
        order, dx, sums = len(a), torch.zeros_like(v), []
        lower = torch.ones_like(v)  # v^(k-1)
        for k, scale in enumerate(self.scales(v, order), 1):
            power = lower * v
            along = (g * power).sum(-1, keepdim=True)
            sums.append((along * scale).sum())
            inner = g - power * (scale.square() * along / v.shape[-1])
            dx = dx.addcmul_(inner.mul_(lower), k * a[order - k] * scale)
            lower = power
        return dx, sums


class _PolyReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return _forward(ctx, _ReLUForm, x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return _backward(ctx, _ReLUForm, grad)


class _PolyNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        ctx.form = _NormForm(eps)
        return _forward(ctx, ctx.form, x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        return *_backward(ctx, ctx.form, grad), None
