"""Options that name the data of a task: the same in every command, each handed to the tasks that know it."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.main import get_command

import lightformers as lf
from lightformers.bundle import Bundle
from lightformers.cli import app, main, options
from lightformers.tasks import Forecasting, TabularRegression, TextClassification


def run(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", ["lightformers", *arguments])
    with pytest.raises(SystemExit) as stop:
        main()
    return int(stop.value.code or 0)


@pytest.fixture
def series(tmp_path: Path) -> Path:
    """data.csv of an hourly series a, b, and model/, a small forecaster of both."""
    values = np.random.default_rng(0).standard_normal((400, 2)).cumsum(0)
    stamps = np.datetime64("2020-01-01T00", "s") + np.arange(400) * np.timedelta64(3600, "s")
    lines = [f"{s},{a:.4f},{b:.4f}" for s, (a, b) in zip(stamps, values)]
    (tmp_path / "data.csv").write_text("\n".join(["date,a,b", *lines]) + "\n", encoding="utf-8")
    task = Forecasting.from_file(tmp_path / "data.csv", horizon=6, context=24)
    torch.manual_seed(0)
    model = lf.create_model("itransformer-etth1-96", context_length=24, prediction_length=6)
    lf.export.save(
        Bundle(model, task.processor(marks=True), "forecasting"), tmp_path / "model", allow_custom=True
    )
    return tmp_path


def test_every_command_that_reads_data_has_every_option() -> None:
    commands = get_command(app).commands  # type: ignore[attr-defined]
    elastic = commands["elastic"].commands
    for command in (*(commands[n] for n in ("slim", "compare", "apply")), *elastic.values()):
        names = {p.name for p in command.params}
        assert set(options.OF_DATA) <= names and "of_data" not in names, command.name


def test_what_was_not_said_of_a_series_comes_from_the_model(series: Path) -> None:
    bundle = lf.load(series / "model")
    given = dict.fromkeys(options.OF_DATA)
    task = options.asked("forecasting", str(series / "data.csv"), bundle, 0, given)
    assert isinstance(task, Forecasting) and (task.horizon, task.context) == (6, 24)
    task = options.asked(
        "forecasting", str(series / "data.csv"), bundle, 0, given | {"target": "b,", "metric": "mae"}
    )
    assert task.metric.name == "mae" and task.targets == (1,)


def test_columns_and_target_of_a_table(tmp_path: Path) -> None:
    drawn = np.random.default_rng(0).standard_normal((60, 3)).round(3)
    with (tmp_path / "t.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["a", "b", "price"], *drawn.tolist()])
    given = dict.fromkeys(options.OF_DATA) | {"target": "price", "columns": "b"}
    task = options.asked("tabular-regression", str(tmp_path / "t.csv"), None, 0, given)
    assert isinstance(task, TabularRegression) and task.schema.names == ("b",)


def test_an_option_of_another_task_is_refused(tmp_path: Path) -> None:
    lines = ["text,label", *(f"word {i},{'up' if i % 2 else 'down'}" for i in range(40))]
    (tmp_path / "t.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    given = dict.fromkeys(options.OF_DATA)
    assert isinstance(
        options.asked("text-classification", str(tmp_path / "t.csv"), None, 0, given), TextClassification
    )
    with pytest.raises(lf.errors.DataError, match="takes no horizon"):
        options.asked("text-classification", str(tmp_path / "t.csv"), None, 0, given | {"horizon": 3})


def test_a_recipe_is_applied_to_a_forecaster(series: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (series / "recipe.yaml").write_text(
        "lightformers: 1\nsteps:\n  - DropBlocks: {keep: 1}\n", encoding="utf-8"
    )
    code = run(
        ["apply", str(series / "recipe.yaml"), str(series / "model"), "--task", "forecasting", "--data",
         str(series / "data.csv"), "--target", "a", "--out", str(series / "cut"), "--allow-custom"], monkeypatch,
    )  # fmt: skip
    assert code == 0 and lf.load(series / "cut").parameters < lf.load(series / "model").parameters


def test_forecasters_are_timed_on_made_up_windows(series: Path, monkeypatch, capsys) -> None:
    model = str(series / "model")
    assert run(["measure", model, model, "--examples", "8", "--rounds", "3", "--json"], monkeypatch) == 0
    assert json.loads(capsys.readouterr().out)["examples"] == 8
    assert run(["measure", model, model, "--data", str(series / "data.csv")], monkeypatch) == 2
    assert "made-up" in " ".join(capsys.readouterr().err.split())
