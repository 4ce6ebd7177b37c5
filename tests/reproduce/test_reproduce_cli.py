"""`lightformers reproduce`."""

from __future__ import annotations

import dataclasses
import json
import sys
import types
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from lightformers import reproduce
from lightformers.cli.reproduce import reproduce as command
from lightformers.errors import DataError, UserError
from lightformers.reproduce import Finding, plots


def invoke(arguments: list[str]):  # type: ignore[no-untyped-def]
    app = typer.Typer()
    app.command()(command)
    return CliRunner().invoke(app, arguments)


def test_command_writes_and_prints(experiment: types.ModuleType, finding: Finding, tmp_path: Path) -> None:
    answer = invoke(["omni-recon", "--budget", "9", "--out", str(tmp_path)])
    assert answer.exit_code == 0, answer.exception
    assert "does not hold here" in answer.stdout and "0.6 [0.3516" in answer.stdout
    assert Finding.read("omni-recon", tmp_path) == finding and experiment.budgets == [9.0]


def test_command_as_json(experiment: types.ModuleType, tmp_path: Path) -> None:
    one = json.loads(invoke(["omni-recon", "--json", "--out", str(tmp_path)]).stdout)
    every = json.loads(invoke(["--all", "--json", "--out", str(tmp_path)]).stdout)
    assert one["slug"] == "omni-recon" and every == [one]


def test_command_refuses(experiment: types.ModuleType, tmp_path: Path) -> None:
    for arguments in ([], ["omni-recon", "--all"]):
        assert "--all" in str(invoke(arguments).exception)
    assert isinstance(invoke(["stormer"]).exception, UserError)


def test_all_goes_on_after_missing_data(
    experiment: types.ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(budget: float) -> Finding:
        raise DataError("the data set 'x' is not here")

    other = types.ModuleType("lightformers.reproduce.stormer")
    other.run = missing  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, other.__name__, other)
    monkeypatch.setattr(reproduce, "available", lambda: ["stormer", "omni-recon"])
    answer = invoke(["--all", "--out", str(tmp_path)])
    assert isinstance(answer.exception, UserError) and "stormer" in str(answer.exception)
    assert (tmp_path / "omni-recon.json").is_file()


def test_plot_draws_the_curves(
    experiment: types.ModuleType, finding: Finding, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "deep" / "plot.svg"
    bare = invoke(["omni-recon", "--out", str(tmp_path), "--plot", str(tmp_path / "plot.svg")])
    assert isinstance(bare.exception, UserError) and "no curves" in str(bare.exception)
    curves = plots.curves("x", "y", [1, 2], {"A": [[0.5], [0.7]]})
    drawn = dataclasses.replace(finding, plots={"rise": curves})
    monkeypatch.setattr(experiment, "run", lambda budget: drawn)
    answer = invoke(["omni-recon", "--out", str(tmp_path), "--plot", str(file)])
    assert answer.exit_code == 0, answer.exception
    assert file.read_text("utf-8").startswith("<svg") and "rise" in file.read_text("utf-8")
    experiment.budgets.clear()
    for arguments in (["--all"], ["omni-recon"]):
        wrong = invoke([*arguments, "--plot", "plot.png"])
        assert "svg" in str(wrong.exception) and not experiment.budgets  # refused before minutes are spent
