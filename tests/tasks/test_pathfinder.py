"""Pathfinder: a flood over what is lit, as wide as the gaps of a curve, joins the dots exactly where the label says so."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from lightformers.errors import UserError
from lightformers.tasks import pathfinder
from lightformers.tasks.pathfinder import DASH, DOT, DRAWINGS, Drawing


def dots(image: np.ndarray) -> list[set[tuple[int, int]]]:
    """The dots, each as its pixels."""
    return pieces({(int(y), int(x)) for y, x in np.argwhere(image == DOT)}, 1)


def pieces(pixels: set[tuple[int, int]], reach: int) -> list[set[tuple[int, int]]]:
    """Groups of pixels that a flood joins; it jumps `reach` pixels in either direction."""
    left, out = set(pixels), []
    while left:
        edge = [left.pop()]
        found = set(edge)
        while edge:
            y, x = edge.pop()
            near = {(y + i, x + j) for i in range(-reach, reach + 1) for j in range(-reach, reach + 1)} & left
            left -= near
            found |= near
            edge += near
        out.append(found)
    return out


def joined(image: np.ndarray, drawing: Drawing) -> bool:
    first, second = dots(image)
    lit = {(int(y), int(x)) for y, x in np.argwhere(image > 0)}
    for piece in pieces(lit, drawing.gap + 1):
        if first <= piece:
            return second <= piece
    raise AssertionError("a dot lies apart from everything")


@pytest.mark.parametrize(("size", "count"), [(16, 60), (32, 40), (64, 8), (128, 2)])
def test_a_flood_confirms_the_labels(size: int, count: int) -> None:
    drawing = DRAWINGS[size]
    split = pathfinder.pathfinder(3, count, 2, size)
    assert split.train.labels.sum() == count // 2 and split.length == size * size and split.vocab == 257
    for tokens, label in zip(split.train.tokens, split.train.labels.tolist()):
        image = (tokens.astype(int) - 1).reshape(size, size)
        assert set(np.unique(image)) == {0, DASH, DOT}
        assert [len(d) for d in dots(image)] == [(2 * drawing.dot + 1) ** 2] * 2
        assert joined(image, drawing) == bool(label)
        lit = {(int(y), int(x)) for y, x in np.argwhere(image > 0)}
        assert len(pieces(lit, drawing.gap + 1)) == 2 + drawing.distractors


def test_curves_are_dashed() -> None:
    """Without dots, pixels that touch form dashes of the asked length."""
    drawing = dataclasses.replace(DRAWINGS[32], dot=0)
    image = pathfinder.draw(np.random.default_rng(0), drawing, True)
    dashes = pieces({(int(y), int(x)) for y, x in np.argwhere(image > 0)}, 1)
    assert max(map(len, dashes)) <= drawing.dash + 1 and len(dashes) > 2 * drawing.curve // 4


def test_what_is_lit_does_not_tell_the_label() -> None:
    """Joined or not, as many pixels are lit, so the sum is no clue."""
    rng = np.random.default_rng(0)
    sums = [[int((pathfinder.draw(rng, DRAWINGS[16], joined) > 0).sum()) for _ in range(150)] for joined in (True, False)]  # fmt: skip
    spread = np.std(sums[0] + sums[1]) / np.sqrt(150)
    assert abs(np.mean(sums[0]) - np.mean(sums[1])) <= 4 * spread + 0.01


def test_the_seed_decides() -> None:
    few, again = pathfinder.pathfinder(0, 4, 4, 16), pathfinder.pathfinder(0, 4, 4, 16)
    assert few.train.fingerprint == again.train.fingerprint != few.test.fingerprint
    assert pathfinder.pathfinder(1, 4, 4, 16).train.fingerprint != few.train.fingerprint


def test_what_finds_no_place_is_refused() -> None:
    with pytest.raises(UserError, match="16, 32, 64, 128"):
        pathfinder.pathfinder(0, 4, 4, 20)
    with pytest.raises(UserError, match="do not fit"):
        Drawing(16, curve=40)
    with pytest.raises(UserError, match="size of at least 8"):
        Drawing(4)
