"""The report of a slim run: one HTML page that needs nothing else, a table for the terminal, and the JSON beside it.

plotly's JavaScript (MIT licence) is put into the page once, compressed, and unpacked by the browser. A content
security policy in the page forbids every request, so that the page cannot load anything from anywhere.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from lightformers import files
from lightformers.slim import charts, digest, frontier
from lightformers.slim import numbers as n
from lightformers.slim.facts import facts
from lightformers.slim.page import TEMPLATES, plotly, script_json


def plain(value: Any) -> Any:
    """`value` as strict JSON: numpy scalars and arrays become Python's, NaN and infinities None, the rest text."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (str, int, bool)) else str(value)


@functools.lru_cache(maxsize=1)
def _environment() -> Any:
    from jinja2 import Environment, FileSystemLoader, Undefined

    def known(write: Any) -> Any:  # a part that the report lacks is written like None
        return lambda *values: write(*(None if isinstance(v, Undefined) else v for v in values))

    made = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    for name in ("milliseconds", "rate", "times", "size", "count", "quality", "ratio", "interval", "percent", "change",
                 "shift", "duration", "plain_text", "number"):  # fmt: skip
        made.filters[name] = known(getattr(n, name))
    made.globals.update(digest=digest, times_faster=digest.faster)
    return made


def _cards(report: digest.Report) -> list[dict[str, Any]]:
    """The big figures; each is what it is, what it is held against, and how sure it is."""
    cards: list[dict[str, Any]] = []
    sure = n.percent(report.get("confidence"))
    rival, usual = digest.honest(report), digest.eager(report)
    chosen, model = report.get("chosen") or {}, report.get("model") or {}
    for row, label in ((rival, "the honest baseline"), (usual, "how most people run it")):
        gain = digest.speedup(report, row)
        if row is None or gain is None or (label != "the honest baseline" and row is rival):
            continue
        around = n.interval(gain, n.times)
        axis = digest.speed_axis(report)
        note = f"{axis}, {sure} interval {around}" if around and sure != n.NONE else axis
        big, _, word = digest.faster(gain["ratio"]).partition(" ")
        if big == "as":
            big, word = "1×", "as fast"
        line = f"{'as' if word == 'as fast' else 'than'} {row.get('name')}"
        cards.append({"big": big, "word": word, "line": line, "notes": [label, note]})
    if n.number(model.get("size_bytes")) and n.number(chosen.get("size_bytes")):
        before, after = model["size_bytes"], chosen["size_bytes"]
        big, _, word = digest.smaller(before, after).partition(" ")
        notes = ["on disk"]
        if n.number(chosen.get("parameters")) and n.number(model.get("parameters")):
            notes.append(f"{n.count(model['parameters'])} → {n.count(chosen['parameters'])} parameters")
        cards.append(
            {"big": big, "word": word, "line": f"{n.size(before)} → {n.size(after)}", "notes": notes}
        )
    ratio = digest.verdict_ratio(report)
    if n.number(ratio) is not None:
        metric = n.plain_text((report.get("task") or {}).get("metric"))
        word = f"change of {metric}" if digest.by_difference(report) else "of the original"
        cards.append({"big": n.ratio(ratio, digest.floor(report)), "word": word,
                      "line": digest.bound_text(report), "notes": ["quality on data the search never saw"],
                      "gauge": _gauge(report, ratio)})  # fmt: skip
    if digest.goal(report) == "size":
        cards.sort(key=lambda card: "smaller" not in card["word"])
    return cards


def _gauge(report: digest.Report, ratio: Mapping[str, Any]) -> dict[str, float] | None:
    """Places, in percent of the gauge's width, of the floor, the one-sided bound, the estimate, the upper end."""
    values = {key: n.number(ratio.get(key)) for key in ("high", "estimate", "bound")}
    values["floor"] = digest.floor(report)
    if any(value is None for value in values.values()):
        return None
    known = {key: float(value) for key, value in values.items() if value is not None}
    known["one"] = digest.reference(report)
    low, high = min(known.values()), max(known.values())
    room = (high - low) or 0.01
    low, high = low - 0.08 * room, high + 0.08 * room
    return {key: 100 * (value - low) / (high - low) for key, value in known.items()}


def _bar(report: digest.Report, row: Mapping[str, Any], rows: list[dict[str, Any]], key: str) -> float | None:
    top = max((n.number(r.get(key)) or 0.0 for r in rows), default=0.0)
    value = n.number(row.get(key))
    return None if value is None or not top else 100 * value / top


def render(report: Mapping[str, Any]) -> str:
    """The page: self-contained HTML, readable offline, in light, dark and print.

    report: the dictionary that becomes report.json; "usage" may hold [{"title", "code"}], the ways to use the
    result. Missing parts are left out. Everything that comes from the report is escaped.
    """
    report = plain(report)
    rows = digest.comparison(report)
    drawn = {f"frontier-{axis}": frontier.chart(report, axis) for axis in digest.AXES}
    figures: dict[str, charts.Figure] = {name: figure for name, figure in drawn.items() if figure}
    first = f"frontier-{digest.goal(report)}"
    per_layer = charts.layers(report)
    if per_layer:
        figures["layers"] = per_layer
    for row in rows:
        row["bars"] = {
            key: _bar(report, row, rows, key) for key in ("latency_ms", "throughput", "size_bytes")
        }
    template = _environment().get_template("report.html")
    return str(
        template.render(
            r=report,
            proven=digest.proven(report),
            sentence=digest.sentence(report),
            bound=digest.bound_text(report),
            floor=digest.floor(report),
            cards=_cards(report),
            rows=rows,
            steps=digest.steps(report),
            kinds=digest.kinds(report),
            failed=digest.failed(report),
            facts=facts(report),
            shown={trace["name"] for figure in figures.values() for trace in figure["data"]},
            views=[key.removeprefix("frontier-") for key in figures if key.startswith("frontier-")],
            first=first if first in figures else next(iter(figures), None),
            speed_axis=digest.speed_axis(report),
            has_layers=per_layer is not None,
            palette=charts.PALETTE,
            style=(TEMPLATES / "report.css").read_text(encoding="utf-8"),
            script=(TEMPLATES / "report.js").read_text(encoding="utf-8"),
            data=script_json({"figures": figures, "palette": charts.PALETTE}),
            plotly=plotly() if figures else "",
        )
    )


def write(report: Mapping[str, Any], folder: str | Path) -> Path:
    """Write report.json and report.html into `folder`; each appears whole. Returns the path of the page."""
    values = plain(report)
    files.write_json(Path(folder) / "report.json", values)
    return files.write_text(Path(folder) / "report.html", render(values))


def table(report: Mapping[str, Any]) -> RenderableType:
    """For the terminal: the chosen model against the baselines and the control, and the verdict.

    Fits 80 columns and says everything without colour. ASCII only, apart from names.
    """
    report = plain(report)
    floor = digest.floor(report)
    grid = Table(
        box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1), collapse_padding=True, header_style="bold"
    )
    grid.add_column("", overflow="fold", ratio=1, min_width=16)
    for heading in (
        "latency",
        "per s",
        "slim is",
        "change" if digest.by_difference(report) else "ratio",
        "size",
    ):
        grid.add_column(heading, justify="right", no_wrap=True)
    for row in digest.comparison(report):
        mark = {"chosen": "> ", "baseline": "  ", "control": "  "}[row["role"]]
        gain = row["speedup"]["ratio"] if row["speedup"] else None
        cells: list[RenderableType] = [
            Text(mark + row["name"] + (" *" if row["note"] == "the honest baseline" else "")),
            *(_ascii(text) for text in (
                n.milliseconds(row["latency_ms"]), n.significant(row["throughput"]), n.times(gain),
                n.ratio(row["ratio"], floor), n.size(row["size_bytes"]))),
        ]  # fmt: skip
        grid.add_row(*cells, style="bold" if row["role"] == "chosen" else None)
    proven = digest.proven(report)
    badge = Text("PROVEN" if proven else "NOT PROVEN", style="bold green" if proven else "bold red")
    lines = [Text.assemble(badge, "  ", _ascii(digest.sentence(report)))]
    bound = digest.bound_text(report)
    if bound:
        lines.append(
            Text(
                f"{'change of quality' if digest.by_difference(report) else 'quality ratio'} {bound}".replace(
                    " · ", "; "
                )
            )
        )
    if digest.honest(report):
        lines.append(Text("* what a careful user has without slim", style="dim"))
    control = report.get("control")
    if control and control.get("note"):
        lines.append(Text(f"Control: {control['note']}", style="dim"))
    return Group(*([grid] if grid.rows else []), *lines)


def _ascii(text: str) -> str:
    for old, new in ((n.NONE, "-"), ("×", "x"), ("−", "-"), ("→", "->"), ("≥", ">="), ("±", "+-")):
        text = text.replace(old, new)
    return text
