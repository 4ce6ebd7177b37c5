"""Options that several commands share, each written once."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Annotated, Any, get_type_hints

import typer

Model = Annotated[
    str, typer.Argument(help="Model folder (Hugging Face or sentence-transformers) or hub name.")
]
Task = Annotated[
    str,
    typer.Option(
        help="embedding, text-classification, token-classification, causal-lm, masked-lm, image-classification, forecasting, "
        "tabular-classification or tabular-regression."
    ),
]
Data = Annotated[str, typer.Option(help="csv, tsv, jsonl, parquet, txt, npz, a folder, or a hub name.")]
_HELP = {
    "text": "Column of the text.",
    "text_pair": "Column of the second text of a pair.",
    "label": "Column of the label.",
    "query": "Column of the query (embedding).",
    "document": "Column of the document (embedding).",
    "image": "Column of the image (image-classification).",
    "group": "Column of what belongs together; never torn between splits.",
    "target": "Columns to forecast, or the column of a table to predict, separated by commas.",
    "known": "Columns whose future is known, separated by commas.",
    "timestamp": "Column of the time stamps.",
    "columns": "Columns to use at all, separated by commas.",
    "metric": "Where the task has a choice: accuracy, macro-f1, f1 or log-loss; mse or mae.",
}
_NUMBERS = {
    "horizon": "Rows to forecast; by default what the model was made for.",
    "context": "Rows of the past a forecast is made from; as --horizon.",
    "pool": "Candidates that a query is ranked among (embedding); 1000 unless given.",
}
#: Option of the data -> its annotation: all that `tasks.from_data` takes, whichever the task.
OF_DATA: dict[str, Any] = {
    **{name: Annotated[str | None, typer.Option(help=said)] for name, said in _HELP.items()},
    **{name: Annotated[int | None, typer.Option(help=said)] for name, said in _NUMBERS.items()},
}
Given = Mapping[str, Any]
NONE: Given = MappingProxyType({})
_LISTS = ("target", "known", "columns")
Custom = Annotated[bool, typer.Option("--allow-custom", help="Allow results that need lightformers to load.")]
Trust = Annotated[bool, typer.Option("--trust-remote-code", help="Run code that the model brings.")]
Seed = Annotated[int, typer.Option(help="Of every random choice.")]


def names(text: str) -> tuple[str, ...]:
    """Names separated by commas."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def of_data(command: Callable[..., None]) -> Callable[..., None]:
    """A command with every option of `OF_DATA` in the place of its parameter `of_data`, which gets them as one mapping."""
    hints = get_type_hints(command, include_extras=True)
    kept = {
        name: p.replace(annotation=hints[name])
        for name, p in inspect.signature(command).parameters.items()
        if name != "of_data"
    }
    added = {
        name: inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=kind)
        for name, kind in OF_DATA.items()
    }
    order = list(inspect.signature(command).parameters)
    place = order.index("of_data")
    shown = [*order[:place], *added, *order[place + 1 :]]
    every = {name: p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for name, p in {**kept, **added}.items()}

    @functools.wraps(command)
    def wrapped(**given: Any) -> None:
        command(**{k: v for k, v in given.items() if k in kept}, of_data={k: given[k] for k in OF_DATA})

    vars(wrapped)["__signature__"] = inspect.Signature([every[name] for name in shown])
    wrapped.__annotations__ = {name: p.annotation for name, p in every.items()}
    return wrapped


def asked(task: str, data: str, bundle: Any, seed: int, of_data: Given) -> Any:
    """The task that a command line names. What a forecasting task was not told comes from the model where it says so."""
    from lightformers.tasks import from_data

    given = dict(of_data)
    if task == "forecasting":
        config = getattr(bundle.model, "config", None)
        given["horizon"] = given["horizon"] or getattr(config, "prediction_length", None)
        given["context"] = given["context"] or getattr(config, "context_length", None)
        given |= {name: names(given[name]) for name in _LISTS if given[name]}
    elif task.startswith("tabular-"):
        given["features"] = given.pop("columns")
    return from_data(task, data, bundle=bundle, seed=seed, **given)


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
