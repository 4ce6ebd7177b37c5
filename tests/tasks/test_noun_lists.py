"""Lists that come twice, read by a literal reader."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from lightformers.errors import UserError
from lightformers.tasks import noun_lists
from lightformers.tasks.noun_lists import CONDITIONS, NOUNS, PREFACE, PROMPT, Condition, percent, stimuli

FILLER = [f"w{i}" for i in range(200)]


def lists(words: tuple[str, ...], length: int) -> tuple[list[str], list[str], list[str]]:
    """Both lists and what is between, by splitting at the full stop."""
    text = list(words)
    assert text[: len(PREFACE)] == PREFACE
    text = text[len(PREFACE) :]
    end = text.index(".")
    first, rest = text[:end], text[end + 1 :]
    second = rest[-2 * length : -1]
    assert rest[-1] == "." and first[1::2] == second[1::2] == [","] * (length - 1)
    return first[0::2], second[0::2], rest[: -2 * length]


@pytest.mark.parametrize("condition", CONDITIONS)
@pytest.mark.parametrize(("length", "delay"), [(3, 11), (5, 40), (10, 150)])
def test_texts_are_what_they_are_called(condition: Condition, length: int, delay: int) -> None:
    made = stimuli(condition, 0, 23, length, delay, FILLER)
    assert len(made) == 23
    for text in made:
        first, second, between = lists(text.words, length)
        assert len(between) == delay and between[-len(PROMPT) :] == PROMPT
        assert len(set(first)) == len(set(second)) == length and set(first) | set(second) <= set(NOUNS)
        assert [text.words[i] for i in text.first] == first and [text.words[i] for i in text.second] == second
        if condition == "repeat":
            assert first == second
        elif condition == "control":
            assert not set(first) & set(second)
        else:
            assert set(first) == set(second) and all(a != b for a, b in zip(first, second))
            kept = set(itertools.pairwise(first)) & set(itertools.pairwise(second))
            assert not kept or length == 3


def test_first_lists_are_those_of_all_conditions_and_delays_and_shift_through_all_places() -> None:
    made = {c: stimuli(c, 4, 10, 5, d, FILLER) for c, d in zip(CONDITIONS, (12, 30, 60))}
    first = [[lists(t.words, 5)[0] for t in texts] for texts in made.values()]
    assert (
        first[0]
        == first[1]
        == first[2]
        != [lists(t.words, 5)[0] for t in stimuli("repeat", 5, 10, 5, 12, FILLER)]
    )
    for run in (first[0][:5], first[0][5:]):
        assert all({row[i] for row in run} == set(run[0]) for i in range(5))


def test_coherent_lists_are_of_one_group() -> None:
    for text in stimuli("control", 0, 20, 5, 20, FILLER, coherent=True):
        first, second, _ = lists(text.words, 5)
        assert any(set(first) | set(second) <= set(group) for group in noun_lists.GROUPS.values())


def test_percent_counts_nouns_but_the_first_of_each_list() -> None:
    made = stimuli("repeat", 0, 4, 5, 20, FILLER)
    nats = np.full((4, len(made[0].words)), 99.0)  # commas, prompts and first nouns must not be read
    for i, text in enumerate(made):
        nats[i, list(text.first[1:])] = [1, 2, 3, 6]
        nats[i, list(text.second[1:])] = [i, i, i, 0]
    assert percent(nats, made) == pytest.approx([100 * (0.75 * i) / 3 for i in range(4)])
    assert noun_lists.by_place(nats, made) == pytest.approx([150, 75, 50, 0])


def test_bad_input() -> None:
    made = stimuli("repeat", 0, 2, 3, 20, FILLER)
    with pytest.raises(UserError, match="nothing to compare"):
        percent(np.zeros((2, 60)), made)
    with pytest.raises(UserError, match="do not belong"):
        percent(np.ones((3, 60)), made)
    with pytest.raises(UserError, match="the prompt has"):
        stimuli("repeat", 0, 2, 3, 5, FILLER)
    with pytest.raises(UserError, match="need 80 nouns"):
        stimuli("repeat", 0, 2, 40, 20, FILLER)
    with pytest.raises(UserError, match="at least 3"):
        stimuli("permute", 0, 2, 2, 20, FILLER)
    with pytest.raises(UserError, match="shuffle"):
        stimuli("shuffle", 0, 2, 3, 20, FILLER)  # type: ignore[arg-type]
