"""The page of a comparison: one plot and one table, in HTML that needs nothing else."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightformers import files
from lightformers.compare import advice
from lightformers.compare.plot import KINDS, VIEWS, chart
from lightformers.slim import charts, page
from lightformers.slim import numbers as n
from lightformers.slim.facts import facts
from lightformers.slim.report import plain

__all__ = ["plain", "render", "write"]


@functools.lru_cache(maxsize=1)
def _template() -> Any:
    from jinja2 import Environment, FileSystemLoader

    made = Environment(
        loader=FileSystemLoader([Path(__file__).parent / "templates", page.TEMPLATES]),
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
            kinds=[(kind, i) for i, kind in enumerate(KINDS) if kind in kinds],
            facts=groups,
            notes=_notes(report),
            views=[name.removeprefix("frontier-") for name in figures],
            titles={"size": "Size", "torch": "Speed, torch", "openvino": "Speed, OpenVINO"},
            first=next(iter(figures), None),
            palette=charts.PALETTE,
            style=(page.TEMPLATES / "report.css").read_text(encoding="utf-8"),
            script=(page.TEMPLATES / "report.js").read_text(encoding="utf-8"),
            data=page.script_json({"figures": figures, "palette": charts.PALETTE}),
            plotly=page.plotly() if figures else "",
        )
    )


def _notes(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What is known of the speed of methods beforehand, each sentence once: (methods, sentence)."""
    found: dict[str, list[str]] = {}
    for row in advice.done(report):
        found.setdefault(row["note"], []).append(row["name"])
    return [(", ".join(names), note) for note, names in found.items()]


def write(report: Mapping[str, Any], folder: str | Path) -> Path:
    """Write compare.html into `folder`, whole. Returns its path."""
    return files.write_text(Path(folder) / "compare.html", render(report))
