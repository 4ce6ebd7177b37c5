"""A comparison from beginning to end. Each finished row is a file that appears whole; a resumed run skips what is there."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from lightformers import __version__, measure, stats
from lightformers.bundle import Bundle
from lightformers.compare import advice, page, rows
from lightformers.compare.session import Session
from lightformers.compare.settings import Settings
from lightformers.compress.methods import METHODS, Method, named
from lightformers.errors import Interrupted, UserError, reason
from lightformers.files import read_json, write_json
from lightformers.slim.progress import Progress
from lightformers.slim.session import interval_dict

ROWS = ".compare"


@dataclass(frozen=True)
class Result:
    """What came out: the report (also `compare.json`, with `compare.html` beside it), and where it lies."""

    folder: Path
    report: dict[str, Any]


def compare(
    model: Bundle | str | Path, task: Any, *, out: str | Path = "compared", progress: Progress | None = None,
    command: str = "", restart: bool = False, dry_run: bool = False, **settings: Any,
) -> Result:  # fmt: skip
    """Try every applicable compression method on `model` at one size (or speed), with equal training for each.

    model: a bundle, a folder or a hub name. task: what good means (`lightformers.tasks`). settings: see `Settings`.
    The same call with the same `out` goes on where it was stopped. dry_run: only say what would be tried, and why not.
    Raises UserError for what the caller can mend, also where no method at all is left.
    """
    from lightformers.bundle import load

    request = Settings(**settings)
    wanted = _wanted(request)
    bundle = model if isinstance(model, Bundle) else load(model, task=task.name)
    torch.manual_seed(request.seed)
    folder = Path(out)
    session = Session(bundle, task, request, folder, progress or Progress(quiet=True))
    task.check(bundle)
    fit, closed = rows.open_methods(session)
    tried = [m for m in fit if m in wanted]
    refused = [rows.refused(m, closed[m.name]) for m in wanted if m.name in closed]
    if dry_run:
        return Result(folder, _plan(session, tried, refused))
    if not tried:
        raise UserError(
            "no method is left to try: " + "; ".join(f"{r['name']}: {r['reason']}" for r in refused)
        )
    (folder / ROWS).mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ROWS / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise UserError(f"another comparison works in {out}: wait for it, or use another --out") from error
    try:
        if restart:
            for old in (folder / ROWS).glob("*.json"):
                old.unlink()
        _claim(session)
        with session.progress:
            return _run(session, tried, refused, command)
    except KeyboardInterrupt as stop:
        raise Interrupted(f"stopped; finished rows are kept in {out}. The same command goes on") from stop
    finally:
        session.close()
        lock.release()


def _wanted(request: Settings) -> tuple[Method, ...]:
    chosen = named(request.only) if request.only else METHODS
    left_out = named(request.exclude)
    return tuple(m for m in chosen if m not in left_out)


def _plan(session: Session, tried: list[Method], refused: list[rows.Row]) -> dict[str, Any]:
    """What would be tried, and what not, with the reasons."""
    plan, closed = [], list(refused)
    for method in tried:
        try:
            ratio = session.settings.ratio if session.settings.speedup is None else rows.RATIOS[-1]
            steps = rows.steps_of(method, ratio, session)
            plan.append(rows.head(method) | {"steps": [type(s).__name__ for s in steps]})
        except UserError as error:
            closed.append(rows.refused(method, str(error)))
    return {"plan": plan, "refused": closed, "warnings": session.warnings}


def _claim(session: Session) -> None:
    """Hold the folder to one model, data, request and machine."""
    file = session.out / ROWS / "request.json"
    prints = {
        "model": measure.model_fingerprint(session.bundle.model),
        "data": session.task.fingerprint,
        "request": session.settings.fingerprint(),
        "machine": measure.machine_fingerprint(),
    }
    if file.is_file() and (old := read_json(file)) != prints:
        changed = [k for k in prints if old.get(k) != prints[k]]
        raise UserError(
            f"{session.out} holds a comparison with another {' and '.join(changed)}: use another --out, or add --restart "
            "to throw it away"
        )
    write_json(file, prints)


def _run(session: Session, tried: list[Method], refused: list[rows.Row], command: str) -> Result:
    started = time.monotonic()
    session.progress.phase("the original")
    session.prepare()
    original = _original(session)
    found: list[rows.Row] = []
    for method in tried:
        file = session.out / ROWS / f"{method.name}.json"
        if file.is_file():
            found.append(read_json(file))
            continue
        session.progress.phase(method.name)
        found.append(rows.row(session, method))
        write_json(file, page.plain(found[-1]))
        session.progress.log(advice.line(found[-1]))
    report = _report(session, original, found + refused, command, time.monotonic() - started)
    write_json(session.out / "compare.json", page.plain(report))
    page.write(report, session.out)
    return Result(session.out, report)


def _original(session: Session) -> dict[str, Any]:
    session.progress.trying("size and speed of the original")
    found = {
        "parameters": session.bundle.parameters,
        "bytes": rows.weigh(session.bundle)["bytes"],
        "quality": interval_dict(stats.interval(session.original)),
        "examples": len(session.original),
        "torch": session.alone(session.plain),
        "openvino": None,
    }
    if session.graph is not None:
        try:
            found["openvino"] = session.alone(session.graph)
        except Exception as error:
            session.warnings.append(f"no figures in OpenVINO: {reason(error)}")
    return found


def _report(
    session: Session, original: dict[str, Any], found: list[rows.Row], command: str, seconds: float
) -> dict[str, Any]:
    settings, task = session.settings, session.task
    report = {
        "version": __version__,
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": measure.machine(),
        "model": {"name": session.bundle.source or type(session.bundle.model).__name__},
        "task": {
            "name": task.name,
            "metric": task.metric.name,
            "higher_is_better": task.metric.higher_is_better,
            "splits": {name: len(examples) for name, examples in task.splits.items()},
        },
        "settings": {k: v for k, v in vars(settings).items() if k not in ("only", "exclude")},
        "deploys": {"torch": str(session.plain), "openvino": str(session.graph) if session.graph else None},
        "original": original,
        "rows": found,
        "warnings": session.warnings,
        "command": command,
        "seconds": round(seconds, 1),
    }
    return report | {"advice": advice.advice(report)}
