"""`lightformers forecast`: whole runs on small series, again from a saved folder, and what is refused."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from forecast_world import wave, write

import lightformers as lf
from lightformers.cli import main
from lightformers.errors import UserError
from lightformers.forecast import contenders, pretraining
from lightformers.models.forecasting.linear import LinearForecaster

FAST = {"model": "linear", "budget": 40.0}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    values = wave(500, channels=2)
    values[40:44, 0] = np.nan
    return write(tmp_path_factory.mktemp("series") / "data.csv", {"load": values[:, 0], "heat": values[:, 1]})


@pytest.fixture(scope="module")
def ran(file: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return lf.forecast(file, 12, out=tmp_path_factory.mktemp("run"), **FAST)


def call(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr("sys.argv", ["lightformers", "forecast", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def test_the_next_steps_stand_in_the_files(ran: Any, file: Path) -> None:
    assert {p.name for p in ran.folder.iterdir()} == set(ran.files) == {
        "forecast.csv", "forecast.png", "report.html", "report.json", "model",
    }  # fmt: skip
    with open(ran.folder / "forecast.csv", encoding="utf-8") as table:
        rows = list(csv.DictReader(table))
    assert len(rows) == 12 and list(rows[0]) == [
        "date",
        "load",
        "load_lower",
        "load_upper",
        "heat",
        "heat_lower",
        "heat_upper",
    ]
    assert rows[0]["date"] == "2024-01-21 20:00:00" and rows[-1]["date"] == "2024-01-22 07:00:00"
    assert all(float(r["load_lower"]) < float(r["load"]) < float(r["load_upper"]) for r in rows)
    truth = wave(512, channels=2)[500:]  # the series goes on as it was made, but for its noise
    assert np.abs(ran.forecast - truth).mean() < 0.4
    assert list(ran.frame().columns) == list(rows[0])[1:] and str(ran.frame().index[0]) == rows[0]["date"]


def test_the_report_holds_all_forecasters(ran: Any) -> None:
    report = json.loads((ran.folder / "report.json").read_text(encoding="utf-8"))
    rows = {r["name"]: r for r in report["rows"]}
    assert set(rows) == {"linear", "naive", "seasonal-naive", "ridge", "ets"}
    assert rows["linear"]["mse"]["estimate"] < rows["naive"]["mse"]["estimate"]
    assert rows["naive"]["mase"]["estimate"] > 1 > rows["linear"]["mase"]["estimate"]
    assert report["data"]["windows"]["verify"] == 100 - 12 + 1 and rows["ets"]["windows"] <= 4
    assert 0.5 < report["interval"]["coverage"]["estimate"] <= 1 and "held-out" in report["interval"]["text"]
    assert report["refit"]["done"] and "all 500 rows" in report["refit"]["text"]
    page = (ran.folder / "report.html").read_text(encoding="utf-8")
    assert report["advice"][0].split(":")[0] in page and "plotly" in page


def test_the_model_is_opened_again(ran: Any, file: Path) -> None:
    again = lf.load(ran.folder / "model")
    assert isinstance(again.model, LinearForecaster) and again.processor.columns == ("load", "heat")
    same = lf.forecast(file, model=str(ran.folder), budget=1.0)
    assert np.allclose(same.forecast, ran.forecast, atol=1e-4)
    assert not same.report["refit"]["done"] and "as it was saved" in same.report["refit"]["text"]
    assert same.folder is None and same.files == ()


def test_a_saved_model_forecasts_another_series(ran: Any) -> None:
    """One column instead of two, other units, gaps, fewer steps: without training."""
    values = 100 + 40 * wave(300, seed=3)[:, 0]
    values[100:103] = np.nan
    found = lf.forecast({"power": values.tolist()}, 6, model=str(ran.folder / "model"), budget=1.0)
    assert (
        found.forecast.shape == (6, 1)
        and found.columns == ("power",)
        and found.stamps.tolist() == list(range(300, 306))
    )
    rows = {r["name"]: r for r in found.report["rows"]}
    mine = rows[str(ran.folder / "model")]
    assert mine["mse"]["estimate"] < rows["naive"]["mse"]["estimate"] and mine["seconds"] < 3
    with pytest.raises(UserError, match="forecasts 12 steps"):
        lf.forecast(values, 13, model=str(ran.folder / "model"))


def test_known_columns_are_read(tmp_path: Path) -> None:
    """A target that follows tomorrow's price: with the price known the error falls far."""
    drawn = np.random.default_rng(0)
    price = drawn.standard_normal(512)
    load = 2 * price + 0.1 * drawn.standard_normal(512)
    data = {"load": load[:500], "price": price[:500]}
    plain = lf.forecast({"load": load[:500].tolist()}, 12, refit=False, **FAST)
    future = write(tmp_path / "future.csv", {"price": price[500:]}, "2024-01-21 20:00:00")
    source = write(tmp_path / "data.csv", data)
    told = lf.forecast(source, 12, known="price", future=str(future), refit=False, **FAST)
    assert told.columns == ("load",)
    assert (
        np.abs(told.forecast[:, 0] - load[500:]).mean()
        < 0.5 * np.abs(plain.forecast[:, 0] - load[500:]).mean()
    )
    short = write(tmp_path / "short.csv", {"price": price[500:505]}, "2024-01-21 20:00:00")
    with pytest.raises(UserError, match="no row for 2024-01-22 01:00:00"):
        lf.forecast(source, 12, known="price", future=str(short), **FAST)
    with pytest.raises(UserError, match="--future"):
        lf.forecast(source, 12, known="price", **FAST)


def test_a_baseline_that_is_better_makes_the_forecast() -> None:
    """A season that repeats itself exactly, barely learnt: the last season is right, and the report says so."""
    exact = np.tile(np.random.default_rng(5).standard_normal(24), 17)
    series = {
        "date": np.arange("2024-01-01", "2024-01-18", dtype="datetime64[h]").tolist(),
        "x": exact.tolist(),
    }
    found = lf.forecast(series, 8, budget=1.0)
    assert {r["name"] for r in found.report["rows"] if r["kind"] == "model"} == {
        "tsmixer", "itransformer", "linear",
    }  # fmt: skip
    assert found.report["chosen"]["name"] in ("seasonal-naive", "ridge", "ets")
    assert found.report["advice"][0].startswith("No trained model is better here")
    assert "fitted to all rows" in found.report["refit"]["text"] and found.bundle is not None
    assert np.allclose(found.forecast[:, 0], exact[:8], atol=0.05)
    named = lf.forecast(exact, 8, model="naive", budget=1.0)
    assert named.bundle is None and np.allclose(named.forecast, exact[-1], atol=1e-3)


def test_a_budget_that_is_too_short_for_the_refit_says_so(file: Path) -> None:
    found = lf.forecast(file, 12, target="load", model="linear", budget=0.2)
    assert not found.report["refit"]["done"] and "Give more --budget" in found.report["refit"]["text"]


@pytest.mark.parametrize("name", ["tsmixer", "ttm", "itransformer", "gpht", "itransformer-etth1-96"])
def test_every_family_forecasts(name: str, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = {"epochs": 1, "patience": 1, "windows": 64}
    monkeypatch.setattr(contenders, "paced", lambda training, task: {"lr": 1e-3, **small})
    found = lf.forecast(file, 6, context=48, model=name, budget=3.0, refit=False)
    assert found.forecast.shape == (6, 2) and np.isfinite(found.forecast).all()
    assert found.report["chosen"]["named"] and found.report["data"]["context"] == 48


def test_frames_arrays_and_lists_are_series_too() -> None:
    import pandas

    values = wave(200)[:, 0]
    index = pandas.date_range("2024-03-01", periods=200, freq="D")
    asked = {"model": "seasonal-naive", "budget": 1.0}
    frame = lf.forecast(pandas.DataFrame({"x": values}, index=index), 7, **asked)
    assert str(frame.stamps[0]).startswith("2024-09-17") and frame.columns == ("x",)
    column = lf.forecast(pandas.Series(values, index=index, name="y"), 7, **asked)
    assert column.columns == ("y",) and np.allclose(column.forecast, frame.forecast)
    listed = lf.forecast(values.tolist(), 7, **asked)
    assert listed.stamps.tolist() == list(range(200, 207)) and listed.columns == ("value",)
    rows = [{"when": str(t)[:10], "x": v} for t, v in zip(index, values)]
    named = lf.forecast(rows, 7, timestamp="when", **asked)
    assert named.report["data"]["timestamp"] == "when" and np.allclose(named.forecast, frame.forecast)


def test_the_command_prints_the_table(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    given = [
        str(file),
        "--horizon",
        "12",
        "--target",
        "load",
        "--model",
        "seasonal-naive",
        "--quiet",
        "--out",
        str(tmp_path),
    ]
    assert call([*given, "--budget", "4s"], monkeypatch) == 0
    printed = capsys.readouterr().out
    assert "Seasonal naive" in printed and "forecast.csv" in printed and "90 % intervals covered" in printed
    assert call([*given, "--json", "--interval", "0.8"], monkeypatch) == 0
    report = json.loads(capsys.readouterr().out)
    assert (
        report["interval"]["nominal"] == 0.8
        and report["data"]["targets"] == ["load"]
        and report["model"] is None
    )


def test_a_model_is_pretrained_and_forecasts_other_series(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """On one series; and on a folder, whose model forecasts a series that it never saw, also fewer steps, and is adapted."""
    monkeypatch.setattr(pretraining, "_LEAST", 0.3)
    own = lf.forecast(file, 12, pretrain=True, context=48, budget=0.5)
    assert own.report["chosen"]["label"].startswith("Tiny Time Mixer, pre-trained")
    assert "train rows alone" in own.report["refit"]["text"] and own.forecast.shape == (12, 2)
    (tmp_path / "many").mkdir()
    for i in range(2):
        write(tmp_path / "many" / f"{i}.csv", {"x": wave(400, seed=i)[:, 0]})
    (tmp_path / "many" / "notes.csv").write_text("a\nb\n", encoding="utf-8")
    out = tmp_path / "out"
    given = [
        str(tmp_path / "many"),
        "--pretrain",
        "--horizon",
        "12",
        "--context",
        "48",
        "--budget",
        "1s",
        "--out",
        str(out),
    ]
    assert call([*given, "--quiet"], monkeypatch) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "on 2 files (800 rows)" in printed and "left out: " in printed and "--model" in printed
    fresh = 5 + 3 * wave(300, seed=9)
    found = lf.forecast(fresh, 6, model=str(out), budget=1.0)
    assert found.forecast.shape == (6, 1) and "as it was saved" in found.report["refit"]["text"]
    tuned = lf.forecast(fresh, 6, model=str(out), budget=1.0, adapt=True, refit=False)
    before, after = (r.bundle.model.state_dict() for r in (found, tuned))
    same = {name for name in before if bool((before[name] == after[name]).all())}
    assert same and all(("backbone" in name) == (name in same) for name in before)
    assert call([str(tmp_path / "many"), "--horizon", "12", "--quiet"], monkeypatch) == 2
    assert "with --pretrain" in " ".join(capsys.readouterr().err.split())


def test_the_embedded_series_is_forecast(
    monkeypatch: pytest.MonkeyPatch, capsys: Any, tmp_path: Path
) -> None:
    assert (
        call(
            ["--demo", "--model", "seasonal-naive", "--budget", "1s", "--json", "--out", str(tmp_path)],
            monkeypatch,
        )
        == 0
    )
    report = json.loads(capsys.readouterr().out)
    assert report["data"]["source"] == "CO2 over Mauna Loa" and report["data"]["horizon"] == 52
    assert report["data"]["missing"] > 0 and report["forecast"]["stamps"][0] == "2002-01-05"


def refused(path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, *more: str) -> str:
    assert call([str(path), "--horizon", "12", "--budget", "2s", "--quiet", *more], monkeypatch) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert said.startswith("error: ") and "Traceback" not in said
    return said


def test_series_that_cannot_be_forecast(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    flat = write(tmp_path / "flat.csv", {"a": np.full(300, 3.0)})
    assert "constant" in refused(flat, monkeypatch, capsys)
    empty = write(tmp_path / "empty.csv", {"a": wave(300)[:, 0], "b": np.full(300, np.nan)})
    assert "no value" in refused(empty, monkeypatch, capsys)
    short = write(tmp_path / "short.csv", {"a": wave(30)[:, 0]})
    assert "too short" in refused(short, monkeypatch, capsys)
    assert "horizon" in refused(short, monkeypatch, capsys, "--horizon", "96")
    texts = write(tmp_path / "texts.csv", {"a": wave(300)[:, 0], "b": np.array(["x"] * 300)})
    assert "no number" in refused(texts, monkeypatch, capsys, "--target", "b")
    assert "no column 'c'" in refused(texts, monkeypatch, capsys, "--target", "c")
    lines = (tmp_path / "flat.csv").read_text(encoding="utf-8").splitlines()
    (tmp_path / "twice.csv").write_text("\n".join([*lines[:5], lines[4], *lines[5:]]), encoding="utf-8")
    assert "more than once" in refused(tmp_path / "twice.csv", monkeypatch, capsys)
    (tmp_path / "order.csv").write_text("\n".join([lines[0], *lines[:0:-1]]), encoding="utf-8")
    assert "not in order" in refused(tmp_path / "order.csv", monkeypatch, capsys)
    assert "no file" in refused(tmp_path / "absent.csv", monkeypatch, capsys)
    assert not Path("forecast").exists()


def test_requests_that_cannot_be_met(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    assert "no forecaster 'prophet'" in refused(file, monkeypatch, capsys, "--model", "prophet")
    assert "config.json" in refused(file, monkeypatch, capsys, "--model", str(tmp_path))
    assert "--interval" in refused(file, monkeypatch, capsys, "--interval", "90")
    assert "--adapt" in refused(file, monkeypatch, capsys, "--adapt")
    assert "both --target and --known" in refused(
        file, monkeypatch, capsys, "--target", "load", "--known", "load"
    )
    assert "--future" in refused(file, monkeypatch, capsys, "--future", str(file))
    assert call([], monkeypatch) == 2 and "--demo" in capsys.readouterr().err
    assert (
        call([str(file), "--budget", "2s", "--quiet"], monkeypatch) == 2
        and "--horizon" in capsys.readouterr().err
    )
