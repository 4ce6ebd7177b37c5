"""`lightformers forecast`: the next steps of a series, with intervals, beside the baselines."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from lightformers.cli import options


def forecast(
    data: Annotated[str | None, typer.Argument(help="csv, tsv, jsonl or parquet with a row a time step; with --pretrain also a folder of these.")] = None,
    horizon: Annotated[int | None, typer.Option(help="Steps to forecast. Needed, unless the model of --model says it.")] = None,
    demo: Annotated[bool, typer.Option("--demo", help="Forecast a series that comes with statsmodels: CO2 over Mauna Loa.")] = False,
    model: Annotated[str | None, typer.Option(help="tsmixer, linear, itransformer, ttm, gpht, ..., a preset, a baseline (ets), or a folder that an earlier run saved: no training then. None: the best of several.")] = None,
    target: Annotated[list[str] | None, typer.Option(help="Column to forecast; can be given more than once. None: all numeric ones.")] = None,
    known: Annotated[list[str] | None, typer.Option(help="Column whose future is known; can be given more than once.")] = None,
    future: Annotated[str | None, typer.Option(help="csv with the future of the --known columns.")] = None,
    timestamp: Annotated[str | None, typer.Option(help="Column of the time stamps. None: found.")] = None,
    context: Annotated[int | None, typer.Option(help="Steps that a model looks back. None: chosen by the data.")] = None,
    interval: Annotated[float, typer.Option(help="Share of the values that the intervals shall cover.")] = 0.9,
    budget: Annotated[str, typer.Option(help="Time for everything: 90s, 5m, 1h.")] = "2m",
    pretrain: Annotated[bool, typer.Option("--pretrain", help="Make a TTM that forecasts series it has not seen, from the series at hand or a folder of them.")] = False,
    adapt: Annotated[bool, typer.Option("--adapt", help="Train the model of the folder in --model further on this series.")] = False,
    refit: Annotated[bool, typer.Option(help="After it was judged, train the chosen model on all rows.")] = True,
    out: Annotated[Path, typer.Option(help="Where forecast.csv, forecast.png, report.html, report.json and the model go.")] = Path("forecast"),
    seed: options.Seed = 0,
    quiet: Annotated[bool, typer.Option("--quiet", help="Show nothing while it works.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print the report as JSON on stdout.")] = False,
) -> None:  # fmt: skip
    """Forecast a series with intervals; the model stands beside naive, seasonal, linear and ETS baselines on held-out rows."""
    from lightformers.telemetry import silence

    silence()
    from lightformers.cli.console import out as console
    from lightformers.cli.console import show_json
    from lightformers.errors import UserError
    from lightformers.forecast.run import PHASES
    from lightformers.forecast.run import forecast as work
    from lightformers.forecast.verdict import table
    from lightformers.slim.progress import Progress

    if (data is None) != demo:
        raise UserError(
            "give a file with the series, such as data.csv --horizon 96, or --demo"
            if data is None
            else "--demo brings its own series: leave the file out, or --demo"
        )
    spent = options.seconds(budget)
    if pretrain and data is not None and Path(data).is_dir():
        _from_folder(data, horizon, context, spent, seed, timestamp, out, quiet, json_)
        return
    result = work(
        data, horizon, model=model, target=tuple(target or ()), known=tuple(known or ()), future=future,
        timestamp=timestamp, context=context, interval=interval, budget=spent, pretrain=pretrain, adapt=adapt,
        refit=refit, seed=seed, out=out, command=shlex.join(["lightformers", *sys.argv[1:]]),
        progress=Progress("lightformers forecast", spent, PHASES, quiet or json_),
    )  # fmt: skip
    if json_:
        show_json(result.report)
        return
    console.print(table(result.report))
    for name in result.files:
        path = str(result.folder / name) if result.folder else name
        console.print(path, markup=False, highlight=False, soft_wrap=True)  # a path must stay in one piece


def _from_folder(
    folder: str, horizon: int | None, context: int | None, budget: float, seed: int, timestamp: str | None, out: Path,
    quiet: bool, json_: bool,
) -> None:  # fmt: skip
    """Pre-train on all series of a folder; nothing is forecast."""
    from lightformers.cli.console import out as console
    from lightformers.cli.console import show_json
    from lightformers.errors import UserError
    from lightformers.forecast.pretraining import from_folder
    from lightformers.slim.progress import Progress

    if horizon is None:
        raise UserError("say how many steps the model shall forecast: --horizon 96")
    progress = Progress("lightformers forecast --pretrain", budget, ("data", "training"), quiet or json_)
    _, facts = from_folder(
        folder,
        horizon,
        context=context,
        budget=budget,
        seed=seed,
        timestamp=timestamp,
        out=out,
        progress=progress,
    )
    if json_:
        show_json(facts)
        return
    for note in facts["warnings"]:
        console.print(note, markup=False, style="yellow")
    console.print(
        f"{facts['parameters']:,} parameters, pre-trained on {len(facts['series'])} files ({facts['rows']:,} rows) in "
        f"{facts['seconds']:.0f} s; it looks {facts['context']} steps back and forecasts {facts['horizon']}"
    )
    console.print(
        f"forecast with it: lightformers forecast DATA.csv --model {facts['model']}",
        markup=False,
        soft_wrap=True,
    )
