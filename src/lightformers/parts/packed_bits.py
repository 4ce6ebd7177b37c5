"""Matrices of few bits, packed: two 4-bit numbers to a byte, five ternary ones, eight binary ones.

A matrix is `level * step`: levels of a number format, one step per block (tensor, row, or rows x columns), stored as
float32 or as a power of two in eight bits. `packed_layers` multiplies with it and looks rows up in it.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from lightformers.parts.blocks import Block, exponents, grid, spread
from lightformers.parts.number_formats import NumberFormat, number_format
from lightformers.parts.number_formats import power_of_two as two_to

#: Rows that are packed at once.
_ROWS = 1024


def pack(codes: Tensor, base: int, per_byte: int) -> Tensor:
    """Codes uint8 (rows, columns), each below `base` -> bytes uint8 (rows, ceil(columns / per_byte)).

    The first of a byte's numbers is its lowest digit; the rest of the last byte is zero.
    """
    rows, columns = codes.shape
    padded = nn.functional.pad(codes, (0, -columns % per_byte)).view(rows, -1, per_byte)
    weights = torch.tensor([base**i for i in range(per_byte)], device=codes.device)
    out = torch.empty(padded.shape[:2], dtype=torch.uint8, device=codes.device)
    for piece, place in zip(
        padded.split(_ROWS), out.split(_ROWS)
    ):  # whole numbers take eight bytes each meanwhile
        place.copy_((piece.long() * weights).sum(-1))
    return out


@lru_cache(maxsize=64)
def _digits(base: int, per_byte: int) -> Tensor:
    """The codes in each of the 256 bytes, (256, per_byte); bytes that stand for nothing hold the largest code."""
    byte = torch.arange(256)
    digits = torch.stack([(byte // base**i) % base for i in range(per_byte)], 1)
    digits[base**per_byte :] = base - 1
    return digits


def unpack(packed: Tensor, base: int, per_byte: int, columns: int) -> Tensor:
    """The inverse of `pack`: bytes (rows, n) -> codes uint8 (rows, columns)."""
    digits = _digits(base, per_byte).to(packed.device, torch.uint8)
    return digits[packed.long()].flatten(1)[:, :columns]


class PackedMatrix(nn.Module):
    """A frozen matrix of few bits. Buffers: `packed` uint8 (rows, bytes), `step` (float32, or int8 exponents of two)."""

    def __init__(
        self,
        rows: int,
        columns: int,
        form: str,
        block: Block = (1, 0),
        power_of_two: bool = False,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.rows, self.columns, self.power_of_two = rows, columns, power_of_two
        self.form: NumberFormat = number_format(form)
        self.block: Block = (int(block[0]), int(block[1]))
        width = -(-columns // self.form.per_byte)
        kind = torch.int8 if power_of_two else torch.float32
        self.packed: Tensor
        self.step: Tensor
        self.register_buffer("packed", torch.zeros(rows, width, dtype=torch.uint8, device=device))
        self.register_buffer(
            "step", torch.zeros(*grid((rows, columns), self.block), dtype=kind, device=device)
        )

    def fill(self, levels: Tensor, step: Tensor) -> None:
        """Store levels (rows, columns) of the format and their steps (`grid`). Raises ValueError if they don't fit."""
        if levels.shape != (self.rows, self.columns) or step.shape != self.step.shape:
            raise ValueError(
                f"levels {tuple(levels.shape)} and steps {tuple(step.shape)} are not those of a matrix "
                f"{self.rows} x {self.columns} with {tuple(self.step.shape)} steps"
            )
        codes = self.form.encode(levels)
        self.packed.copy_(pack(codes, len(self.form.levels), self.form.per_byte))
        if self.power_of_two:
            shift = exponents(step)
            if not torch.equal(two_to(shift), step.float()):
                raise ValueError("the steps are no powers of two")
            step = shift
        self.step.copy_(step)

    def _table(self) -> Tensor:
        levels = torch.tensor(self.form.levels)[_digits(len(self.form.levels), self.form.per_byte)]
        return levels.to(self.packed.device)

    def values(self, rows: slice | None = None) -> Tensor:
        """The numbers it stands for, float32: all rows, or a slice of them."""
        rows = slice(*(rows or slice(None)).indices(self.rows))
        levels = self._table()[self.packed[rows].long()].flatten(1)[:, : self.columns]
        return levels * spread(self._steps(), self.block, (self.rows, self.columns), rows)

    def gather(self, index: Tensor) -> Tensor:
        """Some rows, by index (...) -> (..., columns), float32."""
        flat = index.reshape(-1)
        levels = self._table()[self.packed[flat].long()].flatten(1)[:, : self.columns]
        step, (high, wide) = self._steps(), self.block
        if step.shape[0] > 1:
            step = step[flat // high]
        if wide and step.shape[1] > 1:
            step = step.repeat_interleave(wide, 1)[:, : self.columns]
        return (levels * step).reshape(*index.shape, self.columns)

    def _steps(self) -> Tensor:
        if self.step.dtype == torch.int8:
            return two_to(self.step)
        return self.step

    def _apply(self, fn: Any, recurse: bool = True) -> PackedMatrix:
        # .half() and .bfloat16() must not round the steps: they move, but stay as they are
        step = self.step
        super()._apply(fn, recurse)
        self.step = step.to(self.step.device)
        return self

    def matrix_args(self) -> dict[str, Any]:
        return {"form": self.form.name, "block": list(self.block), "power_of_two": self.power_of_two}

    @property
    def bytes(self) -> int:
        """Bytes of what is stored, steps included."""
        return self.packed.numel() + self.step.numel() * self.step.element_size()
