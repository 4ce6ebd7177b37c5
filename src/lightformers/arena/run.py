"""An arena from beginning to end. Each finished training is a file that appears whole; a resumed run skips what is there."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from lightformers import __version__, measure
from lightformers.arena import cell, mixers, page, verdict
from lightformers.arena.cell import Job
from lightformers.arena.mixers import Contender
from lightformers.arena.rows import FIRST, is_probe, row
from lightformers.arena.settings import Settings
from lightformers.errors import DataError, Interrupted, MissingExtra, UserError
from lightformers.files import read_json, write_json
from lightformers.slim.progress import Progress
from lightformers.slim.report import plain

CELLS = ".arena"
#: Mixers that are tried unless others are named: as many of these as there are.
DEFAULT = (
    "attention", "local", "longformer", "bigbird", "linformer", "performer", "linear", "reformer", "sinkhorn",
    "synthesizer", "sparse", "fourier", "linear-attention", "deltanet", "mamba", "mamba2",
)  # fmt: skip


@dataclass(frozen=True)
class Result:
    """What came out: the report (also `arena.json`, with `report.html` beside it), and where it lies."""

    folder: Path
    report: dict[str, Any]


@dataclass
class _Arena:
    """What all parts of a run share. hidden: (task, mixer) -> the match of parameters."""

    settings: Settings
    out: Path
    progress: Progress
    contenders: list[Contender]
    pairs: list[tuple[str, Contender]]
    refused: list[dict[str, str]]
    warnings: list[str] = field(default_factory=list)
    jobs: dict[str, Job] = field(default_factory=dict)

    @property
    def tasks(self) -> list[str]:
        return list(dict.fromkeys(task for task, _ in self.pairs))

    def of(self, task: str) -> list[Contender]:
        """Those that stand in a task, the baseline first."""
        return [who for t, who in self.pairs if t == task]

    def file(self, *names: object) -> Path:
        return self.out / CELLS / f"{'.'.join(re.sub(r'[^A-Za-z0-9=_-]', '_', str(n)) for n in names)}.json"

    def told(self, event: dict[str, Any]) -> None:
        """How a training goes."""
        self.progress.training(**event)

    def seeds(self) -> range:
        return range(self.settings.seed, self.settings.seed + self.settings.seeds)

    def refuse(self, task: str, who: Sequence[Contender], reason: str) -> None:
        """Take these out of a task, with the reason."""
        self.refused += [{"task": task, "mixer": w.name, "reason": reason} for w in who]
        self.pairs = [(t, w) for t, w in self.pairs if t != task or w not in who]


def arena(
    tasks: Sequence[str] = (), contenders: Sequence[str] = (), *, out: str | Path = "arena",
    progress: Progress | None = None, command: str = "", restart: bool = False, dry_run: bool = False, **settings: Any,
) -> Result:  # fmt: skip
    """Train every mixer on every task, and measure speed and memory beside plain attention.

    tasks: names (`arena.rows.tasks()`); none: the five of Long Range Arena. contenders: kinds of `parts.mixers.table`,
    with options as "performer:features=64"; none: those of `DEFAULT` that there are. settings: see `Settings`.
    The same call with the same `out` goes on where it was stopped. dry_run: only say what would be tried, and why not.
    Raises UserError for what the caller can mend, also where nothing is left to try.
    """
    request = Settings(**settings)
    session = _plan(request, tasks, contenders, Path(out), progress or Progress(quiet=True))
    cells = len(session.pairs) * request.seeds
    share = request.share(cells)
    if dry_run:
        plan = [{"task": t, "mixer": w.name} for t, w in session.pairs]
        found = {"plan": plan, "refused": session.refused, "warnings": session.warnings, "seconds": share}
        return Result(session.out, found)
    (session.out / CELLS).mkdir(parents=True, exist_ok=True)
    lock = FileLock(session.out / CELLS / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise UserError(f"another arena works in {out}: wait for it, or use another --out") from error
    try:
        if restart:
            for old in (session.out / CELLS).glob("*.json"):
                old.unlink()
        _claim(session)
        with session.progress:
            return _run(session, share, command)
    except KeyboardInterrupt as stop:
        raise Interrupted(
            f"stopped; finished trainings are kept in {out}. The same command goes on"
        ) from stop
    finally:
        lock.release()


def _plan(
    settings: Settings, tasks: Sequence[str], names: Sequence[str], out: Path, progress: Progress
) -> _Arena:
    """Who is tried on what; what cannot be is refused with the reason."""
    chosen = list(dict.fromkeys(tasks or FIRST))
    for task in chosen:
        row(task, settings.scale)
    if unknown := sorted(set(settings.data) - set(chosen)):
        raise UserError(f"--data is given for {', '.join(unknown)}, which is not among the tasks {', '.join(chosen)}")  # fmt: skip
    found = [mixers.contender(name) for name in dict.fromkeys(names or [d for d in DEFAULT if d in mixers.MIXERS])]  # fmt: skip
    probes = [task for task in chosen if is_probe(task)]
    # the first is what speeds are told by: plain attention, else one that stands in every task
    found.sort(key=lambda who: (who.name != mixers.BASELINE, bool(probes) and not mixers.runs_on(who.kind)))
    session = _Arena(settings, out, progress, found, [(t, w) for t in chosen for w in found], [])
    both = [who for who in found if not mixers.runs_on(who.kind)]
    for task in probes:
        session.refuse(task, both, "it looks both ways, and this task asks a decoder")
    if not names:  # nobody asked for them there
        session.refused.clear()
    back = [who.name for who in found if mixers.looks_back(who.kind)]
    if back and len(probes) < len(chosen):
        session.warnings.append(
            f"{', '.join(back)} read{'s' if len(back) == 1 else ''} from left to right alone, in encoders too; the mean over "
            "all tokens is classified"
        )
    _left(session)
    return session


def _left(session: _Arena) -> None:
    if not session.pairs:
        reasons = dict.fromkeys(f"{r['mixer']} on {r['task']}: {r['reason']}" for r in session.refused)
        raise UserError("no mixer is left to try: " + "; ".join(reasons))


def _claim(session: _Arena) -> None:
    """Hold the folder to one request and machine."""
    file = session.file("request")
    prints = {"request": session.settings.fingerprint(), "machine": measure.machine_fingerprint()}
    for task, source in session.settings.data.items():
        if Path(source).is_file():
            prints[f"data of {task}"] = (
                f"{Path(source).stat().st_size} bytes of {Path(source).stat().st_mtime_ns}"
            )
    if session.settings.budget is not None:  # what a training gets depends on how many there are
        prints["cells"] = f"{len(session.pairs) * session.settings.seeds}"
    if file.is_file() and (old := read_json(file)) != prints:
        changed = [k for k in prints if old.get(k) != prints[k]]
        raise UserError(
            f"{session.out} holds an arena with another {' and '.join(changed)}: use another --out, or add --restart to throw "
            "it away"
        )
    write_json(file, prints)


def _run(session: _Arena, share: float | None, command: str) -> Result:
    started = time.monotonic()
    session.progress.phase("data and models")
    about = _prepare(session)
    _left(session)
    for line in (f"not {r['mixer']} on {r['task']}: {r['reason']}" for r in session.refused):
        session.progress.log(line)
    found = []
    for task in session.tasks:
        session.progress.phase(task)
        for who in session.of(task):
            found += _trained(session, task, who, share, about[task]["sizes"][who.name]["width"])
        about[task]["speeds"] = _speeds(session, task, about[task]["sizes"])
    report = _report(session, about, found, command, time.monotonic() - started)
    write_json(session.out / "arena.json", report)
    page.write(report, session.out)
    return Result(session.out, report)


def _prepare(session: _Arena) -> dict[str, dict[str, Any]]:
    """Data of every task, and the width and parameters of every model; what does not fit is refused before anything is
    trained. Kept in a file, so that a finished task needs no data again."""
    about: dict[str, dict[str, Any]] = {}
    for task in session.tasks:
        file = session.file("task", task)
        known = read_json(file) if file.is_file() else {"sizes": {}}
        missing = [who for who in session.of(task) if who.name not in known["sizes"]]
        if missing or not _complete(session, task):
            session.progress.trying(f"data of {task}")
            try:
                job = Job.of(task, session.settings)
            except (DataError, MissingExtra) as error:
                if task in session.settings.data:  # the user's own: to be mended, not passed over
                    raise
                session.refuse(task, session.of(task), str(error))
                continue
            session.jobs[task] = job
            known |= job.facts()
            for who in missing:
                session.progress.trying(f"{who.name} on {task}")
                try:
                    known["sizes"][who.name] = vars(job.size(who))
                except UserError as error:
                    session.refuse(task, [who], str(error))
            write_json(file, plain(known))
        about[task] = known
    return {task: about[task] for task in session.tasks}


def _complete(session: _Arena, task: str) -> bool:
    cells = (session.file("cell", task, who.name, seed) for who in session.of(task) for seed in session.seeds())  # fmt: skip
    return session.file("speed", task).is_file() and all(file.is_file() for file in cells)


def _trained(
    session: _Arena, task: str, who: Contender, share: float | None, hidden: int
) -> list[dict[str, Any]]:
    found = []
    for seed in session.seeds():
        file = session.file("cell", task, who.name, seed)
        if file.is_file():
            found.append(read_json(file))
            continue
        session.progress.trying(f"{who.name} on {task}, seed {seed}")
        found.append(plain(cell.attempt(session.jobs[task], who, hidden, seed, share, session.told)))
        write_json(file, found[-1])
        session.progress.log(verdict.line(found[-1]))
    return found


def _speeds(session: _Arena, task: str, sizes: dict[str, Any]) -> dict[str, Any]:
    """Of all mixers of a task in turn; measured anew where other mixers join."""
    file, names = session.file("speed", task), [who.name for who in session.of(task)]
    if file.is_file() and (old := read_json(file))["mixers"] == names:
        return dict(old["speeds"])
    if task not in session.jobs:
        session.jobs[task] = Job.of(task, session.settings)
    session.progress.trying("speed and memory, in turn")
    hidden = {who: int(sizes[who.name]["width"]) for who in session.of(task)}
    found = plain(session.jobs[task].speeds(hidden))
    write_json(file, {"mixers": names, "speeds": found})
    return dict(found)


def _report(
    session: _Arena, about: dict[str, dict[str, Any]], trainings: list[dict[str, Any]], command: str, seconds: float
) -> dict[str, Any]:  # fmt: skip
    settings = session.settings
    stood = [who for who in session.contenders if any(who is other for _, other in session.pairs)]
    rows = []
    for task, who in session.pairs:
        own = [t for t in trainings if t["task"] == task and t["mixer"] == who.name]
        rows.append(verdict.joined(task, who.name, own, about[task]))
    report = {
        "version": __version__,
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": measure.machine(),
        "settings": vars(settings),
        "tasks": [{k: v for k, v in about[task].items() if k not in ("sizes", "speeds")} for task in session.tasks],
        "mixers": [{"name": w.name, "kind": w.kind, "runs_on": mixers.runs_on(w.kind)} for w in stood],
        "baseline": stood[0].name,
        "rows": rows,
        "refused": session.refused,
        "warnings": session.warnings,
        "command": command,
        "seconds": round(seconds, 1),
    }  # fmt: skip
    report["scores"] = verdict.scores(report)
    return plain(report | {"advice": verdict.advice(report)})  # type: ignore[no-any-return]
