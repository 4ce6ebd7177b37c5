"""Metrics of retrieval from a table of similarities: recall among the first k, and average precision. numpy only.

Images and captions are ranked both ways with one table: `recall(table, relevant, k)` for its rows as queries,
`recall(table.T, relevant.T, k)` for its columns. `lightformers.tasks.embedding.ranks` ranks long lists without a table.
"""

from __future__ import annotations

import numpy as np

from lightformers.errors import DataError
from lightformers.stats import Metric, Scores

_MEAN = Metric("mean", lambda sums: sums[..., 0] / np.maximum(sums[..., 1], 1e-12))


def order(similarity: np.ndarray, relevant: np.ndarray) -> np.ndarray:
    """(queries, candidates) bool: `relevant` from the most similar candidate to the least.

    Of equally similar candidates those that are not relevant come first, so ties count against the model; NaN comes last.
    Raises DataError where the tables differ in shape or a query has no relevant candidate.
    """
    if similarity.ndim != 2 or similarity.shape != relevant.shape:
        raise DataError(
            f"similarities {similarity.shape} and relevance {relevant.shape} are no tables of one shape"
        )
    relevant = relevant.astype(bool)
    if not relevant.any(1).all():
        raise DataError(f"query {int((~relevant.any(1)).argmax())} has no relevant candidate")
    found = np.where(np.isnan(similarity), -np.inf, similarity)
    places = np.lexsort((relevant, -found), axis=1)
    return np.take_along_axis(relevant, places, 1)


def first_rank(similarity: np.ndarray, relevant: np.ndarray) -> np.ndarray:
    """(queries,) rank of the first relevant candidate, from 1."""
    return np.asarray(order(similarity, relevant).argmax(1) + 1)


def recall(similarity: np.ndarray, relevant: np.ndarray, k: int) -> Scores:
    """Recall@k as of captioned images: (1 if a relevant candidate is among the first k, 1) per query."""
    if k < 1:
        raise DataError(f"recall is counted among the first 1 or more, got {k}")
    hits = first_rank(similarity, relevant) <= k
    return Scores(np.stack([hits, np.ones(len(hits))], 1).astype(float), Metric(f"recall@{k}", _MEAN.fn))


def average_precision(similarity: np.ndarray, relevant: np.ndarray) -> Scores:
    """(average precision, 1) per query; their mean is MAP."""
    ranked = order(similarity, relevant)
    precision = ranked.cumsum(1) / np.arange(1, ranked.shape[1] + 1)
    values = (precision * ranked).sum(1) / ranked.sum(1)
    return Scores(np.stack([values, np.ones(len(values))], 1), Metric("map", _MEAN.fn))
