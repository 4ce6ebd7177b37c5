"""What a forecast says of itself: the rows in order, sentences from the numbers alone, a table for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from lightformers.slim import numbers as n

Row = Mapping[str, Any]


def done(rows: Sequence[Row]) -> list[Row]:
    """Rows that came to an end, the least error on the held-out rows first."""
    return sorted((r for r in rows if not r.get("error")), key=lambda r: r["mse"]["estimate"])


def ordered(rows: Sequence[Row]) -> list[Row]:
    """Models, then baselines, each by their error; what failed last."""
    return [*done(rows), *(r for r in rows if r.get("error"))]


def advice(report: Row) -> list[str]:
    """A few sentences: who forecasts, how much better or worse than what is simple, what the intervals cover."""
    rows = {r["name"]: r for r in done(report["rows"])}
    chosen = rows[report["chosen"]["name"]]
    held = f"{n.count(report['data']['windows']['verify'])} forecasts of the held-out rows"
    rivals = [r for r in rows.values() if r is not chosen and r["ratio"]]
    simple = min(
        (r for r in rivals if r["kind"] == "baseline"), key=lambda r: r["ratio"]["estimate"], default=None
    )
    said = []
    if chosen["kind"] == "baseline" and not report["chosen"]["named"]:
        model = min(
            (r for r in rivals if r["kind"] == "model"), key=lambda r: r["ratio"]["estimate"], default=None
        )
        where = "here" if "verify" in report["chosen"]["by"] else "on the search rows, which decided,"
        beside = (
            f": the best model, {model['label']}, has {_more(model['ratio'])} on the held-out rows"
            if model
            else ""
        )
        said.append(
            f"No trained model is better {where} than a baseline, so {chosen['label']} makes the forecast{beside}."
        )
    elif simple is None:
        said.append(f"{chosen['label']} makes the forecast.")
    else:
        said.append(_beside(chosen, simple, held))
    better = [r for r in rivals if (r["ratio"]["high"] or 2) < 1]
    if better and report["chosen"]["named"]:
        best = min(better, key=lambda r: r["ratio"]["estimate"])
        said.append(
            f"{best['label']} is better on this series: {_more(best['ratio'])} {n.interval(best['ratio'], n.times)}. Leave --model "
            "out to forecast with the best."
        )
    found = report["interval"]
    if found.get("coverage"):
        said.append(
            f"{n.percent(found['nominal'])} intervals covered {n.percent(found['coverage']['estimate'])} of the held-out values."
        )
    return said


def _beside(chosen: Row, simple: Row, held: str) -> str:
    """The chosen one beside the best baseline; simple's ratio is its error over that of the chosen."""
    share, label = simple["ratio"], f"{simple['label']}, the best baseline"
    less = 1 - 1 / share["estimate"] if share["estimate"] else 0.0
    if chosen["kind"] == "baseline" or abs(less) < 0.005:
        return f"{chosen['label']} makes the forecast: mean squared error {n.significant(chosen['mse'])}, {label} {n.significant(simple['mse'])}."
    if less > 0:
        sure = "" if (share["low"] or 0) > 1 else ", not more than chance may give"
        return f"{chosen['label']} forecasts with {n.percent(less)} less squared error than {label}{sure}: {n.significant(chosen['mse'])} against {n.significant(simple['mse'])} on {held}."
    sure = "" if (share["high"] or 2) < 1 else ", a difference that chance may give"
    return f"{chosen['label']} forecasts with {n.percent(-less)} more squared error than {label}{sure}: {n.significant(chosen['mse'])} against {n.significant(simple['mse'])} on {held}."


def _more(share: Row) -> str:
    return f"{n.times(share)} its squared error"


def table(report: Row) -> RenderableType:
    """For the terminal: forecasters as rows, the chosen one marked; then warnings and sentences."""
    grid = Table(
        box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1), collapse_padding=True, header_style="bold"
    )
    for i, heading in enumerate(("", "forecast by", "MSE", "", "MAE", "MASE", "beside the chosen", "took")):
        grid.add_column(heading, justify="left" if i < 2 else "right", overflow="fold")
    for r in ordered(report["rows"]):
        if r.get("error"):
            continue
        mine = r["name"] == report["chosen"]["name"]
        some = "" if r["windows"] == report["data"]["windows"]["verify"] else f" ({r['windows']} forecasts)"
        grid.add_row(
            "→" if mine else "", r["label"] + some, n.significant(r["mse"]), n.interval(r["mse"], n.significant), n.significant(r["mae"]),
            n.significant(r["mase"]), n.times(r["ratio"]), n.duration(r["seconds"]), style="bold" if mine else "",
        )  # fmt: skip
    failed = [Text(f"not {r['label']}: {r['error']}", style="dim") for r in report["rows"] if r.get("error")]
    notes = [Text(w, style="yellow") for w in report["warnings"]]
    return Group(grid, *failed, *notes, *(Text(s) for s in report["advice"]))
