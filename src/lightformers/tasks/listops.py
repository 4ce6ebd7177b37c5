"""ListOps: nested lists of digits under MIN, MAX, MED and SM (sum modulo 10), as tokens; what is the outcome?

Nangia and Bowman (2018, arXiv 1804.06028), in the long form of Long Range Arena (Tay et al., 2020, arXiv 2011.04006).
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from typing import TypeAlias

import numpy as np

from lightformers.errors import DataError, UserError
from lightformers.tasks.sequences import Sequences, Split

#: Number of a token is its place; 0 is padding. Parentheses are not written, only the end of a list is.
TOKENS = ("<pad>", *"0123456789", "[MIN", "[MAX", "[MED", "[SM", "]")
OPERATORS = ("MIN", "MAX", "MED", "SM")
_FIRST, _END = TOKENS.index("[MIN"), TOKENS.index("]")
#: A node is a list with this probability, else a digit.
BRANCH = 0.25
#: An expression: a digit, or an operator with its arguments.
Tree: TypeAlias = "int | tuple[str, tuple[Tree, ...]]"


def draw(
    rng: np.random.Generator, low: int, high: int, depth: int = 10, arguments: int = 10, attempts: int = 100_000
) -> tuple[int, ...]:  # fmt: skip
    """One expression of more than `low` and fewer than `high` tokens, as numbers.

    The root is a list (a digit alone is too short); below it a node is a digit, or with probability 1/4, while fewer than
    `depth` levels are open, a list of 2 to `arguments` nodes. Others are rejected, as early as they are too long.
    Raises UserError where none is found in so many attempts.
    """
    for _ in range(attempts):
        found = _attempt(rng, high, depth, arguments)
        if found is not None and len(found) > low:
            return tuple(found)
    raise UserError(
        f"none of {attempts} expressions of depth {depth} has more than {low} and fewer than {high} tokens: allow deeper "
        "or other lengths"
    )


def _attempt(rng: np.random.Generator, high: int, depth: int, arguments: int) -> list[int] | None:
    out: list[int] = []
    open_: list[int] = []  # nodes that each open list still lacks
    chances: Iterator[list[float]] = iter(())
    while True:
        if not open_ and out:
            return out if len(out) < high else None
        if open_ and open_[-1] == 0:
            open_.pop()
            out.append(_END)
            continue
        if open_:
            open_[-1] -= 1
        drawn: list[float] | None = next(chances, None)
        if drawn is None:  # many at once: a draw of one number costs as much as of sixty
            chances = iter(rng.random((64, 3)).tolist())
            drawn = next(chances)
        node, which, size = drawn
        if not out or (node < BRANCH and len(open_) < depth - 1):
            out.append(_FIRST + int(which * 4))
            open_.append(2 + int(size * (arguments - 1)))
        else:
            out.append(1 + int(which * 10))
        if len(out) + len(open_) >= high:
            return None


def evaluate(tokens: Sequence[int]) -> int:
    """The outcome of an expression, read from left to right with a stack."""
    stack: list[list[int]] = [[]]
    operators: list[int] = []
    for t in tokens:
        if t == _END:
            if not operators:
                raise DataError("a list ends that never began")
            arguments = stack.pop()
            if not arguments:
                raise DataError("a list is empty")
            stack[-1].append(_apply(OPERATORS[operators.pop() - _FIRST], arguments))
        elif t >= _FIRST:
            operators.append(int(t))
            stack.append([])
        else:
            stack[-1].append(int(t) - 1)
    if operators or len(stack[0]) != 1:
        raise DataError("the tokens are not one whole expression")
    return stack[0][0]


def _apply(operator: str, arguments: list[int]) -> int:
    """MED is the median cut to a whole number, SM the sum modulo 10."""
    if operator == "MED":
        return int(statistics.median(arguments))
    if operator == "SM":
        return sum(arguments) % 10
    return min(arguments) if operator == "MIN" else max(arguments)


def parse(tokens: Sequence[int]) -> Tree:
    """The tree that tokens spell. Raises DataError where they spell none."""
    left = list(tokens)[::-1]

    def node() -> Tree:
        if not left:
            raise DataError("the expression ends too early")
        t = left.pop()
        if 1 <= t < _FIRST:
            return int(t) - 1
        if not _FIRST <= t < _END:
            raise DataError(f"token {t} begins no expression")
        arguments = []
        while left and left[-1] != _END:
            arguments.append(node())
        if not left or not arguments:
            raise DataError("a list has no end, or nothing in it")
        left.pop()
        return OPERATORS[t - _FIRST], tuple(arguments)

    tree = node()
    if left:
        raise DataError(f"{len(left)} tokens follow a whole expression")
    return tree


def spell(tree: Tree) -> list[int]:
    """The inverse of `parse`."""
    if isinstance(tree, int):
        return [tree + 1]
    operator, arguments = tree
    inner = [t for a in arguments for t in spell(a)]
    return [_FIRST + OPERATORS.index(operator), *inner, _END]


def text(tokens: Sequence[int]) -> str:
    """ "[MAX 4 3 [MIN 2 3 ] 1 0 ]"."""
    return " ".join(TOKENS[t] for t in tokens)


def depth_of(tree: Tree) -> int:
    """Levels; a digit is one."""
    return 1 if isinstance(tree, int) else 1 + max(map(depth_of, tree[1]))


def listops(
    seed: int, train: int, test: int, low: int = 500, high: int = 2000, depth: int = 10, arguments: int = 10
) -> Split:  # fmt: skip
    """Distinct expressions of more than `low` and fewer than `high` tokens; the label is the outcome, 0 to 9.

    The defaults are the paper's; 96,000 and 2,000 of that length take minutes to draw, so keep them. The outcomes are
    not balanced, as there: minima and maxima make 0 and 9 the commonest.
    """
    if not 0 <= low < high - 1 or depth < 2 or arguments < 2 or min(train, test) < 1:
        raise UserError(
            f"ListOps needs low + 1 < high, depth and arguments of at least 2 and examples, not {low}, {high}, {depth}, "
            f"{arguments}, {train} and {test}"
        )
    rng = np.random.default_rng(seed)
    found: dict[tuple[int, ...], None] = {}
    doubles = 0
    while len(found) < train + test:
        before = len(found)
        found[draw(rng, low, high, depth, arguments)] = None
        doubles += len(found) == before
        if doubles > 10 * (train + test) + 1000:
            raise UserError(f"there are hardly more than {len(found)} distinct expressions of these sizes: ask for fewer")  # fmt: skip
    rows = [np.array(t, np.uint8) for t in found]
    labels = np.array([evaluate(t) for t in found], np.int64)
    learnt, asked = (Sequences(rows[a:b], labels[a:b]) for a, b in ((0, train), (train, train + test)))
    about = f"ListOps, {low + 1} to {high - 1} tokens, depth {depth}"
    return Split(learnt, asked, classes=10, vocab=len(TOKENS), length=high - 1, about=about)
