"""A user's own series: the stamps and the numeric columns of a csv or parquet file, checked, on a regular grid."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightformers.errors import DataError
from lightformers.tasks import data, stamps
from lightformers.tasks.data import Rows
from lightformers.tasks.stamps import Stamps

#: Columns that hold stamps where they can be read as such.
_STAMPS = ("date", "datetime", "timestamp", "time", "ds", "day", "month", "year", "week", "period", "t")
#: Columns that number the rows, if they do.
_NUMBERS = ("", "no", "index", "id", "row", "unnamed: 0")
_PARTS = ("year", "month", "day", "hour", "minute", "second")
_NOTHING = frozenset({"", "na", "n/a", "nan", "null", "none", "?", "-"})
_SHOWN = 6


@dataclass(frozen=True)
class Series:
    """values: (rows, channels) float64, NaN where missing. columns: one name per channel. stamps: (rows,) or None.

    frequency: a pandas alias of `processors.series.FREQUENCIES`, "" where unknown. warnings: what was found on the way.
    """

    values: NDArray[np.float64]
    columns: tuple[str, ...]
    stamps: Stamps | None = None
    frequency: str = ""
    warnings: tuple[str, ...] = ()

    @property
    def fingerprint(self) -> str:
        """sha256 of values, names and stamps."""
        digest = hashlib.sha256(repr((self.columns, self.frequency, self.values.shape)).encode())
        digest.update(np.ascontiguousarray(self.values).tobytes())
        if self.stamps is not None:
            digest.update(self.stamps.astype(np.int64).tobytes())
        return digest.hexdigest()

    @property
    def season(self) -> int:
        """Rows of the season that its frequency suggests, 1 where it suggests none."""
        return stamps.SEASONS.get(self.frequency, 1)

    def marks(self) -> NDArray[np.float32] | None:
        """(rows, marks) calendar features, None without stamps."""
        return None if self.stamps is None else stamps.time_features(self.stamps, self.frequency)


def of(
    values: Any, columns: Sequence[str] | None = None, given: Any = None, source: str = "the series"
) -> Series:
    """A series of an array (rows,) or (rows, channels), and one stamp a row where there are some.

    Stamps that lack are filled in with missing values where the others keep a step. Raises DataError.
    """
    try:
        table = np.asarray(values, np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"{source} holds what is no number: {error}") from error
    table = table[:, None] if table.ndim == 1 else table
    if table.ndim != 2 or not table.shape[1]:
        raise DataError(f"a series is (rows,) or (rows, channels), not {np.asarray(values).shape}")
    names = (
        tuple(str(c) for c in columns)
        if columns
        else tuple(f"value{i}" if i else "value" for i in range(table.shape[1]))
    )
    if len(names) != table.shape[1] or len(set(names)) != len(names):
        raise DataError(
            f"{table.shape[1]} channels need as many different names, got {', '.join(names) or 'none'}"
        )
    notes = []
    infinite = np.isinf(table)
    if infinite.any():
        table = np.where(infinite, np.nan, table)
        notes.append(f"{int(infinite.sum())} infinite values count as missing")
    _present(table, names, source)
    if given is None:
        return Series(table, names, warnings=tuple(notes))
    when = given if isinstance(given, np.ndarray) and given.dtype.kind == "M" else stamps.parse(list(given))
    if when is None or len(when) != len(table):
        raise DataError(f"{source}: {len(table)} rows need as many time stamps that can be read")
    return _on_grid(table, names, when.astype("datetime64[s]"), "the series", notes)


def read(
    path: str | Path,
    timestamp: str | None = None,
    columns: Sequence[str] | None = None,
    needed: Sequence[str] = (),
) -> Series:
    """The series in a csv, tsv, jsonl, json or parquet file, its stamps and numeric columns found or named.

    columns: what to read; None: all columns of numbers. needed: columns among them that must hold numbers. Raises DataError: no numeric column, texts in a column that was named, stamps doubled or out of order, no value.
    """
    parts = data.read(path)
    if len(parts) != 1:
        raise DataError(
            f"{path} holds parts ({', '.join(parts)}): a series is one file, and is split by time here"
        )
    return of_rows(next(iter(parts.values())), timestamp, columns, needed)


def rows_of(examples: Any) -> list[dict[str, Any]]:
    """One mapping a time step, of mappings, of columns {name: values}, or of a pandas frame. Raises DataError."""
    if hasattr(examples, "to_dict") and hasattr(
        examples, "index"
    ):  # a pandas frame; its index may hold the stamps
        frame = examples.reset_index() if str(examples.index.dtype).startswith("datetime") else examples
        return list(frame.to_dict("records"))
    if isinstance(examples, Mapping):
        names = [str(n) for n in examples]
        lengths = {len(v) for v in examples.values()}
        if len(lengths) != 1:
            raise DataError(f"the columns differ in length: {sorted(lengths)}")
        return [dict(zip(names, cells)) for cells in zip(*examples.values())]
    rows = [dict(e) for e in examples]
    if not rows:
        raise DataError("the data is empty: no rows were read")
    return rows


def of_rows(
    rows: Rows, timestamp: str | None = None, columns: Sequence[str] | None = None, needed: Sequence[str] = ()
) -> Series:
    """As `read`, of rows that are there already."""
    notes: list[str] = []
    _header(rows)
    name, when, used = _stamps(rows, timestamp)
    if when is not None:
        stamps.ordered(when, name)
    wanted = list(columns) if columns else [c for c in rows.columns if c not in used or c in needed]
    wanted += [c for c in needed if c not in wanted]
    found: dict[str, NDArray[np.float64]] = {}
    texts: list[str] = []
    for column in wanted:
        cells = rows.column(column, "target")
        numbers = _numbers(cells)
        if isinstance(numbers, int):
            if columns or column in needed:
                raise DataError(
                    f"{rows.at(numbers)}: {column!r} is {cells[numbers]!r}, which is no number; a column that is forecast or "
                    "used as an input holds numbers (with a decimal point), or nothing"
                )
            texts.append(column)
        elif not columns and column not in needed and column.lower().strip() in _NUMBERS and _counts(numbers):
            notes.append(f"the column {column!r} numbers the rows and was left out")
        else:
            found[column] = numbers
    if texts:
        notes.append(f"columns without numbers were left out: {', '.join(texts[:_SHOWN])}")
    if not found:
        raise DataError(
            f"{rows.source}: no column holds numbers to forecast; columns there: {', '.join(rows.columns)}"
        )
    if when is None:
        notes.append("no column of time stamps was found: rows are taken as equal steps, without a calendar")
    names = tuple(found)
    table = np.stack([found[c] for c in names], 1)
    infinite = int(np.isinf(table).sum())
    if infinite:
        table[np.isinf(table)] = np.nan
        notes.append(f"{infinite} infinite values count as missing")
    _present(table, names, rows.source)
    if when is None:
        return Series(table, names, warnings=tuple(notes))
    return _on_grid(table, names, when, name, notes)


def _header(rows: Rows) -> None:
    names = rows.columns
    if len(names) == 1 and (";" in names[0] or "\t" in names[0]):
        raise DataError(
            f"{rows.source} does not part its columns with commas ({names[0]!r}): save it with commas"
        )
    if (
        names
        and not isinstance(_numbers(names), int)
        and not any(n.strip().lower() in _NOTHING for n in names)
    ):
        raise DataError(
            f"{rows.source} has no line of column names ({', '.join(names[:_SHOWN])}): put one first"
        )


def _on_grid(
    table: NDArray[np.float64], names: tuple[str, ...], when: Stamps, name: str, notes: list[str]
) -> Series:
    stamps.ordered(when, name)
    found = stamps.grid(when, name)
    if found.note:
        notes.append(found.note)
    values = np.full((len(found.stamps), len(names)), np.nan)
    values[found.rows] = table
    return Series(values, names, found.stamps, found.frequency, tuple(notes))


def _present(table: NDArray[np.float64], names: Sequence[str], source: str) -> None:
    if len(table) < 2:
        raise DataError(
            f"{source} has {len(table)} {'row' if len(table) == 1 else 'rows'}: a series to learn from has hundreds. "
            "Is it one row a time step?"
        )
    empty = [n for i, n in enumerate(names) if not np.isfinite(table[:, i]).any()]
    if empty:
        raise DataError(
            f"{source}: {', '.join(empty[:_SHOWN])} {'holds' if len(empty) == 1 else 'hold'} no value in any row: leave "
            "it out, or name the columns to use"
        )


def _stamps(rows: Rows, timestamp: str | None) -> tuple[str, Stamps | None, set[str]]:
    """Name, stamps (None: there are none) and the columns that they were read from."""
    if timestamp is not None:
        cells = rows.column(timestamp, "timestamp")
        blank = next((i for i, cell in enumerate(cells) if data.missing(cell)), None)
        if blank is not None:
            raise DataError(f"{rows.at(blank)}: the time stamp {timestamp!r} is missing: drop the row")
        when = stamps.parse(cells)
        if when is None:
            raise DataError(
                f"{rows.source}: {timestamp!r} holds no time stamps that can be read ({cells[0]!r} ...); write them as "
                "2016-07-01 13:00:00"
            )
        return timestamp, when, {timestamp}
    lower = {c.lower().strip(): c for c in rows.columns}
    parts = [lower[p] for p in _PARTS if p in lower]
    if len(parts) >= 2 and parts[0].lower().strip() == "year":
        joined = _joined(rows, parts)
        if joined is not None:
            return "-".join(parts), joined, set(parts)
    named = [lower[n] for n in _STAMPS if n in lower]
    for column in [*named, *(c for c in rows.columns if c not in named)]:
        cells = rows.column(column)
        if any(data.missing(c) for c in cells):
            continue
        if column not in named and not isinstance(_numbers(cells[:20]), int):
            continue  # numbers are values unless the name says otherwise
        if column in named and not isinstance(_numbers(cells[:20]), int) and _counts(_floats(cells)):
            continue
        when = stamps.parse(cells[:20])
        if when is not None and (when := stamps.parse(cells)) is not None:
            return column, when, {column}
    return "", None, set()


def _joined(rows: Rows, parts: Sequence[str]) -> Stamps | None:
    """Stamps of columns year, month, day, hour, ..."""
    read = [_numbers(rows.column(p)) for p in parts]
    numbers = [n for n in read if not isinstance(n, int) and np.isfinite(n).all()]
    if len(numbers) < len(parts):
        return None
    start = (numbers[0].astype(np.int64) - 1970).astype("datetime64[Y]").astype("datetime64[M]")
    months = start + (numbers[1].astype(np.int64) - 1 if parts[1].lower().strip() == "month" else 0)
    when = months.astype("datetime64[s]")
    sizes = {"day": 86400, "hour": 3600, "minute": 60, "second": 1}
    for part, values in zip(parts, numbers):
        if (size := sizes.get(part.lower().strip())) is not None:
            first = 1 if size == 86400 else 0
            when = when + ((values - first) * size).astype("timedelta64[s]")
    return when


def _numbers(cells: Sequence[Any]) -> NDArray[np.float64] | int:
    """float64 with NaN for what is missing, or the place of the first cell that is no number."""
    out = np.empty(len(cells))
    for i, cell in enumerate(cells):
        if isinstance(cell, str):
            text = cell.strip()
            if text.lower() in _NOTHING:
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


def _floats(cells: Sequence[Any]) -> NDArray[np.float64]:
    found = _numbers(cells)
    return np.empty(0) if isinstance(found, int) else found


def _counts(numbers: NDArray[np.float64]) -> bool:
    """Whether they are 0, 1, 2, ... or 1, 2, 3, ..."""
    return len(numbers) > 1 and bool(numbers[0] in (0.0, 1.0)) and bool((np.diff(numbers) == 1).all())
