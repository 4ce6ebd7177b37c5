"""The page of a training: its loss plot, its figures and a sample, in HTML that needs nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightformers import files
from lightformers.slim import charts, page
from lightformers.slim import numbers as n


def chart(found: Mapping[str, Any]) -> charts.Figure:
    """Loss against tokens: of training, of validation."""
    curve = found["curve"]
    tokens = [row["tokens"] for row in curve]

    def line(key: str, name: str, color: str, width: float) -> dict[str, Any]:
        return {
            "type": "scatter", "mode": "lines+markers", "name": name, "x": tokens, "y": [row[key] for row in curve],
            "line": {"color": color, "width": width}, "marker": {"size": 6, "color": color},
            "hovertemplate": f"{name} %{{y:.4f}}<br>%{{x:,}} tokens<extra></extra>",
        }  # fmt: skip

    return {
        "data": [line("loss", "training", "@trial", 1.5), line("valid", "validation", "@accent", 2)],
        "layout": charts.layout(
            height=420, margin={"l": 62, "r": 18, "t": 14, "b": 56}, hovermode="x unified",
            xaxis=charts.axis("Tokens", nticks=8), yaxis=charts.axis("Nats a token · ↓ less is better", nticks=8),
        ),
    }  # fmt: skip


def render(found: Mapping[str, Any]) -> str:
    """The page. Everything that comes from `found` is escaped."""
    from jinja2 import Environment, FileSystemLoader

    made = Environment(
        loader=FileSystemLoader([Path(__file__).parent / "templates", page.TEMPLATES]),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for name in ("count", "duration", "quality"):
        made.filters[name] = getattr(n, name)
    return str(
        made.get_template("training.html").render(
            f=found,
            palette=charts.PALETTE,
            style=(page.TEMPLATES / "report.css").read_text(encoding="utf-8"),
            script=(page.TEMPLATES / "report.js").read_text(encoding="utf-8"),
            data=page.script_json({"figures": {"frontier-loss": chart(found)}, "palette": charts.PALETTE}),
            plotly=page.plotly(),
        )
    )


def write(found: Mapping[str, Any], folder: str | Path) -> Path:
    """Write training.html into `folder`, whole. Returns its path."""
    return files.write_text(Path(folder) / "training.html", render(found))
