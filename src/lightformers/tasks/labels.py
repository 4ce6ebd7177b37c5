"""Class labels: numbers for the names in the data, and the model's numbers for the same names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from lightformers.errors import DataError, ModelError
from lightformers.tasks import data

if TYPE_CHECKING:
    from lightformers.bundle import Bundle


def label_name(value: Any) -> str | None:
    """The label as text: 1, 1.0, True and "1" are the same; None for a missing one (also -1, as hubs write it)."""
    if data.missing(value):
        return None
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, (int, float)):
        return None if value == -1 else f"{value:g}" if float(value).is_integer() else str(value)
    text = str(value).strip()
    if text.lower() in ("-1", "nan"):
        return None
    number = re.fullmatch(
        r"0*(\d+)(\.0*)?", text, re.ASCII
    )  # 1.0 is how pandas writes an integer column with gaps
    return number[1] if number else text


def order(names: Iterable[str]) -> tuple[str, ...]:
    """Distinct names, numbers by value, other names by alphabet."""
    return tuple(sorted(set(names), key=lambda n: (0, int(n), "") if n.isdigit() else (1, 0, n)))


def column(rows: data.Rows, name: str) -> list[str | None]:
    """Labels of a column as names. DataError for missing ones, unless all are (a test set without answers)."""
    names = [label_name(v) for v in rows.column(name, "label")]
    absent = [i for i, n in enumerate(names) if n is None]
    if absent and len(absent) < len(names):
        raise DataError(
            f"{rows.at(absent[0])}: no label in column {name!r} ({len(absent)} of {len(names)} rows): "
            "label these rows or remove them"
        )
    return names


def several(names: Sequence[str], source: str) -> None:
    """DataError unless there are at least two classes."""
    if len(set(names)) < 2:
        raise DataError(
            f"{source}: one class only ({', '.join(set(names)) or 'none'}); two or more are needed"
        )


def of_model(bundle: Bundle) -> tuple[str, ...] | None:
    """The names of the model's classes in order, or None where its configuration names none."""
    names = getattr(getattr(bundle.model, "config", None), "id2label", None)
    return tuple(str(names[i]) for i in sorted(names)) if names else None


def match(names: Sequence[str], model: Sequence[str]) -> tuple[dict[str, int], str | None]:
    """Numbers in the model for the data's names, and a warning if that was a guess.

    By name (case does not count); else numbers are taken as the model's numbers; else, if the model has as many
    classes and no names of its own (LABEL_0, LABEL_1, ...), in order. Anything else is a DataError that lists both.
    """
    lowered = {n.lower(): i for i, n in enumerate(model)}
    if len(lowered) == len(model) and all(n.lower() in lowered for n in names):
        return {n: lowered[n.lower()] for n in names}, None
    if all(n.isdigit() and int(n) < len(model) for n in names):
        return {n: int(n) for n in names}, None
    if len(names) == len(model) and all(re.fullmatch(r"LABEL_\d+", n) for n in model):
        pairs = ", ".join(f"{n} = {i}" for i, n in enumerate(names))
        return {
            n: i for i, n in enumerate(names)
        }, f"the model does not name its classes; assumed in order: {pairs}"
    raise DataError(
        f"the labels do not match the model's head. Data ({len(names)}): {_list(names)}. "
        f"Model ({len(model)}): {_list(model)}. Write the labels as the model does, or give its numbers 0 to "
        f"{len(model) - 1}"
    )


def renumber(current: Sequence[str], bundle: Bundle) -> tuple[dict[int, int], tuple[str, ...], str | None]:
    """Present number -> the model's number, the new list of names, and a warning. ModelError without a head."""
    model = of_model(bundle)
    if model is None:
        raise ModelError("the model's configuration names no classes (id2label): load it with the task given")
    used, note = match(current, model)
    return {i: used[n] for i, n in enumerate(current)}, model, note


def _list(names: Sequence[str], most: int = 12) -> str:
    return ", ".join(names[:most]) + (f", ... ({len(names) - most} more)" if len(names) > most else "")
