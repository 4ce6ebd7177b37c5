"""Finite groups as tables: sums modulo N and permutations."""

from __future__ import annotations

import functools
import itertools
import math

import numpy as np
from numpy.typing import NDArray

from lightformers.errors import UserError


def elements(kind: str) -> NDArray[np.int64]:
    """The permutations of "sN" or "aN" (the even ones), N at most 6, in lexical order: (order, N)."""
    letter, things = _read(kind)
    if letter == "z":
        raise UserError(f"{kind} is of sums, not of permutations")
    every = itertools.permutations(range(things))
    return np.array([p for p in every if letter == "s" or _even(p)], np.int64)


@functools.lru_cache(maxsize=8)
def group(kind: str) -> NDArray[np.int64]:
    """(order, order) table: entry [a, b] is the number of a o b, b done first.

    kind: "parity" (the same as "z2"), "zN" (N from 2 to 512), "s3" to "s6", "a4" to "a6". Element 0 changes nothing.
    Raises UserError for anything else.
    """
    letter, size = _read(kind)
    if letter == "z":
        number = np.arange(size)
        return (number[:, None] + number[None, :]) % size
    of = elements(kind)
    place = size ** np.arange(size)
    known = np.full(size**size, -1, np.int64)
    known[of @ place] = np.arange(len(of))
    both = np.stack([row[of] for row in of])  # [a, b, i] = a(b(i))
    table = known[both @ place]
    table.setflags(write=False)  # it is kept for the next caller
    return table


def order(kind: str) -> int:
    """How many elements the group has."""
    letter, size = _read(kind)
    return size if letter == "z" else math.factorial(size) // (2 if letter == "a" else 1)


def _read(kind: str) -> tuple[str, int]:
    name = "z2" if kind == "parity" else kind
    letter, size = name[:1], name[1:]
    if size.isascii() and size.isdigit():
        low, high = {"z": (2, 512), "s": (3, 6), "a": (4, 6)}.get(letter, (1, 0))
        if low <= int(size) <= high:
            return letter, int(size)
    raise UserError(f"{kind!r} is not one of parity, zN (N from 2 to 512), s3, s4, s5, s6, a4, a5, a6")


def _even(permutation: tuple[int, ...]) -> bool:
    return sum(a > b for a, b in itertools.combinations(permutation, 2)) % 2 == 0
