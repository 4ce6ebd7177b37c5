"""The plot of a comparison: quality against size or speed, every method named at its mark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from lightformers.compare import advice
from lightformers.slim import charts, frontier
from lightformers.slim import numbers as n
from lightformers.slim.labels import labels

KINDS = ("prune", "quantize", "factorize", "distil", "fold", "vocabulary")
#: view -> (title of the axis, value of a row, more is better).
VIEWS: dict[str, tuple[str, Any, bool]] = {
    "size": ("Size on disk", lambda row: row["bytes"], False),
    "torch": ("Times as fast as the original, torch", lambda row: _speed(row, "torch"), True),
    "openvino": ("Times as fast as the original, OpenVINO", lambda row: _speed(row, "openvino"), True),
}


def _speed(row: Mapping[str, Any], runtime: str) -> float | None:
    found = row.get(runtime)
    return None if not found else n.number(found["speedup"])


def _hover(row: Mapping[str, Any]) -> str:
    around = f"{n.ratio(row['ratio'])} {n.interval(row['ratio'])}"
    speeds = [f"{_speed(row, r):.2f}× in {r}" for r in ("torch", "openvino") if _speed(row, r)]
    lines = [
        f"<b>{escape(row['name'])}</b>",
        f"quality {around} of the original",
        f"{n.size(row['bytes'])} on disk, {row['blocks']:.0%} of the blocks",
        ", ".join(speeds),
        escape(row["note"]),
    ]
    return "<br>".join(filter(None, lines))


def chart(report: Mapping[str, Any], view: str) -> charts.Figure | None:
    """Quality ratio with its interval against one of `VIEWS`; colours are kinds, the dotted line joins the best.

    None where no row has a place.
    """
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
    ticks, span = frontier.ticks([min(xs) / 1.1, max(xs) * 1.1])
    # what lost far more than most is drawn on the lower edge, so that the others can be told apart
    bottom = max(min(ys), 1 - 3 * max(1 - sorted(ys)[len(ys) // 2], 0.02)) - 0.01
    top = max(1.02, max(p["row"]["ratio"]["high"] for p in points) + 0.01)
    heights = (bottom - 0.02 * (top - bottom), top)
    for p in points:
        p["shown"] = max(p["y"], bottom)
    front = frontier.pareto(points, more)
    marks = [(whole, 1.0, "original"), *((p["x"], p["shown"], p["row"]["name"]) for p in points)]
    line = {"color": "@trial", "width": 1.5, "dash": "dot", "shape": "vh" if more else "hv"}
    data: list[dict[str, Any]] = [
        {"type": "scatter", "mode": "lines", "x": [p["x"] for p in front], "y": [p["shown"] for p in front],
         "name": "frontier", "hoverinfo": "skip", "line": line},
        {"type": "scatter", "mode": "markers", "x": [whole], "y": [1.0], "name": "original", "hoverinfo": "skip",
         "marker": {"symbol": "diamond", "size": 12, "color": "@rival"}},
        *(_marks(kind, [p for p in points if p["row"]["kind"] == kind], bottom) for kind in KINDS),
    ]  # fmt: skip
    better = "more is better →" if more else "← less is better"
    texts = [n.size(t) if view == "size" else n.times(t) for t in ticks]
    one = {"color": "@rival", "width": 1, "dash": "dot"}
    layout = charts.layout(
        height=540,
        margin={"l": 62, "r": 22, "t": 14, "b": 56},
        hovermode="closest",
        xaxis=charts.axis(f"{title} · {better}", type="log", range=span, tickvals=ticks, ticktext=texts),
        yaxis=charts.axis("Quality (original = 1)", range=list(heights), nticks=8),
        shapes=[{"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": 1, "y1": 1, "line": one}],
        annotations=labels(marks, span, heights),
    )
    return {"data": [t for t in data if t["x"]], "layout": layout}


def _marks(kind: str, points: Sequence[Mapping[str, Any]], bottom: float) -> dict[str, Any]:
    """All methods of a kind, with the arms of their intervals."""
    colour, ratios = f"@kind{KINDS.index(kind)}", [p["row"]["ratio"] for p in points]
    down = [min(r["estimate"] - r["low"], max(r["estimate"] - bottom, 0)) for r in ratios]
    return {
        "type": "scatter", "mode": "markers", "name": kind, "cliponaxis": False,
        "x": [p["x"] for p in points], "y": [p["shown"] for p in points],
        "text": [escape(p["row"]["name"]) for p in points],
        "customdata": [_hover(p["row"]) for p in points], "hovertemplate": "%{customdata}<extra></extra>",
        "error_y": {"type": "data", "symmetric": False, "thickness": 1, "width": 3, "color": colour,
                    "array": [r["high"] - r["estimate"] for r in ratios], "arrayminus": down},
        "marker": {"size": 11, "color": colour, "line": {"color": "@surface", "width": 1},
                   "symbol": ["circle" if p["y"] >= bottom else "triangle-down-open" for p in points]},
    }  # fmt: skip
