"""Rows of a table as tensors: numbers by their rank among the training rows, categories by number."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightformers.errors import DataError
from lightformers.processors import Processor
from lightformers.processors.schema import Column, Row, Schema, missing, text

#: Most values of a column that get a number of their own, and the fewest rows that a text must stand in for one.
MOST, OFTEN = 256, 2
#: What is kept of a column of numbers: its distribution at so many points.
POINTS = 128
#: Numbers of a missing cell and of a value that is not known; those that are follow.
MISSING, UNKNOWN, FIRST = 0, 1, 2


@dataclass(frozen=True)
class TableProcessor(Processor):
    """Of {"row": {column: number, text or None}}.

    schema: the columns. quantiles: of each column of numbers, values that rise. scores: what stands for each of them, the
        normal score of its rank; between them lines, beyond them the ends. values: of each other column, the texts that have
        a number of their own, from FIRST on.

    Encoded: numbers, seen (count of such columns,) float32, 0 in both where a cell is missing; categories (count,) int64.
    A table without columns of a kind has no such input.
    """

    schema: Schema
    quantiles: tuple[tuple[float, ...], ...]
    scores: tuple[tuple[float, ...], ...]
    values: tuple[tuple[str, ...], ...]
    inputs: ClassVar[frozenset[str]] = frozenset({"row"})

    @classmethod
    def of(cls, rows: Sequence[Row], schema: Schema) -> TableProcessor:
        """Learned of the training rows, which are cast to `schema`."""
        numbers, others = _parts(schema)
        curves = [_curve(np.array([r[c.name] for r in rows if r[c.name] is not None])) for c in numbers]
        values = tuple(_values(c, [r[c.name] for r in rows]) for c in others)
        return cls(schema, tuple(q for q, _ in curves), tuple(s for _, s in curves), values)

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> TableProcessor:
        made = super().from_fields({**fields, "schema": None})
        object.__setattr__(made, "schema", Schema.from_fields(fields["schema"]))
        return made  # type: ignore[return-value]

    @property
    def sizes(self) -> tuple[int, ...]:
        """Numbers that each column of categories takes, the missing and the unknown one among them."""
        return tuple(FIRST + len(v) for v in self.values)

    def encode_examples(self, examples: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        if any("row" not in e for e in examples):
            raise DataError('an example of a table is {"row": {column: cell}}')
        rows = self.schema.cast([e["row"] for e in examples])
        numbers, others = _parts(self.schema)
        columns: dict[str, NDArray[Any]] = {}
        if numbers:
            raw = np.array([[r[c.name] for c in numbers] for r in rows], np.float64)  # None becomes NaN
            seen = np.isfinite(raw)
            placed = [np.interp(raw[:, i], self.quantiles[i], self.scores[i]) for i in range(len(numbers))]
            columns["numbers"] = np.where(seen, np.stack(placed, 1), 0).astype(np.float32)
            columns["seen"] = seen.astype(np.float32)
        if others:
            found = [{v: FIRST + i for i, v in enumerate(known)} for known in self.values]
            columns["categories"] = np.array(
                [[_number(r[c.name], known) for c, known in zip(others, found)] for r in rows], np.int64
            )
        return [{k: v[i] for k, v in columns.items()} for i in range(len(rows))]

    def pad_encoded(self, encoded: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Tensor], dict[str, Any]]:
        names = [n for n in ("numbers", "seen", "categories") if n in encoded[0]]
        return {n: torch.from_numpy(np.stack([e[n] for e in encoded])) for n in names}, {}

    def samples(self, count: int) -> list[dict[str, Any]]:
        drawn = np.random.default_rng(0)
        numbers, others = _parts(self.schema)
        return [
            {
                "row": {c.name: float(drawn.choice(q)) for c, q in zip(numbers, self.quantiles)}
                | {c.name: str(drawn.choice(v)) if v else None for c, v in zip(others, self.values)}
            }
            for _ in range(count)
        ]


def _parts(schema: Schema) -> tuple[list[Column], list[Column]]:
    """Columns of numbers, and all others."""
    return (
        [c for c in schema.columns if c.kind == "number"],
        [c for c in schema.columns if c.kind != "number"],
    )


def _curve(values: NDArray[Any]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Rising quantiles and the normal score of the mean rank of each; a column without values is 0 everywhere."""
    if not len(values):
        return (0.0,), (0.0,)
    ordered = np.sort(values)
    points = np.unique(np.quantile(ordered, np.linspace(0, 1, min(POINTS, len(ordered)))))
    below, upto = np.searchsorted(ordered, points, "left"), np.searchsorted(ordered, points, "right")
    share = np.clip((below + upto) / 2 / len(ordered), 0.5 / len(ordered), 1 - 0.5 / len(ordered))
    normal = NormalDist()
    scores = np.array([normal.inv_cdf(float(s)) for s in share])
    return tuple(points.tolist()), tuple(scores.tolist())


def _values(column: Column, cells: Sequence[Any]) -> tuple[str, ...]:
    """The values with numbers of their own, the commonest first. Of a column of texts a single one tells nothing."""
    counted = Counter(text(c) for c in cells if not missing(c))
    often = OFTEN if column.kind == "text" else 1
    ranked = sorted((-n, value) for value, n in counted.items() if n >= often)
    return tuple(value for _, value in ranked[:MOST])


def _number(cell: Any, known: Mapping[str, int]) -> int:
    return MISSING if cell is None else known.get(cell, UNKNOWN)
