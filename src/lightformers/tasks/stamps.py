"""Time stamps: reading them, the rate they come at, the grid they stand on, and the calendar as numbers.

Stamps are numpy datetime64 of seconds, without a time zone. Frequencies are pandas aliases, the rows of
`processors.series.FREQUENCIES`; "" stands for any other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightformers.errors import DataError, MissingExtra

Stamps = NDArray[np.datetime64]
_SECOND = np.timedelta64(1, "s")
#: Seconds between two stamps of a frequency that is a fixed span.
SPANS: dict[str, int] = {
    "s": 1, "min": 60, "5min": 300, "10min": 600, "15min": 900, "30min": 1800, "h": 3600, "D": 86400, "W": 604800,
}  # fmt: skip
#: Months between two stamps of the others.
_MONTHS: dict[str, int] = {"MS": 1, "QS": 3, "YS": 12}
#: Rows of the season that people would name first: an hour's minutes, a day, a week, a year.
SEASONS: dict[str, int] = {
    "s": 60, "min": 60, "5min": 288, "10min": 144, "15min": 96, "30min": 48, "h": 24, "D": 7, "B": 5, "W": 52,
    "MS": 12, "QS": 4,
}  # fmt: skip
#: Gaps are filled while the grid stays at most this many times as long as what was given.
_LONGEST = 3


@dataclass(frozen=True)
class Grid:
    """stamps: (rows,), evenly spaced where `frequency` or `step` says so. rows: the row that each given stamp took.

    note: what a person should know of gaps and irregular steps, or "".
    """

    stamps: Stamps
    rows: NDArray[np.int64]
    frequency: str
    note: str = ""


def parse(values: Sequence[Any]) -> Stamps | None:
    """Texts, dates, or seconds (or milliseconds) since 1970 -> stamps; None where a value is none of these.

    A day and a month that could be read either way are read month first unless that is impossible somewhere.
    Zones are dropped after a change to UTC. Raises MissingExtra for unusual spellings without pandas.
    """
    if not len(values):
        return None
    first = values[0]
    if isinstance(first, (datetime, date, np.datetime64)):
        return _pandas(values)
    if _number(first):
        return _epoch(values)
    texts = [str(v).strip() for v in values]
    if not all(any(c.isdigit() for c in t) for t in texts):
        return None
    if all("-" in t[1:8] and t[:4].isdigit() for t in texts):  # 2016-07-01 00:00:00, 1949-01
        plain = [t.removesuffix("Z") for t in texts]
        if not any("+" in t or t.count("-") > 2 for t in plain):
            try:
                return np.array(plain, dtype="datetime64[s]")
            except ValueError:
                pass
    return _pandas(texts)


def _number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True


def _epoch(values: Sequence[Any]) -> Stamps | None:
    """Only numbers that mean a time after 1973: 3 and 2016 are no seconds since 1970, but 2016 to 2023 are years."""
    if not all(_number(v) for v in values):
        return None
    numbers = np.array([float(v) for v in values])
    if not np.isfinite(numbers).all():
        return None
    if ((numbers >= 1e8) & (numbers < 1e11)).all():
        return numbers.astype(np.int64).astype("datetime64[s]")
    if ((numbers >= 1e11) & (numbers < 1e14)).all():
        return (numbers // 1000).astype(np.int64).astype("datetime64[s]")
    if ((numbers >= 1000) & (numbers < 2200) & (numbers % 1 == 0)).all():
        return np.array([f"{int(n):04d}" for n in numbers], dtype="datetime64[Y]").astype("datetime64[s]")
    return None


def _pandas(values: Sequence[Any]) -> Stamps | None:
    try:
        import pandas as pd
    except ImportError as error:
        raise MissingExtra("forecasting", "pandas") from error
    import warnings

    for dayfirst in (False, True):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found = pd.to_datetime(pd.Series(list(values)), dayfirst=dayfirst, utc=True)
        except (ValueError, TypeError, OverflowError):
            continue
        if not found.isna().any():
            return found.dt.tz_localize(None).to_numpy().astype("datetime64[s]")
    return None


def ordered(stamps: Stamps, name: str) -> None:
    """DataError for stamps that come twice, or that are not in order."""
    steps = np.diff(stamps)
    if (steps > 0 * _SECOND).all():
        return
    unique, counts = np.unique(stamps, return_counts=True)
    if len(unique) < len(stamps):
        twice = unique[counts > 1]
        raise DataError(
            f"{len(twice)} time stamps of {name} come more than once (first {_text(twice[0])}): keep one row of each or "
            "average them, df.groupby(...).mean(); several series in one file belong side by side, one column each"
        )
    place = int(np.argmin(steps > 0 * _SECOND))
    raise DataError(
        f"the time stamps of {name} are not in order (row {place + 2}: {_text(stamps[place + 1])} after "
        f"{_text(stamps[place])}): sort the file by it, oldest first"
    )


def grid(stamps: Stamps, name: str = "the time stamps") -> Grid:
    """Finds the rate of ordered stamps, and where on its grid they stand; gaps become rows of the grid."""
    count = len(stamps)
    for frequency, place, at in _candidates(stamps):
        positions = place(stamps)
        if positions is None:
            continue
        rows = int(positions[-1]) + 1
        if rows > _LONGEST * count:
            continue
        absent = rows - count
        gaps = int((np.diff(positions) > 1).sum())
        note = (
            f"{absent} of {rows} time stamps are missing, in {gaps} {'gap' if gaps == 1 else 'gaps'} (first after "
            f"{_text(stamps[int(np.argmax(np.diff(positions) > 1))])}): these rows count as missing values"
            if absent
            else ""
        )
        return Grid(at(np.arange(rows)), positions, frequency, note)
    steps = np.diff(stamps) / _SECOND
    note = (
        f"{name} is irregular (steps of {_span(steps.min())} to {_span(steps.max())}): rows are taken as equal steps; "
        "resample it if that is not what it means"
    )
    return Grid(stamps, np.arange(count), "", note)


def _candidates(
    stamps: Stamps,
) -> list[tuple[str, Callable[[Stamps], NDArray[np.int64] | None], Callable[[NDArray[np.int64]], Stamps]]]:
    """Grids that the stamps may stand on, the likeliest first: (frequency, position of stamps, stamps at positions)."""
    if len(stamps) < 2:
        return []
    start = stamps[0]
    steps, counts = np.unique(np.diff(stamps) / _SECOND, return_counts=True)
    common = int(steps[np.argmax(counts)])
    names = {span: name for name, span in SPANS.items()}

    def fixed(stamps: Stamps) -> NDArray[np.int64] | None:
        places, rest = np.divmod(((stamps - start) / _SECOND).astype(np.int64), common)
        return None if rest.any() else places

    def at_fixed(places: NDArray[np.int64]) -> Stamps:
        return start + places * common * _SECOND

    def business(stamps: Stamps) -> NDArray[np.int64] | None:
        days = stamps.astype("datetime64[D]")
        same = (stamps - days == stamps[0] - days[0]).all()
        return np.busday_count(days[0], days).astype(np.int64) if same and np.is_busday(days).all() else None

    def at_business(places: NDArray[np.int64]) -> Stamps:
        day = start.astype("datetime64[D]")
        return np.busday_offset(day, places, roll="forward").astype("datetime64[s]") + (start - day)

    out: list[Any] = []
    whole_weeks = (np.diff(stamps) / _SECOND >= 3 * 86400).any() and common == 86400
    if whole_weeks and np.is_busday(stamps.astype("datetime64[D]")).all():
        out.append(("B", business, at_business))
    if common < 28 * 86400:
        out.append((names.get(common, ""), fixed, at_fixed))
    else:
        out += [(name, *_monthly(start, size)) for name, size in reversed(_MONTHS.items())]
        out.append((names.get(common, ""), fixed, at_fixed))
    return out


def _monthly(start: np.datetime64, size: int) -> tuple[Any, Any]:
    """Every `size` months on the same day, or always on the last day of the month."""
    month = start.astype("datetime64[M]")
    into, last = start - month, (month + 1).astype("datetime64[s]") - start

    def place(stamps: Stamps) -> NDArray[np.int64] | None:
        months = stamps.astype("datetime64[M]")
        same = (stamps - months == into).all()
        end = ((months + 1).astype("datetime64[s]") - stamps == last).all()
        places, rest = np.divmod((months - month).astype(np.int64), size)
        return None if rest.any() or not (same or end) else places

    def at(places: NDArray[np.int64]) -> Stamps:
        months = month + places * size
        ends = bool(last <= 86400 * _SECOND) and into >= 27 * 86400 * _SECOND
        return (months + 1).astype("datetime64[s]") - last if ends else months.astype("datetime64[s]") + into

    return place, at


def following(stamps: Stamps, count: int) -> Stamps:
    """The `count` stamps that come after the last. Raises DataError where the stamps keep no regular step."""
    for _, place, at in _candidates(stamps):
        positions = place(stamps)
        if positions is not None:
            return at(positions[-1] + 1 + np.arange(count))
    raise DataError(
        "the time stamps keep no regular step, so it is unknown when the next ones are: resample the series"
    )


def time_features(stamps: Stamps, frequency: str = "h") -> NDArray[np.float32]:
    """The calendar as numbers in [-0.5, 0.5]: (n,) stamps -> (n, marks).

    Hour of day, day of week, day of month, day of year; days lack the first, weeks and longer steps have month of the
    year and day of the month. Faster rates have the four of hours, as iTransformer's scripts give ETTm (arXiv 2310.06625).
    """
    days = stamps.astype("datetime64[D]")
    hour = (stamps - days) // (3600 * _SECOND) / 23
    weekday = (days.astype(np.int64) + 3) % 7 / 6  # 1970-01-01 was a Thursday; Monday is 0
    month_day = (days - stamps.astype("datetime64[M]")).astype(np.int64) / 30
    year_day = (days - stamps.astype("datetime64[Y]")).astype(np.int64) / 365
    month = stamps.astype("datetime64[M]").astype(np.int64) % 12 / 11
    if frequency in ("D", "B"):
        marks = [weekday, month_day, year_day]
    elif frequency in ("W", "MS", "QS", "YS"):
        marks = [month, month_day]
    else:
        marks = [hour, weekday, month_day, year_day]
    return (np.stack(marks, 1) - 0.5).astype(np.float32)


def _text(stamp: Any) -> str:
    return str(stamp).replace("T", " ").removesuffix(" 00:00:00")


def _span(seconds: float) -> str:
    for size, name in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:g} {name}"
    return f"{seconds:g} s"
