"""The page of an arena: one plot and the tables, in HTML that needs nothing else."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightformers import files
from lightformers.arena import verdict
from lightformers.arena.plot import KINDS, chart, views
from lightformers.slim import charts, page
from lightformers.slim import numbers as n
from lightformers.slim.facts import facts
from lightformers.slim.report import plain

__all__ = ["render", "write"]


@functools.lru_cache(maxsize=1)
def _template() -> Any:
    from jinja2 import Environment, FileSystemLoader

    made = Environment(
        loader=FileSystemLoader([Path(__file__).parent / "templates", page.TEMPLATES]),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for name in ("size", "quality", "interval", "times", "count", "rate", "duration"):
        made.filters[name] = getattr(n, name)
    made.filters["share"] = lambda value: f"{value:.3f}"
    return made.get_template("arena.html")


def render(report: Mapping[str, Any]) -> str:
    """The page: self-contained HTML, readable offline, in light, dark and print. Everything in it is escaped."""
    report = plain(report)
    titles = views(report)
    figures = {f"frontier-{view}": figure for view in titles if (figure := chart(report, view))}
    present = {list(KINDS)[bool(m["runs_on"])] for m in report["mixers"]}
    groups = [
        (title, pairs) for title, pairs in facts({"machine": report.get("machine")}) if title == "Machine"
    ]
    return str(
        _template().render(
            r=report,
            groups=verdict.groups(report),
            scores=report["scores"],
            tables=[(task, verdict.done(report, task["name"])) for task in report["tasks"]],
            others=[*(r for r in report["rows"] if r["state"] != "done"), *report["refused"]],
            kinds=[(name, colour.lstrip("@")) for name, colour in KINDS.items() if name in present],
            facts=groups,
            views=[name.removeprefix("frontier-") for name in figures],
            titles=titles,
            first=next(iter(figures), None),
            palette=charts.PALETTE,
            style=(page.TEMPLATES / "report.css").read_text(encoding="utf-8"),
            script=(page.TEMPLATES / "report.js").read_text(encoding="utf-8"),
            data=page.script_json({"figures": figures, "palette": charts.PALETTE}),
            plotly=page.plotly() if figures else "",
        )
    )


def write(report: Mapping[str, Any], folder: str | Path) -> Path:
    """Write report.html into `folder`, whole. Returns its path."""
    return files.write_text(Path(folder) / "report.html", render(report))
