"""Windows of a series, as examples: views into one array, made when they are asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from lightformers.errors import DataError


@dataclass(frozen=True)
class Windows(Sequence[dict[str, Any]]):
    """Examples {"past_values": (context, channels), "future_values": (horizon, channels), "start": row, "group": block},
    with "past_time_features" and "future_time_features" where there are marks. Their arrays are views.

    values: (rows, channels) of the data. marks: (rows, marks) or None. starts: first row of every window. groups: its block
    (see `blocks`). told: the channels whose future is in the example; None: all. Where that is none, there is no future.
    """

    values: NDArray[np.float64]
    marks: NDArray[np.float32] | None
    starts: NDArray[np.int64]
    groups: NDArray[np.int64]
    context: int
    horizon: int
    told: tuple[int, ...] | None = None

    def __len__(self) -> int:
        return len(self.starts)

    @overload
    def __getitem__(self, place: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, place: slice) -> Windows: ...
    def __getitem__(self, place: int | slice) -> dict[str, Any] | Windows:
        if isinstance(place, slice):
            return replace(self, starts=self.starts[place], groups=self.groups[place])
        start = int(self.starts[place])
        middle, end = start + self.context, start + self.context + self.horizon
        out: dict[str, Any] = {"past_values": self.values[start:middle]}
        if self.told is None:
            out["future_values"] = self.values[middle:end]
        elif self.told:
            future = np.full((self.horizon, self.values.shape[1]), np.nan)
            future[:, list(self.told)] = self.values[middle:end, list(self.told)]
            out["future_values"] = future
        if self.marks is not None:
            out["past_time_features"] = self.marks[start:middle]
            out["future_time_features"] = self.marks[middle:end]
        return {**out, "start": start, "group": int(self.groups[place])}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[i] for i in range(len(self)))

    def without_future(self, known: Sequence[int] = ()) -> Windows:
        """The same without what is to be forecast; the future of `known` channels stays."""
        return replace(self, told=tuple(known))


def cut(
    values: NDArray[np.float64],
    marks: NDArray[np.float32] | None,
    rows: tuple[int, int],
    context: int,
    horizon: int,
    stride: int,
    block: int,
    targets: Sequence[int],
) -> Windows:
    """All windows of `context` + `horizon` rows inside rows [from, to), one every `stride` rows.

    Left out are windows of whose future nothing was observed at `targets`, and of whose past nothing was.
    """
    low, high = rows
    starts = np.arange(low, high - context - horizon + 1, stride, dtype=np.int64)
    starts = starts[
        _any(np.isfinite(values), starts, context)
        & _any(np.isfinite(values[:, list(targets)]), starts + context, horizon)
    ]
    return Windows(values, marks, starts, blocks(starts, low, block), context, horizon)


def _any(seen: NDArray[np.bool_], starts: NDArray[np.int64], length: int) -> NDArray[np.bool_]:
    """Whether any value of the `length` rows from each start is seen; seen: (rows, channels)."""
    total = np.concatenate([[0], np.cumsum(seen.sum(1))])
    return total[starts + length] > total[starts]


def blocks(starts: NDArray[np.int64], low: int, block: int) -> NDArray[np.int64]:
    """The block of every window: windows that start within the same `block` rows belong together.

    Windows that start less than a horizon apart forecast some of the same rows, and those of one day err alike, so the
    bootstrap draws blocks of neighbours (Kunsch, 1989): at least a horizon long, and at least a season.
    """
    return (starts - low) // block


def borders(rows: int, split: Sequence[float]) -> tuple[int, int, int]:
    """Rows at which train, search and verify end.

    split: three shares of all rows, counted as the long-horizon benchmarks do (int(0.7 n) train, int(0.2 n) verify, what
    is left between), or these three rows themselves. Raises DataError.
    """
    if len(split) != 3:
        raise DataError(
            f"a split is three shares (0.7, 0.1, 0.2) or three rows, train to verify, not {tuple(split)}"
        )
    if all(isinstance(s, (int, np.integer)) for s in split):
        first, second, last = (int(s) for s in split)
        if not 0 < first < second < last:
            raise DataError(f"the rows at which the splits end must rise, not {tuple(split)}")
        if last > rows:
            raise DataError(f"the split ends at row {last}, the series has {rows}")
        return first, second, last
    if min(split) <= 0 or abs(sum(split) - 1) > 1e-6:
        raise DataError(f"the shares of a split are positive and sum to 1, not {tuple(split)}")
    first = int(split[0] * rows)
    return first, rows - int(split[2] * rows), rows
