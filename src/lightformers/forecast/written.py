"""The forecast as files: csv for programs, a picture for slides."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightformers import files
from lightformers.errors import MissingExtra

#: Targets that the picture shows, one below the other.
SHOWN = 8
_DPI = 150


def text(stamp: Any) -> str:
    """A stamp as people write it: 2016-07-01 13:00:00, without the time of day at midnight; a row number as it is."""
    return str(stamp).replace("T", " ").removesuffix(" 00:00:00")


def write_csv(report: Mapping[str, Any], folder: str | Path) -> Path:
    """forecast.csv: the stamp (or the row's number), then a column per target and its lower and upper bound."""
    found = report["forecast"]
    names = list(found["targets"])
    table = io.StringIO()
    out = csv.writer(table, lineterminator="\n")
    out.writerow(
        [
            report["data"]["timestamp"] or "step",
            *(f"{n}{end}" for n in names for end in ("", "_lower", "_upper")),
        ]
    )
    for row, stamp in enumerate(found["stamps"]):
        cells: list[Any] = [stamp]
        for name in names:
            one = found["targets"][name]
            cells += [f"{one[key][row]:.8g}" for key in ("forecast", "lower", "upper")]
        out.writerow(cells)
    return files.write_text(Path(folder) / "forecast.csv", table.getvalue())


def write_png(report: Mapping[str, Any], folder: str | Path) -> Path:
    """forecast.png: what was seen, the forecast, its interval. Raises MissingExtra without matplotlib."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtra("forecasting", "matplotlib") from error
    found = report["forecast"]
    names = list(found["targets"])[:SHOWN]
    figure = Figure(figsize=(11, 1.4 + 2.5 * len(names)), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    left = len(found["targets"]) - len(names)
    shared = None
    for place, name in enumerate(names):
        one = found["targets"][name]
        shown = figure.add_subplot(len(names), 1, place + 1, sharex=shared)
        shared = shared or shown
        past, future = _axis(found["history_stamps"]), _axis(found["stamps"])
        shown.plot(past, one["history"], color="#3b4048", linewidth=1.2, label="seen")
        if one.get("held_out"):
            where = past[-len(one["held_out"]) :]
            shown.plot(where, one["held_out"], color="#8a3b9c", linewidth=1.2, linestyle=(0, (4, 2)),
                       label=f"what {report['chosen']['label']} said of the last rows, without having seen them")  # fmt: skip
        shown.fill_between(future, one["lower"], one["upper"], color="#1a56c4", alpha=0.16, linewidth=0,
                           label=f"{report['interval']['nominal']:.0%} interval")  # fmt: skip
        shown.plot(future, one["forecast"], color="#1a56c4", linewidth=1.6, label="forecast")
        shown.set_title(name, loc="left", fontsize=11, fontweight="bold", color="#17191c")
        shown.grid(axis="y", color="#e2e3df", linewidth=0.8)
        shown.set_axisbelow(True)
        for side in ("top", "right", "left"):
            shown.spines[side].set_visible(False)
        shown.spines["bottom"].set_color("#c9cbc6")
        shown.tick_params(colors="#596069", labelsize=9, length=0)
        shown.margins(x=0.01)
        if place == 0:
            figure.legend(*shown.get_legend_handles_labels(), loc="outside upper left", ncols=4, frameon=False,
                          fontsize=9, labelcolor="#17191c")  # fmt: skip
        if shown.get_subplotspec() is not None and place < len(names) - 1:
            shown.tick_params(labelbottom=False)
    if left > 0:
        figure.supxlabel(f"{left} more in forecast.csv", fontsize=9, color="#596069")
    with files.replacing(Path(folder) / "forecast.png") as new:
        figure.savefig(new, format="png", dpi=_DPI)
    return Path(folder) / "forecast.png"


def _axis(stamps: Sequence[Any]) -> Any:
    """Stamps as matplotlib takes them: times, or numbers."""
    import numpy as np

    if stamps and isinstance(stamps[0], str):
        return np.array([s.replace(" ", "T") for s in stamps], dtype="datetime64[s]")
    return np.asarray(stamps)
