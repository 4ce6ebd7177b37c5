"""From finalists to one proven, exported model: racing them, verification with stepping back, control."""

from __future__ import annotations

import dataclasses
import gc
import shutil
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from lightformers import export, measure, runners
from lightformers.bundle import Example
from lightformers.errors import UserError, reason
from lightformers.slim import candidates, plan
from lightformers.slim.baseline import call, deployed_size
from lightformers.slim.finalists import UNCUT, Finalist
from lightformers.slim.session import Session, interval_dict
from lightformers.stats import interval
from lightformers.steps import Deploy, Recipe, Run, Stage


def rank(session: Session, entrants: list[Finalist], load: Sequence[Example]) -> list[Finalist]:
    """Score the finalists as they would be delivered, race them interleaved, and order them.

    Those that look able to pass come first, by the goal; then the rest by quality. bf16 is tried where int8 costs
    the floor.
    """
    scored: list[Finalist] = []
    built: dict[str, runners.Runner] = {}
    try:
        for finalist in entrants:
            passed = False  # in a precision: then the next one, which is larger, is not tried
            for one in _forms(session, finalist):
                if passed and not _quantized(one):
                    continue
                deploy = one.recipe.deploy
                known = _known(session, deploy) if finalist.name == UNCUT else None
                try:
                    if known and session.brief and any(_able(session, f) for f in scored):
                        built[one.name] = session.runner(
                            session.bundle, deploy
                        )  # as quick as it would be delivered
                    else:
                        session.progress.trying(f"finalist: {one.name}")
                        built[one.name] = deliver(session, one)
                    known = known or _found(session, one, built[one.name])
                except RuntimeError as error:  # its runtime cannot run this form of it; others may do
                    if finalist.name == UNCUT:
                        raise
                    session.warn(
                        f"{one.name} does not run and is left out: {str(error).strip().splitlines()[-1]}"
                    )
                    if one.name in built:
                        built.pop(one.name).close()
                    continue
                one.record = finalist.record | known
                scored.append(one)
                passed = passed or _able(session, one)
        session.progress.trying("finalists, interleaved")
        if session.settings.goal == "latency":
            seconds = {
                n: measure.latency(r, list(load)[:12], session.task.reduce).median for n, r in built.items()
            }
        else:
            timings = measure.compare(
                {n: call(r, load, session.task.reduce) for n, r in built.items()}, rounds=5, warmup=1
            )
            seconds = {n: t.median for n, t in timings.items()}
    finally:
        for runner in built.values():
            runner.close()
        gc.collect()
    for finalist in scored:
        finalist.record["seconds_load"] = seconds[finalist.name]
        finalist.record["size_bytes"] = deployed_size(finalist.bundle, finalist.recipe.deploy)
    cost = "size_bytes" if session.settings.goal == "size" else "seconds_load"
    goal = session.target([f.record for f in scored])
    able = sorted((f for f in scored if f.record["ratio"] >= goal), key=lambda f: f.record[cost])
    return able + sorted((f for f in scored if f.record["ratio"] < goal), key=lambda f: -f.record["ratio"])


def _forms(session: Session, finalist: Finalist) -> Iterator[Finalist]:
    """A finalist in each precision that its runtime has, then with each quantizer that the search may use."""
    deploy = finalist.recipe.deploy
    for precision in _precisions(deploy):
        recipe = Recipe(finalist.recipe.steps, dataclasses.replace(deploy, precision=precision))
        yield dataclasses.replace(finalist, name=f"{finalist.name}, {precision}", recipe=recipe)
    last = bool(finalist.recipe.steps) and finalist.recipe.steps[-1].stage is Stage.CASCADE
    for name in () if last or _quantized(finalist) else session.menu.finishes:
        steps = candidates.quantizer(name, finalist.bundle, session.settings.goal)
        try:
            bundle = Recipe(steps).apply(finalist.bundle, session.task, session.run())
        except UserError as error:
            session.warn(f"{finalist.name}, {name}: {reason(error)}")
            continue
        recipe = Recipe([*finalist.recipe.steps, *steps], candidates.in_torch(deploy))
        yield dataclasses.replace(finalist, name=f"{finalist.name}, {name}", recipe=recipe, bundle=bundle)


def _quantized(finalist: Finalist) -> bool:
    return any(step.stage is Stage.QUANTIZE for step in finalist.recipe.steps)


def _able(session: Session, finalist: Finalist) -> bool:
    return bool(finalist.record["ratio"] >= session.target([finalist.record]))


def _found(session: Session, finalist: Finalist, runner: runners.Runner) -> dict[str, Any]:
    """The quality of a finalist on the search split, run as it would be delivered."""
    scores = session.store.scores(
        candidates.slug(f"final-{finalist.name}"),
        partial(session.task.evaluate, runner, "search"),
        session.task.metric,
    )
    ratio = session.compare(scores, "search")
    return {"ratio": ratio.estimate, "ratio_interval": interval_dict(ratio)}


def _known(session: Session, deploy: Deploy) -> dict[str, Any] | None:
    """What the baselines have shown of the original's quality in this precision, or None."""
    start = f"openvino {deploy.precision}"
    rows = [r["ratio"] for r in session.store.get("baselines") or [] if str(r["deploy"]).startswith(start)]
    return {"ratio": rows[0]["estimate"], "ratio_interval": rows[0]} if rows and rows[0] else None


def _precisions(deploy: Deploy) -> list[Any]:
    return (
        [deploy.precision] if deploy.runtime == "torch" else list(dict.fromkeys([deploy.precision, "bf16"]))
    )


def delivered(session: Session, finalist: Finalist) -> Path:
    return session.store.folder / "delivered" / candidates.slug(finalist.name)


def deliver(session: Session, finalist: Finalist) -> runners.Runner:
    """Export a finalist and open what was written: what is scored and verified is what the user gets.

    What was delivered whole before is opened as it stands.
    """
    folder = delivered(session, finalist)
    deploy = finalist.recipe.deploy
    openvino = deploy.runtime == "openvino"
    if not (folder / ("openvino/deploy.json" if openvino else "config.json")).is_file():
        if session.settings.onnx:
            precision = "int8" if deploy.precision == "int8" else "fp32"
            graph = Deploy(runtime="onnxruntime", precision=precision)  # type: ignore[arg-type]
            export.save_onnx(finalist.bundle, graph, folder, session.calibration())
        export.save(finalist.bundle, folder, allow_custom=session.settings.allow_custom)
        if openvino:
            export.save_openvino(finalist.bundle, deploy, folder, session.calibration(deploy.calibration))
    if openvino:
        return runners.openvino_folder(folder / "openvino", finalist.bundle)
    return runners.build(finalist.bundle, deploy)


def verify(session: Session, ranked: list[Finalist]) -> tuple[Finalist, runners.Runner, dict[str, Any]]:
    """Step back along the frontier until the one-sided bound reaches the floor, on data the search never saw.

    Returns the proven finalist, or the best honest one with `proven` False.
    """
    confidences = plan.confidences(session.settings.confidence, min(len(ranked), len(plan.SPENDING)))
    tried: list[tuple[Finalist, dict[str, Any]]] = []
    for finalist, confidence in zip(ranked, confidences):
        session.progress.trying(f"verifying {finalist.name} on data the search never saw")
        runner = deliver(session, finalist)
        scores = session.store.scores(
            candidates.slug(f"verified-{finalist.name}"),
            partial(session.task.evaluate, runner, "verify"),
            session.task.metric,
        )
        bound = session.compare(scores, "verify", confidence)
        outcome = {
            "proven": bound.bound >= session.floor,
            "ratio": interval_dict(bound),
            "quality": interval_dict(interval(scores, session.settings.confidence)),
            "confidence": confidence,
            "folder": str(delivered(session, finalist)),
        }
        tried.append((finalist, outcome))
        session.progress.log(
            f"{finalist.name}: bound {bound.bound:.4f} against {session.floor:g}"
            + (", proven" if outcome["proven"] else "")
        )
        if outcome["proven"]:
            return finalist, runner, outcome
        runner.close()
    finalist, outcome = max(tried, key=lambda t: t[1]["ratio"]["bound"])
    return finalist, deliver(session, finalist), outcome


def control(session: Session, seconds: float, labels: bool) -> dict[str, Any]:
    """The original, trained as long as the winner on the same data, so that fine-tuning is not taken for compression.

    Without labels the original is its own teacher and the loss starts at its minimum: that is checked on the
    search split with a tenth of the time, and said.
    """
    used = seconds if labels else min(seconds, max(3.0, 0.1 * seconds))
    split = "verify" if labels else "search"
    session.progress.trying(f"control: the original trained for {used:.0f} s")
    model = session.bundle.copy()
    if used > 0:
        run = Run(
            teacher=session.bundle, seed=session.settings.seed, seconds=used, use_labels=labels,
            progress=lambda e: session.progress.training(**e),
        )  # fmt: skip
        for step in candidates.recovery(session, used):
            model = step.apply(model, session.task, run)
    scores = session.score(model, session.brisk, split, f"control-{'labels' if labels else 'free'}")
    ratio = session.compare(scores, split)
    note = (
        "the original given the same labels and training time"
        if labels
        else f"no labels were used, so the original has nothing to learn from itself; {used:.0f} s of the same training, on the search split"
    )
    return {
        "quality": interval_dict(interval(scores, session.settings.confidence)),
        "ratio": interval_dict(ratio),
        "note": note,
    }


def publish(session: Session, source: Path) -> None:
    """Move the delivered folder's content into the user's folder, each file or folder whole."""
    for item in sorted(source.iterdir()):
        place = session.store.out / item.name
        if place.is_dir():
            shutil.rmtree(place)
        item.replace(place)
