"""Recall and average precision against literal counts."""

from __future__ import annotations

import numpy as np
import pytest

from lightformers.errors import DataError
from lightformers.tasks.retrieval import average_precision, first_rank, recall


def literal(similarity: np.ndarray, relevant: np.ndarray) -> tuple[list[int], list[float]]:
    """(rank of the first relevant candidate, average precision) per query, by counting."""
    ranks, precisions = [], []
    for row, right in zip(similarity, relevant):
        good = [i for i in range(len(row)) if right[i]]
        places = []
        for done, i in enumerate(sorted(good, key=lambda i: -row[i]), 1):
            wrong = sum(row[j] >= row[i] for j in range(len(row)) if not right[j])
            places.append((wrong + done, done))
        ranks.append(places[0][0])
        precisions.append(sum(done / place for place, done in places) / len(places))
    return ranks, precisions


def test_both_ways_and_ties_against_counting() -> None:
    rng = np.random.default_rng(0)
    for digits in (6, 1):  # with one digit there are many ties
        similarity = rng.random((7, 20)).round(digits)
        relevant = np.zeros((7, 20), dtype=bool)
        relevant[np.arange(20) % 7, np.arange(20)] = True  # several captions per image
        for table, right in ((similarity, relevant), (similarity.T, relevant.T)):
            ranks, precisions = literal(table, right)
            assert first_rank(table, right).tolist() == ranks
            assert average_precision(table, right).stats[:, 0] == pytest.approx(precisions)
            for k in (1, 5):
                assert recall(table, right, k).value == pytest.approx(np.mean([r <= k for r in ranks]))
    assert recall(similarity, relevant, 1).metric.name == "recall@1"


def test_what_is_no_number_ranks_last() -> None:
    relevant = np.eye(3, dtype=bool)
    assert first_rank(np.full((3, 3), np.nan), relevant).tolist() == [3, 3, 3]
    assert first_rank(np.eye(3), relevant).tolist() == [1, 1, 1]
    assert first_rank(np.ones((3, 3)), relevant).tolist() == [3, 3, 3]


def test_bad_tables_are_refused() -> None:
    with pytest.raises(DataError, match="one shape"):
        first_rank(np.ones((2, 3)), np.ones((3, 2), dtype=bool))
    with pytest.raises(DataError, match="query 1"):
        average_precision(np.ones((2, 2)), np.array([[1, 0], [0, 0]], dtype=bool))
    with pytest.raises(DataError, match="first 1"):
        recall(np.ones((1, 1)), np.ones((1, 1), dtype=bool), 0)
