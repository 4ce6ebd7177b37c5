"""The experiment of tsmixer on a tiny budget, its arms' sizes, and the tenth of the rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from data_sets import needs

from lightformers import reproduce
from lightformers.reproduce import Finding, forecasters, tsmixer
from lightformers.tasks.forecasting import Forecasting


def test_experiment_on_a_tiny_budget(tmp_path: Path) -> None:
    needs("etth1")
    made = reproduce.run("tsmixer", budget_seconds=2)
    made.write(tmp_path)  # refuses NaN
    assert Finding.read("tsmixer", tmp_path).slug == "tsmixer"
    assert len(made.seeds) == 2 and "instead of 300" in made.limits
    rows = {row["arm"]: row for row in made.table}
    for arm in (
        "TSMixer",
        "patch transformer",
        "linear map",
        "TSMixer without gates",
        "TSMixer, channels mixed",
    ):
        assert len(rows[arm]["MSE"]["values"]) == 2
    for arm in ("hidden patches, then a linear head", "one tenth alone"):
        assert rows[arm]["MSE, a tenth of the rows"]["mean"] > 0
    assert rows["patch transformer"]["ms of an update, 64 patches"] > 0


def test_the_rival_has_as_many_parameters() -> None:
    for sizes in ((336, 16, 32, 2, 4), (512, 8, 48, 3, 4)):
        wanted = forecasters.size(lambda s=sizes: tsmixer.mixer(*s[:4]))
        assert forecasters.size(tsmixer.tokens(*sizes)) == pytest.approx(wanted, rel=0.02)


def test_a_tenth_is_the_last_rows_and_tests_stay() -> None:
    values = np.random.default_rng(0).standard_normal((6000, 1))
    task = Forecasting.from_values(values, horizon=96, context=200)
    less = tsmixer.tenth(task)
    ends = less.splits["train"].starts + 200 + 96
    assert len(less.splits["train"]) == 420 - 295 and ends.max() == task.borders[0] == 4200
    assert less.splits["verify"] is task.splits["verify"] and len(task.splits["train"]) == 4200 - 295


def test_memory_is_measured_with_and_without_updates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tsmixer.measure, "peak_memory", lambda call, name, *rest: 1000 + 50 * rest[-1])
    monkeypatch.setattr(tsmixer, "_FULL", tsmixer._TINY)
    found = tsmixer.costs(short=False)
    assert found["bytes"] == {"TSMixer": 100, "patch transformer": 100}
    assert found["faster"]["low"] <= found["faster"]["estimate"] <= found["faster"]["high"]
    calls: list[str] = []
    monkeypatch.setattr(tsmixer, "updating", lambda name, *sizes: lambda: calls.append(name))
    tsmixer.update("TSMixer", *tsmixer._TINY, times=3)
    assert calls == ["TSMixer"] * 3
