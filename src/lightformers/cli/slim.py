"""`lightformers slim`: make a model small and prove it."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lightformers.cli import options

if TYPE_CHECKING:
    from lightformers.slim.run import Result


@options.of_data
def slim(
    model: options.Model,
    task: options.Task,
    data: options.Data,
    of_data: options.Given = options.NONE,
    floor: Annotated[float, typer.Option(help="Least share of the original's quality, to be proven.")] = 0.99,
    max_drop: Annotated[float | None, typer.Option(help="Instead of --floor: most the metric may drop, absolute.")] = None,
    confidence: Annotated[float, typer.Option(help="Of the one-sided bound.")] = 0.95,
    goal: Annotated[str, typer.Option(help="latency, throughput or size.")] = "throughput",
    batch: Annotated[int, typer.Option(help="Examples in a batch of the load to be fast on.")] = 32,
    lengths: Annotated[str | None, typer.Option(help="Words an example of that load, LEAST:MOST.")] = None,
    budget: Annotated[str, typer.Option(help="Time for everything: 90s, 30m, 2h.")] = "1h",
    use_labels: Annotated[bool, typer.Option("--use-labels", help="Let recovery learn from labels.")] = False,
    allow_custom: options.Custom = False,
    trim: Annotated[bool, typer.Option(help="Drop vocabulary rows that the data never uses.")] = True,
    steps: Annotated[str, typer.Option(help="Use only these steps, separated by commas.")] = "",
    exclude: Annotated[str, typer.Option(help="Leave out these steps, separated by commas.")] = "",
    onnx: Annotated[bool, typer.Option("--onnx", help="Write an ONNX model too.")] = False,
    out: Annotated[Path, typer.Option(help="Where the result goes; the same folder resumes.")] = Path("slim-model"),
    restart: Annotated[bool, typer.Option("--restart", help="Throw away an earlier run in --out.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Stop after pre-flight.")] = False,
    trust_remote_code: options.Trust = False,
    seed: options.Seed = 0,
    json_: Annotated[bool, typer.Option("--json", help="Print the report as JSON on stdout.")] = False,
) -> None:  # fmt: skip
    """Give back a smaller, faster model, proven as good as asked, measured on this machine."""
    from lightformers.telemetry import silence

    silence()
    settings = {
        "max_drop": max_drop, "confidence": confidence, "batch": batch, "lengths": span(lengths), "budget": options.seconds(budget),
        "use_labels": use_labels, "allow_custom": allow_custom, "trim": trim, "only": options.names(steps),
        "exclude": options.names(exclude), "onnx": onnx, "seed": seed,
    }  # fmt: skip
    from lightformers.slim.settings import Settings

    Settings(floor=floor, goal=goal, **settings)  # type: ignore[arg-type]  # a wrong option is said before anything is loaded
    from lightformers.bundle import load

    bundle = load(model, task=task, trust_remote_code=trust_remote_code)
    asked = options.asked(task, data, bundle, seed, of_data)
    run(bundle, asked, json_, floor=floor, goal=goal, out=out, restart=restart, dry_run=dry_run, **settings)


def run(bundle: Any, task: Any, json_: bool, *, dry_run: bool = False, **settings: Any) -> Result:
    """Slim with a live display; print the result; leave with its exit status."""
    from lightformers.cli.console import out, show_json
    from lightformers.slim.progress import Progress
    from lightformers.slim.report import table
    from lightformers.slim.run import PHASES
    from lightformers.slim.run import slim as work

    result = work(bundle, task, progress=Progress(budget_seconds=settings["budget"], phases=PHASES, quiet=json_), command=shlex.join(["lightformers", *sys.argv[1:]]), dry_run=dry_run, **settings)  # fmt: skip
    if json_:
        show_json(result.report)
    elif dry_run:
        for line in result.report["preflight"]["plan"]:
            out.print(line)
    else:
        out.print(table(result.report))
        out.print(f"report: {result.folder / 'report.html'}")
    raise typer.Exit(result.code)


def span(text: str | None) -> tuple[int, int] | None:
    """'5:60' -> (5, 60); one number stands for both ends."""
    from lightformers.errors import UserError

    if text is None:
        return None
    try:
        low, _, high = text.partition(":")
        return int(low), int(high or low)
    except ValueError as error:
        raise UserError(f"--lengths is LEAST:MOST words, such as 5:60; got {text!r}") from error
