"""What a user gets with the model: what each step cost, the reload check, the card, how to use it."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightformers import export, measure, runners
from lightformers.bundle import Example
from lightformers.export import reload
from lightformers.files import write_text
from lightformers.slim.baseline import call, deployed_size
from lightformers.slim.finalists import Finalist
from lightformers.slim.session import Session
from lightformers.steps import Deploy, Recipe, Stage, fields_of

PROBES = 64
TORCH = Deploy()


def step_costs(
    session: Session, chosen: Finalist, folder: Path, load: Sequence[Example], delivered: runners.Runner
) -> list[dict[str, Any]]:
    """Size, time and quality before and after each step of the chosen recipe, on the search split.

    Cuts are shown before recovery, run as candidates are scored, so that what recovery wins back can be seen; the last
    row is the deploy itself. All times are of one interleaved race.
    """
    how = session.brisk if chosen.recipe.deploy.runtime == "openvino" else chosen.recipe.deploy
    session.progress.trying("what each step cost")
    timed = {"whole": session.runner(session.bundle, how)}
    states: list[dict[str, Any]] = [{"size": 4 * session.bundle.parameters, "ratio": 1.0, "timed": "whole"}]
    took: list[float | None] = []
    done: list[Any] = []
    try:
        for step in chosen.recipe.steps:
            done.append(step)
            seconds: float | None = None
            new: dict[str, Any]
            size: float
            if step.stage is Stage.VOCABULARY:  # changes no shape that costs time
                new = {"size": 4 * chosen.bundle.parameters}
            elif step.stage is Stage.RECOVER or chosen.record.get("trains"):
                # training is not repeated: the figures of the trial itself are shown
                new, seconds = {"ratio": chosen.record.get("trained_ratio")}, chosen.record["seconds"]
            elif any(s.stage is Stage.RECOVER for s in done):  # after training only the end is at hand
                final = [s for s in chosen.recipe.steps if s.stage is not Stage.VOCABULARY][-1]
                new = {}
                if step is final:
                    size, ratio = deployed_size(chosen.bundle, TORCH), chosen.record["ratio"]
                    new = {"size": size, "ratio": ratio, "timed": "final"}
                    timed["final"] = session.runner(chosen.bundle, how)
            else:
                prefix = Recipe(list(done)).apply(session.bundle, session.task, session.run())
                name = "-".join(type(s).__name__ for s in done)
                session.progress.trying(f"what each step cost: {type(step).__name__}")
                scores = session.score(prefix, how, "search", f"step-{name}")
                ratio, size = session.compare(scores, "search").estimate, deployed_size(prefix, TORCH)
                new, seconds = {"ratio": ratio, "size": size, "timed": name}, prefix.history[-1]["seconds"]
                timed[name] = session.runner(prefix, how)
            states.append(states[-1] | new)
            took.append(seconds)
        calls = {n: call(r, load, session.task.reduce) for n, r in (timed | {"delivered": delivered}).items()}
        times = measure.compare(calls, rounds=4, warmup=1)
    finally:
        for runner in timed.values():
            runner.close()
        gc.collect()
    last = {"size": deployed_bytes(folder, chosen), "ratio": chosen.record["ratio"], "timed": "delivered"}
    states.append(states[-1] | last)
    for state in states:
        state["ms"] = 1000 * times[state["timed"]].median / len(load)
    deploy = chosen.recipe.deploy
    names = [type(s).__name__ for s in chosen.recipe.steps] + [f"run as {deploy.runtime} {deploy.precision}"]
    fields = [fields_of(s) for s in (*chosen.recipe.steps, deploy)]
    return [
        _row(name, given, old, new, seconds)
        for name, given, old, new, seconds in zip(names, fields, states, states[1:], [*took, None])
    ]


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


def write(report: dict[str, Any], chosen: Finalist, folder: Path, name: str) -> None:
    """The model card and the recipe. name: of the folder that all goes to in the end."""
    text = chosen.recipe.to_yaml()
    export.write_card(chosen.bundle, folder, report, text, name)
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
