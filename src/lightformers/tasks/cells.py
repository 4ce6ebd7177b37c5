"""Cells of a file as numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Ways to write that there is no value.
NOTHING = frozenset({"", "na", "n/a", "nan", "null", "none", "?", "-"})


def numbers(cells: Sequence[Any]) -> NDArray[np.float64] | int:
    """float64 with NaN for what is missing, or the place of the first cell that is no number."""
    out = np.empty(len(cells))
    for i, cell in enumerate(cells):
        if isinstance(cell, str):
            text = cell.strip()
            if text.lower() in NOTHING:
                out[i] = np.nan
                continue
            try:
                out[i] = float(text)
            except ValueError:
                return i
        elif cell is None:
            out[i] = np.nan
        else:
            try:
                out[i] = float(cell)
            except (TypeError, ValueError):
                return i
    return out


def floats(cells: Sequence[Any]) -> NDArray[np.float64]:
    found = numbers(cells)
    return np.empty(0) if isinstance(found, int) else found


def counts(numbers: NDArray[np.float64]) -> bool:
    """Whether they are 0, 1, 2, ... or 1, 2, 3, ..."""
    return len(numbers) > 1 and bool(numbers[0] in (0.0, 1.0)) and bool((np.diff(numbers) == 1).all())
