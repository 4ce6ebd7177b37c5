"""Experiments that hold papers to their claims, one file per paper.

    lightformers reproduce minilm              # or, in Python:
    finding = reproduce.run("minilm", budget_seconds=300)

A file of this package named after a slug holds a docstring (command, hardware, time, expected result), a
constant CLAIM and `run(budget: float) -> Finding`. It gives its baseline the same budget, uses `seeds()`
where training is random, and says in `limits` what cannot be shown at its scale.
"""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from lightformers import papers
from lightformers.errors import DataError, UserError
from lightformers.papers.standing import checkout
from lightformers.reproduce.finding import VERDICTS, Finding, Verdict, judge, row, spread

__all__ = [
    "VERDICTS",
    "Finding",
    "Verdict",
    "available",
    "conclude",
    "data",
    "judge",
    "results",
    "row",
    "run",
    "seeds",
    "spread",
]


def available() -> list[str]:
    """Slugs whose experiment is written."""
    here = Path(__file__).parent
    return [paper.slug for paper in papers.all() if (here / f"{paper.name}.py").is_file()]


def run(slug: str, budget_seconds: float = 300) -> Finding:
    """Run the experiment of one paper. It is given `budget_seconds` and nothing is written.

    Raises UserError for an unknown slug, a paper whose experiment is not written, or a senseless budget;
    DataError if the data that the experiment needs is not there.
    """
    paper = papers.get(slug)
    if not budget_seconds > 0:
        raise UserError(f"the budget must be more than 0 seconds, not {budget_seconds}")
    if slug not in available():
        there = ", ".join(available()) or "none yet"
        raise UserError(f"the experiment of {slug!r} is not written yet. There are: {there}")
    module = importlib.import_module(paper.reproduction)
    finding = module.run(float(budget_seconds))
    if not isinstance(finding, Finding) or finding.slug != slug:
        raise TypeError(f"{paper.reproduction}.run must return a Finding of {slug!r}")
    return finding


def conclude(
    *,
    slug: str,
    claim: str,
    verdict: Verdict,
    summary: str,
    table: Sequence[Mapping[str, Any]],
    baseline: str,
    settings: Mapping[str, Any],
    limits: str,
    started: float,
    seeds: Sequence[int] = (),
    plots: Mapping[str, Any] | None = None,
) -> Finding:
    """A finding, with time, machine and versions filled in.

    started: `time.monotonic()` when the experiment began. The other arguments: see `Finding`.
    """
    from lightformers import measure

    machine = dict(measure.machine())
    versions = machine.pop("versions", {})
    return Finding(
        slug=slug,
        claim=claim,
        verdict=verdict,
        summary=summary,
        table=table,
        baseline=baseline,
        settings=settings,
        seeds=seeds,
        seconds=round(time.monotonic() - started, 1),
        machine=machine,
        versions=versions,
        limits=limits,
        created=datetime.now(timezone.utc).date().isoformat(),
        plots=plots or {},
    )


def seeds(count: int = 3) -> tuple[int, ...]:
    """The random seeds that experiments use: 0, 1, 2, ..."""
    return tuple(range(count))


def results() -> Path:
    """Where findings are kept: `results/` of the checkout, or of the working directory without one."""
    return (checkout() or Path.cwd()) / "results"


def data(name: str) -> Path:
    """The folder of a data set that experiments use.

    Looked for in $LIGHTFORMERS_DATA, else in `../shared/data` beside the checkout. Raises DataError.
    """
    given = os.environ.get("LIGHTFORMERS_DATA")
    folder = Path(given) if given else (checkout() or Path.cwd()).parent / "shared" / "data"
    if (folder / name).is_dir():
        return folder / name
    where = (
        "which LIGHTFORMERS_DATA names"
        if given
        else "beside the checkout; LIGHTFORMERS_DATA may name another place"
    )
    what = (
        f"the data set {name!r} is not in"
        if folder.is_dir()
        else f"the data set {name!r} is needed: there is no"
    )
    raise DataError(f"{what} {folder} ({where})")
