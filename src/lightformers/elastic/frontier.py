"""The frontier of an elastic model: a page that needs nothing else, and the figures as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from lightformers import files
from lightformers.slim import charts, page
from lightformers.slim import numbers as n
from lightformers.slim.frontier import pareto

_TEMPLATES = Path(__file__).parent / "templates"
_AXES = {"parameters": "Weights, millions", "latency": "Latency of one example, ms"}


def chart(facts: Mapping[str, Any], axis: str) -> charts.Figure:
    """Quality against weights or latency; bars are 95 % intervals, the line joins the sizes that no other beats."""
    sign = 1 if facts["higher_is_better"] else -1
    points = [
        {
            "x": row["parameters"] / 1e6 if axis == "parameters" else row["latency_ms"],
            "y": sign * row["quality"]["estimate"],
            "row": row,
        }
        for row in facts["rows"]
    ]
    front = pareto(points, more=False)
    better = "more is better" if sign > 0 else "less is better"
    title = f"{escape(str(facts['metric']))} · {better}"
    ends = [row["quality"] for row in facts["rows"]]
    return {
        "data": [
            {"type": "scatter", "mode": "lines", "name": "frontier", "hoverinfo": "skip",
             "x": [p["x"] for p in front], "y": [sign * p["y"] for p in front],
             "line": {"color": "@trial", "width": 1.5, "shape": "hv", "dash": "dot"}},
            {"type": "scatter", "mode": "markers", "name": "size", "cliponaxis": False,
             "x": [p["x"] for p in points], "y": [e["estimate"] for e in ends],
             "customdata": [_hover(p["row"]) for p in points], "hovertemplate": "%{customdata}<extra></extra>",
             "marker": {"size": 11, "color": "@accent", "line": {"color": "@surface", "width": 1.5}},
             "error_y": {"type": "data", "symmetric": False, "color": "@trial", "thickness": 1.5, "width": 4,
                         "array": [e["high"] - e["estimate"] for e in ends],
                         "arrayminus": [e["estimate"] - e["low"] for e in ends]}},
        ],
        "layout": charts.layout(
            height=460, margin={"l": 62, "r": 18, "t": 14, "b": 56}, hovermode="closest",
            xaxis=charts.axis(f"{_AXES[axis]} · ← less is better", nticks=8),
            yaxis=charts.axis(title, nticks=8),
        ),
    }  # fmt: skip


def _hover(row: Mapping[str, Any]) -> str:
    lines = [
        f"<b>{escape(row['name'])}</b>",
        f"quality {n.quality(row['quality'])} {n.interval(row['quality'])}",
    ]
    return "<br>".join(
        [*lines, f"{n.count(row['parameters'])} weights · {n.milliseconds(row['latency_ms'])}"]
    )


def render(facts: Mapping[str, Any]) -> str:
    """The page: self-contained HTML, readable offline. Everything that comes from `facts` is escaped."""
    from jinja2 import Environment, FileSystemLoader

    made = Environment(
        loader=FileSystemLoader([_TEMPLATES, page.TEMPLATES]),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for name in ("milliseconds", "count", "quality", "interval"):
        made.filters[name] = getattr(n, name)
    figures = {f"frontier-{axis}": chart(facts, axis) for axis in _AXES}
    return str(
        made.get_template("frontier.html").render(
            f=facts,
            palette=charts.PALETTE,
            style=(page.TEMPLATES / "report.css").read_text(encoding="utf-8"),
            script=(page.TEMPLATES / "report.js").read_text(encoding="utf-8"),
            data=page.script_json({"figures": figures, "palette": charts.PALETTE}),
            plotly=page.plotly(),
        )
    )


def write(facts: Mapping[str, Any], folder: str | Path) -> Path:
    """Write frontier.json and frontier.html into `folder`; each appears whole. Returns the path of the page."""
    files.write_json(Path(folder) / "frontier.json", dict(facts))
    return files.write_text(Path(folder) / "frontier.html", render(facts))
