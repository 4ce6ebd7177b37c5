"""How the table of a finding reads: one place for terminal and documentation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def columns(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Every heading of the rows, "arm" first, the others in order of appearance."""
    return list(dict.fromkeys(["arm", *(name for row in rows for name in row)]))


def cell(value: Any) -> str:
    """A cell as text: "0.913 [0.901, 0.925]" for a `spread`, four significant digits for a float."""
    if value is None:
        return ""
    if isinstance(value, Mapping) and "mean" in value:
        mean = number(value["mean"])
        low, high = value.get("low"), value.get("high")
        return mean if low is None or high is None else f"{mean} [{number(low)}, {number(high)}]"
    return number(value)


def number(value: Any) -> str:
    """A number with four significant digits and thousands separated; anything else as it prints."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    if value and not 1e-4 <= abs(value) < 1e6:
        return f"{value:.3e}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
