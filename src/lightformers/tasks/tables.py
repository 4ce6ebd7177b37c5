"""What both tasks on tables share: reading a file, the cells by their columns' kinds, and what to be warned of."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightformers.errors import DataError
from lightformers.processors.schema import Schema, missing, number
from lightformers.tasks import common, data
from lightformers.tasks.splits import assemble, named

if TYPE_CHECKING:
    from lightformers.bundle import Example

#: The fewest rows that are split at all.
FEWEST = 10
_TARGETS = ("target", "label", "y", "class")
#: Where so many rows of a part differ, equal ones in other parts are copies; in coarser tables they come by themselves.
_DISTINCT = 0.9


def read(
    path: str | Path, target: str | None, features: Sequence[str] | str | None, group: str | None
) -> tuple[dict[str, list[Example]], list[str]]:
    """A file, or a folder of train, valid and test files -> examples by split, with raw targets, and notes.

    target: the column to predict; None: the one that is called target, label, y or class. features: columns to predict
    from, also as one text with commas; None: all but target and group. Parts without any target are left out.
    Raises DataError: unreadable files, columns that are not there, a target that is missing in some rows.
    """
    parts: dict[str, list[Example]] = {}
    notes: list[str] = []
    for name, rows in data.read(path).items():
        column = _target(rows, target)
        labels = rows.column(column, "label")
        absent = [i for i, value in enumerate(labels) if missing(value)]
        if len(absent) == len(labels):
            notes.append(f"{rows.source} holds no targets and was left out")
            continue
        if absent:
            raise DataError(
                f"{rows.at(absent[0])}: no target in column {column!r} ({len(absent)} of {len(labels)} rows): "
                "fill it in or remove these rows"
            )
        inputs = _features(rows, features, column, group)
        groups = rows.column(group, "group") if group else [None] * len(labels)
        parts[name] = [
            {"row": {c: row.get(c) for c in inputs}, "label": label, "at": rows.at(i)}
            | ({} if missing(belongs) else {"group": belongs})
            for i, (row, label, belongs) in enumerate(zip(rows.rows, labels, groups))
        ]
    if not parts:
        raise DataError(f"{path}: no row has a target")
    return parts, notes


def _target(rows: data.Rows, target: str | None) -> str:
    if target is not None:
        return target
    found = [c for c in rows.columns if c.lower() in _TARGETS]
    if len(found) == 1:
        return found[0]
    there = ", ".join(map(repr, rows.columns))
    raise DataError(
        f"{rows.source}: which column is the target? Name it with --label (target=); columns: {there}"
    )


def _features(
    rows: data.Rows, features: Sequence[str] | str | None, target: str, group: str | None
) -> list[str]:
    if features is None:
        chosen = [c for c in rows.columns if c not in (target, group)]
    else:
        chosen = [c.strip() for c in (features.split(",") if isinstance(features, str) else features)]
        for column in chosen:
            rows.column(column, "features")
        if target in chosen:
            raise DataError(
                f"{target!r} is the target and cannot be among the columns that it is predicted from"
            )
    if not chosen:
        raise DataError(f"{rows.source} has no column besides the target: nothing to predict it from")
    return chosen


def split(
    examples: Mapping[str, Sequence[Example]] | Sequence[Example],
    numbered: Callable[[dict[str, list[Example]]], dict[str, list[Example]]],
    seed: int,
    stratify: Callable[[Example], Any] | None,
) -> tuple[dict[str, list[Example]], Schema, list[str]]:
    """{"row", "label"} examples, one list or lists by split -> splits with cells by their kind, schema, warnings.

    The kinds are read off all rows, the values of categories off the training rows. numbered: raw targets -> labels.
    """
    parts = named(examples)
    for rows in parts.values():
        common.require(rows, ("row", "label"))
    total = sum(map(len, parts.values()))
    if total < FEWEST:
        raise DataError(f"{total} rows are too few to learn from and to judge by: at least {FEWEST}")
    parts = numbered(parts)
    every = [e["row"] for rows in parts.values() for e in rows]
    schema = Schema.of(every)
    parts = {
        name: [
            {**common.without([e], "at")[0], "row": row}
            for e, row in zip(rows, schema.cast([e["row"] for e in rows]))
        ]
        for name, rows in parts.items()
    }
    different = sum(len({k for e in rows for k in _keys(e)}) for rows in parts.values())
    splits, notes = assemble(parts, _keys if different >= _DISTINCT * total else _nothing, seed, stratify)
    schema = schema.seen([e["row"] for e in splits["train"]])
    return splits, schema, notes + suspicious(schema, every)


def _keys(example: Example) -> Iterable[Any]:
    return [tuple(example["row"].items())]


def _nothing(example: Example) -> Iterable[Any]:
    return []


def suspicious(schema: Schema, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Warnings of columns that name the row instead of telling something of it."""
    notes = []
    for column in schema.columns:
        cells = [row.get(column.name) for row in rows]
        there = [c for c in cells if not missing(c)]
        if len(there) < 2 * FEWEST or len(set(there)) < len(there):
            continue
        values = [number(c) for c in there] if column.kind == "number" else []
        counted = bool(values) and all(v is not None and v.is_integer() for v in values)
        if column.kind == "text" or (counted and max(values) - min(values) == len(values) - 1):  # type: ignore[operator,type-var]
            notes.append(
                f"the column {column.name} says something else in every row, as an id does: leave it out (features=) "
                "unless it tells something"
            )
    return notes
