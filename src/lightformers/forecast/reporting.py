"""The report of a forecast: what report.json, the page, the picture and the table are made of."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np

from lightformers import __version__, measure
from lightformers.forecast import conformal
from lightformers.forecast.conformal import Widths
from lightformers.forecast.data import ahead
from lightformers.forecast.judging import PARTS, Judge, Said, deciding, row, told
from lightformers.forecast.training import Refit
from lightformers.forecast.written import text
from lightformers.slim import numbers as n
from lightformers.slim.report import plain
from lightformers.tasks.forecast_scores import season

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lightformers.forecast.run import Session

#: Rows of the past that charts show, at most.
HISTORY = 1000


def report(
    session: Session, judge: Judge, rows: Sequence[Said], chosen: Said, widths: tuple[Widths, Widths], refit: Refit,
    said: Any, held: Any, command: str,
) -> dict[str, Any]:  # fmt: skip
    """Plain JSON. widths: learnt from the search part, and from both parts. said, held: forecasts (horizon, targets) of the
    steps to come, and of the last rows."""
    task, settings, count = session.task, session.settings, session.horizon
    targets = [task.columns[i] for i in task.targets]
    lower, upper = widths[1].bounds(said)
    stamps = task.series.stamps
    shown = min(len(task.series.values), max(3 * count, task.context), max(HISTORY, 2 * count))
    past = task.series.values[-shown:]
    when = [text(s) for s in stamps[-shown:]] if stamps is not None else list(range(len(task.series.values) - shown, len(task.series.values)))  # fmt: skip
    later = ahead(task.series, count)
    if stamps is not None and later.dtype.kind != "M":
        when = list(range(len(task.series.values) - shown, len(task.series.values)))
    first, second, third = task.borders
    splits = {"train": first, "search": second - first, "verify": third - second}
    windows = {name: len(task.splits[name]) for name in PARTS}
    found = {
        "version": __version__,
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": measure.machine(),
        "settings": vars(settings),
        "data": {
            "source": session.source, "rows": len(task.series.values), "columns": task.columns, "targets": targets,
            "known": [task.columns[i] for i in task.known], "timestamp": session.timestamp if later.dtype.kind == "M" else None,
            "frequency": task.series.frequency, "season": season(task), "context": task.context, "horizon": count,
            "first": text(stamps[0]) if stamps is not None else None, "last": text(stamps[-1]) if stamps is not None else None,
            "missing": float(1 - np.isfinite(task.series.values).mean()), "splits": splits, "windows": windows,
        },
        "chosen": {"name": chosen.name, "label": chosen.label, "named": settings.model is not None or settings.pretrain,
                   "by": deciding(chosen, next(r for r in rows if not r.error))},
        "rows": [row(r, chosen) for r in rows],
        "interval": _interval(settings.interval, judge, chosen, widths),
        "refit": {"done": refit.done, "text": refit.text, "seconds": refit.seconds},
        "forecast": {
            "stamps": [text(s) for s in later] if later.dtype.kind == "M" else later.tolist(),
            "history_stamps": when,
            "targets": {
                name: {"history": past[:, place], "forecast": said[:, i], "lower": lower[:, i], "upper": upper[:, i],
                       "held_out": held[:, i] if shown >= count else None}
                for i, (name, place) in enumerate(zip(targets, task.targets))
            },
        },
        "warnings": [*task.warnings, *session.warnings],
        "command": command,
        "seconds": round(time.monotonic() - session.started, 1),
    }  # fmt: skip
    return plain(found | {"facts": _facts(found)})  # type: ignore[no-any-return]


def _interval(nominal: float, judge: Judge, chosen: Said, widths: tuple[Widths, Widths]) -> dict[str, Any]:
    """What the intervals are and what they covered."""
    groups = judge.task.splits["verify"].groups[chosen.places["verify"]]
    covered = told(conformal.coverage(chosen.errors["verify"], widths[0], groups))
    used = widths[1]
    said = (
        f"The {n.percent(nominal)} intervals are as wide, step by step, as the errors on the search and held-out rows were "
        f"(split conformal). Learnt from the search rows alone they covered {n.percent(covered)} of the held-out values"
        f"{' ' + n.interval(covered, n.percent) if covered['low'] is not None else ''}."
    )
    if used.neighbours:
        said += f" A step has too few errors of its own, so those of up to {used.neighbours} steps beside it count."
    if used.short:
        said += f" Even so there are too few for {n.percent(nominal)}: the largest error stands, and the true share is lower."
    return {
        "nominal": nominal,
        "coverage": covered,
        "neighbours": used.neighbours,
        "short": used.short,
        "text": said,
    }


def _facts(found: dict[str, Any]) -> dict[str, Any]:
    """What stands under "Data" on the page."""
    known = found["data"]
    parts = known["splits"]
    listed = {
        "Forecast": known["targets"], "Known in the future": known["known"],
        "Other inputs": [c for c in known["columns"] if c not in known["targets"] and c not in known["known"]],
        "Step": known["frequency"], "Season": f"{known['season']} steps" if known["season"] > 1 else None,
        "Models look back": f"{known['context']} steps", "Missing values": n.percent(known["missing"]) if known["missing"] else None,
        "Rows": f"{parts['train']:,} to train on, {parts['search']:,} to search on, {parts['verify']:,} held out, in this order",
        "Seed": found["settings"]["seed"], "Time": f"{n.duration(found['seconds'])} of {n.duration(found['settings']['budget'])}",
        "lightformers": found["version"],
    }  # fmt: skip
    return {key: value for key, value in listed.items() if value not in (None, "", [])}
