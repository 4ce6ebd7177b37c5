"""Near-free wins: runtime, precision, streams and batching, measured on the original."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from typing import Any

from lightformers import measure, runners
from lightformers.bundle import Example
from lightformers.errors import UserError
from lightformers.processors import Processor
from lightformers.slim.baseline import call, deployed_size
from lightformers.slim.session import Session, cores
from lightformers.steps import Deploy, fields_of

#: How much slower than the fastest is still as fast. On two shared cores with AMX the same two ways came out between 0.9
#: and 1.2 of each other from run to run, and int8 is half the size of bf16.
CLOSE = 1.25


def deploys(session: Session) -> list[Deploy]:
    """How a result may be run: precisions, batch shapes and streams that are worth measuring on this machine."""
    batch, goal = session.settings.batch, session.settings.goal
    if isinstance(session.bundle.processor, Processor):  # series and rows all have one length
        shapes: list[dict[str, Any]] = [{"batching": "sorted", "batch_size": n * batch} for n in (1, 8)]
        shapes = shapes[:1] if goal == "latency" else shapes
    elif goal == "latency":
        shapes = [{"batching": "sorted", "batch_size": batch}]
    else:
        # Batches are filled to a budget of padded tokens: short texts ride in larger batches than `batch`.
        shapes = [{"batching": "sorted", "batch_size": 8 * batch, "max_tokens": n} for n in (1024, 2048)]
    if session.runtime == "openvino":
        streams = [1] if goal == "latency" or cores() < 2 else [cores()] if session.brief else [cores(), 1]
        precisions = ["int8", "bf16"] if goal != "size" else ["int8"]
        return [
            Deploy("openvino", precision, streams=n, threads=None if n == 1 else 1, **shape)  # type: ignore[arg-type]
            for precision in precisions
            for shape in shapes
            for n in streams
        ]
    # bf16 is no gain for every model: scans and other work that is no matrix product stay float32
    shapes = shapes[-1:] if session.brief else shapes
    options = [Deploy(precision=p, **shape) for p in ("bf16", "fp32") for shape in shapes]  # type: ignore[arg-type]
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


def choose(session: Session, load: Sequence[Example]) -> Deploy:
    """Near-free wins: runtime, precision, streams, batching. Measured on the original, interleaved.

    Among those that are close to the fastest the smallest is taken, since noise decides no more between them.
    """

    def make() -> dict[str, Any]:
        options = deploys(session)
        built: dict[str, runners.Runner] = {}
        for deploy in options:
            session.progress.trying(f"runtime: {deploy}")
            built[str(deploy)] = session.runner(session.bundle, deploy)
        try:
            calls = {n: call(r, load, session.task.reduce) for n, r in built.items()}
            first_look = measure.compare(calls, rounds=2, warmup=1)
            limit = 1.5 * min(t.min for t in first_look.values())
            calls = {n: c for n, c in calls.items() if first_look[n].min <= limit}
            timings = measure.compare(calls, rounds=3, warmup=0)
        finally:
            for runner in built.values():
                runner.close()
            gc.collect()
        fastest = min(t.median for t in timings.values())
        close = [d for d in options if str(d) in timings and timings[str(d)].median <= CLOSE * fastest]
        best = min(close, key=lambda d: (deployed_size(session.bundle, d), timings[str(d)].median))
        return {"best": fields_of(best), "seconds": {n: t.median for n, t in timings.items()}}

    return Deploy(**session.store.once("deploy", make)["best"])
