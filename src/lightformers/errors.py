"""Errors that a user can put right: what is wrong, and what to do about it."""

from __future__ import annotations


class UserError(Exception):
    """Something the caller can mend. The message names the cause and the way out.

    `code` is the exit status that the command line ends with.
    """

    code = 2


class DataError(UserError):
    """The data does not fit the task."""


class ModelError(UserError):
    """The model cannot be read, understood or cut as asked."""


class NotProven(UserError):
    """Nothing reached the floor that was asked for."""

    code = 3


class Interrupted(UserError):
    """Stopped by the user; what was finished is kept."""

    code = 130


class MissingExtra(UserError):
    """An optional dependency is not installed."""

    def __init__(self, extra: str, package: str) -> None:
        self.extra = extra
        super().__init__(
            f"{package} is needed here and is not installed. Install it with: pip install 'lightformers[{extra}]'"
        )


def reason(error: BaseException) -> str:
    """Why something failed, in a line: what lightformers itself refused with, where that stands anywhere behind the error,
    else the first line of the error, cut at 200 characters."""
    behind: BaseException | None = error
    while behind is not None and not isinstance(behind, UserError):
        behind = behind.__cause__ or behind.__context__
    line = (str(behind or error).strip() or type(error).__name__).splitlines()[0]
    return line if behind else line[:200]
