"""How a run was measured: model, task, search and machine, as titled lists for the report."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from lightformers.slim import digest
from lightformers.slim import numbers as n


def facts(report: digest.Report) -> list[tuple[str, list[tuple[str, str]]]]:
    """How it was measured: titled groups of (name, value)."""
    model, task = report.get("model") or {}, report.get("task") or {}
    splits = task.get("splits") or {}
    groups = [
        ("Model", [("Name", n.plain_text(model.get("name"))), ("Family", n.plain_text(model.get("family"))),
                   ("Parameters", n.count(model.get("parameters"))), ("Size on disk", n.size(model.get("size_bytes")))]),
        ("Task", [("Task", n.plain_text(task.get("name"))),
                  ("Metric", f"{n.plain_text(task.get('metric'))}"
                   f" ({'higher' if task.get('higher_is_better', True) else 'lower'} is better)"),
                  *((f"{name.capitalize()} examples", n.count(size)) for name, size in splits.items()),
                  ("Original's quality", " ".join(filter(None, (
                      n.quality((report.get("original") or {}).get("quality")),
                      n.interval((report.get("original") or {}).get("quality")))))),
                  ("Note", n.plain_text(task.get("note")))]),
        ("Search", [("Goal", digest.goal(report)), ("Floor", n.plain_text(digest.floor(report))),
                    ("Confidence", n.percent(report.get("confidence"))),
                    ("Labels used to recover", n.plain_text(report.get("use_labels"))),
                    ("Trials", n.count(len(report.get("trials") or []))), ("Seed", n.plain_text(report.get("seed"))),
                    ("Time", f"{n.duration(report.get('seconds'))} of {n.duration(report.get('budget_seconds'))}"),
                    ("lightformers", n.plain_text(report.get("version"))),
                    ("Created", n.plain_text(report.get("created")))]),
        ("Machine", list(_flat(report.get("machine") or {}))),
    ]  # fmt: skip
    return [(title, [(k, v) for k, v in rows if v and v != n.NONE]) for title, rows in groups]


def _flat(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for key, value in values.items():
        if isinstance(value, dict):
            rows += _flat(value)
            continue
        whole = isinstance(value, int) and not isinstance(value, bool) and value > 1e6
        is_bytes = whole and any(word in str(key) for word in ("bytes", "memory", "ram"))
        label = str(key).replace("_bytes", "").replace("_", " ")
        label = re.sub(r"\b(cpu|gpu|isa|ram|avx\w*|amx|vnni|sse\w*)\b", lambda m: m[0].upper(), label)
        rows.append((label, n.size(value) if is_bytes else n.plain_text(value)))
    return rows
