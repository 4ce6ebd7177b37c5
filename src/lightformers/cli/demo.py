"""`lightformers demo`: the main job on what every machine has."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

SEARCH, VERIFY = 800, 2000  # pairs: what can be scored in full precision within the demo's ten minutes


def demo(
    out: Annotated[Path, typer.Option(help="Where the result goes; the same folder resumes.")] = Path("demo"),
    floor: Annotated[float, typer.Option(help="Least share of the original's quality, to be proven.")] = 0.97,
    budget: Annotated[str, typer.Option(help="Time for everything.")] = "530s",
    use_labels: Annotated[
        bool, typer.Option("--use-labels", help="Let recovery learn from the pairs.")
    ] = False,
    restart: Annotated[bool, typer.Option("--restart", help="Throw away an earlier run in --out.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Stop after pre-flight.")] = False,
    seed: Annotated[int, typer.Option(help="Of every random choice.")] = 0,
    json_: Annotated[bool, typer.Option("--json", help="Print the report as JSON on stdout.")] = False,
) -> None:
    """Slim all-MiniLM-L6-v2 for docstring-to-code retrieval over the Python installed here."""
    from lightformers.telemetry import silence

    silence()
    from lightformers.bundle import load
    from lightformers.cli.options import seconds
    from lightformers.cli.slim import run
    from lightformers.loading import packaged_model
    from lightformers.tasks import python_docs

    bundle = load(packaged_model())
    task = python_docs.default(seed=seed, search=SEARCH, verify=VERIFY)
    run(bundle, task, json_, dry_run=dry_run, floor=floor, out=out, budget=seconds(budget), use_labels=use_labels, restart=restart, seed=seed)  # fmt: skip
