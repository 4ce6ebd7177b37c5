"""Sums as text: every sample is what a reader who adds on paper would write."""

from __future__ import annotations

import numpy as np
import pytest

from lightformers.errors import UserError
from lightformers.tasks import arithmetic
from lightformers.tasks.arithmetic import (
    STYLES,
    answer,
    balanced,
    carries,
    complete,
    completion,
    prompt,
    write,
)

DETAILED = (
    "Input:\n128+367\nTarget:\n<scratch>\n[1,2,8] has 3 digits.\n[3,6,7] has 3 digits.\n"
    "[1,2,8] + [3,6,7] , A=[] , C=0 , 8+7+0=15 , A->5 , C->1\n"
    "[1,2] + [3,6] , A=[5] , C=1 , 2+6+1=9 , A->9 , C->0\n"
    "[1] + [3] , A=[9,5] , C=0 , 1+3+0=4 , A->4 , C->0\n"
    "[] + [] , A=[4,9,5] C=0 , END\n</scratch>\n4 9 5\n"
)


def test_samples_of_the_paper() -> None:
    assert write(128, 367, "plain") == "128+367=495\n"
    assert write(128, 367, "reverse") == "$128+367=594$\n"
    assert write(128, 367, "simplified") == (
        "Input:\n128+367\nTarget:\nA->5 , C->1\nA->9 , C->0\nA->4 , C->0.\n495\n"
    )
    assert write(128, 367, "detailed") == DETAILED


def test_a_shorter_operand_and_a_carry_that_is_left() -> None:
    assert write(7, 95, "plain") == "7+95=102\n"  # no zeros in front
    assert write(7, 95, "reverse") == "$7+95=201$\n"
    assert completion(7, 95, "simplified") == "A->2 , C->1\nA->0 , C->1.\n102\n"
    assert completion(7, 95, "detailed") == (
        "<scratch>\n[7] has 1 digits.\n[9,5] has 2 digits.\n"
        "[7] + [9,5] , A=[] , C=0 , 7+5+0=12 , A->2 , C->1\n[] + [9] , A=[2] , C=1 , 0+9+1=10 , A->0 , C->1\n"
        "[] + [] , A=[0,2] C=1 , END\n</scratch>\n1 0 2\n"
    )


@pytest.mark.parametrize("style", STYLES)
def test_answers_are_read_back(style: arithmetic.Style) -> None:
    """Also after more text, and only where decoding would have stopped."""
    for a, b in [(0, 0), (9, 1), (5, 99), (250, 750), (10, 20)]:
        text = completion(a, b, style)
        assert answer(text, style) == a + b and answer(text + "7+7", style) == a + b
        assert answer(text[:-1], style) is None
        assert arithmetic.stopped(text, style) and not arithmetic.stopped(text[:-1], style)
        assert write(a, b, style).startswith(prompt(a, b, style) + text)
        tokens = arithmetic.encode(write(a, b, style), style)
        assert arithmetic.decode(tokens, style) == write(a, b, style)
    assert answer("12,$", "reverse") is None and answer("", style) is None


def test_carries_against_adding_by_hand() -> None:
    for a, b, count in [(1, 2, 0), (5, 5, 1), (99, 1, 2), (128, 367, 1), (999, 999, 3), (50, 49, 0)]:
        assert carries(a, b) == carries(b, a) == count


def test_held_out_pairs_come_in_no_draw_not_even_commuted() -> None:
    held = arithmetic.hold_out(0, 1000, 2)
    assert len({tuple(sorted(p)) for p in held}) == 1000 and held == arithmetic.hold_out(0, 1000, 2)
    assert any(a > b for a, b in held) and any(a < b for a, b in held)
    for drawn in (arithmetic.uniform(1, 3000, 2, held), balanced(1, 3000, 2, held)):
        assert len(set(drawn)) == 3000 and all(0 <= x < 100 for p in drawn for x in p)
        assert not {tuple(sorted(p)) for p in drawn} & {tuple(sorted(p)) for p in held}
    assert arithmetic.uniform(1, 50, 2) == arithmetic.uniform(1, 50, 2) != arithmetic.uniform(2, 50, 2)


def test_balance_is_that_of_the_paper() -> None:
    pairs = balanced(0, 5000, 3)
    lengths = np.bincount([len(str(max(p))) for p in pairs])
    assert lengths.tolist() == [0, 50, 450, 4500]
    long = [carries(a, b) for a, b in pairs if max(a, b) >= 100]
    assert np.bincount(long).tolist() == [1125] * 4
    even = np.bincount([carries(a, b) for a, b in arithmetic.uniform(0, 5000, 3)], minlength=4)
    assert even[3] < 900 and sum(max(p) < 100 for p in arithmetic.uniform(0, 5000, 3)) < 100


def test_completion_of_the_table_needs_about_as_many_entries_as_numbers() -> None:
    """a + b has rank 2: 4 n entries decide nothing safely, 20 n decide everything."""
    size = 40
    whole = np.add.outer(np.arange(size), np.arange(size)).astype(float)
    rng = np.random.default_rng(0)

    def right(entries: int) -> float:
        known = np.full(whole.shape, np.nan)
        at = rng.permutation(size * size)[:entries]
        known.flat[at] = whole.flat[at]
        return float((np.round(complete(known)) == whole).mean())

    assert right(3 * size) < 0.6 and right(20 * size) == 1.0
    with pytest.raises(UserError, match="rank"):
        complete(np.full((3, 3), np.nan))


def test_bad_input() -> None:
    with pytest.raises(UserError, match="backwards"):
        write(1, 2, "backwards")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="from 0"):
        write(-1, 2, "plain")
    with pytest.raises(UserError, match="'x'"):
        arithmetic.encode("x", "plain")
    with pytest.raises(UserError, match="left to draw"):
        arithmetic.uniform(0, 10001, 2)
    with pytest.raises(UserError, match="2 or 3"):
        balanced(0, 10, 5)
