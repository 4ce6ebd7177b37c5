"""The search: what each cut costs and breaks before training, then recovery in rungs.

Cheap trials (rung 0) are sampled by Optuna over two objectives, predicted time and output distance; each takes
about a second. The frontier of these goes into recovery: many candidates a little, the best the rest (`plan`).
Optuna's multi-objective studies know no pruning, so the rungs are kept in our own table.
"""

from __future__ import annotations

import dataclasses
import gc
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lightformers import measure, runners
from lightformers.bundle import Bundle, Example
from lightformers.compress.distill import common
from lightformers.compress.prune import leave_out
from lightformers.errors import UserError
from lightformers.files import replacing
from lightformers.slim import plan
from lightformers.slim.session import Session, interval_dict
from lightformers.slim.space import CostModel, Cut, Space, grid, steps_of
from lightformers.steps import Deploy, Recipe, Run

SIGNAL_EXAMPLES = 48
ENUMERATED = 64  # spaces up to this size are tried whole
BRIEF_LENGTH = 128  # tokens that training texts are cut to in a run of minutes
CHEAP_SHARE = 0.12  # of the budget, at most, for trials without training


def block_order(session: Session, space: Space) -> list[int]:
    """Blocks in the order in which they can best be spared, as far as the space goes; the rest as they stand."""
    from lightformers import anatomy

    blocks = anatomy.of(session.bundle.model).blocks
    count = len(blocks) - min(space.blocks)
    session.progress.trying("sensitivity: each block left out in turn")
    order = leave_out.removal_order(
        session.bundle, session.task, blocks, count, SIGNAL_EXAMPLES, _run(session)
    )
    return [*order, *(i for i in range(len(blocks)) if i not in order)]


def _run(session: Session) -> Run:
    return Run(seed=session.settings.seed)


def cost_model(
    session: Session, space: Space, deploy: Deploy, load: Sequence[Example]
) -> tuple[CostModel, dict[str, float]]:
    """Measure the grid in the deploy's batches and streams, interleaved, and fit the cost of every cut from it.

    Weights do not matter for time, so the grid is never trained; and int8 is stood in for by bf16, which needs no
    calibration: what is wanted is how cuts compare. Finalists are measured as they are delivered.
    """
    if deploy.runtime == "openvino":
        deploy = dataclasses.replace(deploy, precision="bf16")

    def make() -> dict[str, Any]:
        cuts = grid(space)
        built = {}
        try:
            for cut in cuts:
                session.progress.trying(f"latency grid: {cut.name}")
                built[cut.name] = runners.build(
                    student(session, cut, tuple(range(space.blocks[0]))), deploy, session.calibration(8)
                )
            calls = {n: (lambda r=r: r(list(load), session.task.reduce)) for n, r in built.items()}
            timings = measure.compare(calls, rounds=3, warmup=1)
        finally:
            for runner in built.values():
                runner.close()
        return {"cuts": [vars(c) for c in cuts], "seconds": [timings[c.name].min for c in cuts]}

    found = session.store.once("grid", make)
    cuts = [Cut(**c) for c in found["cuts"]]
    return CostModel.fit(cuts, found["seconds"]), {c.name: s for c, s in zip(cuts, found["seconds"])}


def student(session: Session, cut: Cut, order: tuple[int, ...]) -> Bundle:
    """The original with `cut` made, not trained."""
    steps = steps_of(cut, len(order), order)
    return (
        Recipe(steps).apply(session.bundle, session.task, Run(seed=session.settings.seed))
        if steps
        else session.bundle.copy()
    )


def cheap(
    session: Session, space: Space, order: tuple[int, ...], cost: CostModel, n_load: int
) -> list[dict[str, Any]]:
    """Trials without training: predicted milliseconds an example, and how far the outputs move."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    reference = leave_out.outputs(session.bundle, session.task, SIGNAL_EXAMPLES, _run(session))
    cuts = list(space)
    size = len(cuts)
    study = optuna.create_study(
        storage=f"sqlite:///{session.store.path}", study_name="cuts", load_if_exists=True,
        sampler=optuna.samplers.TPESampler(seed=session.settings.seed, multivariate=True),
        directions=["minimize", "minimize"],
    )  # fmt: skip
    if size <= ENUMERATED and not study.get_trials(
        deepcopy=False
    ):  # a small space is tried whole, cheapest first
        for cut in sorted(cuts, key=cost.seconds):
            study.enqueue_trial(vars(cut))
    for stale in study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,)):
        study.tell(stale.number, state=optuna.trial.TrialState.FAIL)
    end = time.monotonic() + min(CHEAP_SHARE * session.settings.budget, max(session.left() * 0.3, 5))
    tried = sum(t.state.is_finished() for t in study.get_trials(deepcopy=False))
    while tried < min(size, 400) and time.monotonic() < end:
        trial = study.ask()
        cut = Cut(
            trial.suggest_categorical("blocks", list(space.blocks)),
            trial.suggest_categorical("channels", list(space.channels)),
            trial.suggest_categorical("heads", list(space.heads)),
            trial.suggest_categorical("width", list(space.width)),
            trial.suggest_categorical("rank", list(space.rank)),
        )
        tried += 1
        predicted = 1000 * cost.seconds(cut) / n_load
        record = {"cut": vars(cut), "predicted_ms": predicted, "seconds": 0.0}
        session.progress.trying(f"without training: {cut.name}")
        if session.store.begin(cut.name, 0, record):
            try:
                cut_model = student(session, cut, order)
                told = leave_out.outputs(cut_model, session.task, SIGNAL_EXAMPLES, _run(session))
                moved = leave_out.distance(told, reference)
                session.store.end(cut.name, 0, {"distance": moved, "parameters": cut_model.parameters})
            except (RuntimeError, MemoryError, UserError) as error:
                session.store.end(cut.name, 0, {"error": str(error).splitlines()[0]}, "failed")
        known = session.store.trial(cut.name, 0) or {}
        if "distance" in known:
            study.tell(trial, [predicted, known["distance"]])
        else:
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
    return [t for t in session.store.trials() if t["rung"] == 0 and "distance" in t]


def recoveries(
    session: Session,
    points: list[dict[str, Any]],
    order: tuple[int, ...],
    training: float,
    overhead: float,
    batch: float,
) -> list[dict[str, Any]]:
    """Train the frontier in rungs within `training` seconds; returns the latest record of each candidate.

    overhead: seconds that building and scoring a candidate takes. batch: seconds of a batch of the original.
    """
    whole = max(p["predicted_ms"] for p in points)
    worth = plan.recoverable(points, training / batch)
    worth = [p for p in worth if p["predicted_ms"] < 0.95 * whole]
    if training > 0 and worth:  # tokenizing is nobody's training time
        session.progress.trying("tokenizing what recovery learns from")
        common.feed(
            session.bundle,
            session.task,
            Run(seed=session.settings.seed, use_labels=session.settings.use_labels),
            length=recovery(session, training).length,
        )
    rounds = session.store.once(
        "rungs", lambda: [vars(r) for r in plan.rungs(training, len(plan.pareto(worth)), overhead)]
    )
    current: list[dict[str, Any]] = []
    for number, rung in enumerate((plan.Rung(**r) for r in rounds), start=1):
        if number == 1:
            chosen = plan.spread(worth, rung.count)
        else:
            chosen = plan.promote(
                [t for t in current if t["state"] == "complete"],
                rung.count,
                target(session, current),
                rung.seconds,
            )
        for trial in chosen:
            done = recover(session, trial, number, rung.seconds, order)
            current = [t for t in current if t["name"] != done["name"]] + [done]
            _show_best(session, current)
    return [t for t in current if t["state"] == "complete"]


def target(session: Session, trials: list[dict[str, Any]]) -> float:
    """The ratio on the search split that makes passing verification likely: the floor and the margin of its bound."""
    known = [t["ratio_interval"] for t in trials if "ratio_interval" in t]
    if not known:
        return session.floor
    margin = float(np.median([k["estimate"] - k["bound"] for k in known]))
    sizes = len(session.task.splits["search"]) / len(session.task.splits["verify"])
    return session.floor + margin * sizes**0.5


def recover(
    session: Session, trial: dict[str, Any], rung: int, seconds: float, order: tuple[int, ...]
) -> dict[str, Any]:
    """One recovery: build or pick up the candidate, train it, score it on the search split, keep its weights."""
    name, cut = trial["name"], Cut(**trial["cut"])
    trained = trial["seconds"] + seconds
    record = {k: trial[k] for k in ("cut", "predicted_ms", "distance", "parameters")} | {"seconds": trained}
    if session.store.begin(name, rung, record):
        session.progress.trying(f"recovering {name} for {seconds:.0f} s (round {rung})")
        try:
            model = student(session, cut, order)
            if rung > 1:
                load_weights(model, checkpoint(session, name, rung - 1))
            run = Run(
                teacher=session.bundle, seed=session.settings.seed, seconds=seconds,
                use_labels=session.settings.use_labels, progress=lambda e: session.progress.training(**e),
            )  # fmt: skip
            model = recovery(session, seconds).apply(model, session.task, run)
            save_weights(model, checkpoint(session, name, rung))
            scores = session.score(model, session.brisk, "search", f"{slug(name)}-{rung}")
            ratio = session.compare(scores, "search")
            session.store.end(
                name,
                rung,
                {"ratio": ratio.estimate, "ratio_interval": interval_dict(ratio), "quality": scores.value},
            )
        except (RuntimeError, MemoryError, UserError) as error:
            if isinstance(error, OSError):
                raise
            session.store.end(name, rung, {"error": str(error).splitlines()[0]}, "failed")
            session.warn(f"{name}: {str(error).splitlines()[0]}; the search goes on")
        gc.collect()
    return session.store.trial(name, rung) or {}


def recovery(session: Session, seconds: float) -> Any:
    """The recovery step of the search; `seconds` stand in the recipe, so that a replay trains as long."""
    from lightformers.compress import Recover

    return Recover(seconds=seconds, length=BRIEF_LENGTH if session.brief else None)


def slug(name: str) -> str:
    return name.replace(", ", "-").replace(" ", "_")


def checkpoint(session: Session, name: str, rung: int) -> Path:
    return session.store.folder / "weights" / f"{slug(name)}-{rung}.safetensors"


def save_weights(bundle: Bundle, path: Path) -> None:
    """Keep the weights of a candidate; tied ones once."""
    from safetensors.torch import save_model

    with replacing(path) as temporary:
        save_model(bundle.model, str(temporary))


def load_weights(bundle: Bundle, path: Path) -> None:
    from safetensors.torch import load_model

    load_model(bundle.model, str(path))


def _show_best(session: Session, trials: list[dict[str, Any]]) -> None:
    goal = target(session, trials)
    done = [t for t in trials if t["state"] == "complete"]
    able = [t for t in done if t["ratio"] >= goal]
    best = (
        min(able, key=lambda t: t["predicted_ms"])
        if able
        else max(done, key=lambda t: t["ratio"], default=None)
    )
    if best:
        session.progress.best(
            f"{best['name']}: {best['ratio']:.3f} of the original, {best['predicted_ms']:.2f} ms an example"
        )
