"""Which method to take: what a comparison says in words, and as a table on the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from lightformers.slim import numbers as n

Row = Mapping[str, Any]
#: A method keeps nearly everything if it may well keep this share of the original's quality.
NEARLY = 0.99


def done(report: Mapping[str, Any]) -> list[Row]:
    """Rows that came to an end, the best quality first."""
    return sorted((r for r in report["rows"] if r["state"] == "done"), key=lambda r: -r["ratio"]["estimate"])


def left_out(report: Mapping[str, Any]) -> list[Row]:
    """Rows without figures: failed ones first."""
    return sorted((r for r in report["rows"] if r["state"] != "done"), key=lambda r: r["state"])


def speed_of(row: Row) -> tuple[float, str]:
    """The larger of a row's speed-ups, and the runtime that it is of."""
    found = [(row[name]["speedup"]["estimate"], name) for name in ("torch", "openvino") if row.get(name)]
    return max(found) if found else (0.0, "torch")


def equals(rows: Sequence[Row], best: Row) -> list[Row]:
    """Rows that the data cannot tell from the best: their interval reaches its estimate."""
    return [r for r in rows if r["ratio"]["high"] >= best["ratio"]["estimate"]]


def advice(report: Mapping[str, Any]) -> list[str]:
    """A few sentences, from the numbers alone."""
    rows = done(report)
    if not rows:
        return ["No method came to an end: see the reasons below."]
    sized = [r for r in rows if r["sized"]] or rows
    best = sized[0]
    peers = [r["name"] for r in equals(sized, best) if r is not best]
    said = [
        f"Most quality at {_goal(report)}: {best['name']}, {_ratio(best)} of the original, {n.size(best['bytes'])} on "
        f"disk.{' Not to be told apart on this data: ' + ', '.join(peers) + '.' if peers else ''}"
    ]
    near = [r for r in rows if r["ratio"]["high"] >= NEARLY]
    if near:
        quick = max(near, key=lambda r: speed_of(r)[0])
        speed, runtime = speed_of(quick)
        if speed > 1.02:
            said.append(
                f"Fastest of those that may keep {NEARLY:.0%}: {quick['name']}, {speed:.2f} times as fast as the "
                f"original in {'OpenVINO' if runtime == 'openvino' else 'torch'} ({_ratio(quick)})."
            )
        small = min(near, key=lambda r: r["bytes"])
        said.append(
            f"Smallest of those that may keep {NEARLY:.0%}: {small['name']}, {n.size(small['bytes'])} instead of "
            f"{n.size(report['original']['bytes'])} ({_ratio(small)})."
        )
    else:
        said.append(
            f"Nothing here can be said to keep {NEARLY:.0%}: train longer (--seconds), or cut less (--ratio)."
        )
    return said


def _goal(report: Mapping[str, Any]) -> str:
    settings = report["settings"]
    if settings["speedup"] is not None:
        return f"{settings['speedup']:g} times the speed in torch"
    return f"{settings['ratio']:.0%} of the blocks' bytes"


def _ratio(row: Row) -> str:
    return f"{n.ratio(row['ratio'])} {n.interval(row['ratio'])}"


def line(row: Row) -> str:
    """A finished row in one line."""
    if row["state"] != "done":
        return f"{row['name']}: {row['state']}: {row['reason']}"
    speed, runtime = speed_of(row)
    return f"{row['name']}: {_ratio(row)} of the original, {n.size(row['bytes'])}, {speed:.2f} times as fast in {runtime}"


#: What fits into 80 columns; the page and the JSON say more. plain: whether plain transformers loads it.
HEAD = ("method", "of the original", "disk", "torch", "OpenVINO", "plain")


def cells(row: Row) -> list[str]:
    """A finished row as texts under `HEAD`."""

    def speed(name: str) -> str:
        return f"{row[name]['speedup']['estimate']:.2f}x" if row.get(name) else "-"

    marks = ("" if row["sized"] else " (own size)") + (" +labels" if row["labels"] else "")
    return [
        row["name"] + marks,
        _ratio(row),
        n.size(row["bytes"]),
        speed("torch"),
        speed("openvino"),
        "yes" if row["native"] else "no",
    ]


def table(report: Mapping[str, Any]) -> RenderableType:
    """For the terminal: all rows, best quality first, reasons of what is not among them, and the advice."""
    grid = Table(
        box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1), collapse_padding=True, header_style="bold"
    )
    for i, heading in enumerate(HEAD):
        grid.add_column(
            heading,
            justify="right" if i else "left",
            no_wrap=i > 0,
            overflow="fold",
            min_width=18 - 13 * (i > 0),
        )
    original = report["original"]
    grid.add_row(
        "the original", "1", n.size(original["bytes"]), "1x", "1x" if original["openvino"] else "-", "yes", style="dim",
    )  # fmt: skip
    for row in done(report):
        grid.add_row(*cells(row))
    lines = [Text(f"not tried: {r['name']}: {r['reason']}", style="dim") for r in left_out(report)]
    return Group(grid, *lines, *(Text(sentence) for sentence in report["advice"]))
