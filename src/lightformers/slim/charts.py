"""What the charts of the report share, and the time per layer; `frontier` has the main chart.

A chart is a plain plotly figure: a dictionary of data and layout.

Colours are tokens ("@accent"): the page puts in the light or the dark value, so that one figure serves both.
All text in a figure is escaped here, since plotly reads a subset of HTML in it.
"""

from __future__ import annotations

from html import escape
from typing import Any

from lightformers.slim import digest
from lightformers.slim import numbers as n

# token -> (light, dark). Text tokens keep a contrast of 4.5:1 or more on "surface" and "page" in both.
PALETTE: dict[str, tuple[str, str]] = {
    "page": ("#f6f6f4", "#121315"), "surface": ("#ffffff", "#1b1d20"), "sunken": ("#f1f1ee", "#24272b"),
    "ink": ("#17191c", "#eceef0"), "muted": ("#596069", "#a3abb5"), "line": ("#e2e3df", "#33373d"),
    "accent": ("#1a56c4", "#7fb0ff"), "tint": ("#e6eefc", "#1d2b45"), "rival": ("#8a9099", "#8b929c"),
    "trial": ("#8fb0e8", "#4a6da6"), "good": ("#0f6b3c", "#63d297"), "goodtint": ("#e0f3e8", "#143324"),
    "bad": ("#b0261c", "#ff9187"), "badtint": ("#fdeae8", "#421c19"), "warn": ("#7d5200", "#f1bd5f"),
    "warntint": ("#fdf2dc", "#3b2c10"), "control": ("#8a3b9c", "#d69be6"),
    "kind0": ("#1f6fd0", "#5a9df0"), "kind1": ("#d9822b", "#e59a4c"), "kind2": ("#2b9a78", "#45b996"),
    "kind3": ("#9a5bb5", "#b986d1"), "kind4": ("#c9a400", "#dcbf3f"), "kind5": ("#c4517a", "#de7d9f"),
    "kind6": ("#5b8fa8", "#7fb1c9"), "kind7": ("#85878c", "#8f959e"),
}  # fmt: skip

FONT = {"family": "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif", "size": 13, "color": "@ink"}
Figure = dict[str, Any]


def layout(**more: Any) -> dict[str, Any]:
    return {
        "font": FONT,
        "paper_bgcolor": "@surface",
        "plot_bgcolor": "@surface",
        "hoverlabel": {
            "bgcolor": "@surface",
            "bordercolor": "@line",
            "align": "left",
            "font": {"size": 13, "color": "@ink", "family": FONT["family"]},
        },
        "showlegend": False,
        "dragmode": False,
        **more,
    }


def axis(title: str, **more: Any) -> dict[str, Any]:
    return {
        "title": {"text": title, "font": {"size": 13, "color": "@muted"}, "standoff": 14},
        "gridcolor": "@line",
        "linecolor": "@line",
        "tickfont": {"size": 12, "color": "@muted"},
        "zeroline": False,
        "ticks": "",
        "fixedrange": True,
        "automargin": True,
        **more,
    }


def layers(report: digest.Report) -> Figure | None:
    """Time per layer before and after: two stacked bars, layers of one kind side by side. None: not profiled."""
    sides = [s for s in ("before", "after") if (report.get("layers") or {}).get(s)]
    if not sides:
        return None
    data = []
    for index, kind in enumerate(digest.kinds(report)):
        for side in sides:
            for layer in report["layers"][side]:
                if str(layer.get("kind") or "other") != kind["kind"] or n.number(layer.get("ms")) is None:
                    continue
                share = f" · {n.percent(layer['share'])}" if n.number(layer.get("share")) is not None else ""
                text = f"<b>{escape(str(layer.get('name', '?')))}</b><br>{escape(kind['kind'])}, {side}<br>"
                data.append({
                    "type": "bar", "orientation": "h", "x": [n.number(layer["ms"])], "y": [side.capitalize()],
                    "customdata": [text + n.milliseconds(layer["ms"]) + share],
                    "hovertemplate": "%{customdata}<extra></extra>", "name": escape(kind["kind"]),
                    "marker": {"color": f"@kind{min(index, 7)}", "line": {"color": "@surface", "width": 1}},
                })  # fmt: skip
    return {
        "data": data,
        "layout": layout(
            barmode="stack",
            height=90 + 62 * len(sides),
            bargap=0.28,
            hovermode="closest",
            margin={"l": 58, "r": 18, "t": 6, "b": 48},
            xaxis=axis("milliseconds", rangemode="tozero", nticks=8),
            yaxis=axis(
                "", categoryorder="array", categoryarray=[s.capitalize() for s in sides[::-1]], showgrid=False
            ),
        ),
    }
