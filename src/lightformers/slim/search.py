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
from typing import Any

from lightformers import anatomy, measure, runners
from lightformers.bundle import Example
from lightformers.compress.prune import leave_out
from lightformers.errors import UserError, reason
from lightformers.slim import candidates, cascading, plan
from lightformers.slim.candidates import checkpoint, slug, student
from lightformers.slim.session import Session, interval_dict
from lightformers.slim.space import DIMENSIONS, CostModel, Cut, Space, grid
from lightformers.slim.sparing import SIGNAL_EXAMPLES
from lightformers.steps import Deploy

ENUMERATED = 64  # spaces up to this size are tried whole
CHEAP_SHARE = 0.12  # of the budget, at most, for trials without training


def cost_model(
    session: Session, space: Space, deploy: Deploy, load: Sequence[Example]
) -> tuple[CostModel, int]:
    """Measure the grid in the deploy's batches and streams, interleaved, and fit the cost of every cut from it.

    Weights do not matter for time, so the grid is never trained. In a run of minutes int8 is stood in for by bf16, which
    needs no calibration; but where the products are cheap, as in int8, what stands between them counts for more, so
    blocks pay more than their width and longer runs measure what they deliver.
    """
    if deploy.runtime == "openvino" and session.brief:
        deploy = dataclasses.replace(deploy, precision="bf16")

    def make() -> dict[str, Any]:
        cuts, built = grid(space), {}
        anyhow = tuple(candidates.in_turn(anatomy.of(session.bundle.model), []))
        try:
            for cut in cuts:
                session.progress.trying(f"latency grid: {cut.name}")
                built[cut.name] = runners.build(student(session, cut, anyhow), deploy, session.calibration(8))
            calls = {n: (lambda r=r: r(list(load), session.task.reduce)) for n, r in built.items()}
            timings = measure.compare(calls, rounds=3, warmup=1)
        finally:
            for runner in built.values():
                runner.close()
        seconds = [timings[c.name].min for c in cuts]
        return {"cuts": [vars(c) for c in cuts], "seconds": seconds, "examples": len(load)}

    session.store.once("grid", make)
    return fitted(session)


def fitted(session: Session) -> tuple[CostModel, int]:
    """The cost model of the measured grid, and how many examples its passes took."""
    found = session.store.get("grid")
    return CostModel.fit([Cut(**c) for c in found["cuts"]], found["seconds"]), found["examples"]


def cheap(
    session: Session, space: Space, order: tuple[int, ...], cost: CostModel, n_load: int
) -> list[dict[str, Any]]:
    """Trials without training: predicted milliseconds an example, and how far the outputs move.

    A resumed run whose recovery has begun tries no more of them: others on the frontier would be trained all anew.
    """
    if session.store.get("rungs") is None:
        _try_cheap(session, space, order, cost, n_load)
    return [t for t in session.store.trials() if t["rung"] == 0 and t["state"] == "complete"]


def _try_cheap(session: Session, space: Space, order: tuple[int, ...], cost: CostModel, n_load: int) -> None:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    reference = leave_out.outputs(session.bundle, session.task, SIGNAL_EXAMPLES, session.run())
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
        for cut in sorted(cuts, key=lambda c: cost.seconds(c.work())):
            study.enqueue_trial({name: getattr(cut, name) for name in DIMENSIONS})
    for stale in study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,)):
        study.tell(stale.number, state=optuna.trial.TrialState.FAIL)
    end = time.monotonic() + min(CHEAP_SHARE * session.settings.budget, max(session.left() * 0.3, 5))
    tried = sum(t.state.is_finished() for t in study.get_trials(deepcopy=False))
    while tried < min(size, 400) and time.monotonic() < end:
        trial = study.ask()
        cut = Cut(*(trial.suggest_categorical(name, list(getattr(space, name))) for name in DIMENSIONS))
        tried += 1
        known = _untrained(session, cut, order, reference, cost, n_load)
        if "distance" in known:
            study.tell(trial, [known["cost"], known["distance"]])
        else:
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
    for number, cut in enumerate(_points(session, space)):
        if number and time.monotonic() > end + CHEAP_SHARE * session.settings.budget:
            break
        _untrained(session, cut, order, reference, cost, n_load)


def _points(session: Session, space: Space) -> list[Cut]:
    """Methods at one half first: where time is short, the others are not tried."""
    points = sorted(session.menu.points, key=lambda p: abs(p[1] - 0.5))
    return [Cut(space.blocks[0], method=name, ratio=ratio) for name, ratio in points]


def _untrained(
    session: Session, cut: Cut, order: tuple[int, ...], reference: Any, cost: CostModel, n_load: int
) -> dict[str, Any]:
    """What a cut costs and how far it moves the outputs before any training; one that its method trains is not made."""
    session.progress.trying(f"without training: {cut.name}")
    if session.store.begin(cut.name, 0, {"cut": vars(cut), "seconds": 0.0}):
        try:
            found: dict[str, Any] = {}
            made = None
            if candidates.trains(cut):
                candidates.steps_of(cut, session.bundle, order)  # refuses a ratio that it cannot reach
            else:
                made = student(session, cut, order)
                told = leave_out.outputs(made, session.task, SIGNAL_EXAMPLES, session.run())
                found["distance"] = leave_out.distance(told, reference)
            found |= candidates.price(session, cut, made, cost, n_load)
            session.store.end(cut.name, 0, found)
        except (RuntimeError, MemoryError, UserError) as error:
            session.store.end(cut.name, 0, {"error": reason(error)}, "failed")
    return session.store.trial(cut.name, 0) or {}


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
    whole = max(p["cost"] for p in points)
    known = [p for p in points if "distance" in p]
    unknown = [
        p for p in points if "distance" not in p
    ]  # what their methods make of them only training shows
    near = plan.recoverable(known, training / batch, session.floor, session.settings.use_labels)
    cheaper = [p for p in known if p["cost"] < 0.95 * whole]
    worth = [p for p in cheaper if p in near] or sorted(cheaper, key=lambda p: p["distance"])[:1]
    if training > 0 and worth:  # preparing is nobody's training time
        candidates.prepare(session)
    rounds = session.store.once(
        "rungs",
        lambda: [
            vars(r) for r in plan.rungs(training, len(plan.pareto(worth)) + len(unknown), overhead, batch)
        ],
    )
    current: list[dict[str, Any]] = []
    for number, rung in enumerate((plan.Rung(**r) for r in rounds), start=1):
        if number == 1:
            first = plan.blind(unknown, rung.count if not worth else max(rung.count // 2, 1))
            chosen = [*first, *plan.spread(worth, rung.count - len(first))]
        else:
            chosen = plan.promote(
                [t for t in current if t["state"] == "complete"],
                rung.count,
                session.target(current),
                rung.seconds,
            )
        for trial in chosen:
            done = recover(session, trial, number, rung.seconds, order)
            current = [t for t in current if t["name"] != done["name"]] + [done]
            _show_best(session, current)
    return [t for t in current if t["state"] == "complete"]


def recover(
    session: Session, trial: dict[str, Any], rung: int, seconds: float, order: tuple[int, ...]
) -> dict[str, Any]:
    """One recovery: build or pick up the candidate, train it, score it on the search split, keep its weights."""
    name, cut = trial["name"], Cut(**trial["cut"])
    trained = seconds if candidates.trains(cut) else trial["seconds"] + seconds
    kept = ("cut", "predicted_ms", "cost", "distance", "parameters")
    if session.store.begin(name, rung, {k: trial[k] for k in kept if k in trial} | {"seconds": trained}):
        session.progress.trying(f"recovering {name} for {seconds:.0f} s (round {rung})")
        try:
            # a round may call back one that the round before left out
            before = checkpoint(session, name, trial["rung"]) if rung > 1 else None
            model = candidates.trained(session, cut, order, seconds, before)
            candidates.keep(cut, model, checkpoint(session, name, rung))
            deploy = candidates.deployed(cut, session.brisk)
            watched = cascading.Watched() if cascading.allowed(session) else None
            scores = session.score(model, deploy, "search", f"{slug(name)}-{rung}", through=watched)
            ratio = session.compare(scores, "search")
            found = {
                "ratio": ratio.estimate, "ratio_interval": interval_dict(ratio), "quality": scores.value
            }  # fmt: skip
            if candidates.trains(cut):
                found |= candidates.price(session, cut, model, *fitted(session))
            if watched and len(watched.sureness):  # scores that lay on disk already tell no sureness
                cost, whole = (trial | found)["cost"], candidates.whole(session, *fitted(session))
                found["cascade"] = cascading.found(session, scores, watched.sureness, cost, whole)
            session.store.end(name, rung, found)
        except (RuntimeError, MemoryError, UserError) as error:
            if isinstance(error, OSError):
                raise
            session.store.end(name, rung, {"error": reason(error)}, "failed")
            session.warn(f"{name}: {reason(error)}; the search goes on")
        gc.collect()
    return session.store.trial(name, rung) or {}


def _show_best(session: Session, trials: list[dict[str, Any]]) -> None:
    goal = session.target(trials)
    done = [t for t in trials if t["state"] == "complete"]
    able = [t for t in done if t["ratio"] >= goal]
    best = min(able, key=lambda t: t["cost"]) if able else max(done, key=lambda t: t["ratio"], default=None)
    if best:
        session.progress.best(
            f"{best['name']}: {best['ratio']:.3f} of the original, {best['predicted_ms']:.2f} ms an example"
        )
