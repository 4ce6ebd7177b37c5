"""Small series, as files, and reports made by hand."""

from __future__ import annotations

import csv
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np


def wave(
    rows: int = 600, season: int = 24, seed: int = 0, noise: float = 0.1, channels: int = 1
) -> np.ndarray:
    """(rows, channels): a season whose form differs by channel, a slow trend, noise."""
    drawn, t = np.random.default_rng(seed), np.arange(rows)
    columns = [
        (1 + c) * (np.sin(2 * np.pi * t / season + c) + 0.5 * np.sin(4 * np.pi * t / season)) + 0.002 * t
        + noise * drawn.standard_normal(rows)
        for c in range(channels)
    ]  # fmt: skip
    return np.stack(columns, 1)


def write(path: Path, columns: dict[str, Any], start: str = "2024-01-01 00:00:00", hours: int = 1) -> Path:
    """A csv with a column "date" of hourly stamps."""
    first = datetime.fromisoformat(start)
    rows = len(next(iter(columns.values())))
    with open(path, "w", newline="", encoding="utf-8") as file:
        out = csv.writer(file)
        out.writerow(["date", *columns])
        for i in range(rows):
            cells = [v[i] for v in columns.values()]
            shown = ["" if isinstance(c, float) and np.isnan(c) else c for c in cells]
            out.writerow([(first + timedelta(hours=i * hours)).isoformat(" "), *shown])
    return path


def interval(value: float, half: float = 0.1) -> dict[str, float]:
    return {"estimate": value, "low": value - half * value, "high": value + half * value}


def line(name: str, mse: float, best: float, kind: str = "model", **more: Any) -> dict[str, Any]:
    """A row of a report; best: the error of the chosen one."""
    return {
        "name": name, "label": name.capitalize(), "kind": kind, "parameters": 10 if kind == "model" else None,
        "seconds": 1.0, "note": "", "error": "", "windows": 40, "search": mse, "mse": interval(mse), "mae": interval(mse),
        "mase": interval(mse), "ratio": None if mse == best else interval(mse / best), **more,
    }  # fmt: skip


def report(
    rows: list[dict[str, Any]],
    chosen: str,
    named: bool = False,
    by: tuple[str, ...] = ("search", "verify"),
    **more: Any,
) -> dict[str, Any]:
    """A report as `reporting.report` makes it, of two targets and four steps."""
    past = [f"2024-01-01 {h:02d}:00:00" for h in range(8)]
    one = {"history": [1.0, 2.0, None, 4.0, 5.0, 6.0, 7.0, 8.0], "forecast": [1.0, 2.0, 3.0, 4.0],
           "lower": [0.0, 1.0, 2.0, 3.0], "upper": [2.0, 3.0, 4.0, 5.0], "held_out": [5.5, 6.5, 7.5, 8.5]}  # fmt: skip
    return {
        "version": "1", "created": "now", "machine": {"cpu": "a <b>cpu</b>"}, "settings": {"budget": 10.0, "seed": 0},
        "data": {"source": "<i>data</i>.csv", "rows": 100, "columns": ["a", "<b>b</b>"], "targets": ["a", "<b>b</b>"],
                 "known": [], "timestamp": "date", "frequency": "h", "season": 24, "context": 8, "horizon": 4,
                 "first": past[0], "last": past[-1], "missing": 0.0, "splits": {"train": 70, "search": 10, "verify": 20},
                 "windows": {"search": 7, "verify": 40}},
        "chosen": {"name": chosen, "label": chosen.capitalize(), "named": named, "by": by},
        "rows": rows,
        "interval": {"nominal": 0.9, "coverage": interval(0.88), "neighbours": 0, "short": False, "text": "As wide."},
        "refit": {"done": True, "text": "Trained anew.", "seconds": 1.0},
        "forecast": {"stamps": [f"2024-01-01 {h:02d}:00:00" for h in range(8, 12)], "history_stamps": past,
                     "targets": {"a": one, "<b>b</b>": one}},
        "warnings": ["a gap <script>"], "command": "lightformers forecast", "seconds": 3.0, "model": "out/model",
        "facts": {"Step": "h"}, "advice": ["One sentence."], **more,
    }  # fmt: skip
