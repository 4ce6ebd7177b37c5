"""Pathfinder: are the two dots joined by a dashed curve? Pixels as tokens, row by row.

Linsley et al. (2018, arXiv 1805.08315), as a sequence in Long Range Arena (Tay et al., 2020, arXiv 2011.04006): 32 x 32,
Path-X 128 x 128. The published images are not used: these are drawn here, by random walks on the grid itself, so that
16 x 16 works too. Dashes are of one grey, without the antialiasing of the originals.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lightformers.errors import UserError
from lightformers.tasks.sequences import Sequences, Split

#: Grey levels of what is drawn on 0.
DASH, DOT = 160, 255
_STEPS = (
    (0, 1),
    (1, 1),
    (1, 0),
    (1, -1),
    (0, -1),
    (-1, -1),
    (-1, 0),
    (-1, 1),
)  # (down, right), by eighths of a turn


@dataclass(frozen=True)
class Drawing:
    """What is drawn on a grid of `size` by `size`.

    curve: pixels of the two long curves, of which one or two ends bear dots. distractors: how many short ones of `short`
    pixels. dash, gap: pixels that are lit and dark in turn. dot: how far a dot reaches from its middle. turn: probability
    of turning by an eighth at a step, to either side alike.
    """

    size: int = 32
    curve: int = 22
    distractors: int = 3
    short: int = 8
    dash: int = 3
    gap: int = 1
    dot: int = 1
    turn: float = 0.5

    def __post_init__(self) -> None:
        if (
            self.size < 8
            or min(self.curve, self.short, self.dash) < 2
            or min(self.gap, self.dot, self.distractors) < 0
        ):
            raise UserError("a drawing needs a size of at least 8 and curves and dashes of at least 2 pixels")  # fmt: skip
        if 2 * self.curve > self.size**2 // 8:
            raise UserError(f"two curves of {self.curve} pixels do not fit on {self.size} x {self.size}")

    @property
    def apart(self) -> int:
        """Pixels of different curves are farther from each other than this (the larger of the two distances), so that
        nothing lit lies as near to another curve as the next dash of its own does."""
        return self.gap + 1 + 2 * self.dot


#: By the side of the grid.
DRAWINGS = {
    16: Drawing(16, curve=11, distractors=1, short=5, dash=2, gap=1, dot=0),
    32: Drawing(32, curve=22, distractors=3, short=8, dash=3, gap=1, dot=1),
    64: Drawing(64, curve=44, distractors=6, short=14, dash=4, gap=2, dot=1),
    128: Drawing(128, curve=96, distractors=10, short=24, dash=6, gap=2, dot=2),
}


def draw(rng: np.random.Generator, drawing: Drawing, joined: bool) -> NDArray[np.uint8]:
    """One image (size, size). joined: both dots on the ends of one long curve; else one on each of two."""
    for _ in range(1000):
        curves = _curves(rng, drawing)
        if curves is not None:
            break
    else:
        raise UserError(f"no place is found for the curves of {drawing}: take shorter or fewer ones")
    image = np.zeros((drawing.size, drawing.size), np.uint8)
    period = drawing.dash + drawing.gap
    for number, curve in enumerate(curves):
        for i, (y, x) in enumerate(curve):
            # the ends of long curves are lit, where dots are or are not: a dark end would tell them apart
            if i % period < drawing.dash or (number < 2 and i == len(curve) - 1):
                image[y, x] = DASH
    first, second = curves[0], curves[1]
    ends = (first[0], first[-1]) if joined else (first[0], second[int(rng.integers(2)) - 1])
    for y, x in ends:
        image[y - drawing.dot : y + drawing.dot + 1, x - drawing.dot : x + drawing.dot + 1] = DOT
    return image


def _curves(rng: np.random.Generator, drawing: Drawing) -> list[list[tuple[int, int]]] | None:
    """The two long curves, then the short ones, none near another; None where one finds no place."""
    taken = np.zeros((drawing.size, drawing.size), bool)
    out = []
    for length in (drawing.curve, drawing.curve, *(drawing.short,) * drawing.distractors):
        for _ in range(40):
            curve = _walk(rng, drawing, length, taken)
            if curve and _far(curve[0], curve[-1]) > drawing.apart:  # else its two dots could be one
                break
        else:
            return None
        out.append(curve)
        for y, x in curve:
            top, left = max(y - drawing.apart, 0), max(x - drawing.apart, 0)
            taken[top : y + drawing.apart + 1, left : x + drawing.apart + 1] = True
    return out


def _far(a: tuple[int, int], b: tuple[int, int]) -> int:
    return max(abs(a[0] - b[0]), abs(a[1] - b[1]))


def _walk(
    rng: np.random.Generator, drawing: Drawing, length: int, taken: NDArray[np.bool_]
) -> list[tuple[int, int]] | None:
    """A walk of neighbouring pixels that keeps its direction or turns by an eighth, and does not touch itself."""
    edge, size = drawing.dot, drawing.size
    y, x = (int(v) for v in rng.integers(edge, size - edge, 2))
    way = int(rng.integers(8))
    turns = rng.random(length).tolist()
    out: list[tuple[int, int]] = []
    own: set[tuple[int, int]] = set()  # pixels that a later step may not come near
    while True:
        if not (edge <= y < size - edge and edge <= x < size - edge) or taken[y, x] or (y, x) in own:
            return None
        out.append((y, x))
        if len(out) == length:
            return out
        if len(out) > 2:  # the neighbours of the one before the last: a turn of two eighths still passes them
            b, a = out[-3]
            own.update((b + i, a + j) for i in (-1, 0, 1) for j in (-1, 0, 1))
        t = turns[len(out)]
        way = (way + (t < drawing.turn / 2) - (t > 1 - drawing.turn / 2)) % 8
        y, x = y + _STEPS[way][0], x + _STEPS[way][1]


def pathfinder(seed: int, train: int, test: int, size: int = 32) -> Split:
    """Images as size * size tokens (grey level + 1), half of them joined (label 1), in any order.

    size: 16, 32, 64 or 128. Each image is drawn by a seed of its own, so that training and testing images are never one sequence of draws.
    """
    if size not in DRAWINGS or min(train, test) < 1:
        raise UserError(
            f"pathfinder is drawn at {', '.join(map(str, DRAWINGS))} pixels and for at least one example"
        )
    parts = []
    for part, count in enumerate((train, test)):
        labels = np.random.default_rng((seed, part)).permutation(np.arange(count) % 2)
        rows = []
        for i, label in enumerate(labels.tolist()):
            image = draw(np.random.default_rng((seed, part, i)), DRAWINGS[size], bool(label))
            rows.append(image.ravel().astype(np.uint16) + 1)
        parts.append(Sequences(rows, labels.astype(np.int64)))
    about = f"Pathfinder, {size} x {size}, drawn here"
    return Split(parts[0], parts[1], classes=2, vocab=257, length=size * size, about=about)
