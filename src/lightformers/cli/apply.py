"""`lightformers apply`: replay a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lightformers.cli import options


@options.of_data
def apply(
    recipe: Annotated[Path, typer.Argument(help="recipe.yaml, as slim writes it.")],
    model: Annotated[str, typer.Argument(help="Model folder or hub name.")],
    out: Annotated[Path, typer.Option(help="Where the result goes.")],
    task: Annotated[str | None, typer.Option(help="Needed by steps that look at data or train.")] = None,
    data: Annotated[str | None, typer.Option(help="The data of that task.")] = None,
    of_data: options.Given = options.NONE,
    use_labels: Annotated[bool, typer.Option("--use-labels", help="Let recovery learn from labels.")] = False,
    allow_custom: options.Custom = False,
    trust_remote_code: options.Trust = False,
    seed: options.Seed = 0,
    json_: Annotated[bool, typer.Option("--json", help="Print what each step did as JSON.")] = False,
) -> None:  # fmt: skip
    """Replay a recipe on a model and export the result."""
    from lightformers.telemetry import silence

    silence()
    from lightformers import export
    from lightformers.bundle import load
    from lightformers.cli.console import out as console
    from lightformers.cli.console import show_json
    from lightformers.errors import UserError
    from lightformers.steps import Recipe, Run

    wanted = Recipe.from_yaml(recipe)
    if (task is None) != (data is None):
        raise UserError("--task and --data go together")
    bundle = load(model, task=task, trust_remote_code=trust_remote_code)
    chosen = None
    if task and data:
        chosen = options.asked(task, data, bundle, seed, of_data)
    elif wanted.deploy.runtime == "openvino" and wanted.deploy.precision == "int8":
        raise UserError("int8 is calibrated on data: add --task and --data")
    made = wanted.apply(bundle, chosen, Run(seed=seed, use_labels=use_labels))
    export.save(made, out, allow_custom=allow_custom)
    if wanted.deploy.runtime == "openvino":
        calibration = chosen.calibration(wanted.deploy.calibration, seed=seed) if chosen else []
        export.save_openvino(made, wanted.deploy, out, calibration)
    if json_:
        show_json({"out": str(out), "steps": made.history, "parameters": made.parameters})
        return
    for entry in made.history:
        console.print(
            f"{entry['step']}: {entry['size_before']:,} -> {entry['size_after']:,} parameters in {entry['seconds']} s"
            + (f". {entry['note']}" if "note" in entry else "")
        )
    console.print(f"written to {out}")
