"""Linear layers with weights of -1, 0 and 1: products become additions (BitNet b1.58, arXiv 2402.17764).

In the form of the MatMul-free language model (Zhu et al., 2024, arXiv 2406.02528): a norm of its own before rounding.
`BitLinear` is trained with float weights that are rounded in every forward; `PackedBitLinear` runs from their codes.
"""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatch

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightformers.errors import UserError
from lightformers.kernels.rms_norm import rms_norm
from lightformers.parts.blocks import straight_through
from lightformers.parts.packed_layers import PackedLinear
from lightformers.parts.recording import eager, recorded

#: The least peak of a token and the least mean of a matrix that a scale is made from.
FLOOR = 1e-5
EPS = 1e-8
#: Entries of a weight that tell whether it is still the same.
LOOKED_AT = 256


def token_codes(x: Tensor) -> tuple[Tensor, Tensor]:
    """x (..., features) -> whole numbers from -128 to 127 in x's dtype, scale (..., 1): x ~ codes / scale.

    One scale per token, 127 / max |x|: what a token gives depends on no other. Halves go to the even number.
    """
    scale = 127 / x.abs().amax(-1, keepdim=True).clamp(min=FLOOR)
    return (x * scale).round().clamp(-128, 127), scale


def ternary_codes(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A matrix -> -1, 0 and 1 in its dtype, and its one scale: weight ~ codes / scale, scale = 1 / mean |weight|."""
    scale = 1 / weight.abs().mean().clamp(min=FLOOR)
    return (weight * scale).round().clamp(-1, 1), scale


class BitLinear(nn.Module):
    """y = q(rms_norm(x)) q(W)' (+ bias): (..., in_features) -> (..., out_features).

    Tokens are rounded to 8 bits and W to three values; gradients pass both roundings as if they were not there. Norm
    and rounding are in float32 or better. ternary: false leaves out both roundings, to compare with. std: W is drawn
    from N(0, std). Raises UserError for inputs of other sizes and for weights that are no floats.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = False,
        ternary: bool = True,
        std: float = 0.02,
        eps: float = EPS,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features, self.ternary = in_features, out_features, ternary
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.bias = nn.Parameter(torch.zeros(out_features)) if bias else None
        self.norm = nn.RMSNorm(in_features, eps=eps)
        nn.init.normal_(self.weight, std=std)
        #: The rounded weight of a forward without gradients, with what says that the weight is still the same.
        self._kept: tuple[tuple[int, int, torch.dtype, float], Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        x, given = normed(self.norm, x), x.dtype
        weight: Tensor = self.weight
        if self.ternary:
            # where gradients are wanted the weight is about to change
            keep = not (torch.is_grad_enabled() or weight.is_inference() or weight.is_meta or recorded())
            with torch.no_grad():
                codes, scale = token_codes(x)
                rounded, held = codes / scale, self._rounded(keep)
            x, weight = straight_through(x, rounded), straight_through(weight, held)
        return F.linear(x.to(given), weight.to(given), None if self.bias is None else self.bias.to(given))

    def _rounded(self, keep: bool) -> Tensor:
        """The weight in three values, in its own dtype. `keep`: made once, for a step of decoding is short."""
        weight = self.weight
        # a fused optimizer changes a weight without counting it: what is made is forgotten in every forward with
        # gradients, and some of the weight looked at for a step that follows one without
        seen = float(weight.flatten()[:: weight.numel() // LOOKED_AT + 1].sum()) if keep else 0.0
        key = (weight._version, weight.data_ptr(), weight.dtype, seen) if keep else None
        if self._kept is not None and self._kept[0] == key:
            return self._kept[1]
        levels, step = ternary_codes(weight.to(torch.promote_types(weight.dtype, torch.float32)))
        held = (levels / step).to(weight.dtype)
        self._kept = None if key is None else (key, held)
        return held

    def packed(self) -> PackedBitLinear:
        """The form for inference: the same outputs, weights frozen at 1.6 bits (five to a byte)."""
        made = PackedBitLinear(
            self.in_features, self.out_features, self.bias is not None, self.norm.eps or EPS
        )
        made.to(self.weight.device)
        made.fill(self)
        return made

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, ternary={self.ternary}"


def normed(norm: nn.RMSNorm, x: Tensor) -> Tensor:
    """The norm of x in float32 or better, and left so. Raises UserError where the sizes differ."""
    if x.shape[-1] != norm.normalized_shape[0]:
        raise UserError(f"the input has {x.shape[-1]} features, this layer takes {norm.normalized_shape[0]}")
    wide = torch.promote_types(x.dtype, torch.float32)
    x, weight = x.to(wide), norm.weight.to(wide)
    if eager(x) and norm.eps is not None:
        return rms_norm(x, weight, norm.eps)
    return F.rms_norm(x, norm.normalized_shape, weight, norm.eps)


class PackedBitLinear(nn.Module):
    """A `BitLinear` that runs from whole numbers: 8-bit codes of the token times ternary codes, then both scales.

    The weight is a `PackedLinear` of the format "ternary": 1.6 bits a weight, and one scale. Arguments as `BitLinear`.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = False, eps: float = EPS) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.linear = PackedLinear(in_features, out_features, "ternary", (0, 0), bias=False)
        self.bias = nn.Parameter(torch.zeros(out_features)) if bias else None
        self.norm = nn.RMSNorm(in_features, eps=eps)

    @torch.no_grad()
    def fill(self, layer: BitLinear) -> None:
        """Take over the layer's codes. Raises UserError where it is not ternary, or its scale not a finite number."""
        if not layer.ternary:
            raise UserError("this BitLinear was made with ternary=False: there are no codes to pack")
        codes, scale = ternary_codes(layer.weight.float())
        if not bool(torch.isfinite(layer.weight).all() and torch.isfinite(scale)):
            raise UserError("the weights hold NaN or infinity: there is no scale to pack them with")
        self.linear.matrix.fill(codes, (1 / scale).reshape(1, 1))
        self.norm.weight.copy_(layer.norm.weight)
        if self.bias is not None and layer.bias is not None:
            self.bias.copy_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        codes, scale = token_codes(normed(self.norm, x))
        out = self.linear(codes) / scale
        return (out if self.bias is None else out + self.bias).to(x.dtype)

    @property
    def bytes(self) -> int:
        """Bytes of the codes and their scale."""
        return self.linear.matrix.bytes


def ternarize(module: nn.Module, skip: Sequence[str] = (), ternary: bool = True) -> list[str]:
    """Every nn.Linear inside becomes a `BitLinear` of the same weights and bias, in place; their paths are returned.

    skip: patterns (`fnmatch`) of paths that stay. Raises UserError where there is nothing to replace or a weight is not
    float, before anything is changed.
    """
    found = {
        path: layer
        for path, layer in module.named_modules()
        if isinstance(layer, nn.Linear) and not any(fnmatch(path, pattern) for pattern in skip)
    }
    if not found or "" in found:
        raise UserError("there is no linear layer inside to make ternary")
    if wrong := [path for path, layer in found.items() if not layer.weight.is_floating_point()]:
        raise UserError(f"the weight of {wrong[0]} is not float")
    for path, layer in found.items():
        made = BitLinear(layer.in_features, layer.out_features, layer.bias is not None, ternary)
        made.to(layer.weight.device, layer.weight.dtype)
        for name in ("weight", "bias"):
            setattr(made, name, getattr(layer, name))
        _put(module, path, made)
    return list(found)


def pack(module: nn.Module) -> list[str]:
    """Every `BitLinear` inside becomes its `packed` form, in place; their paths are returned. Raises UserError where
    there is none, or one cannot be packed."""
    found = {path: layer.packed() for path, layer in module.named_modules() if isinstance(layer, BitLinear)}
    if not found or "" in found:
        raise UserError("there is no BitLinear inside to pack")
    for path, made in found.items():
        _put(module, path, made)
    return list(found)


def _put(module: nn.Module, path: str, part: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(module.get_submodule(parent), name, part)
