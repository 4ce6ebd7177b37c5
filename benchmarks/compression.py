"""The targets of compression: against OpenVINO + NNCF int8 with the same batches, and what calibration holds in memory.

    python benchmarks/compression.py                     # everything: a few hours on two idle cores
    python benchmarks/compression.py --rows sst2 base    # an SST-2 classifier at 0.99, its recipe on a BERT-base shape
    python benchmarks/compression.py --rows memory       # peak memory, each method in a process of its own

Rows:
    sst2       the SST-2 classifier, slimmed with labels at a floor of 0.99, a cascade allowed: at least 2 times as fast
    retrieval  the embedded default without labels, given an hour, at a floor of 0.99: at least 1.6 times
    retrieval97  the same at a floor of 0.97: at least 2 times
    base       the recipe that `sst2` found, on a BERT-base shape of random weights (speed only): at least 2 times
    memory     calibration and pruning of a BERT of 110 M parameters: below 3 N plus one layer's statistics

The rival is the unchanged model, quantized by NNCF (SmoothQuant, 128 examples of the task), in the very batches, streams
and threads in which slim's result runs. Results go to `results/compression.json` and the page beside it; a row that is
run again takes the place of the old one.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import memory_claim
import numpy as np
import slim_vs_peers
from slim_vs_peers import CALIBRATION, say
from training import guarded

from lightformers import anatomy, measure, runners
from lightformers.bundle import Bundle, Example, load
from lightformers.errors import UserError
from lightformers.files import read_json, write_json, write_text
from lightformers.models.cascade import CascadeModel
from lightformers.slim.cascading import Watched
from lightformers.steps import Deploy, Recipe, Run, Stage, Step

OUT = Path(__file__).parent / "results" / "compression.json"
ROWS = ("sst2", "retrieval", "retrieval97", "base", "memory")
#: row -> task of `slim_vs_peers`, labels, floor, seconds of slim, times as fast as the rival, more options of slim.
PROVEN: dict[str, tuple[str, bool, float, int, float, tuple[str, ...]]] = {
    "sst2": ("sst2", True, 0.99, 2400, 2.0, ("--allow-custom",)),
    "retrieval": ("retrieval", False, 0.99, 3600, 1.6, ()),
    "retrieval97": ("retrieval", False, 0.97, 3600, 2.0, ()),
}
BASE_WANTED = 2.0
RIVAL = "OpenVINO + NNCF int8, the same batches"


def duel(
    mine: Any, rival: Any, load: Sequence[Example], reduce: Callable[..., Any], rounds: int
) -> dict[str, Any]:
    """Two runners in turn over one load, tokenization counted: throughputs, and the paired ratio with its interval."""
    timings = measure.time_runners({"mine": mine, "rival": rival}, measure.Workload(load), reduce, rounds)
    return {
        "faster": vars(measure.paired(timings["rival"], timings["mine"])),
        "throughput": len(load) / timings["mine"].median,
        "rival": len(load) / timings["rival"].median,
        "examples": len(load),
        "rounds": rounds,
    }


def rival_of(deploy: Deploy) -> Deploy:
    """The careful user's way, in the batches of `deploy`."""
    return dataclasses.replace(
        deploy, runtime="openvino", precision="int8", calibration=CALIBRATION, narrow=False
    )


def request(name: str, given: argparse.Namespace) -> argparse.Namespace:
    """What `slim_vs_peers.slimmed` is asked for."""
    _, labels, floor, budget, *_ = PROVEN[name]
    return argparse.Namespace(slim=given.slim, labels=labels, floor=floor, budget=budget)


def proven(name: str, given: argparse.Namespace) -> dict[str, Any]:
    """A row of a proven result: slim makes it (or made it before), then it races against the rival."""
    subject, labels, floor, budget, wanted, more = PROVEN[name]
    bundle, task, command = slim_vs_peers.subject(subject)
    folder = slim_vs_peers.slimmed(name, [*command, *more], request(name, given))
    report = read_json(folder / "report.json")
    (mine, *_), deploy = slim_vs_peers.delivered(folder, task)
    rival = runners.build(bundle, rival_of(deploy), task.calibration(CALIBRATION))
    found = duel(mine.run, rival, task.workload(given.examples, seed=1), task.reduce, given.rounds)
    verdict = report["verdict"]
    reached = (
        found["faster"]["estimate"] >= wanted and verdict["proven"] and verdict["ratio"]["bound"] >= floor
    )
    return {
        "row": name, "wanted": wanted, "floor": floor, "labels": labels, "budget": budget, "more": more, "verdict": verdict,
        "deploy": str(deploy), "steps": [s["step"] for s in report["chosen"]["recipe"]], "reached": reached, **found,
    }  # fmt: skip


def scaled(steps: Sequence[Step], before: int, after: int) -> list[Step]:
    """The cuts of a recipe, made for `before` blocks, for a model of `after` blocks; training and vocabulary are left out.

    A block that stays stands for after / before of the larger model's. What the cuts choose by is reduced to what needs
    no data, since weights are random.
    """
    if after % before:
        raise UserError(f"a recipe for {before} blocks is not spread over {after}: take a multiple")
    factor = after // before
    out: list[Step] = []
    for step in steps:
        if step.stage in (Stage.RECOVER, Stage.VOCABULARY):
            continue
        changes: dict[str, Any] = {}
        kind = type(step).__name__
        if kind == "DropBlocks":
            held: Any = step
            keep = held.blocks if held.blocks is not None else tuple(range(held.keep))
            changes = {"blocks": tuple(factor * b + i for b in keep for i in range(factor)), "keep": None}
        elif kind == "PruneChannels":
            changes = {"score": "magnitude", "compensate": False, "reconstruct": False}
        elif kind == "PruneHeads":
            changes = {"score": "magnitude", "reconstruct": False}
        elif kind == "LowRank":
            changes = {"weighted": False}
        out.append(dataclasses.replace(step, **changes))  # type: ignore[type-var]
    return out


def base_model(bundle: Bundle, blocks: int = 12, width: int = 768) -> Bundle:
    """A BERT of another size with random weights, with the tokenizer and limits of a bundle."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(bundle.processor), num_hidden_layers=blocks, hidden_size=width, num_attention_heads=width // 64,
        intermediate_size=4 * width, num_labels=2,
    )  # fmt: skip
    return dataclasses.replace(
        bundle, model=BertForSequenceClassification(config).eval(), source=None, history=[]
    )


def sureness(bundle: Bundle, deploy: Deploy, calibration: Sequence[Example], load_: Sequence[Example]) -> Any:
    """How probable the first model of a cascade holds the likeliest class of each example, run as it will be."""
    model: Any = bundle.model
    watched = Watched()
    runner = runners.build(dataclasses.replace(bundle, model=model.first), deploy, calibration)
    watched(runner)(list(load_), lambda outputs, batch: [0] * len(outputs["logits"]))
    runner.close()
    return watched.sureness


def base(given: argparse.Namespace) -> dict[str, Any]:
    """The recipe of the `sst2` row on a BERT-base shape: speed only."""
    bundle, task, command = slim_vs_peers.subject("sst2")
    folder = slim_vs_peers.slimmed("sst2", [*command, *PROVEN["sst2"][5]], request("sst2", given))
    recipe = Recipe.from_yaml(folder / "recipe.yaml")
    (_, *_), deploy = slim_vs_peers.delivered(folder, task)
    large = base_model(bundle)
    steps = scaled(recipe.steps, len(anatomy.of(bundle.model).blocks), len(anatomy.of(large.model).blocks))
    small = Recipe(steps, deploy).apply(large, task, Run())
    examples, load_ = task.calibration(CALIBRATION), task.workload(given.examples, seed=1)
    if isinstance(
        small.model, CascadeModel
    ):  # random weights are sure of nothing: as many are asked as were there
        told = load(folder, task=task.name)
        share = float(np.mean(sureness(told, deploy, examples, load_) < told.model.config.sure))
        small.model.config.sure = float(np.quantile(sureness(small, deploy, examples, load_), share))
    mine, rival = runners.build(small, deploy, examples), runners.build(large, rival_of(deploy), examples)
    found = duel(mine, rival, load_, task.reduce, given.rounds)
    return {
        "row": "base", "wanted": BASE_WANTED, "parameters": [large.parameters, small.parameters], "deploy": str(deploy),
        "steps": [type(s).__name__ for s in steps], "reached": found["faster"]["estimate"] >= BASE_WANTED, **found,
    }  # fmt: skip


def memory(given: argparse.Namespace) -> dict[str, Any]:
    """The memory claim; reached where every method is within it. Methods that are not asked for keep their figures."""
    found = memory_claim.claim(names=tuple(given.methods), say=say)
    old = read_json(given.out)["rows"] if given.out.is_file() else []
    held = {r["name"]: r for row in old if row["row"] == "memory" for r in row["rows"]}
    held |= {r["name"]: r for r in found["rows"]}
    rows = [held[name] for name in memory_claim.METHODS if name in held]
    return {"row": "memory", "reached": all(r["reached"] for r in rows), **found, "rows": rows}


def line(row: dict[str, Any]) -> str:
    """A row in one sentence."""
    mark = "reached" if row["reached"] else "NOT reached"
    if row["row"] == "memory":
        over = [r["name"] for r in row["rows"] if not r["reached"]]
        return f"memory: {mark}" + (f" (over the limit: {', '.join(over)})" if over else "")
    faster = row["faster"]
    proof = f", proven {row['verdict']['ratio']['bound']:.4f} of {row['floor']}" if "verdict" in row else ""
    return (
        f"{row['row']}: {faster['estimate']:.2f} [{faster['low']:.2f}, {faster['high']:.2f}] times as fast as {RIVAL}, "
        f"wanted {row['wanted']:g}{proof}: {mark}"
    )


def markdown(result: dict[str, Any]) -> str:
    """The page beside the JSON."""
    machine = result["machine"]
    lines = [
        "# Compression: what was to be reached", "",
        f"{machine['cpu']}, {machine['cores']['usable']} cores; {result['created']}. The rival: {RIVAL}.", "",
        "| row | recipe | run as | examples/s | rival | times as fast | wanted | |", "|---|---|---|---:|---:|---:|---:|---|",
    ]  # fmt: skip
    for row in result["rows"]:
        if row["row"] == "memory":
            continue
        faster = row["faster"]
        cells = [
            row["row"], " + ".join(row["steps"]) or "no cut", row["deploy"], f"{row['throughput']:.0f}", f"{row['rival']:.0f}",
            f"{faster['estimate']:.2f} [{faster['low']:.2f}, {faster['high']:.2f}]", f"{row['wanted']:g}",
            "reached" if row["reached"] else "not reached",
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    for row in result["rows"]:
        if "verdict" in row:
            lines += ["", f"{row['row']}: {row['verdict']['sentence']}"]
        if row["row"] == "memory":
            size = row["bytes"]
            lines += [
                "", f"Memory of calibration and pruning: a BERT of {size / 1e6:,.0f} MB (N), imports of "
                f"{row['imports'] / 1e6:,.0f} MB not counted; the original, its copy and all the rest are.", "",
                "| method | peak | in N | allowed | |", "|---|---:|---:|---:|---|",
            ]  # fmt: skip
            for r in row["rows"]:
                peak = "failed" if r["error"] else f"{r['peak'] / 1e6:,.0f} MB"
                times = "–" if r["error"] else f"{r['sizes']:.2f}"
                mark = "within" if r["reached"] else r["error"] or "over"
                lines.append(f"| {r['name']} | {peak} | {times} | {r['limit'] / 1e6:,.0f} MB | {mark} |")
    return "\n".join(lines) + "\n"


def merged(old: dict[str, Any], rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Old rows with the new ones in their places, in the order of ROWS."""
    found = {r["row"]: r for r in old.get("rows", [])} | {r["row"]: r for r in rows}
    return [found[name] for name in ROWS if name in found]


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument(
        "--slim", type=Path, help="a finished result of slim for the one row that is asked for"
    )
    parser.add_argument("--examples", type=int, default=512, help="texts that are timed")
    parser.add_argument("--rounds", type=int, default=9, help="interleaved rounds")
    parser.add_argument(
        "--methods",
        nargs="+",
        choices=memory_claim.METHODS,
        default=memory_claim.METHODS,
        help="of the row memory",
    )
    parser.add_argument("--out", type=Path, default=OUT)
    given = parser.parse_args(arguments)
    if given.slim and len(given.rows) > 1:
        parser.error("--slim holds the result of one row: say which with --rows")
    return given


def main() -> None:
    given = parse()
    made: dict[str, Callable[[], dict[str, Any]]] = {
        **{name: lambda name=name: proven(name, given) for name in PROVEN},  # type: ignore[misc]
        "base": lambda: base(given),
        "memory": lambda: memory(given),
    }
    for name in given.rows:
        row = made[name]()
        say(line(row))
        old = read_json(given.out) if given.out.is_file() else {}
        created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        result = {"created": created, "machine": measure.machine(), "rows": merged(old, [row])}
        write_json(given.out, result)
        write_text(given.out.with_suffix(".md"), markdown(result))
        gc.collect()


if __name__ == "__main__":
    sys.exit(guarded(main))
