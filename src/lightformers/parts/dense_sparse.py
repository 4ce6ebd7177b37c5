"""A linear layer stored as sparse coefficients times small dense bases (DSFormer, Chand et al., 2023, arXiv 2312.13211)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn


def index_bits(atoms: int) -> int:
    """Bits that tell one of `atoms` atoms (0 for a single one)."""
    return math.ceil(math.log2(atoms)) if atoms > 1 else 0


def stored_bits(
    out_features: int, in_features: int, block: int, atoms: int, nonzeros: int, bits: int = 32
) -> int:
    """What a layer's matrix takes: bases and coefficients of `bits` each, and the indices; a ragged block counts whole."""
    blocks = -(-in_features // block)
    values = atoms * block + out_features * nonzeros
    return blocks * (values * bits + out_features * nonzeros * index_bits(atoms))


def pack_bits(numbers: Tensor, bits: int) -> Tensor:
    """Whole numbers below 2^bits, of any shape -> uint8 (ceil(count * bits / 8),), low bits first."""
    place = torch.arange(bits, device=numbers.device)
    flat = (numbers.reshape(-1, 1) >> place & 1).reshape(-1).to(torch.uint8)
    flat = nn.functional.pad(flat, (0, -flat.numel() % 8)).reshape(-1, 8)
    return (flat << torch.arange(8, device=flat.device, dtype=torch.uint8)).sum(1, dtype=torch.uint8)


def unpack_bits(packed: Tensor, bits: int, count: int) -> Tensor:
    """The first `count` numbers that `pack_bits` packed: int64 (count,)."""
    if bits == 0:
        return torch.zeros(count, dtype=torch.int64, device=packed.device)
    place = torch.arange(8, device=packed.device, dtype=torch.uint8)
    flat = (packed[:, None] >> place & 1).reshape(-1)[: count * bits].reshape(count, bits).long()
    return (flat << torch.arange(bits, device=packed.device)).sum(1)


def assemble(atoms: Tensor, index: Tensor, values: Tensor, in_features: int) -> Tensor:
    """The matrix: atoms (t, r, c), index and values (t, out, s) -> (out, in). Gradients reach atoms and values."""
    blocks, rows, _ = values.shape
    sparse = values.new_zeros(blocks, rows, atoms.shape[1]).scatter(-1, index, values)
    return (sparse @ atoms).transpose(0, 1).reshape(rows, -1)[:, :in_features]


class DenseSparseLinear(nn.Module):
    """`y = W x + b` with each column block `W_t = S_t D_t`: D_t (atoms, block) dense, S_t with `nonzeros` entries a row.

    (..., in_features) -> (..., out_features). Parameters `atoms` (t, r, c) and `values` (t, out, s) may be trained; which
    atoms a row takes is fixed and stored in `index`, packed to as many bits as an index needs. No kernel exists for
    this form: the matrix is assembled at each forward (a temporary of its dense size), so it saves disk and parameters,
    not time; indices are unpacked once and held in memory.
    """

    #: Models that look at `layer.weight.dtype` (t5) find no single matrix here, and skip their check.
    weight = None

    def __init__(
        self, in_features: int, out_features: int, block: int, atoms: int, nonzeros: int, bias: bool = True
    ) -> None:
        super().__init__()
        if not 1 <= nonzeros <= atoms or not 1 <= block <= in_features:
            raise ValueError(
                f"{nonzeros} of {atoms} atoms, or blocks of {block} for {in_features} inputs, make no sense"
            )
        self.in_features, self.out_features = in_features, out_features
        self.block, self.nonzeros = block, nonzeros
        blocks = -(-in_features // block)
        self.atoms = nn.Parameter(torch.zeros(blocks, atoms, block))
        self.values = nn.Parameter(torch.zeros(blocks, out_features, nonzeros))
        self.bias = nn.Parameter(torch.zeros(out_features)) if bias else None
        size = -(-self.values.numel() * index_bits(atoms) // 8)
        self.index: Tensor
        self.register_buffer("index", torch.zeros(size, dtype=torch.uint8))
        self._unpacked: tuple[Any, Tensor] | None = None

    @classmethod
    def from_factors(
        cls, atoms: Tensor, index: Tensor, values: Tensor, bias: Tensor | None, in_features: int
    ) -> DenseSparseLinear:
        """From atoms (t, r, c), index and values (t, out, s); device and dtype are those of the atoms."""
        layer = cls(
            in_features, values.shape[1], atoms.shape[2], atoms.shape[1], values.shape[2], bias is not None
        )
        layer.to(atoms)
        with torch.no_grad():
            layer.atoms.copy_(atoms)
            layer.values.copy_(values)
            layer.index.copy_(pack_bits(index, index_bits(atoms.shape[1])))
            if bias is not None:
                layer.bias.copy_(bias)  # type: ignore[union-attr]
        return layer

    @property
    def args(self) -> dict[str, Any]:
        """What a manifest needs to rebuild this layer."""
        return {
            "in_features": self.in_features,
            "out_features": self.out_features,
            "block": self.block,
            "atoms": self.atoms.shape[1],
            "nonzeros": self.nonzeros,
            "bias": self.bias is not None,
        }

    def indices(self) -> Tensor:
        """Which atoms each row takes: int64 (t, out, s)."""
        key = (id(self.index), self.index._version)
        if self._unpacked is None or self._unpacked[0] != key:
            flat = unpack_bits(self.index, index_bits(self.atoms.shape[1]), self.values.numel())
            self._unpacked = (key, flat.view(self.values.shape))
        return self._unpacked[1]

    def dense(self) -> Tensor:
        """The matrix, (out, in)."""
        return assemble(self.atoms, self.indices(), self.values, self.in_features)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.dense(), self.bias)

    def extra_repr(self) -> str:
        return ", ".join(f"{key}={value}" for key, value in self.args.items())
