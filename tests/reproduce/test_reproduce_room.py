"""Findings, and how experiments are found and run."""

from __future__ import annotations

import json
import math
import sys
import types
from dataclasses import replace
from pathlib import Path

import pytest

from lightformers import reproduce
from lightformers.errors import DataError, UserError
from lightformers.reproduce import Finding
from lightformers.reproduce.table import cell, columns


def test_a_finding_round_trips(tmp_path: Path, finding: Finding) -> None:
    one = finding
    file = one.write(tmp_path)
    assert file.name == "omni-recon.json"
    assert Finding.read("omni-recon", tmp_path) == one
    assert json.loads(file.read_text())["table"][0]["accuracy"]["values"] == [0.5, 0.7, 0.6]


@pytest.mark.parametrize(
    "change",
    [
        {"verdict": "holds"},
        {"claim": " "},
        {"limits": ""},
        {"table": []},
        {"table": [{"accuracy": 1}]},
        {"baseline": "C"},
        {"seconds": math.nan},
    ],
)
def test_a_senseless_finding_is_refused(change: dict, finding: Finding) -> None:
    with pytest.raises(ValueError):
        replace(finding, **change)


def test_a_finding_of_no_paper_is_refused(finding: Finding) -> None:
    with pytest.raises(UserError, match="omni-recon"):
        replace(finding, slug="omni-recom")


def test_nan_is_not_written(tmp_path: Path, finding: Finding) -> None:
    with pytest.raises(ValueError):
        replace(finding, table=[{"arm": "A", "loss": math.nan}]).write(tmp_path)
    assert not list(tmp_path.iterdir())


def test_reading_what_is_no_finding(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="lightformers reproduce minilm"):
        Finding.read("minilm", tmp_path)
    (tmp_path / "minilm.json").write_text("{")
    with pytest.raises(UserError, match="anew"):
        Finding.read("minilm", tmp_path)
    (tmp_path / "minilm.json").write_text('{"slug": "minilm", "mood": 1}')
    with pytest.raises(UserError, match="mood"):
        Finding.read("minilm", tmp_path)


def test_spread_is_student_t() -> None:
    seen = reproduce.spread([1.0, 2.0, 3.0])
    assert seen["mean"] == 2 and seen["values"] == [1, 2, 3]
    assert seen["high"] - 2 == pytest.approx(4.303 / math.sqrt(3), rel=1e-6)
    assert 2 - seen["low"] == pytest.approx(seen["high"] - 2)
    assert reproduce.spread([5]) == {"values": [5.0], "mean": 5.0, "low": None, "high": None}
    many = reproduce.spread([0.0, 1.0] * 50)
    assert many["high"] - 0.5 == pytest.approx(1.9842 * math.sqrt(0.25 * 100 / 99) / 10, rel=1e-3)
    for wrong in ([], [math.nan, 1.0]):
        with pytest.raises(ValueError):
            reproduce.spread(wrong)


def students_t(at: float, freedom: int, steps: int = 4000) -> float:
    """Share of Student's t below `at`, by Simpson's rule over its density."""
    size = math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2) - math.log(freedom * math.pi) / 2
    density = [
        math.exp(size - (freedom + 1) / 2 * math.log1p((at * i / steps) ** 2 / freedom))
        for i in range(steps + 1)
    ]
    inner = 4 * sum(density[1:-1:2]) + 2 * sum(density[2:-1:2])
    return 0.5 + at / steps / 3 * (density[0] + inner + density[-1])


@pytest.mark.parametrize("freedom", [1, 2, 3, 5, 12, 20, 30, 31, 40, 60, 400])
def test_the_interval_covers_95_percent(freedom: int) -> None:
    values = [0.0] * freedom + [1.0]
    mean = sum(values) / len(values)
    deviation = math.sqrt(sum((v - mean) ** 2 for v in values) / freedom)
    seen = reproduce.spread(values)
    quantile = (seen["high"] - seen["low"]) / 2 * math.sqrt(len(values)) / deviation
    assert students_t(quantile, freedom) == pytest.approx(0.975, abs=1e-4)


def test_verdicts() -> None:
    assert reproduce.judge([0.10, 0.11, 0.12]) == "holds here"
    assert reproduce.judge([-0.10, -0.11, -0.12]) == "does not hold here"
    assert reproduce.judge([0.10, -0.11, 0.02]) == "inconclusive"
    assert reproduce.judge([-0.010, -0.011, -0.012], margin=-0.02) == "holds here"
    with pytest.raises(ValueError):
        reproduce.judge([0.1])


def test_cells_read_well(finding: Finding) -> None:
    rows = finding.table
    assert columns(rows) == ["arm", "accuracy", "parameters"]
    assert cell(rows[0]["accuracy"]) == "0.6 [0.3516, 0.8484]"
    assert cell(1234567) == "1,234,567" and cell(None) == "" and cell(True) == "True"
    assert cell(0.00001234) == "1.234e-05" and cell(12345.6) == "12,346" and cell("x") == "x"


def test_data_is_found_or_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sst2").mkdir()
    monkeypatch.setenv("LIGHTFORMERS_DATA", str(tmp_path))
    assert reproduce.data("sst2") == tmp_path / "sst2"
    with pytest.raises(DataError, match=r"'trec' is not in .*LIGHTFORMERS_DATA"):
        reproduce.data("trec")
    monkeypatch.setenv("LIGHTFORMERS_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match="there is no"):
        reproduce.data("sst2")


def test_run_hands_on_the_budget(experiment: types.ModuleType, finding: Finding) -> None:
    assert reproduce.run("omni-recon", budget_seconds=7) == finding
    assert experiment.budgets == [7.0]


def test_run_refuses(experiment: types.ModuleType, finding: Finding) -> None:
    with pytest.raises(UserError, match="minilm"):
        reproduce.run("minilmm")
    with pytest.raises(UserError, match="not written yet"):
        reproduce.run("stormer")
    with pytest.raises(UserError, match="budget"):
        reproduce.run("omni-recon", budget_seconds=0)
    experiment.run = lambda budget: replace(finding, slug="stormer")  # type: ignore[attr-defined]
    with pytest.raises(TypeError, match="omni-recon"):
        reproduce.run("omni-recon")


def test_experiments_have_a_claim_and_a_docstring() -> None:
    import ast

    folder = Path(reproduce.__file__).parent
    for slug in reproduce.available():
        tree = ast.parse((folder / f"{slug.replace('-', '_')}.py").read_text(encoding="utf-8"))
        names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        for node in tree.body:
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            names |= {
                n.id for target in targets if target for n in ast.walk(target) if isinstance(n, ast.Name)
            }
        assert {"CLAIM", "run"} <= names, slug
        assert f"lightformers reproduce {slug}" in (ast.get_docstring(tree) or ""), slug


def test_committed_findings_read() -> None:
    folder = Path(__file__).resolve().parents[2] / "results"
    for file in folder.glob("*.json"):
        assert Finding.read(file.stem, folder).slug == file.stem


def test_conclude_fills_in_the_facts(monkeypatch: pytest.MonkeyPatch) -> None:
    measure = types.ModuleType("lightformers.measure")
    measure.machine = lambda: {"cores": 2, "versions": {"torch": "9"}}  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "lightformers.measure", measure)
    monkeypatch.setattr("lightformers.measure", measure, raising=False)
    made = reproduce.conclude(
        slug="stormer",
        claim="c",
        verdict="inconclusive",
        summary="s",
        table=[{"arm": "a"}],
        baseline="a",
        settings={},
        limits="l",
        started=0.0,
    )
    assert made.machine == {"cores": 2} and made.versions == {"torch": "9"} and made.seconds > 0
