"""The main chart of the report: quality against latency, throughput or size, with everything that was tried."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from html import escape
from typing import Any

from lightformers.slim import charts, digest
from lightformers.slim import numbers as n

Points = list[dict[str, Any]]
# Pixels of the plotting area on a small screen, where labels need most care, and where a label may stand from its mark.
_WIDTH, _HEIGHT = 400, 380
_SHIFTS = [(x, y) for y in (-44, 44, -70, 70, -100, 100) for x in (46, -46, 0, 80, -80)]
_TITLES = {"latency": "Latency, ms", "throughput": "Examples a second", "size": "Size on disk"}


def _hover(title: str, kind: str, entry: Mapping[str, Any], recipe: str = "", note: str = "") -> str:
    lines = [f"<b>{escape(title)}</b>", escape(kind)]
    if recipe:
        lines.append("<br>".join(escape(line) for line in _wrap(recipe)))
    whole, around = n.ratio(entry.get("ratio")), n.interval(entry.get("ratio"))
    lines.append(f"quality against the original {whole} {around}".rstrip())
    speeds = [
        n.milliseconds(entry.get("latency_ms")),
        n.rate(entry.get("throughput")),
        n.size(entry.get("size_bytes")),
    ]
    lines.append(" · ".join(text for text in speeds if text != n.NONE))
    return "<br>".join(filter(None, [*lines, escape(note)]))


def _wrap(text: str, width: int = 58) -> list[str]:
    lines = [""]
    for word in text.split(" "):
        if lines[-1] and len(lines[-1]) + len(word) >= width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return lines


def _points(report: digest.Report, axis: str) -> dict[str, Points]:
    """Everything that has a place on this axis, by kind."""
    key = digest.AXES[axis][0]
    groups: dict[str, Points] = {"trial": [], "stopped": [], "predicted": [], "baseline": [], "chosen": []}

    def add(group: str, entry: Mapping[str, Any], x: float | None, hover: str) -> None:
        y = n.number(entry.get("ratio"))
        if x is not None and x > 0 and y is not None:
            groups[group].append({"x": x, "y": y, "size": n.number(entry.get("size_bytes")), "hover": hover,
                                  "ratio": entry.get("ratio"), "name": str(entry.get("name", ""))})  # fmt: skip

    for trial in report.get("trials") or []:
        state = str(trial.get("state", "complete"))
        if state == "failed":
            continue
        group = "trial" if state == "complete" else "stopped"
        x, note = n.number(trial.get(key)), ""
        if x is None and (guess := _predicted(report, trial, axis)) is not None:
            x, note = guess, f"{axis} predicted: {digest.AXES[axis][2](guess)}"
            group = "predicted" if group == "trial" else group
        title = f"Trial {trial.get('id', '?')}: {trial.get('name', '')}"
        rung = f", rung {trial['rung']}" if trial.get("rung") is not None else ""
        took = f", {n.duration(trial['seconds'])}" if n.number(trial.get("seconds")) is not None else ""
        add(group, trial, x, _hover(title, f"{state}{rung}{took}", trial, digest.recipe_text(trial), note))
    for rival in report.get("baselines") or []:
        rival = {**rival, "ratio": digest.ratio_of(report, rival)}
        add(
            "baseline",
            rival,
            n.number(rival.get(key)),
            _hover(str(rival.get("name", "?")), "baseline", rival),
        )
    chosen = report.get("chosen")
    if chosen:
        entry = {**chosen, "ratio": digest.verdict_ratio(report) or chosen.get("ratio")}
        kind = "chosen, verified on unseen data"
        add("chosen", entry, n.number(chosen.get(key)),
            _hover(str(chosen.get("name") or "chosen"), kind, entry, digest.recipe_text(chosen)))  # fmt: skip
    return groups


def _predicted(report: digest.Report, trial: Mapping[str, Any], axis: str) -> float | None:
    """The predicted milliseconds an example, on the axis of the goal that they were predicted for."""
    guess = n.number(trial.get("predicted_ms"))
    if (
        not guess
        or axis == "size"
        or axis != ("latency" if digest.goal(report) == "latency" else "throughput")
    ):
        return None
    return guess if axis == "latency" else 1000 / guess


def pareto(points: Points, more: bool) -> Points:
    """The points that no other one beats on both axes, from left to right."""
    best, front = -math.inf, []
    for point in sorted(points, key=lambda p: (-p["x"] if more else p["x"], -p["y"])):
        if point["y"] > best:
            best = point["y"]
            front.append(point)
    return front[::-1] if more else front


def chart(report: digest.Report, axis: str) -> charts.Figure | None:
    """Quality ratio against latency, throughput or size; the area of a mark is the size on disk. None: no point."""
    groups = _points(report, axis)
    everything = [p for points in groups.values() for p in points]
    if not everything:
        return None
    more = digest.AXES[axis][3]
    largest = max((p["size"] or 0 for p in everything), default=0) or 1.0
    floor, control = digest.floor(report), n.number((report.get("control") or {}).get("ratio"))
    low, high = _quality_range([p["y"] for p in everything], floor, control)

    def marks(group: str, **marker: Any) -> dict[str, Any]:
        points, symbol = groups[group], marker.pop("symbol")
        trace: dict[str, Any] = {
            "type": "scatter", "mode": "markers", "name": group, "x": [p["x"] for p in points],
            "y": [max(p["y"], low) for p in points], "customdata": [p["hover"] for p in points],
            "hovertemplate": "%{customdata}<extra></extra>", "cliponaxis": False,
            "marker": {"size": [(p["size"] or largest / 4) for p in points], "sizemode": "area",
                       "sizeref": largest / 26**2, "sizemin": 5, "opacity": 1,
                       "symbol": [symbol if p["y"] >= low else "triangle-down-open" for p in points], **marker},
        }  # fmt: skip
        if group == "chosen" and all(isinstance(p["ratio"], dict) for p in points):
            ends = [_ends(p["ratio"], p["y"]) for p in points]
            if None not in ends:
                trace["error_y"] = {"type": "data", "symmetric": False, "color": "@accent", "thickness": 1.5, "width": 5,
                                    "arrayminus": [e[0] for e in ends if e], "array": [e[1] for e in ends if e]}  # fmt: skip
        return trace

    edge = {"color": "@surface", "width": 1.5}
    front = pareto(groups["trial"] + groups["predicted"], more)
    data = [
        {"type": "scatter", "mode": "lines", "x": [p["x"] for p in front], "y": [p["y"] for p in front], "name": "frontier",
         "line": {"color": "@trial", "width": 1.5, "shape": "vh" if more else "hv", "dash": "dot"}, "hoverinfo": "skip"},
        marks("stopped", symbol="circle-open", color="@rival", line={"color": "@rival", "width": 1.5}),
        marks("predicted", symbol="circle-open", color="@accent", line={"color": "@accent", "width": 1.5}),
        marks("trial", symbol="circle", color="@trial", line=edge),
        marks("baseline", symbol="diamond", color="@rival", line=edge),
        marks("chosen", symbol="circle", color="@accent", line={"color": "@ink", "width": 2}),
    ]  # fmt: skip
    marked, x_range = ticks([p["x"] for p in everything])

    def free_on_the_right(height: float) -> bool:
        near = [p for p in everything if abs(p["y"] - height) < 0.1 * (high - low)]
        places = [(math.log10(p["x"]) - x_range[0]) / (x_range[1] - x_range[0]) for p in near]
        return sum(x > 0.82 for x in places) <= sum(x < 0.18 for x in places)

    inside = control if control is not None and low <= control <= high else None
    shapes, notes = _lines(digest.reference(report), floor, inside, free_on_the_right)
    lines = [y for y in (digest.reference(report), floor, inside) if y is not None]
    notes += _labels(report, groups, x_range, [low, high], lines)
    better = "more is better →" if more else "← less is better"
    layout = charts.layout(
        height=460,
        margin={"l": 62, "r": 18, "t": 14, "b": 56},
        hovermode="closest",
        xaxis=charts.axis(f"{_TITLES[axis]} · {better}", type="log", range=x_range, tickvals=marked,
                    ticktext=[_tick(axis, t) for t in marked]),
        yaxis=charts.axis(_quality_title(report), range=[low - (high - low) * 0.03, high], nticks=8),
        shapes=shapes,
        annotations=notes,
    )  # fmt: skip
    return {"data": [t for t in data if t["x"]], "layout": layout}


def _ends(ratio: Mapping[str, Any], y: float) -> tuple[float, float] | None:
    """Arms of the bar: down to the one-sided bound, which is what is held to the floor, and up to the upper end."""
    low, high = n.number(ratio.get("bound")), n.number(ratio.get("high"))
    low = n.number(ratio.get("low")) if low is None else low
    return None if low is None or high is None else (max(y - low, 0.0), max(high - y, 0.0))


def _quality_title(report: digest.Report) -> str:
    return "Change of quality (original = 0)" if digest.by_difference(report) else "Quality (original = 1)"


def _tick(axis: str, value: float) -> str:
    if axis == "size":
        amount, unit = n.size(value).split(" ")
        return f"{float(amount):g} {unit}"
    return f"{value:g}" if value < 1000 else f"{value:,.0f}"


def _quality_range(values: list[float], floor: float | None, control: float | None) -> tuple[float, float]:
    """The range of the y axis; marks far below the floor are drawn on its lower edge, so that the top stays legible."""
    seen = values if floor is None else [*values, floor]
    low, high = min(seen), max(seen)
    if floor is not None:
        low = max(low, floor - max(0.12, 1.5 * (high - floor)))
    room = max(high - low, 0.01)
    if control is not None and low <= control <= high + 3 * room:  # farther away it is told in words only
        high = max(high, control)
        room = high - low
    return low - 0.04 * room, high + 0.12 * room


def ticks(values: list[float]) -> tuple[list[float], list[float]]:
    """Tick values 1, 2, 5, 10, ... around the data, and the range (log10) of a log axis with some air."""
    low, high = math.log10(min(values)), math.log10(max(values))
    air = max(0.07 * (high - low), 0.06)
    low, high = low - air, high + air
    steps = (1, 2, 5) if high - low > 0.6 else (1, 1.5, 2, 3, 4, 5, 6, 8)
    round_ones = [m * 10.0**e for e in range(math.floor(low), math.ceil(high) + 1) for m in steps]
    return [t for t in round_ones if low <= math.log10(t) <= high], [low, high]


def _lines(
    one: float, floor: float | None, control: float | None, free: Callable[[float], bool]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The lines across the chart and their names; `free(y)`: the right end is the emptier one at this height."""
    shapes, notes = [], []
    for value, text, color, dash in (
        (one, "", "@rival", "dot"),
        (floor, "" if floor is None else f"floor {floor:g}", "@bad", "solid"),
        (control, f"control {n.ratio(control)}", "@control", "dash"),
    ):
        if value is None:
            continue
        shapes.append({"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": value, "y1": value, "layer": "below",
                       "line": {"color": color, "width": 1.25, "dash": dash}})  # fmt: skip
        if text:
            right = free(value)
            notes.append({"xref": "paper", "x": int(right), "y": value, "xanchor": "right" if right else "left",
                          "yanchor": "top" if value == floor else "bottom", "text": text, "showarrow": False, "font": {"size": 12, "color": color}})  # fmt: skip
    return shapes, notes


def _labels(
    report: digest.Report,
    groups: dict[str, Points],
    x_range: list[float],
    y_range: list[float],
    lines: list[float],
) -> list[dict[str, Any]]:
    """Names beside the two marks that matter; everything else is told on hover and in the tables."""
    rival = digest.honest(report)
    wanted = [(p, "chosen", "@accent") for p in groups["chosen"]]
    wanted += [
        (p, "honest baseline", "@muted")
        for p in groups["baseline"]
        if rival is not None and p["name"] == rival.get("name")
    ]

    def place(x: float, y: float) -> tuple[float, float]:
        across = (math.log10(x) - x_range[0]) / (x_range[1] - x_range[0])
        return across * _WIDTH, (y_range[1] - y) / (y_range[1] - y_range[0]) * _HEIGHT

    taken = [place(p["x"], max(p["y"], y_range[0])) for points in groups.values() for p in points]
    heights = [place(1, y)[1] for y in lines]
    notes = []
    for point, text, color in wanted:
        here = place(point["x"], point["y"])
        half = 4.5 * len(text)

        def crowd(
            shift: tuple[int, int],
            here: tuple[float, float] = here,
            half: float = half,
            taken: tuple[tuple[float, float], ...] = tuple(taken),
        ) -> float:
            x, y = here[0] + shift[0], here[1] + shift[1]
            outside = x - half < 0 or x + half > _WIDTH or y < 12 or y > _HEIGHT - 12
            marks = sum(abs(x - a) < half + 14 and abs(y - b) < 24 for a, b in taken)
            return 10 * outside + 2 * marks + sum(abs(y - b) < 14 for b in heights) + abs(shift[1]) / 1000

        ax, ay = min(_SHIFTS, key=crowd)
        taken += [(here[0] + ax + part * half, here[1] + ay) for part in (-0.7, 0.0, 0.7)]
        notes.append({"x": math.log10(point["x"]), "y": point["y"], "text": f"<b>{text}</b>", "showarrow": True,
                      "arrowhead": 0, "arrowwidth": 1, "arrowcolor": color, "ax": ax, "ay": ay, "standoff": 11,
                      "font": {"size": 13, "color": color}})  # fmt: skip
    return notes
