"""The page of a forecast: chart, table and what stands behind them, in HTML that needs nothing else."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightformers import files
from lightformers.forecast.plot import KINDS, charts_of
from lightformers.slim import charts, page
from lightformers.slim import numbers as n
from lightformers.slim.facts import facts
from lightformers.slim.report import plain


@functools.lru_cache(maxsize=1)
def _template() -> Any:
    from jinja2 import Environment, FileSystemLoader

    made = Environment(
        loader=FileSystemLoader([Path(__file__).parent / "templates", page.TEMPLATES]),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for name in ("count", "duration", "percent", "times", "significant", "plain_text"):
        made.filters[name] = getattr(n, name)
    made.filters["spread"] = lambda value: n.interval(value, n.significant)
    return made.get_template("forecast.html")


def render(report: Mapping[str, Any]) -> str:
    """The page: self-contained HTML, readable offline, in light, dark and print. Everything in it is escaped."""
    report = plain(report)
    figures = {f"frontier-{i}": figure for i, figure in enumerate(charts_of(report).values())}
    names = list(report["forecast"]["targets"])
    held = any(one.get("held_out") for one in report["forecast"]["targets"].values())
    machine = [pairs for title, pairs in facts({"machine": report.get("machine")}) if title == "Machine"]
    return str(
        _template().render(
            r=report,
            views=list(zip(figures, names)),
            names=names,
            ahead=_first_rows(report),
            kinds=[(name, c.lstrip("@")) for name, c in KINDS.items() if name != "held out" or held],
            machine=machine[0] if machine else [],
            palette=charts.PALETTE,
            style=(page.TEMPLATES / "report.css").read_text(encoding="utf-8"),
            script=(page.TEMPLATES / "report.js").read_text(encoding="utf-8"),
            data=page.script_json({"figures": figures, "palette": charts.PALETTE}),
            plotly=page.plotly(),
        )
    )


def write(report: Mapping[str, Any], folder: str | Path) -> Path:
    """Write report.html into `folder`, whole. Returns its path."""
    return files.write_text(Path(folder) / "report.html", render(report))


def _first_rows(report: Mapping[str, Any], most: int = 12) -> list[tuple[Any, list[str]]]:
    """The first steps of the forecast, as text: (stamp, "12.3 [10.1, 14.5]" per target)."""
    found = report["forecast"]
    return [
        (stamp, [
            f"{n.significant(t['forecast'][i], 4)} [{n.significant(t['lower'][i], 4)}, {n.significant(t['upper'][i], 4)}]"
            for t in list(found["targets"].values())[:4]
        ])
        for i, stamp in enumerate(found["stamps"][:most])
    ]  # fmt: skip
