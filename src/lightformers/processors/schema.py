"""What the columns of a table are: names, kinds, and the values they took. Nothing here looks at labels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lightformers.errors import DataError

#: A cell: a number, a text, or None where it is missing (NaN counts as missing).
Cell = float | int | str | bool | None
Row = Mapping[str, Cell]
Kind = Literal["number", "binary", "category", "text"]
#: A column of texts with at most this many different ones, or this share of its rows, holds categories.
_FEW, _SHARE = 20, 0.05


@dataclass(frozen=True)
class Column:
    """name, kind, and, of categories and binaries, the values that were seen, as texts, in order of their number."""

    name: str
    kind: Kind
    values: tuple[str, ...] = ()


@dataclass(frozen=True)
class Schema:
    """The columns of a table, in order."""

    columns: tuple[Column, ...]

    @classmethod
    def of(cls, rows: Sequence[Row]) -> Schema:
        """Read off the rows. Raises DataError for no rows, no columns, or a column without a single value."""
        names = list(dict.fromkeys(name for row in rows for name in row))
        if not names:
            raise DataError("the table holds no cells")
        return cls(tuple(_column(name, [row.get(name) for row in rows]) for name in names))

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(c.name for c in self.columns)


def missing(cell: Any) -> bool:
    """None, NaN and blank text."""
    return (
        cell is None
        or (isinstance(cell, float) and math.isnan(cell))
        or (isinstance(cell, str) and not cell.strip())
    )


def _column(name: str, cells: Sequence[Any]) -> Column:
    there = [c for c in cells if not missing(c)]
    if not there:
        raise DataError(f"the column {name} holds no value in any row: leave it out")
    different = set(there)
    if not any(isinstance(c, str) for c in there):
        if different <= {0, 1}:  # booleans too
            return Column(name, "binary", ("0", "1"))
        return Column(name, "number")
    texts = tuple(sorted(map(str, different)))
    if len(texts) <= 2:
        return Column(name, "binary", texts)
    few = len(texts) <= max(_FEW, _SHARE * len(there))
    return Column(name, "category" if few else "text", texts if few else ())
