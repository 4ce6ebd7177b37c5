"""What a careful user gets without us: every honest baseline, on this machine, interleaved."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightformers import measure, runners
from lightformers.bundle import Bundle, Example
from lightformers.slim.session import Session, installed, interval_dict, limited, runtime
from lightformers.stats import interval
from lightformers.steps import Deploy

EAGER = "eager fp32, arrival order"
ENCODE = "SentenceTransformer.encode"
INT8 = "OpenVINO + NNCF int8, sorted"
LATENCY_EXAMPLES = 12
QUALITY_EXAMPLES = 400


def deploys(batch: int) -> dict[str, Deploy]:
    """Name -> how a careful user would run the model unchanged. OpenVINO's default is bf16 where the CPU has it."""
    names = {
        EAGER: Deploy(batching="padded", batch_size=batch),
        "eager fp32, sorted": Deploy(batching="sorted", batch_size=batch),
        "bf16, sorted": Deploy(precision="bf16", batching="sorted", batch_size=batch),
    }
    if runtime() == "openvino":
        default = "bf16" if measure.machine()["isa"].get("avx512_bf16") else "fp32"
        names["OpenVINO default, sorted"] = Deploy("openvino", default, "sorted", batch)  # type: ignore[arg-type]
        names[INT8] = Deploy("openvino", "int8", "sorted", batch)
    return names


def honest(names: list[str]) -> str:
    """The baseline that counts: what a careful user already has."""
    return next(n for n in (INT8, "bf16, sorted", EAGER) if n in names)


def run(session: Session, rate: float) -> list[dict[str, Any]]:
    """Rows of `report["baselines"]`. rate: examples per second of eager fp32, which bounds the workload."""
    settings, task = session.settings, session.task
    load = workload(session, rate)
    built: dict[str, runners.Runner] = {}
    for name, deploy in deploys(settings.batch).items():
        session.progress.trying(f"baseline: {name}")
        built[name] = runners.build(session.bundle, deploy, session.calibration(deploy.calibration))
    calls: dict[str, Callable[[], Any]] = {n: _call(r, load, task.reduce) for n, r in built.items()}
    if encode := encoder(session.bundle):
        calls[ENCODE] = lambda: encode([e["text"] for e in load], settings.batch)
    session.progress.trying("baselines, interleaved")
    timings = measure.compare(calls, rounds=3, warmup=1)
    latencies = {n: measure.latency(r, load[:LATENCY_EXAMPLES], task.reduce) for n, r in built.items()}
    rows = []
    for name, timing in timings.items():
        deploy = getattr(built.get(name), "deploy", None)
        row: dict[str, Any] = {
            "name": name,
            "throughput": len(load) / timing.median,
            "latency_ms": 1000 * latencies[name].median if name in latencies else None,
            "size_bytes": deployed_size(session.bundle, deploy),
            "deploy": str(deploy) if deploy else None,
            "quality": None,
            "ratio": None,
        }
        if deploy and deploy.precision != "fp32":
            session.progress.trying(f"quality of {name}")
            scores = task.evaluate(built[name], "search", limited(task, "search", QUALITY_EXAMPLES))
            row["quality"] = interval_dict(interval(scores, settings.confidence))
            row["ratio"] = interval_dict(session.compare(scores, "search"))
        rows.append(row)
    for runner in built.values():
        runner.close()
    gc.collect()
    return rows


def workload(session: Session, rate: float) -> list[Example]:
    """Examples in arrival order that eager fp32 passes through in about six seconds: 2 to 16 batches."""
    batch = session.settings.batch
    batches = int(min(16, max(2, rate * 6 / batch)))
    return session.task.workload(
        batch * batches, seed=session.settings.seed, lengths=session.settings.lengths
    )


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
    """Bytes of the weights as deployed, from the parameter count: what a folder will hold to within a percent."""
    width = {"fp32": 4, "bf16": 4, "int8": 1, "int8-weights": 1}[deploy.precision if deploy else "fp32"]
    return bundle.parameters * width


def _call(runner: runners.Runner, load: list[Example], reduce: Any) -> Callable[[], Any]:
    return lambda: runner(load, reduce)
