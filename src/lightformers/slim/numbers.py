"""How the report writes numbers: one place, so that the page and the terminal say the same."""

from __future__ import annotations

import math
import re
from typing import Any

NONE = "–"


def number(value: Any) -> float | None:
    """`value` as a finite float; the "estimate" of a mapping; None for anything else."""
    if isinstance(value, dict):
        value = value.get("estimate")
    if value is None or isinstance(value, (str, bytes)):
        return None
    try:
        result = float(value)
    except (TypeError, ValueError):
        return None
    return result if math.isfinite(result) else None


def significant(value: Any, digits: int = 3) -> str:
    """At least `digits` significant digits, thousands separated, never an exponent: 0.0123, 12.3, 12,345."""
    x = number(value)
    if x is None:
        return NONE
    if x == 0:
        return "0"
    exponent = int(f"{x:.{digits - 1}e}".split("e")[1])  # of the rounded number: 0.9997 is 1.00
    places = max(0, digits - 1 - exponent)
    return f"{x:,.{min(places, 8)}f}"


def milliseconds(value: Any) -> str:
    return NONE if number(value) is None else f"{significant(value)} ms"


def rate(value: Any) -> str:
    return NONE if number(value) is None else f"{significant(value)}/s"


def times(value: Any) -> str:
    """A factor: 1.62×, 12.3×."""
    x = number(value)
    return NONE if x is None else f"{x:.2f}×" if x < 10 else f"{x:,.1f}×" if x < 100 else f"{x:,.0f}×"


def size(value: Any) -> str:
    """Bytes in decimal units: 23.1 MB."""
    x = number(value)
    if x is None:
        return NONE
    for unit in ("B", "kB", "MB", "GB"):
        if abs(x) < 999.5:
            return f"{x:.0f} B" if unit == "B" else f"{significant(x)} {unit}"
        x /= 1000
    return f"{significant(x)} TB"


def count(value: Any) -> str:
    """A number of things: 1,289; 22.7 M."""
    x = number(value)
    if x is None:
        return NONE
    for limit, unit in ((1e9, "G"), (1e6, "M")):
        if abs(x) >= limit:
            return f"{significant(x / limit)} {unit}"
    return f"{x:,.0f}"


def quality(value: Any) -> str:
    x = number(value)
    return NONE if x is None else f"{x:.3f}" if abs(x) < 10 else significant(x, 4)


def ratio(value: Any, floor: Any = None) -> str:
    """Three decimals, or as many as keep the text on the same side of the floor as the number."""
    x, limit = number(value), number(floor)
    if x is None:
        return NONE
    digits = 3
    while limit is not None and digits < 8 and (float(f"{x:.{digits}f}") >= limit) != (x >= limit):
        digits += 1
    return f"{x:.{digits}f}"


def interval(value: Any, write: Any = quality) -> str:
    """Text "[0.981, 1.004]" of a mapping with "low" and "high"; empty where there is none."""
    if not isinstance(value, dict) or number(value.get("low")) is None or number(value.get("high")) is None:
        return ""
    return f"[{write(value['low'])}, {write(value['high'])}]"


def percent(value: Any) -> str:
    x = number(value)
    return NONE if x is None else f"{100 * x:.1f} %".replace(".0 %", " %")


def change(before: Any, after: Any) -> str:
    """Relative change: −31 %, +4 %."""
    old, new = number(before), number(after)
    if old is None or new is None or old == 0:
        return NONE
    shift = 100 * (new / old - 1)
    return "no change" if abs(shift) < 0.5 else f"{'+' if shift > 0 else '−'}{abs(shift):.0f} %"


def shift(before: Any, after: Any) -> str:
    """Absolute change of a ratio: −0.021."""
    old, new = number(before), number(after)
    if old is None or new is None:
        return NONE
    moved = round(new - old, 3)
    return "±0.000" if moved == 0 else f"{'+' if moved > 0 else '−'}{abs(moved):.3f}"


def duration(value: Any) -> str:
    """Seconds as people say them: 0.4 s, 41 s, 9 min 41 s, 2 h 05 min."""
    x = number(value)
    if x is None:
        return NONE
    if x < 9.95:
        return f"{x:.1f} s"
    seconds = round(x)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"


def clock(seconds: float) -> str:
    """3:07, 1:02:45."""
    whole = max(0, int(seconds))
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"


def words(name: str) -> str:
    """As people write it: "DropBlocks" -> "Drop blocks", "int8_weights" -> "int8 weights", "MiniLM" stays."""
    parts = re.sub(r"(?<=[a-z0-9])(?=[A-Z][a-z])", " ", str(name).replace("_", " ")).split(" ")
    return " ".join([parts[0], *(p.lower() if p[:1].isupper() and p[1:].islower() else p for p in parts[1:])])


def parameters(values: Any) -> str:
    """Text "keep=4, epochs=1" of a mapping."""
    if not isinstance(values, dict):
        return ""
    return ", ".join(
        f"{key}={plain_text(value)}" for key, value in values.items() if value not in (None, "", [], {})
    )


def plain_text(value: Any) -> str:
    """Any JSON value as a short text for people."""
    if value is None:
        return NONE
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, dict):
        return ", ".join(f"{key} {plain_text(item)}" for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(plain_text(item) for item in value)
    return str(value)
