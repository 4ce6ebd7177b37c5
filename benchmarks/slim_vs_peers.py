"""Slim's result beside what a careful user gets without it: one interleaved run on this machine.

    python benchmarks/slim_vs_peers.py --task retrieval            # the embedded default, label-free, floor 0.97
    python benchmarks/slim_vs_peers.py --task retrieval --labels   # floor 0.99, control shown
    python benchmarks/slim_vs_peers.py --task sst2                 # a MiniLM classifier, trained first
    python benchmarks/slim_vs_peers.py --task retrieval --slim demo --out benchmarks/results/demo.json

On two idle cores: slim's own budget, then about fifteen minutes. See README.md beside this file.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import functools
import gc
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import peers_page
import train_sst2
from peers_page import ENCODE, SLIM

from lightformers import measure, reproduce, runners, stats, tasks
from lightformers.bundle import Bundle, Example, load
from lightformers.cli import demo
from lightformers.errors import UserError
from lightformers.files import read_json, write_json, write_text
from lightformers.loading import packaged_model
from lightformers.runners import onnx_runner
from lightformers.slim import baseline
from lightformers.steps import Deploy
from lightformers.telemetry import quiet

CALIBRATION = 128  # examples that the peers' int8 is fitted to: more than slim takes, in their favour
BATCH = 32
PEERS = {
    "eager fp32": Deploy(batch_size=BATCH),
    "bf16": Deploy(precision="bf16", batch_size=BATCH),
    "torch dynamic int8": Deploy(precision="int8", batch_size=BATCH),
    "ONNX Runtime dynamic int8": Deploy("onnxruntime", "int8", batch_size=BATCH),
    "OpenVINO default": Deploy(
        "openvino", "bf16", batch_size=BATCH, narrow=False
    ),  # bf16 where the CPU has it, else fp32
    "OpenVINO + NNCF int8": Deploy(
        "openvino", "int8", batch_size=BATCH, calibration=CALIBRATION, narrow=False
    ),
}
ORDERS = {"arrival order": "padded", "sorted": "sorted"}
AS_SLIM = "the original, run as slim's result is"
SLIM_ENCODE = "slim's Hugging Face folder, SentenceTransformer.encode"
EXACT = Deploy("openvino", "fp32", "sorted", 64, 4096)
CLI = [sys.executable, "-c", "from lightformers.cli import main; main()"]
say = functools.partial(print, flush=True)


@dataclasses.dataclass
class Entry:
    """One way to run a model. run: (examples, reduce) -> items. size: bytes of weights and graph. scored: the entry
    whose quality this is (arrival order shares it with sorted). full: scored on the whole verify split."""

    name: str
    run: Callable[[Sequence[Example], Any], list[Any]]
    size: int
    scored: str
    full: bool = False
    error: str | None = None

    def __call__(self, examples: Sequence[Example], reduce: Any) -> list[Any]:
        return self.run(examples, reduce)


def build(bundle: Bundle, deploy: Deploy, task: Any) -> tuple[Any, int]:
    """A runner of the unchanged model, and what its weights and graph take on disk, written out and weighed."""
    examples = task.calibration(deploy.calibration)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        runner: Any
        if deploy.runtime == "onnxruntime":
            path = onnx_runner.quantize(onnx_runner.convert(bundle, place / "model.onnx", examples))
            return onnx_runner.OnnxRunner(path, bundle, deploy), path.stat().st_size
        runner = runners.build(bundle, deploy, examples)
        if deploy.runtime == "openvino":
            import openvino

            openvino.save_model(runner.model, str(place / "model.xml"))
        else:
            import torch

            torch.save(runner.module.state_dict(), place / "model.pt")
        return runner, weigh(place, "*")


def weigh(folder: Path, *patterns: str) -> int:
    return sum(f.stat().st_size for p in patterns for f in folder.glob(p) if f.is_file())


def peers(bundle: Bundle, task: Any, extra: Deploy) -> list[Entry]:
    """Every peer in both orders (one compiled model each), and the original with all of slim's near-free wins."""
    entries = []
    for name, deploy in {**PEERS, AS_SLIM: extra}.items():
        say(f"building {name}")
        orders = {"": extra.batching} if name == AS_SLIM else {f", {k}": v for k, v in ORDERS.items()}
        try:
            runner, size = build(bundle, deploy, task)
            runner(task.calibration(2), task.reduce)
        except Exception as error:  # what this machine or version can't run is said, and the race goes on
            reason = re.sub(r"(/[^/\s]+)+/", "", f"{type(error).__name__}: {error}".splitlines()[0])[:200]
            say(f"  left out: {reason}")
            entries.append(Entry(name, lambda *_: [], 0, name, error=reason))
            continue
        for order, batching in orders.items():
            scored = f"{name}, sorted" if order else name
            entries.append(Entry(name + order, reordered(runner, batching), size, scored))
    return entries + encoders(bundle, ENCODE)


def reordered(runner: Any, batching: Any) -> Any:
    """The same compiled model, its batches made in another order."""
    other = copy.copy(runner)
    other.deploy = dataclasses.replace(runner.deploy, batching=batching)
    return other


def encoders(bundle: Bundle, name: str) -> list[Entry]:
    encode = baseline.encoder(bundle)
    if encode is None or bundle.source is None:
        return []
    with quiet():
        encode(["warm"], BATCH)
    size = weigh(Path(bundle.source), "*.safetensors")
    return [Entry(name, lambda examples, _: list(encode([e["text"] for e in examples], BATCH)), size, name)]


def delivered(folder: Path, task: Any) -> tuple[list[Entry], Deploy]:
    """What slim wrote, opened as a user would open it, run as `deploy.json` (else `report.json`) says."""
    bundle = load(folder, task=task.name)
    record = folder / "openvino" / "deploy.json"
    held = read_json(record) if record.is_file() else read_json(folder / "report.json")["chosen"]["deploy"]
    deploy = Deploy(**{f.name: held[f.name] for f in dataclasses.fields(Deploy) if f.name in held})
    if deploy.runtime == "openvino":
        runner = runners.openvino_folder(folder / "openvino", bundle, deploy)
        size = weigh(folder / "openvino", "*.xml", "*.bin")
    else:
        runner, size = runners.build(bundle, deploy), weigh(folder, "*.safetensors")
    return [Entry(SLIM, runner, size, SLIM, full=True), *encoders(bundle, SLIM_ENCODE)], deploy


def race(bundle: Bundle, task: Any, folder: Path, examples: int, rounds: int, limit: int) -> dict[str, Any]:
    """All entries over one workload, interleaved; then the quality of each, paired with the original's."""
    task.check(bundle)
    mine, deploy = delivered(folder, task)
    entries = mine + peers(bundle, task, deploy)
    rivals = [e for e in entries if e.error is None]
    load_ = task.workload(examples, seed=1)  # seed 0 is what slim chose its batches on
    started = time.monotonic()
    for entry in rivals:
        entry(load_, task.reduce)
    took = time.monotonic() - started
    say(f"timing {len(rivals)} ways x {rounds} rounds: about {rounds * took / 60:.1f} min")
    calls = {e.name: (lambda e=e: e(load_, task.reduce)) for e in rivals}
    timings = measure.compare(calls, rounds=rounds, warmup=0)  # the pass above was the warm-up
    quality = qualities(bundle, task, rivals, limit)
    rows = [row(e, timings, mine[0].size, quality.get(e.scored), examples) for e in entries]
    facts = {"deploy": str(deploy), "examples": examples, "rounds": rounds}
    return {"rows": rows, "original": quality["original"], **facts}


def row(entry: Entry, timings: dict[str, Any], size: int, quality: Any, examples: int) -> dict[str, Any]:
    """What the JSON holds of one entry. size: slim's. quality: as `qualities` gives it."""
    if entry.error is not None:
        return {"name": entry.name, "error": entry.error}
    timing = timings[entry.name]
    return {
        "name": entry.name,
        "error": None,
        "throughput": examples / timing.median,
        "seconds": list(timing.seconds),
        "slim_faster": vars(measure.paired(timing, timings[SLIM])),
        "size_bytes": entry.size,
        "slim_smaller": entry.size / size,
        **quality,
    }


def qualities(bundle: Bundle, task: Any, entries: Sequence[Entry], limit: int) -> dict[str, dict[str, Any]]:
    """Name -> quality with interval and paired ratio to the original with one-sided bound, on the verify split."""
    total = len(task.splits["verify"])
    most = limit if limit < total else None  # the candidates of a pool are limited with it: score both so
    exact = runners.build(bundle, EXACT)
    say(f"quality of the original on all {total} verification examples")
    whole = task.evaluate(exact, "verify")
    part = task.evaluate(exact, "verify", most) if most else whole
    out = {"original": {"quality": vars(stats.interval(whole)), "quality_examples": len(whole)}}
    by_name = {e.name: e for e in entries}
    for name in dict.fromkeys(e.scored for e in entries):
        full = by_name[name].full
        old = whole if full else part
        say(f"quality of {name} on {len(old)}")
        scores = task.evaluate(by_name[name], "verify", None if full else most)
        out[name] = {"quality": vars(stats.interval(scores)), "ratio": vars(stats.ratio(scores, old))}
        out[name]["quality_examples"] = len(scores)
    exact.close()
    return out


def subject(name: str) -> tuple[Bundle, Any, list[str]]:
    """The model, the task, and the command that slims them."""
    if name == "retrieval":
        task = tasks.python_docs.default(
            search=demo.SEARCH, verify=demo.VERIFY
        )  # the pairs that the demo uses
        return load(packaged_model()), task, ["demo"]
    folder = train_sst2.ready(train_sst2.FOLDER, say)
    bundle = load(folder, task="text-classification")
    data = str(reproduce.data("sst2"))
    options = f"slim {folder} --task {bundle.task} --text text --label label --data".split()
    return bundle, train_sst2.sst2(bundle), [*options, data]


def slimmed(name: str, command: list[str], given: argparse.Namespace) -> Path:
    """The folder given, or one that the command line makes now (or made before with the same request)."""
    folder = given.slim or Path("out") / f"slim-{name}{'-labels' * given.labels}-{given.budget}s"
    if not given.slim and not (folder / "report.json").is_file():
        floor = str(given.floor or (0.99 if given.labels else 0.97))
        run = [*CLI, *command, "--floor", floor, "--budget", f"{given.budget}s", "--out", str(folder)]
        say(f"lightformers {' '.join(run[len(CLI) :])}")
        code = subprocess.run(run + ["--use-labels"] * given.labels, check=False).returncode
        if code not in (0, 3):
            raise UserError(f"slim ended with status {code}; the same command goes on from where it stopped")
    return finished(folder)


def finished(folder: Path) -> Path:
    if not (folder / "report.json").is_file():
        raise UserError(f"{folder} holds no finished result of slim (no report.json)")
    return folder


def benchmark(name: str, given: argparse.Namespace) -> None:
    """One task from model to saved page."""
    if given.slim:
        finished(given.slim)  # said before a classifier is trained
    bundle, task, command = subject(name)
    folder = slimmed(name, command, given)
    report = read_json(folder / "report.json")
    made = (report["task"]["name"], report["task"]["splits"]["verify"])
    if made != (task.name, len(task.splits["verify"])):
        raise UserError(
            f"{folder} was made for {made[0]} with {made[1]} verification examples; this is {task.name} with "
            f"{len(task.splits['verify'])}: its search may have seen them. Slim anew"
        )
    found = race(bundle, task, folder, given.examples, given.rounds, given.quality)
    slim = {k: report[k] for k in ("use_labels", "floor", "seconds", "budget_seconds", "control", "verdict")}
    slim["recipe"] = [step["step"] for step in report["chosen"]["recipe"]]
    created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    result = {"task": name, "created": created, "machine": measure.machine(), "slim": slim, **found}
    result["targets"] = peers_page.targets(found["rows"], slim) if name == "retrieval" else []
    result["settings"] = {"batch": BATCH, "calibration": CALIBRATION, "verify": made[1]}
    out = given.out or Path(__file__).parent / "results" / f"{name}{'-labels' * slim['use_labels']}.json"
    if given.out and given.task == "all":
        out = given.out.with_stem(f"{given.out.stem}-{name}")
    write_json(out, result)
    write_text(out.with_suffix(".md"), peers_page.markdown(result))
    peers_page.show(result)
    say(f"saved: {out} and {out.with_suffix('.md').name}")


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", choices=("retrieval", "sst2", "all"), default="all")
    parser.add_argument("--slim", type=Path, help="a finished result of slim; made where not given")
    parser.add_argument("--labels", action="store_true", help="slim with --use-labels, at a floor of 0.99")
    parser.add_argument("--floor", type=float, help="of slim; default 0.97, with labels 0.99")
    parser.add_argument("--budget", type=int, default=540, help="seconds of slim")
    parser.add_argument("--examples", type=int, default=512, help="texts that are timed")
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds")
    parser.add_argument("--quality", type=int, default=2000, help="examples that peers are scored on")
    parser.add_argument("--out", type=Path, help="JSON, the page beside it; default results/TASK.json here")
    given = parser.parse_args(arguments)
    if given.slim and given.task == "all":
        parser.error("--slim holds the result of one task: say which with --task")
    if min(given.examples, given.rounds, given.quality) < 1:
        parser.error("--examples, --rounds and --quality start at 1")
    return given


def main() -> None:
    given = parse()
    for name in ("retrieval", "sst2") if given.task == "all" else (given.task,):
        benchmark(name, given)
        gc.collect()


if __name__ == "__main__":
    sys.exit(train_sst2.guarded(main))
