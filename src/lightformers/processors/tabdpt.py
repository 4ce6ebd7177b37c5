"""Rows of a table for TabDPT (arXiv 2410.18164), together with the labelled rows that answer for them."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightformers.errors import DataError, MissingExtra
from lightformers.processors import Processor
from lightformers.processors.schema import Row, Schema, missing

ARRAYS = "processor.safetensors"
_KEPT = ("context_x", "context_y", "centre", "axes")
_CLIP = 4.0
#: Categories of at most so many values get a column for each value, if the row then still fits.
_SPREAD = 10
Encoding = Literal["auto", "ordinal", "onehot"]


@dataclass(frozen=True, eq=False)
class TabDPTProcessor(Processor):
    """Of {"row": {column: cell}}: numbers as they are, categories by number or a column per value, all scaled and padded.

    names: columns that are read; values: of a category or binary, () of a number; spread: one column per value.
    features: width of a row after padding. low, high, mean, deviation: of each made column, from labelled rows alone: cells
        are clipped, standardised, and set to 0, the mean, where they are missing or were never seen.
    neighbours: each row is answered by so many nearest labelled rows; 0: by all of them.
    context_x (rows, features), context_y (rows): what answers. centre, axes: of the principal components that the columns
        are reduced to where they are more than `features`; else empty.
    """

    names: tuple[str, ...]
    values: tuple[tuple[str, ...], ...]
    spread: tuple[bool, ...]
    features: int
    low: tuple[float, ...]
    high: tuple[float, ...]
    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    neighbours: int
    context_x: NDArray[np.float32]
    context_y: NDArray[np.float32]
    centre: NDArray[np.float32]
    axes: NDArray[np.float32]
    inputs: ClassVar[frozenset[str]] = frozenset({"row"})

    @classmethod
    def fit(
        cls,
        rows: Sequence[Row],
        targets: NDArray[Any],
        schema: Schema,
        features: int,
        context: int = 1024,
        neighbours: int | None = None,
        encoding: Encoding = "auto",
        pca: bool = True,
    ) -> TabDPTProcessor:
        """Of labelled rows: classes by number, or standardised targets.

        context: the most rows that answer for all; of more, the nearest `neighbours` (None: as many) answer for each query.
        encoding: "onehot" a column per value of categories, "ordinal" their number, "auto" the former for short lists while
            the row still fits. pca: columns beyond `features` are reduced, else refused.
        Raises DataError for no rows, no usable column, too many columns without pca.
        """
        if not len(rows) or len(rows) != len(targets):
            raise DataError(
                f"{len(rows)} labelled rows with {len(targets)} targets: a table answers from rows that it has"
            )
        near = context if neighbours is None else neighbours
        if min(context, near) < 1:
            raise DataError(f"at least one row must answer, not {min(context, near)}")
        columns = [c for c in schema.columns if c.kind != "text"]
        if left := [c.name for c in schema.columns if c.kind == "text"]:
            if not columns:
                raise DataError(
                    f"TabDPT reads numbers and categories; all columns are free text: {', '.join(left)}"
                )
            warnings.warn(f"columns of free text are left out: {', '.join(left)}", stacklevel=3)
        values = tuple(() if c.kind == "number" else c.values for c in columns)
        spread = _spread(values, features, encoding)
        none = np.zeros(0, np.float32)
        names = tuple(c.name for c in columns)
        plain = cls(names, values, spread, features, (), (), (), (), 0, none, none, none, none)
        raw = plain.matrix(rows)
        if raw.shape[1] > features and not pca:
            raise DataError(
                f"{raw.shape[1]} columns are more than the {features} of this model: leave some out, or allow pca=True"
            )
        low, high, mean, deviation = scales = _scales(raw)
        scaled = _scaled(raw, *scales)
        centre, axes = _principal(scaled, features) if raw.shape[1] > features else (none, none)
        return replace(
            plain,
            low=tuple(low.tolist()),
            high=tuple(high.tolist()),
            mean=tuple(mean.tolist()),
            deviation=tuple(deviation.tolist()),
            neighbours=0 if len(rows) <= context else min(near, len(rows)),
            context_x=_padded(scaled, centre, axes, features),
            context_y=np.asarray(targets, np.float32),
            centre=centre,
            axes=axes,
        )

    def matrix(self, rows: Sequence[Row]) -> NDArray[np.float64]:
        """(rows, made columns) in the units of the table, NaN where a cell is missing or a value was never seen."""
        made = []
        for name, values, spread in zip(self.names, self.values, self.spread):
            cells = [row.get(name) for row in rows]
            column = _numbers(name, cells) if not values else _codes(cells, values)
            if spread:
                grid = (column[:, None] == np.arange(len(values))).astype(np.float64)
                grid[np.isnan(column)] = np.nan
                made.append(grid)
            else:
                made.append(column[:, None])
        return np.concatenate(made, 1)

    def encode_examples(self, examples: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        if any("row" not in e for e in examples):
            raise DataError('an example of a table is {"row": {column: cell}}')
        raw = self.matrix([e["row"] for e in examples])
        x = _padded(_scaled(raw, *self._scales), self.centre, self.axes, self.features)
        if not self.neighbours:
            return [{"x": row} for row in x]
        near = self._index.kneighbors(x, return_distance=False)
        return [{"x": row, "neighbours": places} for row, places in zip(x, near)]

    def pad_encoded(self, encoded: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Tensor], dict[str, Any]]:
        x, y = torch.from_numpy(self.context_x), torch.from_numpy(self.context_y)
        if self.neighbours:
            places = torch.from_numpy(np.stack([e["neighbours"] for e in encoded]))
            x, y = x[places], y[places]
        return {
            "context_x": x,
            "context_y": y,
            "x": torch.from_numpy(np.stack([e["x"] for e in encoded])),
        }, {}

    def samples(self, count: int) -> list[dict[str, Any]]:
        rng, made = np.random.default_rng(0), []
        starts = np.cumsum([0, *(len(v) if s else 1 for v, s in zip(self.values, self.spread))])
        for _ in range(count):
            row: dict[str, Any] = {}
            for name, values, at in zip(self.names, self.values, starts):
                drawn = float(self.mean[at] + self.deviation[at] * rng.standard_normal())
                row[name] = values[rng.integers(len(values))] if values else drawn
            made.append({"row": row})
        return made

    @functools.cached_property
    def _scales(self) -> tuple[NDArray[np.float64], ...]:
        return tuple(np.asarray(v, np.float64) for v in (self.low, self.high, self.mean, self.deviation))

    @functools.cached_property
    def _index(self) -> Any:
        try:
            from sklearn.neighbors import NearestNeighbors
        except ImportError as error:
            raise MissingExtra("tabular", "scikit-learn") from error
        return NearestNeighbors(n_neighbors=self.neighbours).fit(self.context_x)

    def _fields(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in _KEPT}

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes `processor_config.json` and the labelled rows, `processor.safetensors`."""
        from safetensors.numpy import save_file

        save_file({k: np.ascontiguousarray(getattr(self, k)) for k in _KEPT}, Path(folder) / ARRAYS)
        super().save_pretrained(folder)

    @classmethod
    def from_folder(cls, folder: Path, fields: Mapping[str, Any]) -> Processor:
        from safetensors.numpy import load_file

        arrays = load_file(folder / ARRAYS)
        found = cls.from_fields(fields | {name: arrays[name] for name in _KEPT})  # type: ignore[operator]
        return found


def _spread(values: Sequence[tuple[str, ...]], features: int, encoding: Encoding) -> tuple[bool, ...]:
    if encoding not in ("auto", "ordinal", "onehot"):
        raise DataError(f"encoding is auto, ordinal or onehot, not {encoding!r}")
    most = {"ordinal": 0, "auto": _SPREAD}.get(encoding, math.inf)
    wanted = [2 < len(v) <= most for v in values]
    if encoding == "auto":
        # Short lists first: a column per value is worth most where it costs least.
        room = features - len(values)
        for place in sorted(range(len(values)), key=lambda i: len(values[i])):
            if wanted[place]:
                wanted[place] = len(values[place]) - 1 <= room
                room -= (len(values[place]) - 1) * wanted[place]
    return tuple(wanted)


def _numbers(name: str, cells: Sequence[Any]) -> NDArray[np.float64]:
    try:
        column = np.array([math.nan if missing(c) else float(c) for c in cells], np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"the column {name} holds numbers, and a cell is none: {error}") from error
    if np.isinf(column).any():
        raise DataError(f"the column {name} holds an infinity: leave such cells empty")
    return column


def _codes(cells: Sequence[Any], values: Sequence[str]) -> NDArray[np.float64]:
    number = {value: float(place) for place, value in enumerate(values)}

    def code(cell: Any) -> float:
        if missing(cell):
            return math.nan
        if not isinstance(cell, str) and str(cell) not in number and float(cell).is_integer():
            cell = int(cell)  # True, 1 and 1.0 are one value
        return number.get(str(cell), math.nan)

    return np.array([code(c) for c in cells], np.float64)


def _scales(raw: NDArray[np.float64]) -> tuple[NDArray[np.float64], ...]:
    """Limits at four deviations, re-estimated once without what lies beyond; then mean and deviation of what they leave."""

    def moments(x: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        seen = ~np.isnan(x)
        count = np.maximum(seen.sum(0), 1)
        mean = np.where(seen, x, 0.0).sum(0) / count
        return mean, np.sqrt(np.square(np.where(seen, x - mean, 0.0)).sum(0) / count)

    whole = moments(raw)
    with np.errstate(invalid="ignore"):
        inner = moments(np.where(np.abs(raw - whole[0]) <= _CLIP * whole[1], raw, np.nan))
    # As in the model: where nothing else varies, what few rows have is no outlier.
    mean, deviation = (np.where(inner[1] > 0, a, b) for a, b in zip(inner, whole))
    low, high = mean - _CLIP * deviation, mean + _CLIP * deviation
    mean, deviation = moments(np.clip(raw, low, high))
    return low, high, mean, np.where(deviation > 0, deviation, 1.0)


def _scaled(raw: NDArray[np.float64], low: Any, high: Any, mean: Any, deviation: Any) -> NDArray[np.float64]:
    return np.nan_to_num((np.clip(raw, low, high) - mean) / deviation)


def _principal(scaled: NDArray[np.float64], count: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean and the axes of largest variance, (columns) and (columns, count), the largest entry of each positive."""
    centre = scaled.mean(0)
    _, axes = np.linalg.eigh((scaled - centre).T @ (scaled - centre))
    axes = axes[:, ::-1][:, :count]
    sign = np.sign(np.take_along_axis(axes, np.abs(axes).argmax(0)[None], 0))
    return centre.astype(np.float32), np.ascontiguousarray(axes * sign, np.float32)


def _padded(scaled: NDArray[np.float64], centre: Any, axes: Any, features: int) -> NDArray[np.float32]:
    x = (scaled - centre) @ axes if len(axes) else scaled
    return np.pad(x, ((0, 0), (0, features - x.shape[1]))).astype(np.float32)
