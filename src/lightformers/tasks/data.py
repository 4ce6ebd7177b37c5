"""Reading a user's data: csv, tsv, jsonl, json, parquet, txt (also .gz), a folder of these, or a hub name.

Everything becomes `Rows`: dictionaries that know where they came from, so that an error can name file and line.
CoNLL columns and images are read in `conll.py` and `images.py`.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightformers.errors import DataError, MissingExtra
from lightformers.tasks.splits import role

if TYPE_CHECKING:
    from lightformers.bundle import Example

FORMATS = ("csv", "tsv", "jsonl", "json", "parquet", "txt", "conll")
_ALIASES = {
    "ndjson": "jsonl",
    "pq": "parquet",
    "text": "txt",
    "iob": "conll",
    "iob2": "conll",
    "bio": "conll",
}


@dataclass(frozen=True)
class Rows:
    """Rows of one file.

    lines: the line on which each row starts, or None where lines mean nothing. running: the rows are the lines
    of one running text, {"text"}; blank ones part paragraphs.
    """

    rows: list[dict[str, Any]]
    source: str
    lines: Sequence[int] | None = None
    running: bool = False

    def at(self, i: int) -> str:
        """Where row `i` stands, for an error."""
        return f"{self.source}, line {self.lines[i]}" if self.lines else f"{self.source}, row {i + 1}"

    @property
    def columns(self) -> list[str]:
        return list(dict.fromkeys(key for row in self.rows[:1000] for key in row))

    def column(self, name: str, option: str | None = None) -> list[Any]:
        """All values of a column (None where a row lacks it); DataError listing the columns if none has it."""
        if name not in self.columns:
            there = ", ".join(map(repr, self.columns)) or "none"
            way = f". Name the right one with --{option}" if option else ""
            raise DataError(f"{self.source}: no column {name!r}; columns there: {there}{way}")
        return [row.get(name) for row in self.rows]


def missing(value: Any) -> bool:
    """None, NaN, or nothing but blanks."""
    return (
        value is None
        or (isinstance(value, float) and math.isnan(value))
        or (isinstance(value, str) and not value.strip())
    )


def read(data: str | Path, conll: bool = False) -> dict[str, Rows]:
    """Read whatever `data` names: {"": rows}, or rows under train, search and verify.

    conll: txt files hold CoNLL columns. Raises DataError for anything that cannot be read, saying what to do.
    """
    path = Path(data)
    if path.is_dir():
        return _folder(path, conll)
    if path.is_file():
        return {"": read_file(path, conll)}
    name = str(data)
    if _format(path) is not None or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise DataError(f"there is no file {name}")
    from lightformers.tasks.hub import hub_rows

    return hub_rows(name)


def read_file(path: Path, conll: bool = False) -> Rows:
    """Read one file by its suffix."""
    kind = _format(path)
    if kind is None:
        raise DataError(
            f"{path}: unknown format {path.suffix or '(no suffix)'}; known: {', '.join('.' + f for f in FORMATS)}, also .gz"
        )
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty")
    if kind == "parquet":
        return _parquet(path)
    if kind == "conll" or (kind == "txt" and conll):
        from lightformers.tasks.conll import read_conll

        rows = read_conll(_text(path), str(path))
    else:
        rows = {"csv": _csv, "tsv": _csv, "jsonl": _jsonl, "json": _json, "txt": _txt}[kind](
            _text(path), str(path)
        )
    if not rows.rows:
        raise DataError(f"{path} holds no rows")
    return rows


def _format(path: Path) -> str | None:
    suffixes = [s[1:].lower() for s in path.suffixes]
    if suffixes and suffixes[-1] == "gz":
        suffixes.pop()
    kind = _ALIASES.get(suffixes[-1], suffixes[-1]) if suffixes else None
    return kind if kind in FORMATS else None


def _text(path: Path) -> str:
    try:
        raw = path.read_bytes()
        if raw[:2] == b"\x1f\x8b":
            raw = gzip.decompress(raw)
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise DataError(
            f"{path}, line {line}: not UTF-8. Convert it, e.g. iconv -f latin1 -t utf-8"
        ) from error
    except (OSError, EOFError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error


def _csv(text: str, source: str) -> Rows:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    delimiter = "\t" if ".tsv" in Path(source).name.lower() else ","
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    rows, lines = [], []
    start = 1
    try:
        header = [h.strip() for h in next(reader)]
        for record in reader:
            line, start = start, reader.line_num + 1
            line = max(line, 2)
            if not record:
                continue
            if len(record) != len(header):
                raise DataError(
                    f"{source}, line {line}: {len(record)} fields, but the header names {len(header)} "
                    f"({', '.join(header)}). Quote fields that hold the delimiter"
                )
            rows.append(dict(zip(header, record)))
            lines.append(line)
    except csv.Error as error:
        raise DataError(f"{source}, line {reader.line_num}: {error}") from error
    return Rows(rows, source, lines)


def _jsonl(text: str, source: str) -> Rows:
    rows, lines = [], []
    for number, line in enumerate(text.split("\n"), 1):  # not splitlines: U+2028 may stand inside a string
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(f"{source}, line {number}: not JSON ({error})") from error
        if not isinstance(row, dict):
            raise DataError(f"{source}, line {number}: an object {{...}} is needed on every line")
        rows.append(row)
        lines.append(number)
    return Rows(rows, source, lines)


def _json(text: str, source: str) -> Rows:
    try:
        rows = json.loads(text)
    except ValueError as error:
        raise DataError(f"{source}: not JSON ({error}). One object a line? Then name it .jsonl") from error
    if not isinstance(rows, list) or not all(isinstance(r, dict) for r in rows):
        raise DataError(f"{source}: a list of objects is needed, [{{...}}, ...]")
    return Rows(rows, source)


def _txt(text: str, source: str) -> Rows:
    """Every line is a text; blank lines stay, as they part paragraphs."""
    lines = text.replace("\r\n", "\n").rstrip("\n").split("\n") if text.strip() else []
    return Rows([{"text": line} for line in lines], source, range(1, len(lines) + 1), running=True)


def _parquet(path: Path) -> Rows:
    try:
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise MissingExtra("data", "pyarrow") from error
    try:
        rows = parquet.read_table(path).to_pylist()
    except Exception as error:  # pyarrow's own errors: all mean that the file is broken
        raise DataError(f"{path} is no readable parquet file: {error}") from error
    if not rows:
        raise DataError(f"{path} holds no rows")
    return Rows(rows, str(path))


def examples(
    rows: Rows,
    texts: dict[str, str],
    group: str | None = None,
    others: dict[str, Sequence[Any]] | None = None,
) -> tuple[list[Example], int]:
    """Text columns -> examples, and how many rows were left out because a text is empty.

    texts: field of the example -> column of the file. others: further fields, one value a row.
    """
    values = {field: rows.column(column, field.replace("_", "-")) for field, column in texts.items()}
    values |= {field: list(column) for field, column in (others or {}).items()}
    if group:
        values["group"] = rows.column(group, "group")
    out: list[Example] = []
    for i in range(len(rows.rows)):
        example = {field: column[i] for field, column in values.items()}
        if any(missing(example[field]) for field in texts):
            continue
        example |= {field: str(example[field]) for field in texts}
        if group and missing(example["group"]):
            del example["group"]
        out.append(example)
    if not out:
        raise DataError(f"{rows.source}: every row lacks {' or '.join(map(repr, texts.values()))}")
    return out, 0 if rows.running else len(rows.rows) - len(out)


def split_files(folder: Path, known: Callable[[Path], bool]) -> dict[str, list[Path]]:
    """Entries of a folder by split: a name starts with train, valid, test...; several of one split are joined."""
    found: dict[str, list[Path]] = {}
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith(".") or not known(entry):
            continue
        word = entry.name.split(".")[0].replace("-", "_").split("_")[0]
        if (name := role(word)) is not None:
            found.setdefault(name, []).append(entry)
    return found


def _folder(folder: Path, conll: bool) -> dict[str, Rows]:
    def known(path: Path) -> bool:
        return path.is_file() and _format(path) is not None

    found = split_files(folder, known)
    if not found:
        files = [p for p in sorted(folder.iterdir()) if known(p) and not p.name.lower().startswith("readme")]
        if len(files) != 1:
            names = ", ".join(p.name for p in files) or "no data files"
            raise DataError(f"{folder} holds {names}: name one file, or call them train, valid and test")
        return {"": read_file(files[0], conll)}
    return {name: _joined([read_file(p, conll) for p in paths]) for name, paths in found.items()}


def _joined(parts: list[Rows]) -> Rows:
    if len(parts) == 1:
        return parts[0]
    joined = [row for part in parts for row in part.rows]
    return Rows(joined, f"{parts[0].source} (+{len(parts) - 1} more)", running=all(p.running for p in parts))
