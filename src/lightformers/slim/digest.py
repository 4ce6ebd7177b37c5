"""What a report says, worked out of its dictionary: who the honest rival is, by how much it is beaten, rows."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lightformers.slim import numbers as n

Report = Mapping[str, Any]
Row = Mapping[str, Any]

# goal -> (key of the figure, heading, how it is written, more is better)
AXES: dict[str, tuple[str, str, Callable[[Any], str], bool]] = {
    "latency": ("latency_ms", "Latency", n.milliseconds, False),
    "throughput": ("throughput", "Throughput", n.rate, True),
    "size": ("size_bytes", "Size", n.size, False),
}


def goal(report: Report) -> str:
    """The goal; a size goal is told by throughput where speed is compared."""
    return report.get("goal") if report.get("goal") in AXES else "throughput"  # type: ignore[return-value]


def speed_axis(report: Report) -> str:
    """The axis on which speeds are compared: latency for a latency goal, otherwise throughput, if measured."""
    chosen = report.get("chosen") or {}
    order = ("latency", "throughput") if goal(report) == "latency" else ("throughput", "latency")
    return next((axis for axis in order if n.number(chosen.get(AXES[axis][0])) is not None), order[0])


def _speed(report: Report, row: Row) -> float:
    """A number that grows with speed on the report's own axis; minus infinity if it was not measured."""
    key, _, _, more = AXES[speed_axis(report)]
    value = n.number(row.get(key))
    return float("-inf") if value is None else value if more else -value


def _pick(report: Report, *tests: Callable[[str], bool]) -> Row | None:
    """The fastest baseline whose lower-case name passes the first test that any name passes."""
    rows: list[Row] = report.get("baselines") or []
    for test in tests:
        found = [row for row in rows if test(str(row.get("name", "")).lower())]
        if found:
            return max(found, key=lambda row: _speed(report, row))
    return None


def honest(report: Report) -> Row | None:
    """The rival that a careful user has without us: OpenVINO with NNCF int8 on sorted batches, else the fastest."""
    return _pick(
        report,
        lambda name: "openvino" in name and "int8" in name and "sorted" in name,
        lambda name: "openvino" in name and "int8" in name,
        lambda name: True,
    )


def eager(report: Report) -> Row | None:
    """The original as most people run it: torch, eager, fp32, arrival order."""
    return _pick(
        report,
        lambda name: "fp32" in name and "eager" in name and "sorted" not in name,
        lambda name: (
            "fp32" in name and "openvino" not in name and "onnx" not in name and "sorted" not in name
        ),
    )


def speedup(report: Report, rival: Row | None) -> dict[str, float | None] | None:
    """How many times faster the chosen model is: the paired measurement if there is one, else a quotient.

    `chosen["speedups"]` holds ratios of throughput unless `chosen["speedups_of"]` says "latency".
    """
    chosen = report.get("chosen")
    if not chosen or not rival:
        return None
    axis = speed_axis(report)
    fits = chosen.get("speedups_of", "throughput") == axis
    paired = (chosen.get("speedups") or {}).get(rival.get("name")) if fits else None
    if not isinstance(paired, dict):
        paired = {"ratio": paired}
    ratio = next((r for r in (n.number(paired.get("ratio")), n.number(paired.get("estimate"))) if r), None)
    if ratio is not None:
        return {"ratio": ratio, "low": n.number(paired.get("low")), "high": n.number(paired.get("high"))}
    key, _, _, more = AXES[axis]
    mine, theirs = n.number(chosen.get(key)), n.number(rival.get(key))
    if not mine or not theirs:
        return None
    return {"ratio": mine / theirs if more else theirs / mine, "low": None, "high": None}


def faster(factor: float | None) -> str:
    """In words: "1.62× faster", "1.11× slower", "as fast"."""
    if not factor or factor <= 0:
        return n.NONE
    if 0.995 <= factor < 1.005:
        return "as fast"
    return f"{n.times(factor)} faster" if factor > 1 else f"{n.times(1 / factor)} slower"


def smaller(before: Any, after: Any) -> str:
    old, new = n.number(before), n.number(after)
    if not old or not new:
        return n.NONE
    return f"{n.times(old / new)} smaller" if old >= new else f"{n.times(new / old)} larger"


def recipe_text(entry: Row) -> str:
    """Text "Drop blocks keep=4 → MiniLM epochs=1 · openvino int8 sorted" of a trial or the chosen model."""
    recipe = entry.get("recipe") or []
    if isinstance(recipe, (dict, str)):  # a point of the search space, told by what it keeps
        return " · ".join(
            filter(None, (n.parameters(recipe) or str(recipe), deploy_text(entry.get("deploy"))))
        )
    steps = " → ".join(
        " ".join(filter(None, (n.words(step.get("step", "?")), n.parameters(step.get("parameters")))))
        for step in recipe
    )
    return " · ".join(filter(None, (steps or "no cut", deploy_text(entry.get("deploy")))))


def deploy_text(deploy: Any) -> str:
    if not isinstance(deploy, dict):
        return str(deploy or "")
    parts = [str(deploy[key]) for key in ("runtime", "precision", "batching") if deploy.get(key)]
    parts += [
        f"{n.words(key)} {deploy[key]}" for key in ("batch_size", "max_tokens", "threads") if deploy.get(key)
    ]
    return ", ".join(parts)


def proven(report: Report) -> bool:
    return bool((report.get("verdict") or {}).get("proven"))


def verdict_ratio(report: Report) -> Mapping[str, Any]:
    """The paired ratio on the verification split, wherever the report carries it."""
    for place in (report.get("verdict"), report.get("chosen")):
        value = (place or {}).get("ratio")
        if n.number(value) is not None:
            return value if isinstance(value, dict) else {"estimate": value}
    return {}


def sentence(report: Report) -> str:
    """The verdict in one sentence: the report's own, or one made of its figures."""
    said = (report.get("verdict") or {}).get("sentence")
    if said:
        return str(said)
    chosen = report.get("chosen")
    if not chosen:
        return "No model was chosen: nothing could be measured and verified."
    rival = honest(report)
    gain = speedup(report, rival)
    score = n.ratio(verdict_ratio(report), floor(report))
    unit = f"quality changed by {score}" if by_difference(report) else f"at {score} of the original's quality"
    speed = f"{faster(gain['ratio'])} than {rival['name']}, " if gain and rival else ""
    return f"{chosen.get('name', 'The chosen model')}: {speed}{unit}."


def by_difference(report: Report) -> bool:
    """Whether quality is compared by difference (`--max-drop`, for scores near zero) and not by ratio."""
    return n.number(report.get("floor")) is None and n.number(report.get("max_drop")) is not None


def reference(report: Report) -> float:
    """What the original scores against itself: 1, or 0 where differences are compared."""
    return 0.0 if by_difference(report) else 1.0


def floor(report: Report) -> float | None:
    """What the bound has to reach."""
    return -float(report["max_drop"]) if by_difference(report) else n.number(report.get("floor"))


def is_original(row: Row) -> bool:
    """Whether a baseline runs the original's own weights in fp32, whose quality is the original's by definition."""
    name = f"{row.get('name', '')} {row.get('deploy') or ''}".lower()
    return ("fp32" in name or name.startswith("sentencetransformer")) and not re.search("int8|bf16", name)


def ratio_of(report: Report, row: Row) -> Any:
    """The row's ratio to the original; where only its quality was measured, that of the two estimates."""
    if n.number(row.get("ratio")) is not None:
        return row["ratio"]
    mine = n.number(row.get("quality"))
    theirs = n.number((report.get("original") or {}).get("quality"))
    if mine is None or theirs is None:
        return reference(report) if is_original(row) else None
    more = (report.get("task") or {}).get("higher_is_better", True)
    if by_difference(report):
        return mine - theirs if more else theirs - mine
    return (mine / theirs if more else theirs / mine) if mine and theirs else None


def bound_text(report: Report) -> str:
    """The bound and what it is held to: "at least 0.981 with 95 % confidence · floor 0.97"."""
    bound, limit, verdict = verdict_ratio(report).get("bound"), floor(report), report.get("verdict") or {}
    parts = []
    if n.number(bound) is not None:
        # Where several candidates were verified, each spends a part of the error that is allowed.
        sure = n.number(verdict.get("confidence")) or n.number(report.get("confidence"))
        parts.append(
            f"at least {n.ratio(bound, limit)}" + (f" with {n.percent(sure)} confidence" if sure else "")
        )
    if limit is not None:
        parts.append(f"floor {limit:g}".replace("-", "−"))
    return " · ".join(parts)


def comparison(report: Report) -> list[dict[str, Any]]:
    """Rows of the table: the chosen model, the baselines from fast to slow, the control."""
    rows: list[dict[str, Any]] = []
    best_rival = honest(report)

    def row(role: str, name: str, entry: Row, note: str = "") -> dict[str, Any]:
        keys = ("quality", "latency_ms", "throughput", "size_bytes")
        unknown = all(n.number(entry.get(key)) is None for key in ("ratio", "quality"))
        return {
            "role": role,
            "name": name,
            "note": note,
            "speedup": None,
            "ratio": ratio_of(report, entry),
            "by_definition": unknown and role == "baseline" and is_original(entry),
            **{key: entry.get(key) for key in keys},
        }

    chosen = report.get("chosen")
    if chosen:
        rows.append(row("chosen", str(chosen.get("name") or "chosen"), chosen))
        rows[0]["ratio"] = verdict_ratio(report) or rows[0]["ratio"]
    for rival in sorted(report.get("baselines") or [], key=lambda r: _speed(report, r), reverse=True):
        note = "the honest baseline" if rival is best_rival else ""
        rows.append(
            {**row("baseline", str(rival.get("name", "?")), rival, note), "speedup": speedup(report, rival)}
        )
    control = report.get("control")
    if control:
        rows.append(row("control", "Control", control, str(control.get("note") or "")))
    return rows


def steps(report: Report) -> list[dict[str, Any]]:
    """Steps of the recipe with what is left and what went, as shares of the largest latency seen."""
    rows = list(report.get("steps") or [])
    seen = [n.number(r.get(k)) or 0.0 for r in rows for k in ("latency_before_ms", "latency_after_ms")]
    top = max(seen, default=0.0)
    out = []
    for r in rows:
        old, new = n.number(r.get("latency_before_ms")), n.number(r.get("latency_after_ms"))
        bar = None
        if top and old is not None and new is not None:
            bar = {"left": 100 * min(old, new) / top, "moved": 100 * abs(old - new) / top, "worse": new > old}
        out.append(
            {
                **r,
                "title": n.words(r.get("step", "?")),
                "detail": n.parameters(r.get("parameters")),
                "bar": bar,
            }
        )
    return out


def kinds(report: Report) -> list[dict[str, Any]]:
    """Milliseconds by kind of layer, before and after, the heaviest first."""
    layers = report.get("layers") or {}
    total: dict[str, dict[str, float]] = {}
    for side in ("before", "after"):
        for layer in layers.get(side) or []:
            kind = total.setdefault(str(layer.get("kind") or "other"), {"before": 0.0, "after": 0.0})
            kind[side] += n.number(layer.get("ms")) or 0.0
    return [
        {"kind": kind, **ms}
        for kind, ms in sorted(total.items(), key=lambda item: -max(item[1]["before"], item[1]["after"]))
    ]


def failed(report: Report) -> Sequence[Row]:
    return [trial for trial in report.get("trials") or [] if trial.get("state") == "failed"]
