"""Data sets of the Hugging Face hub, by name, through `datasets` (an extra)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from lightformers.errors import DataError, MissingExtra, reason
from lightformers.tasks.data import Rows
from lightformers.tasks.splits import role


def load(name: str) -> dict[str, Any]:
    """A `datasets` data set by name ("owner/name" or "owner/name:config"), by split."""
    from lightformers.telemetry import quiet

    try:
        import datasets
    except ImportError as error:
        raise MissingExtra("data", "datasets") from error
    owner, _, config = name.partition(":")
    try:
        with quiet():
            loaded = datasets.load_dataset(owner, config or None)
    except Exception as error:  # offline, unknown name, gated, several configs: its own reason is told
        raise DataError(
            f"{name!r} is no file or folder here, and `datasets` did not give it: {reason(error)}"
        ) from error
    found: dict[str, Any] = {}
    for split_name, part in loaded.items():
        if (known := role(str(split_name))) is not None:
            found.setdefault(known, part)
    if not found:
        found = {"": next(iter(loaded.values()))}
    return found if len(found) > 1 else {"": next(iter(found.values()))}


def hub_rows(name: str) -> dict[str, Rows]:
    return {
        split: Rows(list(plain(part)), f"{name} ({split or 'all'})") for split, part in load(name).items()
    }


def plain(part: Any) -> Iterator[dict[str, Any]]:
    """Rows of a `datasets` split; class numbers, also in lists, become class names."""
    names = {}
    for key, feature in (getattr(part, "features", None) or {}).items():
        inner = getattr(feature, "feature", feature)
        if hasattr(inner, "int2str"):
            names[key] = inner.int2str

    def value_of(key: str, value: Any) -> Any:
        if key not in names:
            return value
        if isinstance(value, list):
            return [value_of(key, v) for v in value]
        return names[key](value) if isinstance(value, int) and value >= 0 else value

    for row in part:
        yield {key: value_of(key, value) for key, value in row.items()}
