"""Linear layers whose weights are stored without their zeros, and run from that form.

Two forms. `BlockSparseLinear`: pieces of `block` consecutive inputs that are there or not, told by one bit each
(block 1 is unstructured sparsity). `NOfMLinear`: n values of every m consecutive inputs, with their places in one, two,
four or eight bits. Values are parameters and can be trained; what is not stored stays zero. There is no sparse kernel
in here: a forward writes the matrix out and multiplies it densely, so memory at rest and files are smaller, not
the time.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lightformers.parts.packed_bits import pack, unpack


class BlockSparseLinear(nn.Module):
    """`y = x W^T + b` with W (out, in) kept as `count` pieces of `block` consecutive inputs. (..., in) -> (..., out).

    values: (count, block), row by row. bitmap: uint8, one bit per piece, lowest bit first.
    """

    #: Models that look at `layer.weight.dtype` (t5) find no single matrix here, and skip their check.
    weight = None

    def __init__(
        self, in_features: int, out_features: int, count: int, block: int = 1, bias: bool = True,
        device: torch.device | str | None = None, dtype: torch.dtype | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        if block < 1 or in_features % block:
            raise ValueError(f"pieces of {block} do not divide {in_features} inputs")
        pieces = in_features // block * out_features
        if not 0 <= count <= pieces:
            raise ValueError(f"{count} pieces of {pieces} cannot be kept")
        self.in_features, self.out_features, self.count, self.block = in_features, out_features, count, block
        self.values = nn.Parameter(torch.zeros(count, block, device=device, dtype=dtype))
        self.bitmap: Tensor
        self.register_buffer("bitmap", torch.zeros(-(-pieces // 8), dtype=torch.uint8, device=device))
        self.bias = nn.Parameter(torch.zeros(out_features, device=device, dtype=dtype)) if bias else None

    @classmethod
    def from_weight(cls, weight: Tensor, bias: Tensor | None, block: int = 1) -> BlockSparseLinear:
        """Keep the pieces of weight (out, in) that are not all zero. Device and dtype are kept."""
        out_features, in_features = weight.shape
        if block < 1 or in_features % block:
            raise ValueError(f"pieces of {block} do not divide {in_features} inputs")
        pieces = weight.detach().reshape(-1, block)
        there = (pieces != 0).any(1)
        layer = cls(
            in_features, out_features, int(there.sum()), block, bias is not None, weight.device, weight.dtype
        )
        with torch.no_grad():
            layer.values.copy_(pieces[there])
            layer.bitmap.copy_(pack_bits(there.to(torch.uint8), 1))
            if bias is not None:
                layer.bias.copy_(bias)  # type: ignore[union-attr]
        return layer

    @property
    def args(self) -> dict[str, Any]:
        """What a manifest needs to rebuild this layer."""
        names = ("in_features", "out_features", "count", "block")
        return {name: getattr(self, name) for name in names} | {"bias": self.bias is not None}

    def dense(self) -> Tensor:
        """The matrix (out, in); gradients flow to `values`."""
        there = unpack_bits(self.bitmap, 1, self.in_features // self.block * self.out_features).bool()
        full = self.values.new_zeros(len(there), self.block)
        return full.masked_scatter(there[:, None].expand_as(full), self.values).reshape(self.out_features, -1)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.dense(), self.bias)

    def extra_repr(self) -> str:
        return ", ".join(f"{key}={value}" for key, value in self.args.items())


class NOfMLinear(nn.Module):
    """`y = x W^T + b` with n values of every m consecutive inputs of a row. (..., in) -> (..., out).

    values: (out, in / m, n). places: uint8, where in its m each value stands, packed, lowest bits first.
    """

    weight = None

    def __init__(
        self, in_features: int, out_features: int, n: int, m: int, bias: bool = True,
        device: torch.device | str | None = None, dtype: torch.dtype | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        if not 0 < n <= m <= 256 or in_features % m:
            raise ValueError(f"{n} of {m} needs 0 < n <= m <= 256, and m must divide {in_features} inputs")
        self.in_features, self.out_features, self.n, self.m = in_features, out_features, n, m
        shape = (out_features, in_features // m, n)
        self.values = nn.Parameter(torch.zeros(*shape, device=device, dtype=dtype))
        held = -(-out_features * (in_features // m) * n // (8 // place_bits(m)))
        self.places: Tensor
        self.register_buffer("places", torch.zeros(held, dtype=torch.uint8, device=device))
        self.bias = nn.Parameter(torch.zeros(out_features, device=device, dtype=dtype)) if bias else None

    @classmethod
    def from_weight(cls, weight: Tensor, bias: Tensor | None, n: int, m: int) -> NOfMLinear:
        """Store weight (out, in), of which at most n in every m consecutive inputs are not zero (else ValueError)."""
        layer = cls(
            weight.shape[1], weight.shape[0], n, m, bias is not None, weight.device, weight.dtype
        )  # fmt: skip
        groups = weight.detach().reshape(weight.shape[0], -1, m)
        if bool(((groups != 0).sum(-1) > n).any()):
            raise ValueError(f"more than {n} of {m} consecutive weights are not zero somewhere")
        # those that are not zero first, then as many others as are missing; in their order
        places = (groups != 0).int().argsort(dim=-1, descending=True, stable=True)[..., :n].sort(-1).values
        with torch.no_grad():
            layer.values.copy_(groups.gather(-1, places))
            layer.places.copy_(pack_bits(places.reshape(-1).to(torch.uint8), place_bits(m)))
            if bias is not None:
                layer.bias.copy_(bias)  # type: ignore[union-attr]
        return layer

    @property
    def args(self) -> dict[str, Any]:
        """What a manifest needs to rebuild this layer."""
        names = ("in_features", "out_features", "n", "m")
        return {name: getattr(self, name) for name in names} | {"bias": self.bias is not None}

    def dense(self) -> Tensor:
        """The matrix (out, in); gradients flow to `values`."""
        places = (
            unpack_bits(self.places, place_bits(self.m), self.values.numel()).long().view(self.values.shape)
        )
        full = self.values.new_zeros(*self.values.shape[:2], self.m)
        return full.scatter(-1, places, self.values).reshape(self.out_features, -1)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.dense(), self.bias)

    def extra_repr(self) -> str:
        return ", ".join(f"{key}={value}" for key, value in self.args.items())


def place_bits(m: int) -> int:
    """Bits in which a place of m is stored: 1, 2, 4 or 8, so that bytes hold whole ones."""
    return next(bits for bits in (1, 2, 4, 8) if m <= 2**bits)


def pack_bits(numbers: Tensor, bits: int) -> Tensor:
    """uint8 numbers below 2^bits -> bytes that hold 8 / bits of them, the first in the lowest bits."""
    return pack(numbers[None], 2**bits, 8 // bits)[0]


def unpack_bits(held: Tensor, bits: int, count: int) -> Tensor:
    """The first `count` numbers of `pack_bits`, uint8."""
    return unpack(held[None], 2**bits, 8 // bits, count)[0]


def stored_bytes(layer: nn.Module) -> int:
    """Bytes of all parameters and buffers of a layer."""
    return sum(t.numel() * t.element_size() for t in (*layer.parameters(), *layer.buffers()))
