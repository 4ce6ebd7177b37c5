from __future__ import annotations

import numpy as np
import pytest
from series_world import csv, hours

from lightformers.errors import DataError
from lightformers.tasks import series
from lightformers.tasks.stamps import following, grid, parse, time_features


def _write(tmp_path, **columns):
    return csv(tmp_path / "a.csv", columns)


def _values(rows: int) -> np.ndarray:
    return np.round(np.sin(np.arange(rows)), 4)


@pytest.mark.parametrize(
    ("name", "stamps", "frequency"),
    [
        ("date", hours(50), "h"),
        ("when", [str(s).replace("T", " ") for s in hours(50)], "h"),
        ("ds", [f"{d}/01/2020" for d in range(1, 29)], "D"),  # only day first fits
        ("t", [f"{1949 + i // 12}-{i % 12 + 1:02d}" for i in range(50)], "MS"),
        ("month", ["2020-01-31", "2020-02-29", "2020-03-31", "2020-04-30", "2020-05-31"], "MS"),
        ("time", [1_467_331_200 + 900 * i for i in range(40)], "15min"),
        ("timestamp", [(1_467_331_200 + 60 * i) * 1000 for i in range(40)], "min"),
        ("year", list(range(1970, 2010)), "YS"),
        ("day", np.busday_offset("2020-01-01", np.arange(40), roll="forward"), "B"),
        ("week", np.datetime64("2020-01-01") + 7 * np.arange(40), "W"),
        ("period", [f"{1990 + i // 4}-{3 * (i % 4) + 1:02d}-01" for i in range(24)], "QS"),
        ("date", np.datetime64("2020-01-01T00", "s") + np.arange(30) * np.timedelta64(7200, "s"), ""),
    ],
)
def test_stamps_are_found(tmp_path, name, stamps, frequency) -> None:
    found = series.read(_write(tmp_path, **{name: stamps, "x": _values(len(stamps))}))
    assert found.columns == ("x",) and found.frequency == frequency and not found.warnings
    assert found.stamps is not None and len(found.values) == len(stamps)


def test_columns_of_year_month_day_hour(tmp_path) -> None:
    when = hours(60, "2015-12-31T00")
    pieces = [str(s) for s in when]
    found = series.read(
        _write(
            tmp_path,
            No=range(1, 61),
            year=[p[:4] for p in pieces],
            month=[int(p[5:7]) for p in pieces],
            day=[int(p[8:10]) for p in pieces],
            hour=[int(p[11:13]) for p in pieces],
            x=_values(60),
            wind=["NW"] * 60,
        )
    )
    assert found.columns == ("x",) and found.frequency == "h"
    np.testing.assert_array_equal(found.stamps, when)
    assert any("numbers the rows" in w for w in found.warnings) and any("wind" in w for w in found.warnings)


def test_gaps_become_missing_rows(tmp_path) -> None:
    kept = np.r_[0:10, 12:30, 33:40]
    found = series.read(_write(tmp_path, date=hours(40)[kept], x=_values(40)[kept]))
    assert found.values.shape == (40, 1) and np.isnan(found.values[[10, 11, 30, 31, 32], 0]).all()
    np.testing.assert_array_equal(found.values[kept, 0], _values(40)[kept])
    assert found.frequency == "h" and "5 of 40 time stamps are missing, in 2 gaps" in found.warnings[0]
    months = [f"{1949 + i // 12}-{i % 12 + 1:02d}" for i in range(30) if i != 7]
    assert np.isnan(series.read(_write(tmp_path, t=months, x=_values(29))).values[7, 0])


def test_irregular_stamps_are_said(tmp_path) -> None:
    drawn = np.cumsum(np.random.default_rng(0).integers(1, 9000, 50))
    stamps = np.datetime64("2020-01-01T00:00:00", "s") + drawn * np.timedelta64(1, "s")
    found = series.read(_write(tmp_path, date=stamps, x=_values(50)))
    assert found.frequency == "" and "is irregular" in found.warnings[0] and len(found.values) == 50


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"date": hours(20)[[*range(10), 9, *range(11, 20)]], "x": _values(20)}, "come more than once"),
        ({"date": hours(20)[::-1], "x": _values(20)}, "not in order .* sort the file"),
        ({"date": hours(20), "x": ["word"] * 20}, "no column holds numbers to forecast"),
        ({"date": hours(20), "x": [None] * 20}, "x holds no value in any row"),
        ({"date": hours(1), "x": [1.0]}, "has 1 row"),
        ({"a;b": ["1;2"] * 9}, "with commas"),
        ({"1.0": _values(9), "2.5": _values(9)}, "no line of column names"),
    ],
)
def test_bad_files(tmp_path, columns, message) -> None:
    with pytest.raises(DataError, match=message):
        series.read(csv(tmp_path / "a.csv", columns))


def test_named_columns_must_be_numbers(tmp_path) -> None:
    path = _write(tmp_path, date=hours(20), x=_values(20), y=["1.5"] * 7 + ["high"] + ["2"] * 12)
    assert series.read(path).columns == ("x",)
    for options in ({"columns": ["x", "y"]}, {"needed": ["y"]}):
        with pytest.raises(DataError, match=r"line 9: 'y' is 'high', which is no number"):
            series.read(path, **options)
    with pytest.raises(DataError, match="no column 'z'"):
        series.read(path, needed=["z"])
    with pytest.raises(DataError, match="'y' holds no time stamps that can be read"):
        series.read(path, timestamp="y")
    with pytest.raises(DataError, match="no column 'when'"):
        series.read(path, timestamp="when")


def test_what_counts_as_missing(tmp_path) -> None:
    cells = ["1", "NA", "", "nan", "-", "inf", "?", "null", "2e3", " 4 "]
    found = series.read(_write(tmp_path, x=cells, y=_values(10)))
    np.testing.assert_array_equal(np.isfinite(found.values[:, 0]), [True] + [False] * 7 + [True] * 2)
    assert any("infinite" in w for w in found.warnings) and any(
        "no column of time stamps" in w for w in found.warnings
    )


def test_parquet(tmp_path) -> None:
    import pandas as pd

    frame = pd.DataFrame({"when": hours(30), "x": _values(30)})
    frame.to_parquet(tmp_path / "a.parquet")
    assert (
        series.read(tmp_path / "a.parquet").fingerprint
        == series.of(_values(30), ["x"], hours(30)).fingerprint
    )


def test_the_calendar() -> None:
    """Each mark against the calendar of the standard library."""
    stamps = hours(9000, "2019-12-30T00")
    marks = time_features(stamps)
    assert marks.shape == (9000, 4) and marks.dtype == np.float32 and np.abs(marks).max() <= 0.5
    for i in (0, 30, 4000, 8999):
        when = stamps[i].astype(object).timetuple()
        wanted = [when.tm_hour / 23, when.tm_wday / 6, (when.tm_mday - 1) / 30, (when.tm_yday - 1) / 365]
        np.testing.assert_allclose(marks[i] + 0.5, wanted, atol=1e-6)
    assert time_features(stamps[:5], "D").shape == (5, 3) and time_features(stamps[:5], "MS").shape == (5, 2)


@pytest.mark.parametrize(
    "stamps",
    [
        hours(40),
        np.arange("1949-01", "1955-01", dtype="datetime64[M]").astype("datetime64[s]"),
        np.busday_offset("2020-01-01", np.arange(40), roll="forward").astype("datetime64[s]"),
        (np.arange("2019-02", "2023-02", dtype="datetime64[M]").astype("datetime64[D]") - 1).astype(
            "datetime64[s]"
        ),
    ],
)
def test_the_next_stamps(stamps) -> None:
    np.testing.assert_array_equal(following(stamps[:-5], 5), stamps[-5:])
    np.testing.assert_array_equal(grid(np.delete(stamps, [7, 8])).stamps, stamps)


def test_no_stamps() -> None:
    assert parse(["a", "b"]) is None and parse([1.0, 2.0]) is None and parse([]) is None
    with pytest.raises(DataError, match="no regular step"):
        following(np.array(["2020-01-01", "2020-01-02", "2020-01-09T11"], "datetime64[s]"), 2)
