"""`lightformers elastic`: train a model that holds many sizes, take out the one that fits, show them all."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lightformers.cli import options
from lightformers.compress.elastic import METHODS

app = typer.Typer(no_args_is_help=True, help="One model that holds many sizes.")

_Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]


@app.command("train")
@options.of_data
def train(
    model: Annotated[str, typer.Argument(help="Model folder or hub name.")],
    task: options.Task,
    data: options.Data,
    method: Annotated[str, typer.Option(help=f"How it is trained: {', '.join(METHODS)}.")],
    out: Annotated[Path, typer.Option(help="Where the elastic model goes.")],
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="A field of the method, NAME=VALUE; can be given more than once.")
    ] = None,
    of_data: options.Given = options.NONE,
    budget: Annotated[str | None, typer.Option(help="Time for training: 90s, 30m, 2h.")] = None,
    use_labels: Annotated[bool, typer.Option("--use-labels", help="Learn from labels, not from the model itself.")] = False,
    allow_custom: options.Custom = False,
    trust_remote_code: options.Trust = False,
    seed: options.Seed = 0,
    json_: _Json = False,
) -> None:  # fmt: skip
    """Train a model so that its first pieces are smaller models, and write it with its sizes."""
    from lightformers.telemetry import silence

    silence()
    from lightformers.bundle import load
    from lightformers.cli.console import out as console
    from lightformers.cli.console import show_json
    from lightformers.cli.options import fields, seconds
    from lightformers.compress import elastic as methods
    from lightformers.elastic import Elastic
    from lightformers.steps import Run

    wanted = methods.method(method, fields(set_ or []))
    spent = None if budget is None else seconds(budget)
    bundle = load(model, task=task, trust_remote_code=trust_remote_code)
    asked = options.asked(task, data, bundle, seed, of_data)
    run = Run(seed=seed, use_labels=use_labels, seconds=spent)
    made = Elastic.train(bundle, asked, wanted, run)
    made.save(out, allow_custom)
    least, most = made.space.smallest, made.space.largest
    facts = {
        "out": str(out), "method": method, "sizes": made.space.count,
        "smallest": least.to_dict() | {"parameters": made.parameters(least)},
        "largest": most.to_dict() | {"parameters": made.parameters(most)},
        "seconds": made.bundle.history[-1]["seconds"],
    }  # fmt: skip
    if json_:
        show_json(facts)
        return
    console.print(f"{method}: {made.space.count:,} sizes in {facts['seconds']} s")
    console.print(f"smallest: {least}, {made.parameters(least):,} weights")
    console.print(f"largest: {most}, {made.parameters(most):,} weights")
    console.print(f"written to {out}")


@app.command("extract")
@options.of_data
def extract(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="What `elastic train` wrote.")],
    budget: Annotated[str, typer.Option(help="params=10M or latency=5ms.")],
    out: Annotated[Path, typer.Option(help="Where the model of that size goes.")],
    task: Annotated[str | None, typer.Option(help="To choose by quality, and for a latency.")] = None,
    data: Annotated[str | None, typer.Option(help="The data of that task.")] = None,
    number: Annotated[int, typer.Option(min=1, help="How many sizes to score.")] = 12,
    of_data: options.Given = options.NONE,
    allow_custom: options.Custom = False,
    trust_remote_code: options.Trust = False,
    seed: options.Seed = 0,
    json_: _Json = False,
) -> None:
    """Take the best size within a budget out of an elastic model: a model like any other."""
    from lightformers.telemetry import silence

    silence()
    from lightformers import export
    from lightformers.cli.console import err, show_json
    from lightformers.cli.console import out as console
    from lightformers.elastic import Budget, Elastic
    from lightformers.elastic.door import FILE
    from lightformers.errors import UserError

    wanted = Budget.parse(budget)
    if (task is None) != (data is None):
        raise UserError("--task and --data go together")
    if (out / FILE).exists():
        raise UserError(f"{out} holds an elastic model: choose another folder")
    made = Elastic.load(folder, task, trust_remote_code)
    asked = None
    if task and data:
        asked = options.asked(task, data, made.bundle, seed, of_data)

    def say(line: str) -> None:
        if not json_:
            err.print(line)

    picked = made.pick(wanted, asked, number, native=not allow_custom, seed=seed, say=say)
    small = made.extract(picked.size)
    reasons = export.save(small, out, allow_custom)
    facts = {
        "out": str(out), "size": picked.size.to_dict(), "parameters": picked.parameters,
        "latency_ms": picked.latency_ms, "quality": picked.quality, "tried": len(picked.tried),
        "needs_lightformers": bool(reasons),
    }  # fmt: skip
    if json_:
        show_json(facts)
        return
    console.print(f"{picked.size}: {picked.parameters:,} weights")
    if picked.latency_ms is not None:
        console.print(f"{picked.latency_ms:.3g} ms an example")
    if picked.quality is not None and asked is not None:
        console.print(
            f"{asked.metric.name} {picked.quality:.4f} on the search split, the best of {len(picked.tried)}"
        )
    if reasons:
        console.print("only lightformers.load opens it")
    console.print(f"written to {out}")


@app.command("frontier")
@options.of_data
def frontier(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="What `elastic train` wrote.")],
    task: options.Task,
    data: options.Data,
    out: Annotated[Path | None, typer.Option(help="Where the page goes (default: DIR).")] = None,
    number: Annotated[int, typer.Option(min=2, help="How many sizes to measure.")] = 12,
    of_data: options.Given = options.NONE,
    trust_remote_code: options.Trust = False,
    seed: options.Seed = 0,
    json_: _Json = False,
) -> None:
    """Measure sizes of an elastic model and write frontier.html: quality against weights and latency."""
    from lightformers.telemetry import silence

    silence()
    from lightformers.cli.console import out as console
    from lightformers.cli.console import show_json
    from lightformers.elastic import Elastic

    made = Elastic.load(folder, task, trust_remote_code)
    asked = options.asked(task, data, made.bundle, seed, of_data)
    facts = made.frontier(asked, out or folder, number, seed=seed)
    if json_:
        show_json(facts)
        return
    for row in facts["rows"]:
        found = row["quality"]
        console.print(
            f"{row['parameters']:>12,} weights  {row['latency_ms']:8.3g} ms  {facts['metric']} "
            f"{found['estimate']:.4f} \\[{found['low']:.4f}, {found['high']:.4f}]  {row['name']}"
        )
    console.print(f"written to {(out or folder) / 'frontier.html'}")
