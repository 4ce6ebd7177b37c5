"""The run from first look to report. Each phase leaves a fact in the store; a resumed run skips what is there."""

from __future__ import annotations

import errno
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from lightformers import __version__, measure
from lightformers.bundle import Bundle
from lightformers.errors import Interrupted, UserError
from lightformers.export import card
from lightformers.files import read_json
from lightformers.runners import Runner
from lightformers.slim import baseline, finalists, finish, handover, near_free, report, search, sparing
from lightformers.slim.finalists import Finalist
from lightformers.slim.preflight import Preflight, check, to_dict
from lightformers.slim.progress import Progress
from lightformers.slim.session import Session, interval_dict
from lightformers.slim.settings import Settings
from lightformers.slim.store import Store, discard
from lightformers.stats import interval
from lightformers.steps import Deploy, fields_of

PHASES = (
    "pre-flight",
    "baseline",
    "near-free wins",
    "search",
    "recovery",
    "verification",
    "control, export, report",
)


@dataclass(frozen=True)
class Result:
    """What came out: the report (also `report.json`), where it lies, and whether the floor was proven."""

    folder: Path
    report: dict[str, Any]
    proven: bool

    @property
    def code(self) -> int:
        """Exit status: 0 proven, 3 not."""
        return 0 if self.proven else 3


def slim(
    model: Bundle | str | Path, task: Any, *, floor: float = 0.99, goal: str = "throughput", out: str | Path = "slim-model",
    progress: Progress | None = None, command: str = "", restart: bool = False, dry_run: bool = False, **settings: Any,
) -> Result:  # fmt: skip
    """Make `model` smaller and faster, and prove that it is still as good as asked.

    model: a bundle, a folder or a hub name. task: what good means (`lightformers.tasks`). out: where the result
    goes; the same call with the same `out` resumes a run that was stopped. settings: see `Settings`.
    Raises UserError for what the caller can mend. A floor that nothing reaches is no error: `Result.proven` is
    False and the best honest model is there.
    """
    from lightformers.bundle import load

    request = Settings(floor=floor, goal=goal, **settings)  # type: ignore[arg-type]
    bundle = model if isinstance(model, Bundle) else load(model, task=task.name)
    torch.manual_seed(request.seed)
    if restart:
        discard(out)
    scratch = tempfile.TemporaryDirectory() if dry_run else None  # pre-flight leaves nothing behind
    store = Store(scratch.name if scratch else out)
    progress = progress or Progress(quiet=True)
    lock = FileLock(store.folder / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise UserError(f"another run works in {out}: wait for it, or use another --out") from error
    try:
        with progress:
            session = Session(bundle, task, request, store, progress, time.monotonic() + request.budget)
            return _run(session, command, dry_run)
    except KeyboardInterrupt as stop:
        raise Interrupted(
            f"stopped; what was finished is kept in {store.folder}. The same command resumes"
        ) from stop
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise UserError(
                f"the disk is full; nothing is lost. Free some space and run the same command again ({out})"
            ) from error
        raise
    finally:
        store.close()
        lock.release()
        if scratch:
            scratch.cleanup()


def _fingerprints(session: Session) -> dict[str, str]:
    return {
        "model": measure.model_fingerprint(session.bundle.model),
        "data": session.task.fingerprint,
        "request": session.settings.fingerprint(),
        "machine": measure.machine_fingerprint(),
    }


def _run(session: Session, command: str, dry_run: bool) -> Result:
    started, progress, store = time.time(), session.progress, session.store
    progress.phase("pre-flight")
    pre = check(session)
    for line in pre.lines:
        progress.log(line)
    if dry_run:
        return Result(store.out, {"preflight": to_dict(pre), "warnings": session.warnings}, pre.provable)
    if store.claim(_fingerprints(session)):
        if (finished := store.get("finished")) and (store.out / "report.json").is_file():
            progress.log(f"the run in {store.out} is finished; --restart runs it anew")
            return Result(store.out, read_json(store.out / "report.json"), finished["proven"])
        progress.log(f"resuming the run in {store.out}")

    progress.phase("baseline")
    progress.trying("quality of the original")
    reference = session.original("search")
    baselines = store.once("baselines", lambda: baseline.quality(session))
    per_batch = store.once(
        "seconds_per_batch", lambda: pre.seconds_per_batch
    )  # of the first run, if this one resumes
    load = baseline.workload(session, per_batch)

    progress.phase("near-free wins")
    deploy = near_free.choose(session, load)
    progress.log(f"fastest way to run the original: {deploy}")

    progress.phase("search")
    order, points = _cuts(session, pre, deploy, load) if pre.space.readable else ((), [])
    progress.log(f"{len(points)} cuts tried without training")

    progress.phase("recovery")
    training = store.once("training", lambda: _training_seconds(session, pre, len(points)))
    overhead = store.once(
        "overhead", lambda: 5 + BRISK[session.runtime] * pre.share("search") * pre.seconds_exact
    )
    trials = search.recoveries(session, points, order, training, overhead, per_batch) if points else []

    progress.phase("verification")
    ranked = finish.rank(session, finalists.gather(session, trials, order, deploy), load)
    progress.trying("the original on the verification split")
    session.original("verify")
    chosen, runner, outcome = finish.verify(session, ranked)

    progress.phase("control, export, report")
    labels = session.settings.use_labels
    trained = float(chosen.record.get("seconds", 0.0))
    runner.close()  # two runtimes and a training at once are more memory than any part of the run needs
    controlled = store.once("control", lambda: finish.control(session, trained, labels)) if trained else None
    runner = finish.deliver(session, chosen)
    described = _describe(session, pre, baselines, chosen, runner, outcome, load, reference)
    described |= {"control": controlled, "trials": handover.trials(session, deploy), "command": command}
    described |= {"seconds": round(time.time() - started, 1), "warnings": store.get("warnings") or []}
    return _deliver(session, described, chosen, runner, outcome)


def _cuts(
    session: Session, pre: Preflight, deploy: Deploy, load: Sequence[Any]
) -> tuple[tuple[int, ...], list[dict[str, Any]]]:
    """The order in which blocks can be spared, and what each cut costs and breaks before any training."""
    order = tuple(session.store.once("order", lambda: sparing.block_order(session, pre.space)))
    cost, timed = search.cost_model(session, pre.space, deploy, load)
    return order, search.cheap(session, pre.space, order, cost, timed)


#: What a candidate takes to score, as a share of eager fp32.
BRISK = {"openvino": 0.35, "torch": 1.0}
#: Conversions, the race, export and reloading take FIXED seconds and DELIVER times what scoring the original takes, which
#: tells how quick this machine is just now.
FIXED, DELIVER = 45.0, 0.95


def _training_seconds(session: Session, pre: Preflight, cuts: int) -> float:
    """What is left for recovery when everything after it has its share, foreseen from what pre-flight measured."""
    if cuts < 2:
        return 0.0
    # the original in full precision and one candidate on the verification split, finalists (and what trimming costs) on
    # the search split
    brisk, times = BRISK[session.runtime], 2 if session.settings.trim else 1
    scored = pre.seconds_exact * ((1 + brisk) * pre.share("verify") + times * brisk * pre.share("search"))
    deliver = FIXED + DELIVER * pre.seconds_exact
    left = max(session.left() - scored - deliver, 0.0)
    return left * (
        0.6 if session.settings.use_labels else 0.93
    )  # the control of labels trains as long as the winner


def _describe(
    session: Session, pre: Preflight, baselines: list[dict[str, Any]], chosen: Finalist, runner: Runner,
    outcome: dict[str, Any], load: Sequence[Any], reference: Any,
) -> dict[str, Any]:  # fmt: skip
    """The report: the chosen model raced against every baseline once more, and where its time goes."""
    settings, task, bundle = session.settings, session.task, session.bundle
    race = baseline.race(session, runner, load)
    size = handover.deployed_bytes(Path(outcome["folder"]), chosen)
    batch = bundle.collate(load[: min(settings.batch, 32)])
    small = chosen.bundle.collate(load[: min(settings.batch, 32)])
    return {
        "version": __version__,
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": measure.machine(),
        "model": {
            "name": bundle.source or type(bundle.model).__name__,
            "family": pre.family,
            "parameters": bundle.parameters,
            "size_bytes": 4 * bundle.parameters,
        },
        "task": {
            "name": task.name,
            "metric": task.metric.name,
            "higher_is_better": task.metric.higher_is_better,
            "splits": pre.splits,
            "note": f"smallest loss this data can resolve: {100 * pre.resolvable:.2g} %",
        },
        "goal": settings.goal,
        "floor": settings.floor if settings.max_drop is None else None,
        "max_drop": settings.max_drop,
        "confidence": settings.confidence,
        "use_labels": settings.use_labels,
        "seed": settings.seed,
        "budget_seconds": settings.budget,
        "verdict": _verdict(session, chosen, outcome),
        "original": {
            "quality": interval_dict(interval(session.original("verify"), settings.confidence)),
            "quality_search": interval_dict(interval(reference, settings.confidence)),
        },
        "baselines": [race.fill(row, row["name"]) for row in baselines],
        "chosen": {
            "name": chosen.name,
            "quality": outcome["quality"],
            "ratio": outcome["ratio"],
            "latency_ms": race.latency_ms["chosen"],
            "throughput": race.examples / race.seconds["chosen"],
            "size_bytes": size,
            "parameters": chosen.bundle.parameters,
            "recipe": [{"step": type(s).__name__, "parameters": fields_of(s)} for s in chosen.recipe.steps],
            "deploy": fields_of(chosen.recipe.deploy),
            "speedups": dict(race.speedups),
            "speedups_of": "latency" if settings.goal == "latency" else "throughput",
        },
        "steps": handover.step_costs(session, chosen, Path(outcome["folder"]), load, runner),
        "layers": {"before": measure.profile(bundle, batch), "after": measure.profile(chosen.bundle, small)},
        "why_not_faster": measure.why_not_faster(runner, chosen.bundle, list(load), task.reduce),
    }


def _verdict(session: Session, chosen: Finalist, outcome: dict[str, Any]) -> dict[str, Any]:
    ratio, floor = outcome["ratio"], session.floor
    what = "difference" if session.settings.max_drop is not None else "of the original's quality"
    if outcome["proven"]:
        text = f"{chosen.name} keeps at least {ratio['bound']:.4g} {what} (asked: {floor:g})"
    else:
        text = (
            f"nothing reached the floor of {floor:g}: the best honest result, {chosen.name}, is only sure to keep "
            f"{ratio['bound']:.4g} {what}"
        )
    return {
        "proven": outcome["proven"],
        "ratio": ratio,
        "sentence": f"{text} at {100 * outcome['confidence']:.3g} % confidence, on data the search never saw.",
        "confidence": outcome["confidence"],
        "exit_code": 0 if outcome["proven"] else 3,
    }


def _deliver(
    session: Session,
    described: dict[str, Any],
    chosen: Finalist,
    runner: Runner,
    outcome: dict[str, Any],
) -> Result:
    """Card, recipe, reload guarantee, report; then everything into the user's folder."""
    session.progress.trying("reloading in a fresh process without lightformers")
    folder = Path(outcome["folder"])
    described["reload"] = handover.reloaded(session, chosen, folder, runner)
    described["usage"] = card.snippets(chosen.bundle, folder, session.store.out.name)
    handover.write(described, chosen, folder, session.store.out.name)
    finish.publish(session, folder)
    report.write(described, session.store.out)
    broken = [r["format"] for r in described["reload"] if not r["ok"]]
    if broken:
        raise UserError(
            f"the reload guarantee is broken for {', '.join(broken)}: see {session.store.out / 'report.html'}"
        )
    session.store.put("finished", {"proven": bool(outcome["proven"])})
    return Result(session.store.out, described, bool(outcome["proven"]))
