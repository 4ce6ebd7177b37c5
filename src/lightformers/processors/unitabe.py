"""Rows of any table as tokens: the names of columns, their types, and what stands in the cells (UniTabE)."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lightformers.errors import DataError
from lightformers.processors import Processor, word_pieces
from lightformers.processors.schema import Column, Row, Schema, marked, missing, number, text

#: Types of cells: the row of the model's table of types.
NUMBER, BINARY, TEXT = range(3)
_TYPES = {"number": NUMBER, "binary": BINARY, "category": TEXT, "text": TEXT}
#: Words that prompts are made of.
CLASSIFY, REGRESS, RECOVER = "classification", "regression", "recovery"
#: The model's arguments, and what they are padded with (None: the pad token).
_ARRAYS: dict[str, int | None] = {
    "name_ids": None, "name_columns": -1, "name_places": 0, "input_ids": None, "value_columns": -1, "value_places": 0, "types": -1,
}  # fmt: skip


class Cell(NamedTuple):
    """A cell as tokens. name: its column. missing: there is no value, its token is the mask."""

    name: str
    name_ids: tuple[int, ...]
    value_ids: tuple[int, ...]
    type: int
    missing: bool


@dataclass(frozen=True)
class UniTabEProcessor(Processor):
    """Of {"row": {column: number, text or None}}; a row may have columns that no table had before.

    vocabulary: pieces, see `processors.word_pieces`. columns: (name, kind, values) of the columns that were seen, as in
        `processors.schema`; a column that is not among them gets its type from the cell. decimals: numbers are rounded to
        so many, written out without exponent, and cut into characters. max_tokens: longer names and cells are cut, which
        a warning says.

    Encoded, per row: name_ids and input_ids, the tokens of all names and of all cells one after the other; name_columns
    and value_columns, to which column each belongs; name_places and value_places, where it stands in its text; types,
    (columns). Padded with the pad token, columns and types with -1, places with 0. An absent column is left out, a missing cell (None, NaN, blank) is the mask token.
    """

    vocabulary: tuple[str, ...]
    columns: tuple[tuple[str, str, tuple[str, ...]], ...] = ()
    decimals: int = 4
    max_tokens: int = 50
    inputs: ClassVar[frozenset[str]] = frozenset({"row"})

    def __post_init__(self) -> None:
        word_pieces.check(self.vocabulary)
        if self.max_tokens < 1 or self.decimals < 0:
            raise DataError(f"cells of {self.max_tokens} tokens and {self.decimals} decimals hold no value")

    @classmethod
    def learn(
        cls, tables: Sequence[Sequence[Row]], size: int = 1024, labels: int = 32, **fields: Any
    ) -> UniTabEProcessor:
        """With a vocabulary learned from names and texts of tables; their columns are known. size 0: characters.

        A column that several tables have keeps the kind of the first. Raises DataError for tables without cells.
        """
        seen: dict[str, Column] = {}
        for rows in tables:
            filled = [name for name in _names(rows) if any(not missing(row.get(name)) for row in rows)]
            known = [{n: row[n] for n in filled if n in row} for row in rows] if filled else []
            for column in Schema.of(known).columns if known else ():
                seen.setdefault(column.name, column)
        texts = {*seen, *(c.strip() for t in tables for row in t for c in row.values() if isinstance(c, str))}
        vocabulary = word_pieces.learned(texts, size, labels, (CLASSIFY, REGRESS, RECOVER))
        return cls(vocabulary, tuple(map(dataclasses.astuple, seen.values())), **fields)

    def with_columns(self, schema: Schema) -> UniTabEProcessor:
        """This processor for tables that have the columns of `schema` too, or with other kinds; the rest stays."""
        new = {column.name: dataclasses.astuple(column) for column in schema.columns}
        kept = {name: (name, *rest) for name, *rest in self.columns}
        return dataclasses.replace(self, columns=tuple((kept | new).values()))

    def kind(self, name: str) -> tuple[str, tuple[str, ...]]:
        """Kind and known values of a column; "" and none where it was not seen."""
        return self._kinds.get(name, ("", ()))

    def token(self, piece: str) -> int:
        """The number of a piece. Raises DataError where the vocabulary lacks it."""
        if piece not in self._numbers:
            raise DataError(f"the vocabulary has no token {piece!r}")
        return self._numbers[piece]

    def labels(self, count: int) -> tuple[int, ...]:
        """The tokens of `count` classes, all different. Raises DataError where fewer are reserved."""
        there = 0
        while word_pieces.label(there) in self._numbers:
            there += 1
        if count > there:
            raise DataError(f"{count} classes, and the vocabulary has tokens for {there}: learn one with labels={count}")  # fmt: skip
        return tuple(self.token(word_pieces.label(n)) for n in range(count))

    def tokens(self, text: str) -> tuple[int, ...]:
        """Of names, texts and prompts: at least one, however odd the text is."""
        if text not in self._known:
            found = self._cut(text) or (self.token(word_pieces.UNKNOWN),)
            if len(self._known) > 100_000:  # free text never comes twice: do not keep all of it
                self._known.clear()
            self._known[text] = found
        return self._known[text]

    def prompt(self, what: str, name: str = "") -> tuple[int, ...]:
        """ "recovery NAME :", "classification :", "regression :"."""
        return self.tokens(" ".join(filter(None, (what, name, ":"))))[: 2 * self.max_tokens]

    def number(self, value: float) -> tuple[int, ...]:
        """A number in fixed decimals, one token per character. Raises DataError for infinity."""
        if not math.isfinite(value):
            raise DataError(f"a cell holds {value}: leave it out or make it missing")
        text = f"{float(value):.{self.decimals}f}"
        text = text.rstrip("0").rstrip(".") if "." in text else text
        return tuple(self._numbers[c] for c in ("0" if text == "-0" else text))

    def cells(self, row: Row) -> list[Cell]:
        """The cells of a row, in its order. Raises DataError for a row without any or with a cell of another kind."""
        if not row:
            raise DataError("a row has no cells")
        return [self._cell(name, cell) for name, cell in row.items()]

    def _cell(self, name: str, cell: Any) -> Cell:
        kind, values = self.kind(name)
        names = self._short(self.tokens(str(name)), name)
        cell = cell.item() if isinstance(cell, np.generic) else cell
        if missing(cell) or (kind == "number" and number(cell) is None and marked(cell)):
            return Cell(name, names, (self.token(word_pieces.MASK),), _TYPES.get(kind, TEXT), True)
        if not isinstance(cell, str) and number(cell) is None:
            raise DataError(f"the column {name} holds a {type(cell).__name__}: cells are numbers or texts")
        if isinstance(cell, bool):
            kind = kind or "binary"
        elif not isinstance(cell, str) and text(cell) not in values:
            kind = "number"
        value = number(cell) if kind == "number" else None
        if value is not None:
            return Cell(name, names, self._short(self.number(value), name), NUMBER, False)
        kind = "text" if kind in ("", "number") else kind
        return Cell(name, names, self._short(self.tokens(text(cell)), name), _TYPES[kind], False)

    def _short(self, ids: tuple[int, ...], name: str) -> tuple[int, ...]:
        if len(ids) > self.max_tokens:
            warnings.warn(
                f"column {name}: what is longer than {self.max_tokens} tokens was cut", stacklevel=2
            )
        return ids[: self.max_tokens]

    def encode_examples(self, examples: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        if any("row" not in example for example in examples):
            raise DataError("this model reads table rows: examples have a field 'row', column by column")
        return [self.arrays(self.cells(example["row"])) for example in examples]

    def arrays(self, cells: Sequence[Cell]) -> dict[str, Any]:
        """The model's arguments for one row, unpadded."""
        runs = []
        for texts in ([c.name_ids for c in cells], [c.value_ids for c in cells]):
            lengths = [len(t) for t in texts]
            places = [np.arange(n) for n in lengths]
            runs += [[t for text in texts for t in text], np.repeat(np.arange(len(cells)), lengths), np.concatenate(places)]  # fmt: skip
        types = [cell.type for cell in cells]
        return {k: np.asarray(v, np.int64) for k, v in zip(_ARRAYS, (*runs, types))}

    def pad_encoded(self, encoded: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Tensor], dict[str, Any]]:
        pad = self.token(word_pieces.PAD)
        return {k: padded([e[k] for e in encoded], pad if v is None else v) for k, v in _ARRAYS.items()}, {}

    def samples(self, count: int) -> list[dict[str, Any]]:
        drawn = np.random.default_rng(0)
        columns = self.columns or (("amount", "number", ()), ("remark", "text", ()))

        def value(kind: str, values: tuple[str, ...]) -> Any:
            if kind == "number":
                return round(float(drawn.normal(0, 100)), int(drawn.integers(3)))
            return str(drawn.choice(values)) if values else "a few words"

        return [{"row": {name: value(kind, values) for name, kind, values in columns}} for _ in range(count)]

    def said(self, ids: Sequence[int]) -> str:
        """Tokens of an answer -> what they say; numerals are joined to a number."""
        pieces = [self.vocabulary[i] for i in ids]
        if pieces and all(p in word_pieces.NUMERALS for p in pieces):
            return "".join(pieces)
        return word_pieces.joined(pieces)

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {piece: number for number, piece in enumerate(self.vocabulary)}

    @cached_property
    def _kinds(self) -> dict[str, tuple[str, tuple[str, ...]]]:
        return {name: (kind, values) for name, kind, values in self.columns}

    @cached_property
    def _known(self) -> dict[str, tuple[int, ...]]:
        return {}

    @cached_property
    def _cut(self) -> Callable[[str], tuple[int, ...]]:
        return word_pieces.cutter(self.vocabulary)

    def __getstate__(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}


def padded(rows: Sequence[Sequence[int]], fill: int) -> Tensor:
    """Lists of unequal length -> (rows, longest), filled up behind."""
    out = np.full((len(rows), max(map(len, rows))), fill, np.int64)
    for place, row in zip(out, rows):
        place[: len(row)] = row
    return torch.from_numpy(out)


def _names(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row))
