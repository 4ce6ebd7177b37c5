"""The command line: one file per command, each thin. Heavy libraries are imported inside the commands."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

import typer

from lightformers.errors import Interrupted, UserError

#: Each lives in `cli/<command>.py` under its own name.
COMMANDS = (
    "slim",
    "compare",
    "arena",
    "demo",
    "train",
    "forecast",
    "apply",
    "inspect",
    "measure",
    "export",
    "reproduce",
    "doctor",
)

app = typer.Typer(
    name="lightformers",
    help="The toolkit that makes transformers light.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)


def _version(value: bool) -> None:
    if value:
        from lightformers import __version__

        print(__version__)
        raise typer.Exit


@app.callback()
def root(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Print the version."
    ),
) -> None:
    """The toolkit that makes transformers light."""


def _command(name: str) -> Callable[..., Any]:
    return getattr(import_module(f"lightformers.cli.{name}"), name)


for _name in COMMANDS:
    app.command(_name)(_command(_name))
app.add_typer(import_module("lightformers.cli.papers").app, name="papers", help="The catalogue of papers.")
app.add_typer(
    import_module("lightformers.cli.elastic").app, name="elastic", help="One model that holds many sizes."
)


def main() -> None:
    """Entry point: errors a user can mend end as one line on stderr and an exit status."""
    from lightformers.cli.console import err

    try:
        code = app(standalone_mode=False)
    except UserError as error:
        err.print(f"[bold red]error:[/] {_plain(error)}")
        sys.exit(error.code)
    except (KeyboardInterrupt, typer.Abort):
        err.print("stopped")
        sys.exit(Interrupted.code)
    except Exception as error:
        if hasattr(error, "format_message"):  # click: a wrong option or a missing argument
            err.print(f"[bold red]error:[/] {_plain(error.format_message())}")
            sys.exit(2)
        raise
    sys.exit(code if isinstance(code, int) else 0)


def _plain(text: object) -> str:
    from rich.markup import escape

    return escape(str(text))
