"""The experiment of unitabe on a tiny budget, and that training and test rows are kept apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from data_sets import needs

from lightformers import reproduce
from lightformers.reproduce import Finding, labelled_tables, unitabe


def test_experiment_on_a_tiny_budget(tmp_path: Path) -> None:
    needs("tabular", "tabular2")
    made = reproduce.run("unitabe", budget_seconds=2)
    made.write(tmp_path)  # refuses NaN
    assert Finding.read("unitabe", tmp_path).slug == "unitabe"
    assert len(made.seeds) == 2 and "instead of 300" in made.limits
    rows = {row["arm"]: row for row in made.table}
    assert list(rows) == ["pre-trained", "from scratch", "logistic regression", "gradient boosting"]
    for row in made.table:
        assert all(0 <= v <= 1 for c, cell in row.items() if c.startswith("AUC") for v in cell["values"])
    assert rows["logistic regression"]["AUC, 128 rows"]["mean"] > 0.7
    assert {"kept", "AUC, columns never shown"} <= rows["pre-trained"].keys()


def test_rows_are_kept_apart() -> None:
    needs("tabular", "tabular2")
    table = labelled_tables.targets(1)[0]
    for size in (32, 128, None):
        for seed in range(2):
            chosen, tested = table.parts(size, seed)
            assert not set(chosen) & set(tested) and len(set(chosen)) == len(chosen)
            assert size is None or abs(len(chosen) - size) <= 1
            shares = np.bincount(table.labels[chosen]) / len(chosen)
            assert abs(shares[1] - 0.38) < 0.05
    assert all("target" not in row for row in table.rows)
    sources = [name for _, name, _ in unitabe._OTHERS]
    assert not {"titanic", "pima_diabetes"} & set(sources)
