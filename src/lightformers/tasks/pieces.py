"""Running text cut into pieces, for language modelling."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lightformers.errors import DataError
from lightformers.tasks import common, data
from lightformers.tasks.splits import assemble, named

if TYPE_CHECKING:
    from lightformers.bundle import Example

GROUP = 8  # neighbouring pieces of one text file that are split and resampled together, at most


def cut(lines: Sequence[str], max_words: int) -> Iterator[str]:
    """Lines joined into pieces of at most `max_words` words; only a line longer than that is broken."""
    if max_words < 2:
        raise DataError(f"max_words is {max_words}: a piece needs two words at least")
    piece: list[str] = []
    count = 0
    for line in lines:
        words = line.split()
        if piece and count + len(words) > max_words:
            yield from _text(piece)
            piece, count = [], 0
        while len(words) > max_words:
            yield " ".join(words[:max_words])
            words, line = words[max_words:], " ".join(words[max_words:])
        piece.append(line)
        count += len(words)
    yield from _text(piece)


def _text(lines: list[str]) -> Iterator[str]:
    text = "\n".join(lines).strip()
    if text:
        yield text


def from_file(
    path: str | Path, text: str, group: str | None, max_words: int, seed: int
) -> tuple[dict[str, list[Example]], list[str]]:
    """Pieces of everything that `path` names: (splits, warnings)."""
    parts: dict[str, list[Example]] = {}
    for name, rows in data.read(path).items():
        running = rows.running and group is None
        parts[name] = _running(rows, max_words) if running else _table(rows, text, group, max_words)
        if not parts[name]:
            raise DataError(f"{rows.source} holds no text")
    splits, notes = assemble(parts, _keys, seed)
    return splits, notes


def from_examples(
    examples: Mapping[str, Sequence[Example]] | Sequence[Example], seed: int
) -> tuple[dict[str, list[Example]], list[str]]:
    parts = named(examples)
    for rows in parts.values():
        common.require(rows, ("text",))
    return assemble(parts, _keys, seed)


def _keys(example: Example) -> list[str]:
    return [common.folded(example["text"])]


def _running(rows: data.Rows, max_words: int) -> list[Example]:
    texts = list(cut([row["text"] for row in rows.rows], max_words))
    size = min(
        max(len(texts) // 40, 1), GROUP
    )  # small files: smaller groups, so that three splits stay possible
    return [{"text": t, "group": i // size} for i, t in enumerate(texts)]


def _table(rows: data.Rows, text: str, group: str | None, max_words: int) -> list[Example]:
    column = rows.column(text, "text")
    groups = rows.column(group, "group") if group else list(range(len(column)))
    return [
        {"text": piece, "group": key}
        for document, key in zip(column, groups)
        if not data.missing(document)
        for piece in cut(str(document).split("\n"), max_words)
    ]
