"""The page of `tables.py`: mean ranks with intervals, and the scores of every table. docs/tabular.md shows it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

OURS = ("tabdpt", "unitabe", "ft-transformer")
RIVALS = ("linear", "forest", "boosting")
RESAMPLES = 2000


def ranks(scores: Sequence[Sequence[float]], seed: int = 0) -> list[tuple[float, float, float]]:
    """(tables, models) of scores, more is better -> mean rank of each model, and its 95 % interval over tables.

    Equal scores share the mean of their ranks.
    """
    table = np.asarray(scores, float)
    above = (table[:, None, :] > table[:, :, None]).sum(2)
    level = (table[:, None, :] == table[:, :, None]).sum(2)
    each = above + (level + 1) / 2
    drawn = np.random.default_rng(seed).integers(len(each), size=(RESAMPLES, len(each)))
    low, high = np.quantile(each[drawn].mean(1), [0.025, 0.975], axis=0)
    return [tuple(map(float, r)) for r in zip(each.mean(0), low, high)]  # type: ignore[misc]


def markdown(result: Mapping[str, Any]) -> str:
    """The page: mean ranks, then the scores of every table."""
    found = result["tables"]
    names = [
        m
        for m in (*OURS, *RIVALS)
        if any("score" in t["models"].get(m, {}) for t in found.values())
    ]  # fmt: skip
    whole = {n: t for n, t in found.items() if all("score" in t["models"].get(m, {}) for m in names)}
    settings = result["settings"]
    lines = [
        "# Tables", "",
        f"{result['machine']['cpu']}, {result['machine']['cores']['usable']} cores; {result['created']}. "
        f"{settings['splits']} of five folds, at most {settings['rows'] or 'all'} rows of a table, every model with its defaults"
        + (f", but that ours train at most {settings['seconds']:.0f} s." if settings["seconds"] else "."),
        "TabDPT's weights saw none of these tables (wine was looked at while their training was set up). Its default of 256 neighbours was set for cost and kept after a look at six "
        "settings on one split of phoneme and winequality_white.",
        "",
    ]  # fmt: skip
    if whole and len(names) > 1:
        parts = {
            "all": list(whole.values()),
            "classes": [t for t in whole.values() if not t["regression"]],
            "numbers": [t for t in whole.values() if t["regression"]],
        }
        ranked = {
            part: dict(zip(names, ranks([[np.mean(t["models"][m]["score"]) for m in names] for t in rows])))
            for part, rows in parts.items()
            if rows
        }
        head = [f"{part} ({len(parts[part])})" for part in ranked]
        lines += [
            "Mean rank by ROC-AUC or R2 (1 is best), with 95 % intervals over tables:", "",
            f"| model | {' | '.join(head)} | fit, s | predict, s |", f"|---|{'---:|' * (len(head) + 2)}",
        ]  # fmt: skip
        for m in sorted(names, key=lambda m: ranked["all"][m][0]):
            cells = [f"{r[m][0]:.2f} [{r[m][1]:.2f}, {r[m][2]:.2f}]" for r in ranked.values()]
            times = [
                np.median([np.mean(t["models"][m][k]) for t in whole.values()]) for k in ("fit", "predict")
            ]
            lines.append(f"| {m} | {' | '.join(cells)} | {times[0]:.2f} | {times[1]:.2f} |")
        lines += ["", "Seconds: median over tables, of one split.", ""]
    lines += [
        f"| table | rows | columns | score | {' | '.join(names)} |",
        f"|---|---:|---:|---|{'---:|' * len(names)}",
    ]
    for name, table in found.items():
        cells = []
        for m in names:
            values = table["models"].get(m, {}).get("score")
            cells.append("–" if values is None else f"{np.mean(values):.3f} ± {np.std(values):.3f}")
        kind = "R2" if table["regression"] else "AUC"
        lines.append(f"| {name} | {table['rows']:,} | {table['columns']} | {kind} | {' | '.join(cells)} |")
    lost = {
        f"{n}: {m}": t["models"][m]["error"] for n, t in found.items() for m in t["models"] if "error" in t["models"][m]
    }  # fmt: skip
    lines += ["", "±: standard deviation over splits."] + [f"Not run: {k}: {v}" for k, v in lost.items()]
    return "\n".join(lines) + "\n"
