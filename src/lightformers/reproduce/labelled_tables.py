"""Tables with classes for experiments: their rows, a few of them to learn from, and the rivals of every table model."""

from __future__ import annotations

import csv
import gzip
from dataclasses import dataclass
from typing import Any

import numpy as np

from lightformers import reproduce
from lightformers.processors.schema import Row, number

LINEAR, TREES = "logistic regression", "gradient boosting"
#: The most rows that "all" stands for.
MOST = 400
#: The columns of the Pima Indians' diabetes table, which come without names, as UCI describes them.
_DIABETES = ("pregnancies", "plasma glucose", "blood pressure", "skin fold", "insulin", "body mass index", "pedigree", "age")  # fmt: skip


@dataclass(frozen=True)
class Table:
    """Rows, shuffled, with their classes; the first `tested` are for testing."""

    name: str
    rows: list[dict[str, Any]]
    labels: np.ndarray
    tested: int

    @property
    def classes(self) -> int:
        return int(self.labels.max()) + 1

    def parts(self, size: int | None, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Numbers of `size` training rows, of every class as many as its share, and those of the test rows."""
        drawn = np.random.default_rng(seed)
        order = drawn.permutation(np.arange(self.tested, len(self.rows)))[: None if size else MOST]
        size = min(size or len(order), len(order))
        of_class = [order[self.labels[order] == c] for c in range(self.classes)]
        counts = [max(1, round(size * len(rows) / len(order))) for rows in of_class]
        chosen = np.concatenate([rows[:count] for rows, count in zip(of_class, counts)])
        return drawn.permutation(chosen), np.arange(self.tested)


def read(folder: str, name: str, target: str = "target", limit: int | None = None) -> list[dict[str, Any]]:
    """The rows of a shared table, numbers as numbers, its target under another name."""
    with gzip.open(reproduce.data(folder) / f"{name}.csv.gz", "rt", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    rows = [rows[i] for i in np.random.default_rng(0).permutation(len(rows))[:limit]]
    return [
        {target if k == "target" else k: (number(v) if number(v) is not None else v or None) for k, v in row.items()}
        for row in rows
    ]  # fmt: skip


def targets(count: int | None = None, tested: int = 300) -> list[Table]:
    """Titanic, diabetes and iris; the first `count`, each with a third of its rows to test on, at most `tested`."""
    from sklearn.datasets import load_iris

    iris: Any = load_iris()
    names = [str(name).removesuffix(" (cm)") for name in iris.feature_names]
    found = {
        "titanic": read("tabular2", "titanic"),
        "diabetes": [
            dict(zip((*_DIABETES, "target"), row.values())) for row in read("tabular", "pima_diabetes")
        ],
        "iris": [
            {**dict(zip(names, map(float, x))), "target": int(y)} for x, y in zip(iris.data, iris.target)
        ],
    }
    made = []
    for name, rows in list(found.items())[:count]:
        rows = [rows[i] for i in np.random.default_rng(0).permutation(len(rows))]
        _, labels = np.unique([str(r["target"]) for r in rows], return_inverse=True)
        plain = [{k: v for k, v in r.items() if k != "target"} for r in rows]
        made.append(Table(name, plain, labels, min(tested, len(rows) // 3)))
    return made


def auc(table: Table, tested: np.ndarray, found: np.ndarray) -> float:
    """Area under the ROC curve; of several classes, the mean of each against the others."""
    from sklearn.metrics import roc_auc_score

    right = table.labels[tested]
    return float(np.mean([roc_auc_score(right == c, found[:, c]) for c in range(min(table.classes, 2) - 1, table.classes)]))  # fmt: skip


def peers(table: Table, chosen: np.ndarray, tested: np.ndarray, seed: int) -> dict[str, float]:
    """The AUC of logistic regression and of gradient boosting; texts one-hot, missing numbers the median and marked."""
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.feature_extraction import DictVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import MaxAbsScaler, StandardScaler

    given = [table.rows[i] for i in chosen]
    numeric = [n for n in table.rows[0] if not any(isinstance(r[n], str) for r in table.rows)]
    known = {n: [r[n] for r in given if r[n] is not None] for n in numeric}
    median = {n: float(np.median(v)) if v else 0.0 for n, v in known.items()}

    def plain(row: Row) -> dict[str, Any]:
        filled = {n: row[n] if row[n] is not None else median[n] for n in numeric}
        marks = {f"{n} missing": 1.0 for n in row if row[n] is None}
        return {**{k: v for k, v in row.items() if v is not None}, **filled, **marks}

    found = {}
    for arm, tail in (
        (LINEAR, [StandardScaler(), LogisticRegression(max_iter=1000)]),
        (TREES, [MaxAbsScaler(), HistGradientBoostingClassifier(min_samples_leaf=5, random_state=seed)]),
    ):
        model = make_pipeline(DictVectorizer(sparse=False), *tail)
        model.fit([plain(r) for r in given], table.labels[chosen])
        found[arm] = auc(table, tested, model.predict_proba([plain(table.rows[i]) for i in tested]))
    return found
