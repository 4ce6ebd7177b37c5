"""Slim on a table: dry run, and (slow) a whole run whose result is a scikit-learn estimator again."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from lightformers.cli import main

pytest.importorskip("sklearn", reason="needs scikit-learn, the extra [tabular]")
from lightformers.tabular import Classifier, Regressor


def _rows(n: int) -> list[dict]:
    """A target that three columns decide, one of them by turning another around."""
    drawn = np.random.default_rng(0)
    out = []
    for _ in range(n):
        size, age, city = drawn.normal(), drawn.normal(), str(drawn.choice(["Rome", "Oslo", "Bonn"]))
        value = size * (-1 if city == "Oslo" else 1) + 0.3 * age
        out.append({"size": size, "age": age if drawn.random() > 0.1 else None, "city": city, "value": value})
    return out


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """table.csv, and two trained models of four layers: `classes`, `numbers`."""
    folder = tmp_path_factory.mktemp("tables")
    rows = _rows(2400)
    x = [{k: v for k, v in r.items() if k != "value"} for r in rows]
    value = np.array([r["value"] for r in rows])
    options = {"width": 32, "depth": 4, "heads": 4, "epochs": 5, "lr": 3e-3}
    Classifier("ft-transformer", options=options, random_state=0).fit(
        x, np.where(value > 0, "up", "down")
    ).save(folder / "classes")
    Regressor("ft-transformer", options=options, random_state=0).fit(x, 50 + 9 * value).save(
        folder / "numbers"
    )
    with (folder / "table.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["size", "age", "city", "sign", "price"])
        writer.writeheader()
        for r, plain in zip(rows, x):
            writer.writerow(
                {**plain, "sign": "up" if r["value"] > 0 else "down", "price": 50 + 9 * r["value"]}
            )
    return folder


def _run(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", ["lightformers", *arguments])
    with pytest.raises(SystemExit) as stop:
        main()
    return int(stop.value.code or 0)


def _command(world: Path, kind: str, out: Path, *more: str) -> list[str]:
    task = "classification" if kind == "classes" else "regression"
    column = {"classes": "sign", "numbers": "price"}[kind]
    table = world / f"{kind}.csv"
    if not table.is_file():
        with (world / "table.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        with table.open("w", newline="") as file:
            writer = csv.DictWriter(file, ["size", "age", "city", column], extrasaction="ignore")
            writer.writeheader()
            writer.writerows(rows)
    return [
        "slim",
        str(world / kind),
        "--task",
        f"tabular-{task}",
        "--data",
        str(table),
        "--label",
        column,
        "--out",
        str(out),
        *more,
    ]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["classes", "numbers"])
def test_a_dry_run_reads_the_table(kind, world, tmp_path, monkeypatch, capsys) -> None:
    code = _run(_command(world, kind, tmp_path / "out", "--floor", "0.9", "--dry-run"), monkeypatch)
    said = capsys.readouterr().out
    assert code in (0, 3) and "rows: 4 blocks" in said and "1,440 train" in said


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["classes", "numbers"])
def test_a_table_is_slimmed_and_proven(kind, world, tmp_path, monkeypatch) -> None:
    """The whole run; what comes out is reloaded by itself, smaller, and an estimator as good as was asked."""
    out = tmp_path / "out"
    floor = "0.95" if kind == "classes" else "0.7"
    code = _run(_command(world, kind, out, "--floor", floor, "--budget", "90s"), monkeypatch)
    report = json.loads((out / "report.json").read_text())
    assert code == 0 and report["verdict"]["proven"] and report["verdict"]["ratio"]["bound"] >= float(floor)
    assert all(r["ok"] for r in report["reload"]) and report["reload"]
    assert report["chosen"]["parameters"] <= report["model"]["parameters"]
    rows = _rows(2400)
    x = [{k: v for k, v in r.items() if k != "value"} for r in rows]
    value = np.array([r["value"] for r in rows])
    if kind == "classes":
        assert Classifier.load(out).score(x, np.where(value > 0, "up", "down")) > 0.85
    else:
        assert Regressor.load(out).score(x, 50 + 9 * value) > 0.8
