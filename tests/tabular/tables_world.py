"""Small tables with a rule that is known."""

from __future__ import annotations

from typing import Any

import numpy as np

#: Of an FT-Transformer that learns in a second.
SMALL: dict[str, Any] = {
    "width": 16,
    "depth": 1,
    "heads": 2,
    "epochs": 25,
    "batch": 32,
    "lr": 5e-3,
    "dropout": 0.0,
}


def frame(n: int = 200, seed: int = 0) -> tuple[Any, np.ndarray]:
    """A DataFrame of mixed columns with gaps, and a target: whether `size` is above 0, turned around in Oslo."""
    import pandas

    drawn = np.random.default_rng(seed)
    size, city = drawn.normal(size=n), drawn.choice(["Rome", "Oslo"], n)
    y = (size > 0) ^ (city == "Oslo")
    kind = drawn.choice(["a", "b", None], n)
    noise = np.where(drawn.random(n) < 0.2, np.nan, drawn.normal(size=n))
    table = {"size": size, "city": city, "kind": kind, "noise": noise, "old": drawn.random(n) < 0.5}
    return pandas.DataFrame(table), np.where(y, "yes", "no")


def rows(n: int = 200, seed: int = 0) -> tuple[list[dict[str, Any]], np.ndarray]:
    """The same as mappings."""
    table, y = frame(n, seed)
    records = table.astype(object).where(table.notna(), None).to_dict("records")
    return records, y
