"""Options that several commands share, each written once."""

from __future__ import annotations

from typing import Annotated

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
Metric = Annotated[str | None, typer.Option(help="accuracy, macro-f1 or f1, where the task has a choice.")]
Custom = Annotated[bool, typer.Option("--allow-custom", help="Allow results that need lightformers to load.")]
Trust = Annotated[bool, typer.Option("--trust-remote-code", help="Run code that the model brings.")]
Seed = Annotated[int, typer.Option(help="Of every random choice.")]


def names(text: str) -> tuple[str, ...]:
    """Names separated by commas."""
    return tuple(part.strip() for part in text.split(",") if part.strip())
