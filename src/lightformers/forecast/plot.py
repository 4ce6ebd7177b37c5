"""The chart of a forecast: what was seen, the forecast with its interval, and what the model said of rows it had not seen."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from lightformers.slim import charts
from lightformers.slim import numbers as n

#: Line or area -> colour, in the order of the legend.
KINDS = {"seen": "@ink", "forecast": "@accent", "interval": "@trial", "held out": "@control"}


def charts_of(report: Mapping[str, Any], most: int = 12) -> dict[str, charts.Figure]:
    """target -> its figure, at most so many."""
    return {name: chart(report, name) for name in list(report["forecast"]["targets"])[:most]}


def chart(report: Mapping[str, Any], target: str) -> charts.Figure:
    """One target over time."""
    found = report["forecast"]
    one = found["targets"][target]
    past, future = found["history_stamps"], found["stamps"]
    nominal = n.percent(report["interval"]["nominal"])
    tips = [
        f"<b>{escape(str(s))}</b><br>{escape(target)}: {n.significant(m, 4)}<br>{nominal}: {n.significant(low, 4)} to {n.significant(high, 4)}"
        for s, m, low, high in zip(future, one["forecast"], one["lower"], one["upper"])
    ]
    both = {"x": [*future, *future[::-1]], "y": [*one["upper"], *one["lower"][::-1]]}
    data = [
        {"type": "scatter", "mode": "lines", "name": "interval", "fill": "toself", "fillcolor": "@trial", "opacity": 0.38,
         "line": {"width": 0, "color": "@trial"}, "hoverinfo": "skip", **both},
        _line("seen", past, one["history"], "@ink", 1.5),
    ]  # fmt: skip
    if held := one.get("held_out"):
        data.append(_line("held out", past[-len(held) :], held, "@control", 1.5, dash="dash"))
    ahead = _line("forecast", future, one["forecast"], "@accent", 2.2)
    data.append(ahead | {"customdata": tips, "hovertemplate": "%{customdata}<extra></extra>"})
    edge = {"type": "line", "yref": "paper", "y0": 0, "y1": 1, "x0": past[-1], "x1": past[-1], "layer": "below",
            "line": {"color": "@rival", "width": 1, "dash": "dot"}}  # fmt: skip
    return {
        "data": data,
        "layout": charts.layout(
            height=460, margin={"l": 62, "r": 18, "t": 14, "b": 46}, hovermode="closest", shapes=[edge],
            xaxis=charts.axis("" if report["data"]["timestamp"] else "row", showgrid=False, nticks=9),
            yaxis=charts.axis(escape(target), nticks=7),
        ),
    }  # fmt: skip


def _line(name: str, x: list[Any], y: list[Any], colour: str, width: float, **style: Any) -> dict[str, Any]:
    """Missing values are gaps."""
    return {
        "type": "scatter", "mode": "lines", "name": name, "x": list(x), "y": list(y), "connectgaps": False,
        "line": {"color": colour, "width": width, **style}, "hovertemplate": "%{x}: %{y:.4g}<extra>" + name + "</extra>",
    }  # fmt: skip
