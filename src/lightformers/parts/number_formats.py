"""The few numbers that a quantized tensor may hold: integers, small floats, ternary, binary.

A format is a set of levels; a tensor is `level * step`. Levels are scaled so that the smallest positive one is 1,
so every level is a whole number. All formats are symmetric and none has codes for NaN, infinity or a second zero.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from lightformers.errors import UserError

_FLOAT = re.compile(r"e(\d)m(\d)")
_INTEGER = re.compile(r"int(\d)")
#: Numbers that are encoded at once: their places take eight bytes each meanwhile.
_PIECE = 1 << 20


@dataclass(frozen=True)
class NumberFormat:
    """name: "int4", "e2m1", "ternary", "binary", ... levels: all of them, ascending.

    exponent, mantissa: bits of a float format, else 0.
    """

    name: str
    levels: tuple[float, ...]
    exponent: int = 0
    mantissa: int = 0

    @property
    def max(self) -> float:
        """The largest level."""
        return self.levels[-1]

    @property
    def per_byte(self) -> int:
        """How many numbers fit into a byte: the largest n with `len(levels) ** n <= 256`."""
        n = 1
        while len(self.levels) ** (n + 1) <= 256:
            n += 1
        return n

    @property
    def bits(self) -> float:
        """Stored bits of one number: 4.0 for int4 and e2m1, 1.6 for ternary, 1.0 for binary."""
        return 8 / self.per_byte

    def round(self, x: Tensor) -> Tensor:
        """The nearest level of every number, in x's dtype. Halves go to the even mantissa; 0 is +1 in binary."""
        if self.name == "binary":
            return torch.where(x < 0, -torch.ones_like(x), torch.ones_like(x))
        clipped = x.clamp(-self.max, self.max)
        if not self.exponent:
            return clipped.round()
        # frexp: |x| = m * 2^e with m in [1/2, 1), so e - 1 is the floor of log2, exact also at powers of two
        spacing = torch.frexp(clipped.float()).exponent - 1 - self.mantissa
        scale = power_of_two(spacing.clamp(min=0))
        return (torch.round(clipped.float() / scale) * scale).to(x.dtype)

    def encode(self, levels: Tensor) -> Tensor:
        """Levels -> their places in `self.levels`, uint8. Raises ValueError for numbers that are no level."""
        book = torch.tensor(self.levels, device=levels.device)
        out = torch.empty(levels.shape, dtype=torch.uint8, device=levels.device)
        for piece, place in zip(levels.reshape(-1).split(_PIECE), out.view(-1).split(_PIECE)):
            codes = torch.searchsorted(book, piece.float()).clamp(max=len(book) - 1)
            if not torch.equal(book[codes], piece.float()):
                raise ValueError(f"not all numbers are levels of {self.name}")
            place.copy_(codes)
        return out


def power_of_two(exponent: Tensor) -> Tensor:
    """2^k, float32, exact, for whole k from -126 to 127: written into the exponent's bits."""
    return ((exponent.int() + 127) << 23).view(torch.float32)


def integer(bits: int) -> NumberFormat:
    """Whole numbers from -(2^(bits-1) - 1) to 2^(bits-1) - 1, bits from 2 to 8."""
    if not 2 <= bits <= 8:
        raise UserError(f"integers have 2 to 8 bits here, got {bits}")
    top = 2 ** (bits - 1) - 1
    return NumberFormat(f"int{bits}", tuple(float(n) for n in range(-top, top + 1)))


def minifloat(exponent: int, mantissa: int) -> NumberFormat:
    """A sign, `exponent` bits of exponent and `mantissa` bits of mantissa, 3 to 8 bits in all.

    Every exponent is one of numbers, the lowest one of subnormals (LLM-FP4, arXiv 2310.16836, section 3): e2m1 is
    0, 1, 2, 3, 4, 6, 8, 12 and their negatives, the 4-bit float of the OCP standard times 2. e1m2 is int4.
    """
    if not (1 <= exponent <= 5 and 0 <= mantissa <= 6 and 2 <= exponent + mantissa <= 7):
        raise UserError(
            f"float formats have 1 to 5 bits of exponent and 3 to 8 bits in all, got e{exponent}m{mantissa}"
        )
    step = 2**mantissa
    positive = list(range(1, step))
    positive += [(step + m) * 2 ** (e - 1) for e in range(1, 2**exponent) for m in range(step)]
    levels = (*(-float(n) for n in reversed(positive)), 0.0, *map(float, positive))
    return NumberFormat(f"e{exponent}m{mantissa}", levels, exponent, mantissa)


@lru_cache(maxsize=64)
def number_format(name: str) -> NumberFormat:
    """A format by name: "int2" to "int8", "e2m1" and other floats of 3 to 8 bits, "ternary", "binary".

    Raises UserError for other names.
    """
    if name == "ternary":
        return NumberFormat("ternary", (-1.0, 0.0, 1.0))
    if name == "binary":
        return NumberFormat("binary", (-1.0, 1.0))
    if found := _FLOAT.fullmatch(name):
        return minifloat(int(found[1]), int(found[2]))
    if found := _INTEGER.fullmatch(name):
        return integer(int(found[1]))
    raise UserError(
        f"{name!r} is no number format; there are int2 to int8, floats such as e2m1, ternary and binary"
    )


def float_formats(bits: int) -> tuple[str, ...]:
    """Names of the float formats of so many bits, most exponent bits first: 4 -> e3m0, e2m1, e1m2.

    For 8 bits those with 2 to 6 mantissa bits, as in LLM-FP4. Raises UserError for fewer than 3 or more than 8 bits.
    """
    if not 3 <= bits <= 8:
        raise UserError(f"float formats have 3 to 8 bits, got {bits}")
    pairs = [(bits - 1 - m, m) for m in range(bits - 1) if 1 <= bits - 1 - m <= 5]
    return tuple(f"e{e}m{m}" for e, m in pairs)
