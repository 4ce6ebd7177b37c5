"""The benchmark of tables: its ranks, its page, and a small run that is stopped and goes on."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas
import pytest

from reproduce.data_sets import needs

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import tables  # noqa: E402
import tables_page  # noqa: E402

from lightformers.errors import DataError, UserError  # noqa: E402


def test_ranks_and_their_interval() -> None:
    found = tables_page.ranks([[0.9, 0.8, 0.8], [0.7, 0.9, 0.1]])
    assert [r[0] for r in found] == [1.5, 1.75, 2.75]
    assert found[0][1:] == (1.0, 2.0)  # two tables: it was first or second
    always = tables_page.ranks([[3, 2, 1]] * 9)
    assert always == [(1, 1, 1), (2, 2, 2), (3, 3, 3)]


def test_what_is_judged() -> None:
    chances = np.array([[0.7, 0.2, 0.1], [0.1, 0.5, 0.4], [0.3, 0.3, 0.4]])
    found = tables.judged(chances, np.array(["a", "b", "c"]), np.array(["a", "b", "b"]))
    assert found["score"] == 1.0 and found["accuracy"] == pytest.approx(2 / 3)
    assert found["log-loss"] == pytest.approx(-np.log([0.7, 0.5, 0.3]).mean())
    strange = tables.judged(chances, np.array(["a", "b", "c"]), np.array(["a", "d", "b"]))
    assert strange["log-loss"] > 10  # a class that training never saw


def _world(folder: Path):
    """Two small tables in the folders of the shared data."""
    drawn = np.random.default_rng(0)
    for place, name in (("tabular", "sonar"), ("tabular2", "diamonds_10k"), ("tabular", "adult_test")):
        (folder / place).mkdir(exist_ok=True)
        x = pandas.DataFrame(
            {"a": drawn.normal(size=90), "b": drawn.choice(["u", "v", None], 90), "c": np.nan}
        )
        x["target"] = np.where(x["a"] > 0, "yes", "no") if name == "sonar" else x["a"] * 3 + 1
        x.to_csv(folder / place / f"{name}.csv.gz", index=False)
    return lambda name: folder / name


def test_a_run_goes_on_where_it_stopped(tmp_path) -> None:
    root, said = _world(tmp_path), []
    arguments = [
        "--models",
        "linear",
        "boosting",
        "--splits",
        "2",
        "--rows",
        "80",
        "--out",
        str(tmp_path / "t.json"),
    ]
    given = tables.parse(arguments)
    assert list(tables.tables(root)) == ["sonar", "diamonds_10k"]
    tables.run(tables.parse([*arguments, "--only", "sonar"]), root, said.append)
    result = tables.run(given, root, said.append)
    assert said.count("sonar: done") == 1 and len(said) == 5
    found = result["tables"]
    assert found["sonar"]["rows"] == 80 and found["sonar"]["columns"] == 2
    assert np.mean(found["sonar"]["models"]["linear"]["score"]) > 0.95
    assert (
        found["diamonds_10k"]["regression"]
        and np.mean(found["diamonds_10k"]["models"]["boosting"]["score"]) > 0.5
    )
    page = (tmp_path / "t.md").read_text()
    assert "| sonar | 80 | 2 | AUC |" in page and "| linear | 1." in page
    with pytest.raises(DataError, match="there is no table iris"):
        tables.run(tables.parse([*arguments, "--only", "iris"]), root)
    with pytest.raises(UserError, match="figures of other settings"):
        tables.run(tables.parse([*arguments, "--seconds", "3"]), root)


def test_a_model_that_fails_is_told(tmp_path, monkeypatch) -> None:
    root = _world(tmp_path)

    def refuse(*_: object) -> None:
        raise UserError("no weights are there")

    monkeypatch.setattr(tables, "estimator", refuse)
    given = tables.parse(
        ["--models", "tabdpt", "--only", "sonar", "--quick", "--out", str(tmp_path / "t.json")]
    )
    tables.run(given, root, lambda line: None)
    assert "Not run: sonar: tabdpt: no weights are there" in (tmp_path / "t.md").read_text()


def test_the_shared_tables_are_all_there() -> None:
    needs("tabular", "tabular2")
    from lightformers.reproduce import data

    found = tables.tables(data)
    assert len(found) == 16 and set(tables.NUMBERS) | set(tables.QUICK) <= set(found)
    x, y = tables.read(found["titanic"], 100)
    assert len(x) == len(y) == 100 and "target" not in x
