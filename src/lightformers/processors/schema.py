"""What the columns of a table are: names, kinds, and the values they took. Nothing here looks at labels."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from numbers import Real
from typing import Any, Literal

from lightformers.errors import DataError

#: A cell: a number, a text, or None where it is missing (NaN counts as missing).
Cell = float | int | str | bool | None
Row = Mapping[str, Cell]
Kind = Literal["number", "binary", "category", "text"]
#: A column of texts with at most this many different ones, or this share of its rows, holds categories.
_FEW, _SHARE = 20, 0.05
#: What a missing number is often called; in a column of texts these are texts.
_MARKS = frozenset({"na", "n/a", "nan", "null", "none", "?", "-"})
_NUMBER = re.compile(r"[+-]?(?!0\d)(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)


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
    def of(cls, rows: Sequence[Row], categories: Collection[str] = ()) -> Schema:
        """Read off the rows. A column is of numbers if every cell that is there is one, also as a text ("12", "-1.5e3").

        Percent signs, dates, and codes with leading zeros ("00501") are texts. categories: columns that hold categories,
        whatever they look like. Raises DataError for no rows, no columns, or a column without a single value.
        """
        names = list(dict.fromkeys(name for row in rows for name in row))
        if not names:
            raise DataError("the table holds no cells")
        return cls(tuple(_column(n, [row.get(n) for row in rows], n in categories) for n in names))

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(c.name for c in self.columns)

    def seen(self, rows: Sequence[Row]) -> Schema:
        """The same columns; of the values only those that stand in these rows."""

        def left(column: Column) -> Column:
            if column.kind not in ("category", "binary"):
                return column
            there = {text(row[column.name]) for row in rows if not missing(row.get(column.name))}
            return replace(column, values=tuple(v for v in column.values if v in there))

        return replace(self, columns=tuple(map(left, self.columns)))

    def cast(self, rows: Sequence[Row]) -> list[dict[str, float | str | None]]:
        """The rows with these columns alone, in this order: numbers as floats, other cells as texts, missing ones as None.

        Values that were never seen stay as they are. Raises DataError: a column that no row has, a text or infinity
        among numbers.
        """
        absent = [n for n in self.names if rows and not any(n in row for row in rows)]
        if absent:
            raise DataError(
                f"the table lacks {_list(absent)}; it has {_list(list(dict.fromkeys(n for row in rows for n in row)))}"
            )
        return [{c.name: _cast(c, row.get(c.name), i) for c in self.columns} for i, row in enumerate(rows)]

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> Schema:
        """The inverse of `dataclasses.asdict`, also after JSON made lists of its tuples."""
        return cls(
            tuple(Column(c["name"], c["kind"], tuple(map(str, c["values"]))) for c in fields["columns"])
        )


def missing(cell: Any) -> bool:
    """None, NaN and blank text."""
    return (
        cell is None
        or (isinstance(cell, float) and math.isnan(cell))
        or (isinstance(cell, str) and not cell.strip())
    )


def number(cell: Any) -> float | None:
    """The number that a cell is, also one written as text; None where it is none."""
    if isinstance(cell, (Real, Decimal)):
        return float(cell)
    if isinstance(cell, str) and _NUMBER.fullmatch(cell.strip()):
        return float(cell)
    return None


def text(cell: Any) -> str:
    """The cell as a category: 1, 1.0, True and "1" are the same, blanks around it do not count."""
    if isinstance(cell, (Real, Decimal)):
        value = float(cell)
        return str(int(value)) if value.is_integer() else str(value)
    return str(cell).strip()


def marked(cell: Any) -> bool:
    """A text that says that a number is missing, such as "n/a"."""
    return isinstance(cell, str) and cell.strip().lower() in _MARKS


def _column(name: str, cells: Sequence[Any], category: bool) -> Column:
    there = [c for c in cells if not missing(c)]
    plain = [c for c in there if not marked(c)]
    if not plain:
        raise DataError(f"the column {name} holds no value in any row: leave it out")
    numbers = [] if category else [number(c) for c in plain]
    if numbers and None not in numbers:
        if set(numbers) <= {0, 1}:  # booleans too
            return Column(name, "binary", ("0", "1"))
        return Column(name, "number")
    texts = tuple(sorted({text(c) for c in there}))
    if len(texts) <= 2:
        return Column(name, "binary", texts)
    few = category or len(texts) <= max(_FEW, _SHARE * len(there))
    return Column(name, "category" if few else "text", texts if few else ())


def _cast(column: Column, cell: Any, row: int) -> float | str | None:
    if missing(cell):
        return None
    if column.kind != "number":
        numeric = column.values == ("0", "1")
        return None if numeric and marked(cell) else text(cell)
    value = number(cell)
    if value is None and not marked(cell):
        raise DataError(f"the column {column.name} holds numbers, and row {row + 1} says {cell!r}")
    if value is not None and math.isinf(value):
        raise DataError(f"the column {column.name} holds infinity in row {row + 1}")
    return value


def _list(names: Sequence[str], most: int = 12) -> str:
    more = f", ... ({len(names) - most} more)" if len(names) > most else ""
    return ", ".join(map(str, names[:most])) + more
