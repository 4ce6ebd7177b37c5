"""`lightformers compare`: every compression method on one model, at one size or speed."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from lightformers.cli import options


@options.of_data
def compare(
    model: options.Model,
    task: options.Task,
    data: options.Data,
    of_data: options.Given = options.NONE,
    ratio: Annotated[float, typer.Option(help="Share of the blocks' bytes that each method shall leave.")] = 0.5,
    latency: Annotated[str | None, typer.Option(help="Instead of --ratio: how many times as fast as the original, such as 2x.")] = None,
    seconds: Annotated[float, typer.Option(help="Training that each method gets; 0: none.")] = 20.0,
    steps: Annotated[str, typer.Option(help="Only these methods, separated by commas, such as minitron,llm-int8.")] = "",
    exclude: Annotated[str, typer.Option(help="All but these methods.")] = "",
    use_labels: Annotated[bool, typer.Option("--use-labels", help="Let all training learn from labels.")] = False,
    examples: Annotated[int, typer.Option(help="How many of the search split methods are scored on; 0: all.")] = 400,
    batch: Annotated[int, typer.Option(help="Examples in a batch of the load that is timed.")] = 32,
    rounds: Annotated[int, typer.Option(help="How often original and method are timed, in turn.")] = 7,
    out: Annotated[Path, typer.Option(help="Where the table goes; the same folder goes on where it was stopped.")] = Path("compared"),
    restart: Annotated[bool, typer.Option("--restart", help="Throw away an earlier comparison in --out.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be tried, and why not.")] = False,
    trust_remote_code: options.Trust = False,
    seed: options.Seed = 0,
    json_: Annotated[bool, typer.Option("--json", help="Print the report as JSON on stdout.")] = False,
) -> None:  # fmt: skip
    """Which method should I use on my model? Every one that can be used, at one size, with equal training."""
    from lightformers.telemetry import silence

    silence()
    from lightformers.compare.settings import Settings
    from lightformers.compress.methods import named

    settings: dict[str, Any] = {
        "ratio": ratio, "speedup": times(latency), "seconds": seconds, "examples": examples or None, "batch": batch,
        "rounds": rounds, "use_labels": use_labels, "only": options.names(steps), "exclude": options.names(exclude), "seed": seed,
    }  # fmt: skip
    Settings(**settings)  # a wrong option is said before anything is loaded
    named(settings["only"]), named(settings["exclude"])
    from lightformers.bundle import load

    bundle = load(model, task=task, trust_remote_code=trust_remote_code)
    asked = options.asked(task, data, bundle, seed, of_data)
    run(bundle, asked, json_, out=out, restart=restart, dry_run=dry_run, **settings)


def run(bundle: Any, task: Any, json_: bool, *, dry_run: bool = False, **options: Any) -> None:
    """Compare with a live display and print the result."""
    from lightformers.cli.console import out, show_json
    from lightformers.compare.advice import table
    from lightformers.compare.run import compare as work
    from lightformers.slim.progress import Progress

    progress = Progress("lightformers compare", quiet=json_)
    command = shlex.join(["lightformers", *sys.argv[1:]])
    result = work(bundle, task, progress=progress, command=command, dry_run=dry_run, **options)
    if json_:
        show_json(result.report)
    elif dry_run:
        for row in result.report["plan"]:
            out.print(f"{row['name']}: {' + '.join(row['steps'])}")
        for row in result.report["refused"]:
            out.print(f"not {row['name']}: {row['reason']}", markup=False)
    else:
        out.print(table(result.report))
        out.print(f"page: {result.folder / 'compare.html'}")


def times(text: str | None) -> float | None:
    """'2x' or '2' -> 2.0."""
    from lightformers.errors import UserError

    if text is None:
        return None
    try:
        return float(text.removesuffix("x"))
    except ValueError as error:
        raise UserError(f"--latency is how many times as fast, such as 2x; got {text!r}") from error
