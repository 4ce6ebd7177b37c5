"""What an arena says: rows joined over seeds, scores over tasks, sentences, and a table for the terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from lightformers.reproduce.finding import spread
from lightformers.slim import numbers as n

Row = Mapping[str, Any]
#: A model has learnt something where its interval is above chance by this.
LEARNT = 0.02


def joined(task: str, mixer: str, trainings: Sequence[Row], about: Row) -> dict[str, Any]:
    """One row of the report: the trainings of all seeds, size, speed and memory.

    quality: of one seed with the interval over its examples, of several the mean with the interval over seeds.
    """
    size, speed = about["sizes"][mixer], about["speeds"][mixer]
    base: dict[str, Any] = {
        "task": task, "mixer": mixer, "hidden": size["width"], "parameters": size["parameters"],
        "share": size["parameters"] / size["target"], **speed,
    }  # fmt: skip
    done = [t for t in trainings if t["state"] == "done"]
    if len(done) < len(trainings) or not done:
        failed = next((t for t in trainings if t["state"] != "done"), None)
        return base | {"state": "failed", "reason": failed["reason"] if failed else "it was not trained"}
    if len(done) == 1:
        quality = done[0]["quality"]
    else:
        over = spread([t["quality"]["estimate"] for t in done])
        quality = {"estimate": over["mean"], "low": max(over["low"], 0.0), "high": min(over["high"], 1.0)}
    return base | {
        "state": "done", "quality": quality, "seeds": [t["quality"]["estimate"] for t in done],
        "steps": round(sum(t["steps"] for t in done) / len(done)), "seconds": sum(t["seconds"] for t in done),
        "losses": done[0]["losses"],
    }  # fmt: skip


def done(report: Row, task: str | None = None) -> list[Row]:
    """Rows that came to an end, of one task or all, the best first."""
    rows = [r for r in report["rows"] if r["state"] == "done" and task in (None, r["task"])]
    return sorted(rows, key=lambda r: -r["quality"]["estimate"])


def scores(report: Row) -> list[dict[str, Any]]:
    """Per group of tasks ("arena" of encoders, "probes" of decoders) and mixer that stood in all of them: the mean
    accuracy with half of its interval, the geometric means of speed and memory beside the baseline's. The best first."""
    out = []
    for group, names in groups(report).items():
        table = {(r["task"], r["mixer"]): r for r in done(report)}
        first = report["baseline"]
        for mixer in report["mixers"]:
            own = [table.get((task, mixer["name"])) for task in names]
            if any(r is None for r in own):
                continue
            rows = [r for r in own if r is not None]
            bases = [next((b for b in report["rows"] if (b["task"], b["mixer"]) == (r["task"], first)), None) for r in rows]  # fmt: skip
            memory = [r["memory"] / b["memory"] for r, b in zip(rows, bases) if b is not None and b["memory"]]
            out.append({
                "group": group, "mixer": mixer["name"], "score": sum(r["quality"]["estimate"] for r in rows) / len(rows),
                "half": math.hypot(*((r["quality"]["high"] - r["quality"]["low"]) / 2 for r in rows)) / len(rows),
                "train": _middle([r["train"]["speedup"]["estimate"] for r in rows]),
                "infer": _middle([r["infer"]["speedup"]["estimate"] for r in rows]),
                "memory": _middle(memory) if len(memory) == len(rows) else None,
                "parameters": _middle([r["share"] for r in rows]),
            })  # fmt: skip
    return sorted(out, key=lambda s: (s["group"], -s["score"]))


def _middle(values: Sequence[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))


def groups(report: Row) -> dict[str, list[str]]:
    """The tasks by what they ask of a model."""
    found = {
        "arena": [t["name"] for t in report["tasks"] if not t["probe"]],
        "probes": [t["name"] for t in report["tasks"] if t["probe"]],
    }
    return {name: tasks for name, tasks in found.items() if tasks}


def learnt(report: Row, task: Row) -> bool:
    """Whether any mixer is above chance."""
    return any(r["quality"]["low"] > task["chance"] + LEARNT for r in done(report, task["name"]))


def advice(report: Row) -> list[str]:
    """A few sentences, from the numbers alone."""
    said = []
    for group, names in groups(report).items():
        own = [s for s in report["scores"] if s["group"] == group]
        if not own:
            continue
        best, over = own[0], f"over {len(names)} task{'s' if len(names) > 1 else ''}"
        near = [
            s["mixer"] for s in own[1:] if best["score"] - s["score"] <= math.hypot(best["half"], s["half"])
        ]
        said.append(
            f"Best {over} ({', '.join(names)}): {best['mixer']}, {best['score']:.3f} of the answers right."
            + (f" Not to be told apart on this data: {', '.join(near)}." if near else "")
        )
        quick = max(own, key=lambda s: s["train"])
        if quick["train"] > 1.05:
            said.append(
                f"Fastest to train: {quick['mixer']}, {quick['train']:.2f} times as fast as {report['baseline']} "
                f"(score {quick['score']:.3f})."
            )
        small = min((s for s in own if s["memory"]), key=lambda s: s["memory"], default=None)
        if small and small["memory"] < 0.95:
            said.append(
                f"Least memory in training: {small['mixer']}, {small['memory']:.2f} of {report['baseline']}'s (score {small['score']:.3f})."
            )
    for task in report["tasks"]:
        if done(report, task["name"]) and not learnt(report, task):
            said.append(
                f"Nothing was learnt on {task['name']} (a guess is right in {task['chance']:.3f}): train longer, by --steps."
            )
    return said or ["No training came to an end: see the reasons below."]


def line(training: Row) -> str:
    """A finished training in one line."""
    who = f"{training['mixer']} on {training['task']}, seed {training['seed']}"
    if training["state"] != "done":
        return f"{who}: {training['state']}: {training['reason']}"
    return f"{who}: {n.quality(training['quality'])} {n.interval(training['quality'])} after {training['steps']:,} steps"


def table(report: Row) -> RenderableType:
    """For the terminal: mixers as rows, tasks as columns, best first; then reasons and advice."""
    parts: list[RenderableType] = []
    rows = {(r["task"], r["mixer"]): r for r in report["rows"]}
    for group, names in groups(report).items():
        grid = Table(
            box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1), collapse_padding=True, header_style="bold"
        )
        for i, heading in enumerate(("mixer", *names, "mean", "train", "memory")):
            grid.add_column(heading, justify="right" if i else "left", overflow="fold")
        mean = {s["mixer"]: s for s in report["scores"] if s["group"] == group}
        order = sorted(
            (m["name"] for m in report["mixers"]), key=lambda m: -mean[m]["score"] if m in mean else 1
        )
        for mixer in order:
            own = [rows.get((task, mixer)) for task in names]
            if not any(own):
                continue
            cells = [n.quality(r["quality"]) if r and r["state"] == "done" else n.NONE for r in own]
            s = mean.get(mixer)
            more = [f"{s['score']:.3f}", n.times(s["train"]), n.times(s["memory"])] if s else [n.NONE] * 3
            grid.add_row(mixer, *cells, *more)
        chances = [f"{t['chance']:.3f}" for t in report["tasks"] if t["name"] in names]
        grid.add_row("a guess", *chances, *[""] * 3, style="dim")
        parts.append(grid)
    failed = [r for r in report["rows"] if r["state"] != "done"]
    reasons = [
        Text(f"not {r['mixer']} on {r['task']}: {r['reason']}", style="dim")
        for r in (*failed, *report["refused"])
    ]
    return Group(*parts, *reasons, *(Text(sentence) for sentence in (*report["warnings"], *report["advice"])))
