"""What a careful user gets without us: every honest baseline, scored first, timed in one interleaved race at the end."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from lightformers import measure, memory, runners
from lightformers.bundle import Bundle, Example
from lightformers.slim.session import Session, installed, interval_dict, limited
from lightformers.stats import Interval, interval
from lightformers.steps import Deploy

EAGER = "eager fp32, arrival order"
ENCODE = "SentenceTransformer.encode"
INT8 = "OpenVINO + NNCF int8, sorted"
LATENCY_EXAMPLES, FEW_ALONE = 24, 8
QUALITY_EXAMPLES, FEW = 400, 200
#: Seconds of eager fp32 over the race's examples: OpenVINO needs a fifth of that, torch may need all of it.
PASS = {"openvino": 5.0, "torch": 1.5}
QUICK = 3.0  # what takes less than this many times the delivered model's time is raced in more rounds


@dataclass(frozen=True)
class Race:
    """What one interleaved run of everybody found: seconds of a pass over `examples`, how many times faster the
    delivered model ("chosen") is than each, paired (of single examples where latency is the goal), and milliseconds of
    one example alone."""

    examples: int
    seconds: Mapping[str, float]
    speedups: Mapping[str, dict[str, float]]
    latency_ms: Mapping[str, float]

    def fill(self, row: dict[str, Any], name: str) -> dict[str, Any]:
        """`row` with the times of `name`."""
        return row | {
            "throughput": self.examples / self.seconds[name],
            "latency_ms": self.latency_ms.get(name),
        }


def deploys(session: Session) -> dict[str, Deploy]:
    """Name -> how a careful user would run the model unchanged. OpenVINO's default is bf16 where the CPU has it."""
    batch = session.settings.batch
    names = {
        EAGER: Deploy(batching="padded", batch_size=batch),
        "eager fp32, sorted": Deploy(batching="sorted", batch_size=batch),
        "bf16, sorted": Deploy(precision="bf16", batching="sorted", batch_size=batch),
    }
    if session.runtime == "openvino":
        default = "bf16" if measure.machine()["isa"].get("avx512_bf16") else "fp32"
        as_converted: dict[str, Any] = {"batching": "sorted", "batch_size": batch, "narrow": False}
        names["OpenVINO default, sorted"] = Deploy("openvino", default, **as_converted)  # type: ignore[arg-type]
        names[INT8] = Deploy("openvino", "int8", **as_converted)
    return names


def quality(session: Session) -> list[dict[str, Any]]:
    """Rows of `report["baselines"]` without times. What computes in full precision is the original itself."""
    rows: list[dict[str, Any]] = []
    for name, deploy in deploys(session).items():
        row = {"name": name, "deploy": str(deploy), "size_bytes": deployed_size(session.bundle, deploy)}
        row |= {"quality": None, "ratio": None}
        if deploy.precision != "fp32":
            session.progress.trying(f"quality of {name}")
            limit = limited(session.task, "search", FEW if session.brief else QUALITY_EXAMPLES)
            scores = session.score(session.bundle, deploy, "search", f"baseline-{len(rows)}", limit)
            row["quality"] = interval_dict(interval(scores, session.settings.confidence))
            row["ratio"] = interval_dict(session.compare(scores, "search"))
        rows.append(row)
    if encoder(session.bundle):
        size = deployed_size(session.bundle, None)
        rows.append({"name": ENCODE, "deploy": None, "size_bytes": size, "quality": None, "ratio": None})
    return rows


def race(
    session: Session, chosen: runners.Runner, load: Sequence[Example], rounds: int = 2, quick_rounds: int = 6
) -> Race:
    """All baselines and the delivered model, interleaved.

    What is not far slower than the delivered model is timed again in more rounds, still interleaved, because its
    ratios are the ones that matter.
    """
    memory.release()
    built: dict[str, runners.Runner] = {}
    for name, deploy in deploys(session).items():
        session.progress.trying(f"racing: {name}")
        built[name] = session.runner(session.bundle, deploy)
    built["chosen"] = chosen
    calls: dict[str, Callable[[], Any]] = {n: call(r, load, session.task.reduce) for n, r in built.items()}
    if encode := encoder(session.bundle):
        calls[ENCODE] = lambda: encode([e["text"] for e in load], session.settings.batch)
    try:
        session.progress.trying("the delivered model against every baseline, interleaved")
        for one in built.values():  # compiled graphs warm up for every shape; eager ones need a glimpse
            one(list(load) if one.deploy.runtime != "torch" else list(load[:8]), session.task.reduce)
        timings = measure.compare(calls, rounds=rounds, warmup=0)
        speedups = {n: measure.paired(t, timings["chosen"]) for n, t in timings.items() if n != "chosen"}
        quick = {n: c for n, c in calls.items() if timings[n].median < QUICK * timings["chosen"].median}
        session.progress.trying("the quick ones again, in more rounds")
        again = measure.compare(quick, rounds=quick_rounds, warmup=0)
        speedups |= {n: measure.paired(t, again["chosen"]) for n, t in again.items() if n != "chosen"}
        session.progress.trying("one example at a time")
        built["alone"] = _one_stream(chosen)
        singles: dict[str, Callable[[Example], object]] = {
            n: partial(_alone, built["alone"] if r is chosen else r, session.task.reduce)
            for n, r in built.items()
            if n != "alone"
        }
        if encode:
            singles[ENCODE] = lambda e: encode([e["text"]], 1)
        brief = session.brief and session.settings.goal != "latency"
        alone = measure.latencies(singles, list(load)[: FEW_ALONE if brief else LATENCY_EXAMPLES])
        if session.settings.goal == "latency":
            speedups = {n: measure.paired(t, alone["chosen"]) for n, t in alone.items() if n != "chosen"}
    finally:
        for runner in built.values():
            if runner is not chosen:
                runner.close()
        gc.collect()
    seconds = {n: t.median for n, t in (timings | again).items()}
    latencies = {n: 1000 * t.median for n, t in alone.items()}
    return Race(len(load), seconds, {n: _speedup(v) for n, v in speedups.items()}, latencies)


def _one_stream(runner: runners.Runner) -> runners.Runner:
    """The same graph on all cores at once, as single examples are best run; `runner` itself if that is what it does."""
    if runner.deploy.runtime != "openvino" or runner.deploy.streams == 1:
        return runner
    from lightformers.runners.openvino_runner import OpenVINORunner

    assert isinstance(runner, OpenVINORunner)
    return OpenVINORunner(runner.model, runner.bundle, replace(runner.deploy, streams=1, threads=None))


def _alone(runner: runners.Runner, reduce: Any, example: Example) -> object:
    return runner([example], reduce)


def _speedup(value: Interval) -> dict[str, float]:
    return {"ratio": value.estimate, "low": value.low, "high": value.high}


def workload(session: Session, seconds_per_batch: float) -> list[Example]:
    """Examples in arrival order: 2 to 16 batches, as many as eager fp32 passes in about `PASS` seconds."""
    batches = int(min(16, max(2, PASS[session.runtime] / seconds_per_batch)))
    settings = session.settings
    return session.task.workload(settings.batch * batches, seed=settings.seed, lengths=settings.lengths)


def encoder(bundle: Bundle) -> Callable[[list[str], int], Any] | None:
    """`SentenceTransformer.encode` of the folder the bundle came from, or None where it does not apply."""
    if bundle.pooling is None or not installed("sentence_transformers") or bundle.source is None:
        return None
    if not (Path(bundle.source) / "modules.json").is_file():
        return None
    from sentence_transformers import SentenceTransformer

    from lightformers.telemetry import quiet

    with quiet():
        model = SentenceTransformer(bundle.source, device="cpu")
    return lambda texts, batch: model.encode(texts, batch_size=batch, show_progress_bar=False)


def deployed_size(bundle: Bundle, deploy: Deploy | None) -> int:
    """Bytes of the weights as deployed: what a folder will hold to within a percent. Torch keeps what the model holds,
    other runtimes a number of bytes for each parameter."""
    if deploy and deploy.runtime == "torch" and deploy.precision != "int8":
        held = {id(t): t for t in bundle.model.state_dict(keep_vars=True).values() if isinstance(t, Tensor)}
        return sum(t.numel() * t.element_size() for t in held.values())
    halves = deploy is not None and deploy.runtime == "openvino"
    width = {"fp32": 4, "bf16": 2 if halves else 4, "int8": 1, "int8-weights": 1}
    return bundle.parameters * width[deploy.precision if deploy else "fp32"]


def call(runner: runners.Runner, load: Sequence[Example], reduce: Any) -> Callable[[], Any]:
    """One pass of a runner over a load, tokenization included."""
    return lambda: runner(list(load), reduce)
