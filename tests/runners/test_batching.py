import random

import pytest

from lightformers.runners.batching import arrival, by_length, fill, in_order, plan, round_up


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(("rows", "tokens"), [(4, None), (None, 40), (3, 50), (None, None), (1, None)])
def test_every_example_once_and_within_the_limits(seed, rows, tokens):
    lengths = random.Random(seed).choices(range(1, 61), k=37)
    for make in (arrival, by_length):
        batches = make(lengths, rows, tokens)
        assert sorted(i for b in batches for i in b) == list(range(37))
        for b in batches:
            assert rows is None or len(b) <= rows
            # only an example that is too long on its own may pass the budget
            assert tokens is None or len(b) == 1 or len(b) * max(lengths[i] for i in b) <= tokens


def test_batches_are_as_full_as_the_budget_allows():
    lengths = [10] * 9
    assert [len(b) for b in by_length(lengths, None, 40)] == [4, 4, 1]
    assert [len(b) for b in by_length(lengths, None, 40, pad=lambda n: round_up(n, 16))] == [2, 2, 2, 2, 1]


def test_sorting_is_stable_and_longest_first():
    assert by_length([2, 5, 2, 5, 9], 2) == [[4, 1], [3, 0], [2]]
    assert arrival([2, 5, 2, 5, 9], 2) == [[0, 1], [2, 3], [4]]


def test_sorting_wastes_less_padding():
    lengths = random.Random(3).choices(range(1, 201), k=256)
    assert fill(by_length(lengths, 16), lengths) > 0.9 > fill(arrival(lengths, 16), lengths)


def test_results_come_back_in_the_given_order():
    lengths = [3, 9, 1, 4, 9, 2]
    batches = plan(lengths, "sorted", 2, None)
    assert in_order(batches, [[lengths[i] for i in b] for b in batches]) == lengths


def test_a_reduce_that_loses_an_example_is_caught():
    with pytest.raises(ValueError, match="1 items for a batch of 2"):
        in_order([[0, 1]], [["only one"]])


def test_nothing_gives_nothing():
    assert by_length([], 4) == [] and in_order([], []) == [] and fill([], []) == 1.0
