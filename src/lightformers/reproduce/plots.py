"""Curves of a finding, and drawing them: SVG that needs no library and reads on light and on dark pages.

plots={"samples": curves("training pairs", "exact match", [300, 1000], {"plain": [[0.1, 0.2], [0.5, 0.7]]}, log=True)}
svg(plots["samples"], "samples")
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from lightformers.reproduce.finding import Finding, spread

#: A contrast of 3:1 or more on white and on the dark pages of the documentation.
COLOURS = ("#2f74d0", "#c76b15", "#23896a", "#a45fc4", "#c8527f", "#8f7a10", "#4b87a6", "#7c8088")
_DASHES = ("", "7 3", "2 3", "9 3 2 3")
WIDTH, HEIGHT = 640, 340
_LEFT, _RIGHT, _BOTTOM, _TOP, _ROW = 62, 18, 50, 14, 20
_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif"
#: A page of its own has no text colour to inherit.
_PAGE = (
    "<style>svg{color:#17191c;background:#fff}"
    "@media (prefers-color-scheme:dark){svg{color:#eceef0;background:#121315}}</style>"
)

Plot = Mapping[str, Any]


def curves(
    x: str,
    y: str,
    at: Sequence[float],
    lines: Mapping[str, Sequence[Sequence[float]]],
    log: bool = False,
    within: tuple[float, float] | None = None,
) -> dict[str, Any]:
    """Plotting data for `Finding.plots`: lines over the same points, with the interval over seeds where there are seeds.

    x, y: what the axes are. at: the places of the points. lines: name -> for every point the values, one per seed.
    log: the x axis is logarithmic. within: where values can be at all, (0, 1) for a share: intervals end there. Raises ValueError where lines and points do not fit, or a logarithm does not exist.
    """
    if not at or not lines or any(len(values) != len(at) for values in lines.values()):
        raise ValueError(f"every line needs a value at each of {len(at)} points")
    if log and min(at) <= 0:
        raise ValueError(f"{min(at)} has no logarithm")
    least, most = within or (-math.inf, math.inf)
    drawn = {
        name: {"x": list(at)}
        | {
            key: [None if (seen := spread(v)[key]) is None else min(max(seen, least), most) for v in values]
            for key in ("mean", "low", "high")
        }
        for name, values in lines.items()
    }
    return {"x": x, "y": y, "log": log, "lines": drawn}


def drawable(plots: Mapping[str, Any]) -> dict[str, Plot]:
    """Those plots of a finding that `curves` made; others are figures without a drawing."""
    keys = {"x", "y", "log", "lines"}
    return {k: v for k, v in plots.items() if isinstance(v, Mapping) and set(v) == keys}


def svg(plot: Plot, title: str, page: bool = False) -> str:
    """One chart as an `<svg>` element on a single line: it inherits the colour of the text around it.

    page: as a file of its own, with text and ground for light and dark viewers.
    """
    height = _frame(plot)[1]
    head = _PAGE if page else ""
    return _element(head + _chart(plot, title), WIDTH, height, title)


def page(plots: Mapping[str, Plot]) -> str:
    """Charts under each other, as a file of its own. Raises ValueError for none."""
    if not plots:
        raise ValueError("there is nothing to draw")
    body, down = _PAGE, 0.0
    for title, plot in plots.items():
        body += f'<text x="{_LEFT}" y="{_number(down + 22)}" font-size="15" font-weight="600">{escape(title)}</text>'
        body += f'<g transform="translate(0 {_number(down + 32)})">{_chart(plot, title)}</g>'
        down += 44 + _frame(plot)[1]
    return _element(body, WIDTH, down, ", ".join(plots)) + "\n"


def figures(finding: Finding) -> str:
    """The curves of a finding for its page; "" where it holds none. HTML on single lines, which Markdown leaves alone."""
    note = " Bars: 95 % interval over seeds." if len(finding.seeds) > 1 else ""
    return "".join(
        f"<figure>{svg(plot, name)}<figcaption>{escape(name)}.{note}</figcaption></figure>\n\n"
        for name, plot in drawable(finding.plots).items()
    )


def _element(body: str, width: float, height: float, title: str) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_number(width)} {_number(height)}" role="img" '
        f'aria-label="{escape(title)}" style="width:100%;max-width:{_number(width)}px;height:auto" fill="currentColor" '
        f'font-family="{_FONT}" font-size="12">{body}</svg>'
    )


def _chart(plot: Plot, title: str) -> str:
    top, height = _frame(plot)
    lines = plot["lines"]
    xs = sorted({x for line in lines.values() for x in line["x"]})
    ys = [y for line in lines.values() for key in ("mean", "low", "high") for y in line[key] if y is not None]
    low, high, steps = ticks(min(ys), max(ys))
    bottom, right = height - _BOTTOM, WIDTH - _RIGHT

    def across(x: float) -> float:
        a, b, v = (math.log(t) if plot["log"] else t for t in (xs[0], xs[-1], x))
        return _LEFT + 12 + (right - _LEFT - 24) * (0.5 if a == b else (v - a) / (b - a))

    def down(y: float) -> float:
        return bottom - (bottom - top) * (y - low) / (high - low)

    out = [f"<title>{escape(title)}</title>", _legend(lines)]
    for step in steps:
        at = _number(down(step))
        out.append(
            f'<line x1="{_LEFT}" x2="{right}" y1="{at}" y2="{at}" stroke="currentColor" stroke-opacity="0.15"/>'
        )
        out.append(f'<text x="{_LEFT - 8}" y="{at}" dy="0.35em" text-anchor="end">{_said(step)}</text>')
    for x in _marks(xs, plot["log"]):
        at = _number(across(x))
        out.append(
            f'<line x1="{at}" x2="{at}" y1="{bottom}" y2="{bottom + 5}" stroke="currentColor" stroke-opacity="0.5"/>'
        )
        out.append(f'<text x="{at}" y="{bottom + 19}" text-anchor="middle">{_said(x)}</text>')
    out.append(
        f'<line x1="{_LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}" stroke="currentColor" stroke-opacity="0.5"/>'
    )
    middle = _number((top + bottom) / 2)
    out.append(f'<text x="{_number((_LEFT + right) / 2)}" y="{height - 10}" text-anchor="middle">{escape(plot["x"])}</text>')  # fmt: skip
    out.append(f'<text x="14" y="{middle}" text-anchor="middle" transform="rotate(-90 14 {middle})">{escape(plot["y"])}</text>')  # fmt: skip
    for number, line in enumerate(lines.values()):
        out.append(_line(line, number, len(lines), across, down))
    return "".join(out)


def _line(line: Mapping[str, Any], number: int, count: int, across: Any, down: Any) -> str:
    """The means, joined, with bars over their intervals; bars of different lines stand beside each other."""
    colour, dash = COLOURS[number % len(COLOURS)], _DASHES[number // len(COLOURS) % len(_DASHES)]
    aside = (number - (count - 1) / 2) * 3
    points = [(across(x) + aside, down(y)) for x, y in zip(line["x"], line["mean"])]
    path = " ".join(f"{_number(x)},{_number(y)}" for x, y in points)
    dashed = f' stroke-dasharray="{dash}"' if dash else ""
    out = f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"{dashed}/>'
    for (x, y), low, high in zip(points, line["low"], line["high"]):
        if low is not None and high is not None:
            out += (
                f'<line x1="{_number(x)}" x2="{_number(x)}" y1="{_number(down(low))}" y2="{_number(down(high))}" '
                f'stroke="{colour}" stroke-opacity="0.8"/>'
            )
        out += f'<circle cx="{_number(x)}" cy="{_number(y)}" r="3" fill="{colour}"/>'
    return f"<g>{out}</g>"


def _legend(lines: Mapping[str, Any]) -> str:
    out = ""
    for number, (name, (across, row)) in enumerate(zip(lines, _places(list(lines))[0])):
        y = _TOP + row * _ROW
        colour, dash = COLOURS[number % len(COLOURS)], _DASHES[number // len(COLOURS) % len(_DASHES)]
        dashed = f' stroke-dasharray="{dash}"' if dash else ""
        out += f'<line x1="{across}" x2="{across + 20}" y1="{y}" y2="{y}" stroke="{colour}" stroke-width="3"{dashed}/>'
        out += f'<text x="{across + 26}" y="{y}" dy="0.35em">{escape(name)}</text>'
    return out


def _places(names: Sequence[str]) -> tuple[list[tuple[int, int]], int]:
    """Where the names of the legend stand, (x, row), and how many rows there are. A sign is taken for 7 wide."""
    out, across, row = [], _LEFT, 0
    for name in names:
        wide = 46 + 7 * len(name)
        if across > _LEFT and across + wide > WIDTH:
            across, row = _LEFT, row + 1
        out.append((across, row))
        across += wide
    return out, row + 1


def _frame(plot: Plot) -> tuple[int, int]:
    """Where the drawing begins under the legend, and how high the whole is."""
    top = _TOP + _places(list(plot["lines"]))[1] * _ROW
    return top, HEIGHT - _TOP - _ROW + top


def ticks(low: float, high: float) -> tuple[float, float, list[float]]:
    """Bounds that hold low to high, and round numbers (1, 2, 5 times a power of ten) from bound to bound."""
    span = (high - low) or abs(high) or 1.0
    rough = span / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    last = max(last, first + 1)
    steps = [round(k * step, 12) for k in range(first, last + 1)]
    return steps[0], steps[-1], steps


def _marks(xs: Sequence[float], log: bool) -> list[float]:
    """Where the x axis is written on: at the points while they are few, else at round numbers."""
    if len(xs) <= 8:
        return list(xs)
    if log:
        powers = range(math.ceil(math.log10(xs[0])), math.floor(math.log10(xs[-1])) + 1)
        return [10.0**k for k in powers] or [xs[0], xs[-1]]
    return [step for step in ticks(xs[0], xs[-1])[2] if xs[0] <= step <= xs[-1]]


def _number(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def _said(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
