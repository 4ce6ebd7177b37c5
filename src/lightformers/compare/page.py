"""The page of a comparison: one plot (quality against size and speed) and one table, in HTML that needs nothing else."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from lightformers import files
from lightformers.compare import advice
from lightformers.slim import charts, frontier
from lightformers.slim import numbers as n
from lightformers.slim import report as shell
from lightformers.slim.facts import facts
from lightformers.slim.report import plain

__all__ = ["chart", "plain", "render", "write"]
_KINDS = ("prune", "quantize", "factorize", "distil", "fold", "vocabulary")
#: view -> (title of the axis, value of a row, more is better).
VIEWS: dict[str, tuple[str, Any, bool]] = {
    "size": ("Size on disk", lambda row: row["bytes"], False),
    "torch": ("Times as fast as the original, torch", lambda row: _speed(row, "torch"), True),
    "openvino": ("Times as fast as the original, OpenVINO", lambda row: _speed(row, "openvino"), True),
}
#: Where a label may stand, nearest first, and the size of a letter in shares of the plot.
_PLACES = {
    "top center": (0.0, 0.03), "bottom center": (0.0, -0.03), "middle right": (0.5, 0.0), "middle left": (-0.5, 0.0),
    "top right": (0.5, 0.03), "bottom right": (0.5, -0.03), "top left": (-0.5, 0.03), "bottom left": (-0.5, -0.03),
}  # fmt: skip
_LETTER, _LINE = 0.0085, 0.035


def _speed(row: Mapping[str, Any], runtime: str) -> float | None:
    found = row.get(runtime)
    return None if not found else n.number(found["speedup"])


def _hover(row: Mapping[str, Any]) -> str:
    lines = [
        f"<b>{escape(row['name'])}</b>",
        f"quality {n.ratio(row['ratio'])} {n.interval(row['ratio'])} of the original",
    ]
    speeds = [f"{_speed(row, r):.2f}× in {r}" for r in ("torch", "openvino") if _speed(row, r)]
    lines += [
        f"{n.size(row['bytes'])} on disk, {row['blocks']:.0%} of the blocks",
        ", ".join(speeds),
        escape(row["note"]),
    ]
    return "<br>".join(filter(None, lines))


def chart(report: Mapping[str, Any], view: str) -> charts.Figure | None:
    """Quality ratio with its interval against one of `VIEWS`; colours are kinds, the dotted line joins the best. None: no point."""
    title, value, more = VIEWS[view]
    points: list[dict[str, Any]] = [
        {"x": float(x), "y": float(row["ratio"]["estimate"]), "row": row}
        for row in advice.done(report)
        if (x := value(row)) is not None and x > 0
    ]
    if not points:
        return None
    whole = float(report["original"]["bytes"]) if view == "size" else 1.0
    xs, ys = [whole, *(p["x"] for p in points)], [1.0, *(p["y"] for p in points)]
    low, high = min(xs) / 1.15, max(xs) * 1.15
    # what lost nearly everything is drawn on the lower edge, so that the others can be told apart
    bottom = max(min(ys), 1 - 3 * max(1 - sorted(ys)[len(ys) // 4], 0.02)) - 0.01
    top = max(1.02, max(p["row"]["ratio"]["high"] for p in points) + 0.01)
    places = _labels(
        [(p["x"], max(p["y"], bottom), p["row"]["name"]) for p in points], (low, high), (bottom, top)
    )
    front = frontier.pareto(points, more)
    data: list[dict[str, Any]] = [
        {"type": "scatter", "mode": "lines", "x": [p["x"] for p in front], "y": [max(p["y"], bottom) for p in front],
         "name": "frontier", "hoverinfo": "skip",
         "line": {"color": "@trial", "width": 1.5, "dash": "dot", "shape": "vh" if more else "hv"}},
        {"type": "scatter", "mode": "markers+text", "x": [whole], "y": [1.0], "text": ["original"], "name": "original",
         "textposition": "bottom center", "hoverinfo": "skip",
         "marker": {"symbol": "diamond", "size": 12, "color": "@rival"}, "textfont": {"size": 11, "color": "@muted"}},
    ]  # fmt: skip
    for index, kind in enumerate(_KINDS):
        chosen = [(p, place) for p, place in zip(points, places) if p["row"]["kind"] == kind]
        if not chosen:
            continue
        ratios = [p["row"]["ratio"] for p, _ in chosen]
        data.append({
            "type": "scatter", "mode": "markers+text", "name": kind, "cliponaxis": False,
            "x": [p["x"] for p, _ in chosen], "y": [max(p["y"], bottom) for p, _ in chosen],
            "text": [escape(p["row"]["name"]) for p, _ in chosen], "textposition": [place for _, place in chosen],
            "textfont": {"size": 11, "color": "@ink"},
            "customdata": [_hover(p["row"]) for p, _ in chosen], "hovertemplate": "%{customdata}<extra></extra>",
            "error_y": {"type": "data", "symmetric": False, "thickness": 1, "width": 3, "color": f"@kind{index}",
                        "array": [r["high"] - r["estimate"] for r in ratios],
                        "arrayminus": [min(r["estimate"] - r["low"], max(r["estimate"] - bottom, 0)) for r in ratios]},
            "marker": {"size": 11, "color": f"@kind{index}", "line": {"color": "@surface", "width": 1},
                       "symbol": ["circle" if p["y"] >= bottom else "triangle-down-open" for p, _ in chosen]},
        })  # fmt: skip
    better = "more is better →" if more else "← less is better"
    ticks, span = frontier._ticks([low, high])
    return {
        "data": data,
        "layout": charts.layout(
            height=540,
            margin={"l": 62, "r": 22, "t": 14, "b": 56},
            hovermode="closest",
            xaxis=charts.axis(
                f"{title} · {better}",
                type="log",
                range=span,
                tickvals=ticks,
                ticktext=[n.size(t) if view == "size" else n.times(t) for t in ticks],
            ),
            yaxis=charts.axis(
                "Quality (original = 1)", range=[bottom - 0.01 * (top - bottom), top], nticks=8
            ),
            shapes=[
                {
                    "type": "line",
                    "xref": "paper",
                    "x0": 0,
                    "x1": 1,
                    "y0": 1,
                    "y1": 1,
                    "line": {"color": "@rival", "width": 1, "dash": "dot"},
                }
            ],
        ),
    }


def _labels(
    points: list[tuple[float, float, str]], x_range: tuple[float, float], y_range: tuple[float, float]
) -> list[str]:
    """Where each label stands, so that few lie on each other: greedy, in shares of the plot."""
    width = math.log(x_range[1] / x_range[0])
    places = [
        (math.log(x / x_range[0]) / width, (y - y_range[0]) / (y_range[1] - y_range[0])) for x, y, _ in points
    ]
    taken: list[tuple[float, float, float]] = []
    out: list[str] = []
    for (x, y), (_, _, text) in zip(places, points):
        half = _LETTER * len(text) / 2
        found = {name: (x + dx * (2 * half + 0.02), y + dy) for name, (dx, dy) in _PLACES.items()}

        def overlap(at: tuple[float, float], half: float = half) -> float:
            marks = sum(abs(at[0] - a) < half + 0.008 and abs(at[1] - b) < _LINE / 2 for a, b in places)
            texts = sum(abs(at[0] - a) < half + h and abs(at[1] - b) < _LINE for a, b, h in taken)
            outside = max(0.0, half - at[0], at[0] + half - 1)
            return marks + 2 * texts + 10 * outside

        name = min(found, key=lambda place: overlap(found[place]))
        taken.append((*found[name], half))
        out.append(name)
    return out


@functools.lru_cache(maxsize=1)
def _template() -> Any:
    from jinja2 import Environment, FileSystemLoader

    made = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for name in ("size", "quality", "ratio", "interval", "times", "count", "rate", "duration"):
        made.filters[name] = getattr(n, name)
    made.filters["times_of"] = lambda value: n.times(n.number(value))
    made.filters["times_interval"] = lambda value: n.interval(value, n.times)
    return made.get_template("compare.html")


def render(report: Mapping[str, Any]) -> str:
    """The page: self-contained HTML, readable offline, in light, dark and print. Everything in it is escaped."""
    report = plain(report)
    figures = {f"frontier-{view}": figure for view in VIEWS if (figure := chart(report, view))}
    kinds = {row["kind"] for row in advice.done(report)}
    about = {k: report.get(k) for k in ("model", "task", "machine")}
    groups = [(title, pairs) for title, pairs in facts(about) if title in ("Task", "Machine")]
    return str(
        _template().render(
            r=report,
            rows=advice.done(report),
            others=advice.left_out(report),
            kinds=[(kind, i) for i, kind in enumerate(_KINDS) if kind in kinds],
            facts=groups,
            views=[name.removeprefix("frontier-") for name in figures],
            titles={"size": "Size", "torch": "Speed, torch", "openvino": "Speed, OpenVINO"},
            first=next(iter(figures), None),
            palette=charts.PALETTE,
            style=(shell._TEMPLATES / "report.css").read_text(encoding="utf-8"),
            script=(shell._TEMPLATES / "report.js").read_text(encoding="utf-8"),
            data=shell._script_json({"figures": figures, "palette": charts.PALETTE}),
            plotly=shell._plotly() if figures else "",
        )
    )


def write(report: Mapping[str, Any], folder: str | Path) -> Path:
    """Write compare.html into `folder`, whole. Returns its path."""
    return files.write_text(Path(folder) / "compare.html", render(report))
