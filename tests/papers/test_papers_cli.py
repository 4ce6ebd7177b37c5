"""`lightformers papers list | show`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lightformers import papers, reproduce
from lightformers.cli.papers import app
from lightformers.errors import UserError

run = CliRunner().invoke


def test_list_as_json() -> None:
    said = json.loads(run(app, ["list", "--json"]).stdout)
    assert [row["slug"] for row in said] == [paper.slug for paper in papers.all()]
    assert {row["status"] for row in said} <= {"works", "planned"}
    assert said[0].keys() >= {"title", "year", "arxiv", "part", "reproduction", "summary"}


def test_list_narrows() -> None:
    answer = run(app, ["list", "--family", "survey", "--kind", "survey"])
    assert answer.exit_code == 0 and "survey-mamba" in answer.stdout and "minilm" not in answer.stdout
    assert "12 papers" in answer.stdout


def test_list_refuses_unknown_words() -> None:
    answer = run(app, ["list", "--kind", "thesis"])
    assert isinstance(answer.exception, UserError) and "benchmark" in str(answer.exception)


def test_show_a_planned_paper() -> None:
    answer = run(app, ["show", "omni-recon"])
    assert answer.exit_code == 0
    assert papers.get("omni-recon").title in answer.stdout.replace("\n", " ")
    assert "https://arxiv.org/abs/2403.11131" in answer.stdout.replace("\n", "")


def test_show_prints_the_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finding = reproduce.Finding(
        slug="omni-recon",
        claim="Blending weights carry over.",
        verdict="inconclusive",
        summary="Too few views [1].",
        table=[{"arm": "mean of views"}],
        baseline="mean of views",
        settings={},
        seeds=[0],
        seconds=1,
        machine={},
        versions={},
        limits="One scene.",
        created="2026-01-01",
    )
    finding.write(tmp_path)
    monkeypatch.setattr(reproduce, "results", lambda: tmp_path)
    answer = run(app, ["show", "omni-recon"])
    assert "inconclusive. Too few views [1]." in answer.stdout
    said = json.loads(run(app, ["show", "omni-recon", "--json"]).stdout)
    assert said["finding"]["verdict"] == "inconclusive" and said["evidence"].keys() == {
        "code",
        "tests",
        "finding",
    }


def test_show_an_unknown_paper() -> None:
    answer = run(app, ["show", "omnirecon"])
    assert isinstance(answer.exception, UserError) and "omni-recon" in str(answer.exception)
