"""The plot of an arena, as in Long Range Arena's paper: quality against speed, the area of a mark is memory."""

from __future__ import annotations

import math
from collections.abc import Mapping
from html import escape
from typing import Any

from lightformers.arena import verdict
from lightformers.slim import charts, frontier
from lightformers.slim import numbers as n
from lightformers.slim.labels import labels

#: Area of the largest mark, as its diameter in pixels.
_LARGEST = 46


def views(report: Mapping[str, Any]) -> dict[str, str]:
    """view -> its title: the means where there are several tasks, then every task."""
    found = {}
    for group, names in verdict.groups(report).items():
        if len(names) > 1:
            found[group] = "Mean" if group == "arena" else "Mean of probes"
    return found | {t["name"]: t["name"] for t in report["tasks"]}


def chart(report: Mapping[str, Any], view: str) -> charts.Figure | None:
    """Accuracy against times the baseline's training speed (log), for a task or a group of tasks; None: no point."""
    points = _points(report, view)
    if not points:
        return None
    chance = next((t["chance"] for t in report["tasks"] if t["name"] == view), None)
    ys = [p["y"] for p in points] + ([chance] if chance is not None else [])
    ticks, span = frontier.ticks([min(p["x"] for p in points) / 1.2, max(p["x"] for p in points) * 1.2])
    air = max(0.12 * (max(ys) - min(ys)), 0.02)
    heights = (max(min(ys) - air, -0.03), min(max(ys) + air, 1.05))
    front = frontier.pareto(points, True)
    largest = max(p["memory"] or 0.0 for p in points) or 1.0
    line = {"color": "@trial", "width": 1.5, "dash": "dot", "shape": "vh"}
    data = [
        {"type": "scatter", "mode": "lines", "x": [p["x"] for p in front], "y": [p["y"] for p in front],
         "name": "frontier", "hoverinfo": "skip", "line": line},
        *(_marks(name, [p for p in points if p["kind"] == name], colour, largest) for name, colour in KINDS.items()),
    ]  # fmt: skip
    shapes = []
    if chance is not None:
        shapes.append({"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": chance, "y1": chance, "layer": "below",
                       "line": {"color": "@rival", "width": 1, "dash": "dot"}})  # fmt: skip
    layout = charts.layout(
        height=540,
        margin={"l": 62, "r": 22, "t": 14, "b": 56},
        hovermode="closest",
        xaxis=charts.axis(
            f"Times as fast in training as {escape(report['baseline'])} · more is better →",
            type="log", range=span, tickvals=ticks, ticktext=[n.times(t) for t in ticks],
        ),
        yaxis=charts.axis("Share of right answers", range=list(heights), nticks=8),
        shapes=shapes,
        annotations=labels([(p["x"], p["y"], p["name"]) for p in points], span, heights, _LARGEST / 2),
    )  # fmt: skip
    return {"data": [t for t in data if t["x"]], "layout": layout}


#: What a mixer can do -> colour.
KINDS = {"looks both ways": "@kind0", "runs on in time": "@kind1"}


def _points(report: Mapping[str, Any], view: str) -> list[dict[str, Any]]:
    kinds = {m["name"]: list(KINDS)[bool(m["runs_on"])] for m in report["mixers"]}
    if view in verdict.groups(report):
        rows = [s for s in report["scores"] if s["group"] == view]
        return [
            {"x": s["train"], "y": s["score"], "name": s["mixer"], "kind": kinds[s["mixer"]], "memory": s["memory"],
             "text": [f"mean {s['score']:.3f}", f"{n.times(s['train'])} in training, {n.times(s['infer'])} in inference",
                      f"memory {n.times(s['memory'])}"]}
            for s in rows
        ]  # fmt: skip
    return [
        {"x": r["train"]["speedup"]["estimate"], "y": r["quality"]["estimate"], "name": r["mixer"],
         "kind": kinds[r["mixer"]], "memory": float(r["memory"]), "quality": r["quality"],
         "text": [f"{n.quality(r['quality'])} {n.interval(r['quality'])}",
                  f"{n.rate(r['train']['throughput'])} in training, {n.rate(r['infer']['throughput'])} in inference",
                  f"{n.size(r['memory'])} in training, {n.count(r['parameters'])} parameters"]}
        for r in verdict.done(report, view)
    ]  # fmt: skip


def _marks(name: str, points: list[dict[str, Any]], colour: str, largest: float) -> dict[str, Any]:
    """All mixers of a kind, with the arms of their intervals where there are some."""
    made: dict[str, Any] = {
        "type": "scatter", "mode": "markers", "name": name, "cliponaxis": False,
        "x": [p["x"] for p in points], "y": [p["y"] for p in points], "text": [escape(p["name"]) for p in points],
        "customdata": ["<br>".join([f"<b>{escape(p['name'])}</b>", *p["text"]]) for p in points],
        "hovertemplate": "%{customdata}<extra></extra>",
        "marker": {
            "color": colour, "opacity": 0.8, "line": {"color": "@surface", "width": 1},
            # a diameter: the area is the memory
            "size": [max(math.sqrt((p["memory"] or 0.0) / largest) * _LARGEST, 7) for p in points],
        },
    }  # fmt: skip
    if points and all("quality" in p for p in points):
        made["error_y"] = {
            "type": "data", "symmetric": False, "thickness": 1, "width": 3, "color": colour,
            "array": [p["quality"]["high"] - p["y"] for p in points],
            "arrayminus": [p["y"] - p["quality"]["low"] for p in points],
        }  # fmt: skip
    return made
