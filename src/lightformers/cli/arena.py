"""`lightformers arena`: attentions and recurrences in one model, on the tasks of Long Range Arena and on probes."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from lightformers.cli import options


def arena(
    tasks: Annotated[str, typer.Option(help="listops, text, retrieval, image, pathfinder, path-x; mqar, overwriting, copying, selective-copying, induction, state-tracking, parity, modular-addition, phonebook. None: the first five.")] = "",
    mixers: Annotated[str, typer.Option(help="Such as attention,performer:features=64,mamba. None: a choice of those there are.")] = "",
    scale: Annotated[str, typer.Option(help="small (for two cores) or paper: sizes of tasks and models.")] = "small",
    steps: Annotated[int | None, typer.Option(help="Training steps of every model, instead of the task's own number.")] = None,
    seconds: Annotated[float | None, typer.Option(help="Instead of steps: how long every model is trained.")] = None,
    budget: Annotated[str | None, typer.Option(help="Instead of both: how long everything may take, such as 30m.")] = None,
    data: Annotated[list[str] | None, typer.Option(help="text=FILE, retrieval=FILE or image=FILE: data of your own (columns text, text_pair, label).")] = None,
    examples: Annotated[int | None, typer.Option(help="Most training examples of a task; a fifth as many are tested on.")] = None,
    seeds: Annotated[int, typer.Option(help="Trainings of each mixer on each task.")] = 1,
    rounds: Annotated[int, typer.Option(help="How often all mixers are timed, in turn.")] = 5,
    own_size: Annotated[bool, typer.Option("--own-size", help="Leave all feed-forwards alike, instead of all models equally large.")] = False,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    out: Annotated[Path, typer.Option(help="Where the tables go; the same folder goes on where it was stopped.")] = Path("arena"),
    restart: Annotated[bool, typer.Option("--restart", help="Throw away an earlier arena in --out.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be tried, and why not.")] = False,
    seed: options.Seed = 0,
    json_: Annotated[bool, typer.Option("--json", help="Print the report as JSON on stdout.")] = False,
) -> None:  # fmt: skip
    """Which mixer for which need? Quality, speed and memory of any set of them, in one model trained the same way."""
    from lightformers.telemetry import silence

    silence()
    from lightformers.arena.run import arena as work
    from lightformers.arena.verdict import table
    from lightformers.cli.console import out as console
    from lightformers.cli.console import show_json
    from lightformers.slim.progress import Progress

    settings: dict[str, Any] = {
        "scale": scale, "steps": steps, "seconds": seconds, "budget": options.seconds(budget) if budget else None, "data": pairs(data or []),
        "examples": examples, "seeds": seeds, "rounds": rounds, "equal": not own_size, "device": device, "seed": seed,
    }  # fmt: skip
    progress = Progress("lightformers arena", budget_seconds=settings["budget"], quiet=json_)
    command = shlex.join(["lightformers", *sys.argv[1:]])
    result = work(
        options.names(tasks), options.names(mixers), out=out, progress=progress, command=command, restart=restart,
        dry_run=dry_run, **settings,
    )  # fmt: skip
    if json_:
        show_json(result.report)
    elif dry_run:
        for row in result.report["plan"]:
            console.print(f"{row['mixer']} on {row['task']}", markup=False)
        for row in result.report["refused"]:
            console.print(f"not {row['mixer']} on {row['task']}: {row['reason']}", markup=False)
        for line in result.report["warnings"]:
            console.print(line, markup=False)
    else:
        console.print(table(result.report))
        console.print(f"page: {result.folder / 'report.html'}")


def pairs(texts: list[str]) -> dict[str, str]:
    """ "text=reviews.csv" -> {"text": "reviews.csv"}."""
    from lightformers.errors import UserError

    found = {}
    for text in texts:
        name, sign, value = text.partition("=")
        if not sign or not value:
            raise UserError(f"--data is written as task=FILE, such as text=reviews.csv; got {text!r}")
        found[name.strip()] = value.strip()
    return found
