"""ListOps: expressions of the asked sizes, whose outcomes Python itself confirms."""

from __future__ import annotations

import collections

import numpy as np
import pytest

from lightformers.errors import DataError, UserError
from lightformers.tasks import listops
from lightformers.tasks.listops import TOKENS


def by_python(spelt: str) -> int:
    """The outcome by Python's own evaluation of the expression written as calls."""
    calls = {"[MIN": "min([", "[MAX": "max([", "[MED": "middle([", "[SM": "modulo([", "]": "]),"}
    source = " ".join(calls.get(word, f"{word},") for word in spelt.split())

    def middle(values: list[int]) -> int:
        ordered, half = sorted(values), len(values) // 2
        return ordered[half] if len(values) % 2 else (ordered[half - 1] + ordered[half]) // 2

    return int(eval(source, {"min": min, "max": max, "middle": middle, "modulo": lambda v: sum(v) % 10})[0])


def test_outcomes_are_those_of_python() -> None:
    split = listops.listops(0, 150, 50, low=20, high=120, depth=5)
    for part in (split.train, split.test):
        for tokens, label in zip(part.tokens, part.labels.tolist()):
            assert by_python(listops.text(tokens)) == label == listops.evaluate(tokens)


def test_a_known_one() -> None:
    spelt = "[MAX 4 3 [MIN 2 3 ] 1 0 [MED 1 5 8 9 2 ] ]"
    tokens = [TOKENS.index(t) for t in spelt.split()]
    assert listops.text(tokens) == spelt
    assert listops.evaluate(tokens) == 5
    assert listops.parse(tokens) == ("MAX", (4, 3, ("MIN", (2, 3)), 1, 0, ("MED", (1, 5, 8, 9, 2))))


def test_sizes_are_as_asked_and_none_comes_twice() -> None:
    split = listops.listops(1, 200, 60, low=20, high=90, depth=4, arguments=5)
    rows = [tuple(t.tolist()) for t in (*split.train.tokens, *split.test.tokens)]
    assert len(set(rows)) == 260 and (len(split.train), len(split.test)) == (200, 60)
    assert all(20 < len(row) < 90 for row in rows)
    trees = [listops.parse(row) for row in rows]
    assert max(map(listops.depth_of, trees)) == 4
    assert [tuple(listops.spell(tree)) for tree in trees] == rows

    def arguments(tree: listops.Tree) -> list[int]:
        return [] if isinstance(tree, int) else [len(tree[1]), *(n for a in tree[1] for n in arguments(a))]

    sizes = collections.Counter(n for tree in trees for n in arguments(tree))
    assert set(sizes) == {2, 3, 4, 5}
    again = listops.listops(1, 200, 60, low=20, high=90, depth=4, arguments=5)
    assert again.train.fingerprint == split.train.fingerprint != listops.listops(2, 200, 60, 20, 90, 4, 5).train.fingerprint  # fmt: skip


def test_a_quarter_of_the_nodes_are_lists() -> None:
    """Drawn without a limit on length, below the root and above the lowest level."""
    rng = np.random.default_rng(0)
    nodes = lists = 0
    for _ in range(400):
        tree = listops.parse(listops.draw(rng, 0, 10_000, depth=3, arguments=4))
        assert not isinstance(tree, int)
        nodes += len(tree[1])
        lists += sum(not isinstance(a, int) for a in tree[1])
    assert abs(lists / nodes - 0.25) < 4 * (0.25 * 0.75 / nodes) ** 0.5


@pytest.mark.parametrize("spelt", ["[MAX 1 2", "1 2", "[MAX ]", "1 ]", "]", "[MAX 1 ] ]"])
def test_what_is_no_expression_is_refused(spelt: str) -> None:
    tokens = [TOKENS.index(t) for t in spelt.split()]
    with pytest.raises(DataError):
        listops.evaluate(tokens)
    with pytest.raises(DataError):
        listops.parse(tokens)


def test_sizes_that_cannot_be_met_are_refused() -> None:
    with pytest.raises(UserError, match=r"low \+ 1 < high"):
        listops.listops(0, 10, 10, low=20, high=20)
    with pytest.raises(UserError, match="allow deeper"):
        listops.draw(np.random.default_rng(0), 40, 60, depth=2, attempts=50)
    with pytest.raises(UserError, match="hardly more than"):
        listops.listops(
            0, 3000, 100, low=0, high=5, depth=2, arguments=2
        )  # four operators of two digits: 400
