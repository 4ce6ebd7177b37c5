"""The benchmarks of forecasters at tiny sizes: they run, their pages say what was measured, rows are not trained twice."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

import ett
import forecasting

from lightformers.errors import UserError
from lightformers.tasks import Forecasting


def test_quick_races_all_models(tmp_path: Path) -> None:
    out = tmp_path / "races.json"
    forecasting.main(["--quick", "--threads", "1", "--precision", "fp32", "--out", str(out)])
    result = json.loads(out.read_text())
    assert set(result["races"]) == {"training 1 fp32", "inference 1 fp32"} and not result["memory"]
    for row in result["races"].values():
        assert set(row["seconds"]) == set(forecasting.MODELS)
        ratio = row["faster"]["PatchTSMixer"]
        assert ratio["low"] <= ratio["estimate"] <= ratio["high"]
    page = out.with_suffix(".md").read_text()
    assert "| 1 | fp32 | PatchTSMixer |" in page and "## Inference" in page


def test_updates_learn_and_both_mixers_forecast_alike() -> None:
    sizes = forecasting.Sizes.tiny()
    assert forecasting.same_forecasts(sizes) < 1e-5
    for name in forecasting.MODELS:
        update = forecasting.updating(name, sizes)
        first = update()
        assert np.isfinite(first) and min(update() for _ in range(12)) < first


def test_models_that_differ_are_not_raced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(forecasting.MODELS, "PatchTSMixer", forecasting.patchtst)
    with pytest.raises(RuntimeError, match="forecast differently"):
        forecasting.same_forecasts(forecasting.Sizes.tiny())


def test_memory_is_what_the_updates_add(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        forecasting.measure,
        "peak_memory",
        lambda call, name, s: 900 if call is forecasting.two_updates else 300,
    )
    assert forecasting.memory(["TSMixer"], forecasting.Sizes.tiny()) == {"TSMixer": 600}


def test_ours_must_be_among_the_models() -> None:
    with pytest.raises(SystemExit):
        forecasting.parse(["--models", "PatchTST"])


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Forecasting:
    """A short series and a small model in the place of ETTh1 and the notebook's."""
    time = np.arange(260)[:, None] * np.array([0.5, 0.9])
    values = np.sin(time) + 0.1 * np.random.default_rng(0).standard_normal((260, 2))
    task = Forecasting.from_values(values, horizon=8, context=32)
    given: dict[str, Any] = {
        "preset": "tsmixer-etth1-96",
        "context": 32,
        "epochs": 2,
        "patience": 1,
        "batch": 32,
        "lr": 1e-3,
    }
    monkeypatch.setattr(ett, "recipe", lambda model, horizon: dict(given))
    monkeypatch.setattr(ett, "ett", lambda name, horizon, context: task)
    return task


def test_rows_are_written_and_not_trained_again(
    small: Forecasting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "ett.json"
    arguments = [
        "--horizon",
        "8",
        "--seeds",
        "2",
        "--threads",
        str(torch.get_num_threads()),
        "--out",
        str(out),
    ]
    ett.main(arguments)
    rows = json.loads(out.read_text())["rows"]
    assert set(rows) == {"tsmixer 8 32 fp32 0", "tsmixer 8 32 fp32 1"}
    first, second = rows.values()
    assert first["mse"] != second["mse"] and first["windows"] == len(small.splits["verify"])
    assert 1 <= first["best_epoch"] <= first["epochs"] <= 2
    assert "| tsmixer | 8 | 32 | fp32 | 2 |" in out.with_suffix(".md").read_text()
    monkeypatch.setattr(ett, "one", lambda *_: pytest.fail("trained twice"))
    ett.main(arguments)
    assert "is there: MSE" in capsys.readouterr().out


def test_a_page_says_how_far_from_the_paper() -> None:
    row = {
        "model": "tsmixer", "horizon": 96, "context": 512, "precision": "fp32", "threads": 2, "mse": 0.368, "mae": 0.4,
        "percent": 0.0, "paper": {"mse": 0.368, "mae": 0.398}, "epochs": 8, "seconds": 60.0,
    }  # fmt: skip
    rows = {"a": {**row, "seed": 0}, "b": {**row, "seed": 1, "mse": 0.37, "percent": 1.0}}
    page = ett.markdown({"rows": rows, "machine": {"cpu": "a processor"}})
    assert "| 2 | 0.3690 [0.3680, 0.3700] | 0.368 | +0.5 |" in page


def test_recipes_are_the_official_ones() -> None:
    for model, (_, _, figures) in ett.PAPERS.items():
        for horizon in figures:
            assert ett.recipe(model, horizon)["lr"] == 1e-4
    assert (
        ett.recipe("tsmixer", 96)["context"] == 512 and ett.recipe("itransformer", 96)["schedule"] == "halve"
    )
    with pytest.raises(UserError, match="recipes for horizons"):
        ett.recipe("tsmixer", 100)
