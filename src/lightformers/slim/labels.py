"""Names beside the marks of a chart, placed so that few lie on each other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Any

#: Pixels of the plotting area, of a letter and of a line; where a label may stand from its mark, nearest first.
_WIDTH, _HEIGHT, _LETTER, _LINE = 800, 470, 6.2, 15
_SHIFTS = sorted(
    ((dx, dy) for dx in (0, -36, 36, -80, 80, -130, 130, -190, 190) for dy in range(-192, 193, 12) if abs(dx) + abs(dy) > 12),
    key=lambda shift: abs(shift[0]) + 1.4 * abs(shift[1]),
)  # fmt: skip


def labels(
    marks: Sequence[tuple[float, float, str]],
    span: Sequence[float],
    heights: Sequence[float],
    radius: float = 7,
) -> list[dict[str, Any]]:
    """A label with a thin line to each mark (x, y, text), placed greedily so that few lie on each other.

    span: range of the x axis, in powers of ten. heights: that of y. radius: of the marks, in pixels.
    """
    places = [
        (
            (math.log10(x) - span[0]) / (span[1] - span[0]) * _WIDTH,
            (heights[1] - y) / (heights[1] - heights[0]) * _HEIGHT,
        )
        for x, y, _ in marks
    ]
    taken: list[tuple[float, float, float]] = []
    out: list[dict[str, Any]] = []
    for (left, down), (x, y, text) in zip(places, marks):
        half = _LETTER * len(text) / 2

        def trouble(
            shift: tuple[int, int], at: tuple[float, float] = (left, down), half: float = half
        ) -> int:
            a, b = at[0] + shift[0], at[1] + shift[1]
            outside = a < half or a > _WIDTH - half or b < _LINE / 2 or b > _HEIGHT - _LINE / 2
            on_marks = sum(
                abs(a - c) < half + radius and abs(b - d) < _LINE / 2 + radius - 1 for c, d in places
            )
            on_texts = sum(abs(a - c) < half + h + 3 and abs(b - d) < _LINE for c, d, h in taken)
            return on_marks + 2 * on_texts + 4 * outside

        dx, dy = min(_SHIFTS, key=trouble)  # the first of equally good ones: the nearest
        taken.append((left + dx, down + dy, half))
        out.append(
            {
                "x": math.log10(x), "y": y, "ax": dx, "ay": dy, "text": escape(text), "showarrow": True, "arrowhead": 0,
                "arrowwidth": 1, "arrowcolor": "@line", "standoff": radius - 1, "font": {"size": 11, "color": "@ink"},
            }
        )  # fmt: skip
    return out
