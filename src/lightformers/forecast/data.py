"""The series that is forecast, and the future of its known columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightformers.errors import DataError, MissingExtra
from lightformers.tasks import data as files
from lightformers.tasks import series, stamps
from lightformers.tasks.series import Series

#: Steps of the embedded series that are forecast: a year of weeks.
DEMO_HORIZON = 52
#: A window is at most so long where no length is asked for, and the training rows hold so many of them.
LONGEST, TIMES = 512, 20


def demo() -> Series:
    """Weekly CO2 over Mauna Loa, 1958 to 2001, in parts per million, some weeks missing: it comes with statsmodels."""
    try:
        from statsmodels.datasets import co2
    except ImportError as error:
        raise MissingExtra("forecasting", "statsmodels") from error
    frame = co2.load_pandas().data
    return series.of(frame["co2"].to_numpy(), ["co2"], frame.index.to_numpy(), "statsmodels' CO2 series")


def read(
    data: Any, timestamp: str | None = None, target: Sequence[str] = (), known: Sequence[str] = ()
) -> tuple[Series, str, str | None]:
    """The series, what it is called, and the name of the column of its stamps (None: it has none).

    data: a file; a pandas frame; rows or columns by name; an array (rows,) or (rows, channels); None: `demo`.
    target, known: columns that must be numbers. Raises DataError.
    """
    if data is None:
        return demo(), "CO2 over Mauna Loa", "date"
    if isinstance(data, (str, Path)):
        parts = files.read(data)
        if len(parts) != 1:
            raise DataError(
                f"{data} holds parts ({', '.join(parts)}): a series is one file, and is split by time here"
            )
        rows, name = next(iter(parts.values())), Path(data).name
    else:
        if hasattr(data, "to_frame") and not hasattr(data, "columns"):  # a pandas series
            data = data.to_frame(str(data.name or "value"))
        if _plain(data):
            return series.of(np.asarray(data)), "the array", None
        rows, name = files.Rows(_rows(data), "the data"), "the data"
    _numeric(rows, target, "target")
    _numeric(rows, known, "known")
    found = series.of_rows(rows, timestamp)
    if found.stamps is None:
        return found, name, None
    return found, name, timestamp or stamp_column(rows, found.columns)


def _plain(data: Any) -> bool:
    """Whether it holds numbers alone, without names."""
    if isinstance(data, (list, tuple)):
        return not data or not isinstance(data[0], Mapping)
    return hasattr(data, "__array__") and not hasattr(data, "columns")


def _rows(data: Any) -> list[dict[str, Any]]:
    """Rows of a frame, of {column: values} or of rows."""
    if hasattr(data, "to_dict") and hasattr(data, "index"):
        frame = data.reset_index() if str(data.index.dtype).startswith("datetime") else data
        return [{str(k): v for k, v in row.items()} for row in frame.to_dict("records")]
    if isinstance(data, Mapping):
        return [dict(zip(map(str, data), cells)) for cells in zip(*data.values())]
    return [dict(row) for row in data]


def _numeric(rows: files.Rows, columns: Sequence[str], option: str) -> None:
    """DataError for a named column that is not there, or whose cells are no numbers: before others are looked at."""
    for column in columns:
        for place, cell in enumerate(rows.column(column, option)):
            if _number(cell) is None:
                raise DataError(
                    f"{rows.at(place)}: {column!r} is {cell!r}, which is no number; a column that is forecast or whose future "
                    "is known holds numbers (with a decimal point), or nothing"
                )


def _number(cell: Any) -> float | None:
    """A cell as a number, NaN where it is missing, None where it is a text."""
    if files.missing(cell) or (
        isinstance(cell, str) and cell.strip().lower() in ("na", "n/a", "nan", "null", "none", "?", "-")
    ):
        return float("nan")
    try:
        return float(cell)
    except (TypeError, ValueError):
        return None


def stamp_column(rows: files.Rows, others: Sequence[str]) -> str | None:
    """The first column besides `others` whose cells can be read as time stamps."""
    for column in rows.columns:
        if column not in others and stamps.parse(rows.column(column)[:20]) is not None:
            return column
    return None


def context(found: Series, horizon: int, rows: int) -> int:
    """How far models look back where nobody said: a few horizons, seasons in whole, as far as `rows` to train on allow."""
    season = found.season if found.season > 1 else 1
    wanted = min(
        max((4 if rows >= TIMES * 4 * horizon else 2) * horizon, 3 * season, 32), max(LONGEST, 2 * season)
    )
    most = max(min(wanted, rows // 3), 2)
    for whole in (season, 8):
        if 1 < whole <= most:
            return most // whole * whole
    return most


def ahead(found: Series, count: int) -> NDArray[Any]:
    """The stamps of the next steps; the numbers of the next rows where there are no stamps, or they keep no step."""
    if found.stamps is None or (not found.frequency and not _steady(found)):
        return np.arange(len(found.values), len(found.values) + count)
    return stamps.following(found.stamps, count)


def _steady(found: Series) -> bool:
    try:
        stamps.following(found.stamps, 1)  # type: ignore[arg-type]
    except DataError:
        return False
    return True


def known(
    source: Any, columns: Sequence[str], when: NDArray[Any], timestamp: str | None = None
) -> NDArray[np.float64]:  # fmt: skip
    """(steps, columns): the future of known columns at the steps `when`.

    source: a file, a frame, rows or columns by name. Where it has stamps its rows are found by them, else the first ones
    are taken. Raises DataError for steps without a value.
    """
    if source is None:
        raise DataError(
            f"the future of {', '.join(columns)} is needed for the forecast: give a csv of the next {len(when)} steps with --future"
        )
    if isinstance(source, (str, Path)):
        rows = next(iter(files.read(source).values()))
    else:
        rows = files.Rows(_rows(source), "the future")
    _numeric(rows, columns, "known")
    values = np.array([[_number(cell) for cell in rows.column(c, "known")] for c in columns], np.float64).T
    name = timestamp if timestamp in rows.columns else stamp_column(rows, columns)
    if name is not None and when.dtype.kind == "M":
        read = stamps.parse(rows.column(name))
        if read is None:
            raise DataError(f"{rows.source}: {name!r} holds no time stamps that can be read")
        places = {stamp: i for i, stamp in enumerate(read.astype("datetime64[s]"))}
        absent = [s for s in when.astype("datetime64[s]") if s not in places]
        if absent:
            raise DataError(
                f"{rows.source} has no row for {str(absent[0]).replace('T', ' ')} ({len(absent)} of {len(when)} steps are absent): "
                "it must hold every step that is forecast"
            )
        values = values[[places[s] for s in when.astype("datetime64[s]")]]
    if len(values) < len(when):
        raise DataError(
            f"{rows.source} has {len(values)} rows, and {len(when)} steps are forecast: give them all"
        )
    values = values[: len(when)]
    if not np.isfinite(values).all():
        step, column = np.argwhere(~np.isfinite(values))[0]
        raise DataError(f"{rows.source}: {columns[column]} holds no value at step {step + 1} of the forecast")
    return values
