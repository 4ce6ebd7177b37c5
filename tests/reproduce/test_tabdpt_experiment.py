"""The experiment of tabdpt on a tiny budget."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from data_sets import needs

from lightformers import reproduce
from lightformers.models.tabular.tabdpt import TabDPT, TabDPTConfig
from lightformers.reproduce import Finding, tabdpt


def test_experiment_on_a_tiny_budget(tmp_path: Path) -> None:
    needs("tabular2", "etth1")
    made = reproduce.run("tabdpt", budget_seconds=0.5)
    made.write(tmp_path)  # refuses NaN
    assert Finding.read("tabdpt", tmp_path).slug == "tabdpt" and "instead of 300" in made.limits
    rows = {row["arm"]: row for row in made.table}
    assert list(rows) == [
        "nearest neighbours", "logistic regression", "gradient boosting", "untrained",
        "real and drawn tables", "real tables alone", "drawn tables alone",
    ]  # fmt: skip
    for row in rows.values():
        assert all(0 <= v <= 1 for cell in row.values() if isinstance(cell, dict) for v in cell["values"])
    assert rows["logistic regression"]["accuracy"]["mean"] > 0.9
    assert rows["real tables alone"]["accuracy"] != rows["drawn tables alone"]["accuracy"]
    assert (
        "accuracy, 32 near rows" in rows["real and drawn tables"]
        and len(made.settings["loss on drawn tables"]) == 3
    )


def test_a_context_of_its_own_for_each_row() -> None:
    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    model = TabDPT(TabDPTConfig(32, 16, 24, 2, 1)).eval()
    context, y, x = rng.standard_normal((9, 4)), np.arange(9) % 3, rng.standard_normal((5, 4))
    shared = tabdpt.in_context(model, context, y.astype(float), x)
    own = tabdpt.in_context(model, np.repeat(context[None], 5, 0), np.repeat(y[None], 5, 0).astype(float), x)
    assert shared.shape == (5, 3)
    np.testing.assert_allclose(shared, own, atol=1e-5)
