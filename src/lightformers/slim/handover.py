"""What a user gets with the model: what each step cost, the reload check, the card, how to use it."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightformers import export, measure, runners
from lightformers.bundle import Bundle, Example
from lightformers.export import reload
from lightformers.files import write_text
from lightformers.slim.finish import Finalist
from lightformers.slim.session import Session
from lightformers.steps import Deploy, Recipe, Run, Stage, fields_of

PROBES = 64


def step_costs(
    session: Session, chosen: Finalist, folder: Path, load: Sequence[Example]
) -> list[dict[str, Any]]:
    """Size, time and quality before and after each step of the chosen recipe, on the search split.

    Cuts are shown before recovery, run as bf16, so that what recovery wins back can be seen; the last row is the
    deploy itself.
    """
    state = _state(session, session.bundle, load, "whole")
    rows: list[dict[str, Any]] = []
    done: list[Any] = []
    for step in chosen.recipe.steps:
        done.append(step)
        if step.stage is Stage.VOCABULARY:  # changes no shape that costs time
            new, took = state | {"size": 4 * chosen.bundle.parameters}, None
        elif step.stage is Stage.RECOVER or chosen.record.get("trains"):
            # training is not repeated: the figures of the trial itself are shown
            new = state | {"ratio": chosen.record.get("trained_ratio")}
            took = chosen.record["seconds"]
        else:
            prefix = Recipe(list(done)).apply(session.bundle, session.task, Run(seed=session.settings.seed))
            new = _state(session, prefix, load, "-".join(type(s).__name__ for s in done))
            took = prefix.history[-1]["seconds"]
        rows.append(_row(type(step).__name__, fields_of(step), state, new, took))
        state = new
    last = {
        "size": deployed_bytes(folder, chosen),
        "ms": 1000 * chosen.record["seconds_load"] / len(load),
        "ratio": chosen.record["ratio"],
    }
    rows.append(
        _row(
            f"run as {chosen.recipe.deploy.runtime} {chosen.recipe.deploy.precision}",
            fields_of(chosen.recipe.deploy),
            state,
            last,
            None,
        )
    )
    return rows


def _state(session: Session, bundle: Bundle, load: Sequence[Example], name: str) -> dict[str, Any]:
    session.progress.trying(f"what each step cost: {name}")
    ratio = 1.0
    if bundle is not session.bundle:
        scores = session.score(bundle, session.brisk, "search", f"step-{name}")
        ratio = session.compare(scores, "search").estimate
    runner = session.runner(bundle, session.brisk)
    try:
        timing = measure.compare({"it": lambda: runner(list(load), session.task.reduce)}, rounds=3, warmup=1)[
            "it"
        ]
    finally:
        runner.close()
        gc.collect()
    return {"size": 4 * bundle.parameters, "ms": 1000 * timing.median / len(load), "ratio": ratio}


def _row(
    name: str, fields: dict[str, Any], old: dict[str, Any], new: dict[str, Any], seconds: float | None
) -> dict[str, Any]:
    return {
        "step": name,
        "parameters": fields,
        "size_before": old["size"],
        "size_after": new["size"],
        "latency_before_ms": old["ms"],
        "latency_after_ms": new["ms"],
        "ratio_before": old["ratio"],
        "ratio_after": new["ratio"],
        "seconds": seconds,
    }


def deployed_bytes(folder: Path, chosen: Finalist) -> int:
    """Bytes of the graph and weights that are run: the OpenVINO files, or the safetensors."""
    if chosen.recipe.deploy.runtime == "openvino":
        return sum(f.stat().st_size for f in (folder / "openvino").glob("*") if f.suffix in {".xml", ".bin"})
    return sum(f.stat().st_size for f in folder.glob("*.safetensors"))


def reloaded(
    session: Session, chosen: Finalist, folder: Path, runner: runners.Runner
) -> list[dict[str, Any]]:
    """The reload guarantee: every exported form opened in a fresh process, against what was measured here."""
    probes = session.task.workload(PROBES, seed=session.settings.seed + 1)
    expected = {}
    if chosen.recipe.deploy.runtime == "openvino":
        expected["openvino"] = reload.record(chosen.bundle, probes, runner, session.settings.batch)
    return export.check(folder, probes, chosen.bundle, expected, session.settings.batch)


def write(report: dict[str, Any], chosen: Finalist, folder: Path) -> None:
    """The model card and the recipe."""
    text = chosen.recipe.to_yaml()
    export.write_card(chosen.bundle, folder, report, text)
    write_text(folder / "recipe.yaml", text)


def trials(session: Session, deploy: Deploy) -> list[dict[str, Any]]:
    """Every trial as the report shows it."""
    rows = []
    for trial in session.store.trials():
        rows.append(
            {
                "id": trial["id"],
                "name": trial["name"],
                "recipe": trial.get("cut"),
                "deploy": None,
                "state": trial["state"] if trial["state"] != "running" else "stopped",
                "rung": trial["rung"],
                "seconds": trial.get("seconds", 0.0),
                "predicted_ms": trial.get("predicted_ms"),
                "latency_ms": None,
                "throughput": None,
                "quality": trial.get("quality"),
                "ratio": trial.get("ratio"),
                "size_bytes": trial["parameters"] * (1 if deploy.precision.startswith("int8") else 4)
                if "parameters" in trial
                else None,
                "parameters": trial.get("parameters"),
                "distance": trial.get("distance"),
                "error": trial.get("error"),
            }
        )
    return rows
