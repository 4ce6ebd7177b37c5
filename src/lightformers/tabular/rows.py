"""What scikit-learn's users hand over -> rows: DataFrames, arrays, lists of lists, lists of mappings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.utils import check_array
from sklearn.utils.validation import validate_data

from lightformers.errors import DataError
from lightformers.processors.schema import Cell


class TableError(DataError, ValueError):
    """A table that cannot be used; a ValueError too, as scikit-learn's callers expect."""


@dataclass(frozen=True)
class Table:
    """rows: one mapping per row. categories: columns that were handed over as categories, whatever they hold."""

    rows: list[dict[str, Cell]]
    categories: frozenset[str] = frozenset()


def read(estimator: Any, x: Any, fitting: bool) -> Table:
    """The rows of `x`; notes, or checks, the names and the number of columns on the estimator as scikit-learn does.

    Columns of an array are called x0, x1, ... Raises TableError (or scikit-learn's own ValueError and TypeError) for
    what is no table, and for columns other than those that were fitted.
    """
    if _mappings(x):
        return _from_mappings(estimator, x, fitting)
    if hasattr(x, "iloc") and hasattr(x, "columns"):
        return _from_frame(estimator, x, fitting)
    if isinstance(x, (list, tuple)):
        x = _objects(x)
    values = validate_data(
        estimator, x, reset=fitting, dtype=None, ensure_all_finite="allow-nan", ensure_min_samples=2 if fitting else 1
    )  # fmt: skip
    names = [f"x{i}" for i in range(values.shape[1])]
    if values.dtype == object:
        return Table([{n: cell(v) for n, v in zip(names, row)} for row in values])
    return Table([dict(zip(names, row)) for row in values.tolist()])


def cell(value: Any) -> Cell:
    """One cell as a number, a text, or None. Raises TypeError for a container."""
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    if isinstance(value, (np.generic, Real)):
        return value.item() if isinstance(value, np.generic) else float(value)
    if isinstance(value, (Mapping, list, tuple, set, np.ndarray)):
        raise TypeError(
            f"argument must be a string or a real number, not {type(value).__name__!r}: a cell holds one"
        )
    return None if type(value).__name__ in ("NAType", "NaTType") else str(value)


def _mappings(x: Any) -> bool:
    return isinstance(x, Sequence) and len(x) > 0 and all(isinstance(row, Mapping) for row in x)


def _objects(x: Sequence[Any]) -> NDArray[Any]:
    """A list of lists without making texts of its numbers; what is not rectangular is left to scikit-learn's checks."""
    try:
        plain = np.asarray(x)
        return np.asarray(x, dtype=object) if plain.dtype.kind in "USO" else plain
    except ValueError as error:
        raise TableError("the rows of X are not equally long") from error


def _from_mappings(estimator: Any, x: Sequence[Mapping[str, Any]], fitting: bool) -> Table:
    names = list(dict.fromkeys(str(name) for row in x for name in row))
    if fitting:
        if len(x) < 2:
            raise TableError("1 sample is too few to learn from")
        estimator.feature_names_in_ = np.array(names, dtype=object)
        estimator.n_features_in_ = len(names)
        return Table([{str(k): cell(v) for k, v in row.items()} for row in x])
    known = fitted(estimator)
    if strange := [n for n in names if n not in known]:
        raise TableError(f"the rows hold {strange[0]!r}, which was not there in fit: {', '.join(known)}")
    return Table([{n: cell(row.get(n)) for n in known} for row in x])


def _from_frame(estimator: Any, x: Any, fitting: bool) -> Table:
    if not len(x) or not len(x.columns):
        check_array(x, dtype=None, estimator=estimator)  # says what is lacking in scikit-learn's words
    if fitting and len(x) < 2:
        raise TableError("1 sample is too few to learn from")
    if len(set(x.columns)) < len(x.columns):
        raise TableError("two columns of X bear the same name")
    validate_data(estimator, x, reset=fitting, skip_check_array=True)
    names = [str(c) for c in x.columns]
    if not all(isinstance(c, str) for c in x.columns):  # scikit-learn notes no names then, and goes by place
        names = [f"x{i}" for i in range(len(names))]
    columns, categories = {}, set()
    for place, name in enumerate(names):
        column = x.iloc[:, place]
        if str(column.dtype) == "category":
            categories.add(name)
        if getattr(column.dtype, "kind", "O") == "c":
            raise TableError("Complex data not supported")
        there = column.notna().to_numpy()
        cells = [cell(v) if seen else None for v, seen in zip(column.astype(object), there)]
        if any(isinstance(v, float) and v in (float("inf"), -float("inf")) for v in cells):
            raise TableError(f"Input X contains infinity, in the column {name!r}")
        columns[name] = cells
    return Table([dict(zip(names, row)) for row in zip(*columns.values())], frozenset(categories))


def fitted(estimator: Any) -> list[str]:
    """The names of the columns, as rows have them."""
    names = getattr(estimator, "feature_names_in_", None)
    return [f"x{i}" for i in range(estimator.n_features_in_)] if names is None else list(map(str, names))
