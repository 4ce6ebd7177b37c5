"""From trained candidates to one proven, exported model: finalists, verification with stepping back, control."""

from __future__ import annotations

import dataclasses
import gc
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from lightformers import export, measure, runners
from lightformers.bundle import Bundle, Example
from lightformers.errors import UserError
from lightformers.slim import plan, search
from lightformers.slim.baseline import call, deployed_size
from lightformers.slim.session import Session, cores, interval_dict, runtime
from lightformers.slim.space import Cut, steps_of
from lightformers.stats import interval
from lightformers.steps import Deploy, Recipe, Run, Step, fields_of

FINALISTS = 3
UNCUT = "no cut"


@dataclass
class Finalist:
    """A candidate as it would be delivered: recipe, bundle, how it is run, and what is known of it."""

    name: str
    recipe: Recipe
    bundle: Bundle
    record: dict[str, Any]


def deploys(session: Session) -> list[Deploy]:
    """How a result may be run: precisions, batch shapes and streams that are worth measuring on this machine."""
    batch, goal = session.settings.batch, session.settings.goal
    if goal == "latency":
        shapes: list[dict[str, Any]] = [{"batching": "sorted", "batch_size": batch}]
    else:
        # Batches are filled to a budget of padded tokens: short texts ride in larger batches than `batch`.
        shapes = [{"batching": "sorted", "batch_size": 8 * batch, "max_tokens": n} for n in (1024, 2048)]
    if runtime() == "openvino":
        streams = [1] if goal == "latency" or cores() < 2 else [cores(), 1]
        precisions = ["int8", "bf16"] if goal != "size" else ["int8"]
        return [
            Deploy("openvino", precision, streams=n, threads=None if n == 1 else 1, **shape)  # type: ignore[arg-type]
            for precision in precisions
            for shape in shapes
            for n in streams
        ]
    options = [Deploy(precision="bf16", **shape) for shape in shapes]
    if _packs(session):
        options.append(Deploy(precision="bf16", batching="packed", batch_size=8 * batch, max_tokens=4096))
    return options


def _packs(session: Session) -> bool:
    """Whether this family can run without padding; the packed runner refuses by name where it can't."""
    try:
        runners.build(session.bundle, Deploy(precision="bf16", batching="packed")).close()
    except UserError:
        return False
    return True


def choose_deploy(session: Session, load: Sequence[Example]) -> Deploy:
    """Near-free wins: runtime, precision, streams, batching. Measured on the original, interleaved.

    Among those within a tenth of the fastest the smallest is taken, since noise decides no more between them.
    """

    def make() -> dict[str, Any]:
        options = deploys(session)
        built: dict[str, runners.Runner] = {}
        first: dict[str, Any] = {}
        for deploy in options:
            session.progress.trying(f"runtime: {deploy}")
            known = first.get(deploy.precision)
            if known is not None and deploy.runtime == "openvino":
                built[str(deploy)] = known.again(deploy)
            else:
                built[str(deploy)] = runners.build(session.bundle, deploy, session.calibration(8))
                first[deploy.precision] = built[str(deploy)]
        try:
            calls = {n: call(r, load, session.task.reduce) for n, r in built.items()}
            first_look = measure.compare(calls, rounds=1, warmup=1)
            limit = 1.3 * min(t.min for t in first_look.values())
            calls = {n: c for n, c in calls.items() if first_look[n].min <= limit}
            timings = measure.compare(calls, rounds=4, warmup=0)
        finally:
            for runner in built.values():
                runner.close()
            gc.collect()
        fastest = min(t.median for t in timings.values())
        close = [d for d in options if str(d) in timings and timings[str(d)].median <= 1.1 * fastest]
        best = min(close, key=lambda d: (deployed_size(session.bundle, d), timings[str(d)].median))
        return {"best": fields_of(best), "seconds": {n: t.median for n, t in timings.items()}}

    return Deploy(**session.store.once("deploy", make)["best"])


def finalists(
    session: Session, trials: list[dict[str, Any]], order: tuple[int, ...], deploy: Deploy
) -> list[Finalist]:
    """The candidates worth verifying, each with its vocabulary trimmed: the fastest that look able, and the original."""
    goal = search.target(session, trials)
    able = sorted((t for t in trials if t["ratio"] >= goal), key=lambda t: t["predicted_ms"])
    near = sorted((t for t in trials if t["ratio"] < goal), key=lambda t: -t["ratio"])
    if session.brief and able:
        near = []  # barely trained ones; each would take as long to score as an able one
    found = []
    for trial in [*able, *near][:FINALISTS]:
        cut = Cut(**trial["cut"])
        bundle = search.student(session, cut, order)
        search.load_weights(bundle, search.checkpoint(session, trial["name"], trial["rung"]))
        step = search.recovery(trial["seconds"])
        size, done = bundle.parameters, {"step": type(step).__name__, "parameters": fields_of(step)}
        bundle.history.append(done | {"size_before": size, "size_after": size, "seconds": trial["seconds"]})
        steps: list[Step] = [*steps_of(cut, len(order), order), step]
        record = trial | {"trained_ratio": trial["ratio"]}
        found.append(_trimmed(session, Finalist(trial["name"], Recipe(steps, deploy), bundle, record)))
    found.append(
        _trimmed(session, Finalist(UNCUT, Recipe([], deploy), session.bundle.copy(), {"seconds": 0.0}))
    )
    return found


def _trimmed(session: Session, finalist: Finalist) -> Finalist:
    """With unused vocabulary rows gone, where the tokenizer and the task allow it."""
    from lightformers.compress import TrimVocabulary

    settings, task = session.settings, session.task
    if not settings.trim or not settings.allows("TrimVocabulary") or task.name not in TRIMMABLE:
        return finalist
    step = TrimVocabulary()
    try:
        bundle = Recipe([step]).apply(finalist.bundle, task, Run(seed=settings.seed))
    except UserError as error:
        session.warn(f"vocabulary not trimmed: {str(error).splitlines()[0]}")
        return finalist
    return Finalist(
        finalist.name, Recipe([*finalist.recipe.steps, step], finalist.recipe.deploy), bundle, finalist.record
    )


#: Fewer classes in the softmax would flatter a language model's perplexity, so those keep their vocabulary.
TRIMMABLE = ("embedding", "text-classification", "token-classification")


def rank(session: Session, candidates: list[Finalist], load: Sequence[Example]) -> list[Finalist]:
    """Score the finalists as they would be delivered, race them interleaved, and order them.

    Those that look able to pass come first, by the goal; then the rest by quality. bf16 is tried where int8 costs
    the floor.
    """
    scored: list[Finalist] = []
    built: dict[str, runners.Runner] = {}
    try:
        for finalist in candidates:
            for precision in _precisions(finalist.recipe.deploy):
                deploy = dataclasses.replace(finalist.recipe.deploy, precision=precision)
                name = f"{finalist.name}, {precision}"
                session.progress.trying(f"finalist: {name}")
                built[name] = runners.build(finalist.bundle, deploy, session.calibration(deploy.calibration))
                known = _baseline(session, precision) if finalist.name == UNCUT else None
                if known is None:
                    scores = session.store.scores(
                        search.slug(f"final-{name}"),
                        partial(session.task.evaluate, built[name], "search"),
                        session.task.metric,
                    )
                    known = interval_dict(session.compare(scores, "search"))
                record = finalist.record | {"ratio": known["estimate"], "ratio_interval": known}
                scored.append(Finalist(name, Recipe(finalist.recipe.steps, deploy), finalist.bundle, record))
                if known["estimate"] >= search.target(session, [record]):
                    break
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
    goal = search.target(session, [f.record for f in scored])
    able = sorted((f for f in scored if f.record["ratio"] >= goal), key=lambda f: f.record[cost])
    return able + sorted((f for f in scored if f.record["ratio"] < goal), key=lambda f: -f.record["ratio"])


def _baseline(session: Session, precision: str) -> dict[str, float] | None:
    """What the baselines have shown of the original in this precision of OpenVINO."""
    rows = session.store.get("baselines") or []
    return next((r["ratio"] for r in rows if str(r["deploy"]).startswith(f"openvino {precision}")), None)


def _precisions(deploy: Deploy) -> list[Any]:
    return (
        [deploy.precision] if deploy.runtime == "torch" else list(dict.fromkeys([deploy.precision, "bf16"]))
    )


def deliver(session: Session, finalist: Finalist, folder: Path) -> runners.Runner:
    """Export a finalist and open what was written: what is verified is what the user gets.

    What an earlier run delivered whole is opened as it stands.
    """
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
    for attempt, (finalist, confidence) in enumerate(zip(ranked, confidences)):
        session.progress.trying(f"verifying {finalist.name} on data the search never saw")
        folder = session.store.folder / "delivered" / str(attempt)
        runner = deliver(session, finalist, folder)
        scores = session.store.scores(
            search.slug(f"verified-{finalist.name}"),
            partial(session.task.evaluate, runner, "verify"),
            session.task.metric,
        )
        bound = session.compare(scores, "verify", confidence)
        outcome = {
            "proven": bound.bound >= session.floor,
            "ratio": interval_dict(bound),
            "quality": interval_dict(interval(scores, session.settings.confidence)),
            "confidence": confidence,
            "folder": str(folder),
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
    return finalist, deliver(session, finalist, Path(str(outcome["folder"]))), outcome


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
        model = search.recovery(used).apply(model, session.task, run)
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
