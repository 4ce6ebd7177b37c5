"""Options that several commands share, each written once."""

from __future__ import annotations

from typing import Annotated, Any

import typer

Text = Annotated[str | None, typer.Option(help="Column of the text.")]
TextPair = Annotated[str | None, typer.Option(help="Column of the second text of a pair.")]
Label = Annotated[str | None, typer.Option(help="Column of the label.")]
Query = Annotated[str | None, typer.Option(help="Column of the query (embedding).")]
Document = Annotated[str | None, typer.Option(help="Column of the document (embedding).")]
Image = Annotated[str | None, typer.Option(help="Column of the image (image-classification).")]
Group = Annotated[
    str | None, typer.Option(help="Column of what belongs together; never torn between splits.")
]
Metric = Annotated[
    str | None, typer.Option(help="accuracy, macro-f1 or f1; mse or mae: where the task has a choice.")
]
Horizon = Annotated[
    int | None, typer.Option(help="Rows to forecast; by default what the model was made for.")
]
Context = Annotated[int | None, typer.Option(help="Rows of the past a forecast is made from; as --horizon.")]
Target = Annotated[
    str | None, typer.Option(help="Columns to forecast, or the column to predict, separated by commas.")
]
Known = Annotated[str | None, typer.Option(help="Columns whose future is known, separated by commas.")]
Timestamp = Annotated[str | None, typer.Option(help="Column of the time stamps.")]
Columns = Annotated[str | None, typer.Option(help="Columns to use at all, separated by commas.")]
Custom = Annotated[bool, typer.Option("--allow-custom", help="Allow results that need lightformers to load.")]
Trust = Annotated[bool, typer.Option("--trust-remote-code", help="Run code that the model brings.")]
Seed = Annotated[int, typer.Option(help="Of every random choice.")]


def names(text: str) -> tuple[str, ...]:
    """Names separated by commas."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def series(
    bundle: Any, horizon: int | None, context: int | None, target: str | None, known: str | None, timestamp: str | None,
    columns: str | None,
) -> dict[str, Any]:  # fmt: skip
    """Options of a forecasting task; what is not said comes from the model where it says so. None where nothing is said."""
    config = getattr(bundle.model, "config", None)
    made = {
        "horizon": horizon or getattr(config, "prediction_length", None),
        "context": context or getattr(config, "context_length", None),
    }
    lists = {"target": target, "known": known, "columns": columns}
    return {**made, "timestamp": timestamp, **{k: names(v) if v else None for k, v in lists.items()}}


def seconds(text: str) -> float:
    """'90s', '30m', '2h' or plain seconds."""
    from lightformers.errors import UserError

    units = {"s": 1, "m": 60, "h": 3600}
    number, unit = (text[:-1], units[text[-1]]) if text and text[-1] in units else (text, 1)
    try:
        return float(number) * unit
    except ValueError as error:
        raise UserError(f"{text!r} is no time: write 90s, 30m or 2h") from error


def fields(given: list[str]) -> dict[str, Any]:
    """NAME=VALUE, the value as in YAML: epochs=1, sort=false, ratios=[0.25, 0.5, 1.0]."""
    import yaml

    from lightformers.errors import UserError

    found = {}
    for item in given:
        name, equals, value = item.partition("=")
        if not equals or not name.strip():
            raise UserError(f"--set is NAME=VALUE, got {item!r}")
        try:
            found[name.strip()] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise UserError(f"--set {item}: the value is not valid YAML") from error
    return found
