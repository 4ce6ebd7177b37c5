"""The parts of a forecast: conformal widths, the choice, sentences, files, the page."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from forecast_world import line, report
from rich.console import Console

from lightformers.errors import DataError, UserError
from lightformers.forecast import conformal, judging, page, plot, verdict, written
from lightformers.forecast.judging import Said
from lightformers.stats import METRICS, Scores


def test_a_step_is_as_wide_as_the_rank_says() -> None:
    """19 errors at 90 %: the ceil(20 * 0.9) = 18th smallest; NaN do not count."""
    drawn = np.random.default_rng(0)
    errors = np.concatenate([drawn.standard_normal((19, 3, 2)), np.full((4, 3, 2), np.nan)])
    found = conformal.widths(errors, 0.9)
    assert np.allclose(found.half, np.sort(np.abs(errors[:19]), 0)[17])
    assert (found.neighbours, found.short) == (0, False)
    lower, upper = found.bounds(np.zeros((3, 2)))
    assert (upper == found.half).all() and (lower == -found.half).all()


def test_new_values_are_covered_as_often_as_asked() -> None:
    """Exchangeable errors: the guarantee holds, step by step, also where they are skewed."""
    drawn = np.random.default_rng(1)
    share = []
    for _ in range(300):
        errors = drawn.exponential(size=(39, 2, 1)) * [[[1.0], [5.0]]]
        new = drawn.exponential(size=(20, 2, 1)) * [[[1.0], [5.0]]]
        share.append(conformal.coverage(new, conformal.widths(errors, 0.9)).value)
    assert np.mean(share) == pytest.approx(0.9, abs=0.015)


def test_few_errors_borrow_from_neighbours() -> None:
    assert [conformal.needed(level) for level in (0.5, 0.8, 0.9, 0.95)] == [1, 4, 9, 19]
    errors = np.arange(1.0, 16.0).reshape(3, 5, 1)  # three windows, five steps: a step needs nine
    found = conformal.widths(errors, 0.9)
    middle = np.sort(errors[:, 1:4].ravel())  # the two neighbours of the third step make nine
    assert found.half[2, 0] == middle[8] and found.neighbours == 2 and not found.short
    alone = conformal.widths(np.array([[[1.0], [3.0]]]), 0.9)
    assert alone.short and (alone.half == 3.0).all()
    with pytest.raises(DataError, match="more data"):
        conformal.widths(np.full((5, 2, 1), np.nan), 0.9)
    with pytest.raises(ValueError, match="level"):
        conformal.widths(errors, 1.0)


def said(
    name: str, search: float, verify: float, places: Any = None, noise: float = 0.05, block: int = 8
) -> Said:
    drawn, made = np.random.default_rng(len(name)), Said(name, name.capitalize(), "model", lambda w: w)
    for part, value in (("search", search), ("verify", verify)):
        rows = np.arange(40) if places is None else places
        values = value * (1 + noise * drawn.standard_normal(40))[rows]
        made.places[part] = rows
        made.scores[part] = {
            "mse": Scores(np.stack([values, np.ones(len(rows))], 1), METRICS["mse"], rows // block)
        }
    return made


def test_of_a_long_series_the_search_part_alone_decides() -> None:
    long = [said("a", 1, 9, block=4), said("bb", 2, 0.5, block=4)]
    assert judging.deciding(*long) == ("search",) and judging.choose(long).name == "a"
    few = said("few", 0.9, 20, np.arange(0, 40, 5), block=4)  # a lucky look at eight windows does not win
    assert judging.deciding(long[0], few) == judging.PARTS and judging.choose([*long, few]).name == "a"


def test_of_a_short_one_the_least_error_on_both_parts_is_chosen() -> None:
    assert judging.choose([said("a", 2, 1), said("bb", 1, 1.2)]).name == "bb"
    assert judging.choose([said("a", 1, 2), said("bb", 2, 0.5)]).name == "bb"
    broken = said("ccc", 0.1, 0.1)
    broken.error = "no"
    assert judging.choose([broken, said("a", 2, 2)]).name == "a"
    with pytest.raises(UserError, match="Ccc: no"):
        judging.choose([broken])


def test_forecasters_are_compared_on_the_windows_that_both_have() -> None:
    """One that was asked about every fourth window, where all is harder, is not worse for it."""
    places = np.arange(0, 40, 4)
    hard = np.where(np.isin(np.arange(40), places), 9.0, 1.0)
    full, part = said("full", 1, 1, noise=0), said("part", 1, 1, places, noise=0)
    for part_name in ("search", "verify"):
        groups = full.scores[part_name]["mse"].groups
        full.scores[part_name] = {"mse": Scores(np.stack([hard, np.ones(40)], 1), METRICS["mse"], groups)}
        part.scores[part_name] = {
            "mse": Scores(np.stack([8.1 * np.ones(10), np.ones(10)], 1), METRICS["mse"], places // 8)
        }
    assert full.mse().value < part.mse().value
    found = judging.beside(part, full)
    assert found is not None and found["estimate"] == pytest.approx(0.9)
    assert judging.choose([full, part]) is part


def test_sentences_come_from_the_numbers() -> None:
    good = report([line("tsmixer", 0.4, 0.4), line("ets", 0.5, 0.4, "baseline"), line("naive", 2.0, 0.4, "baseline")], "tsmixer")  # fmt: skip
    first, *rest = verdict.advice(good)
    assert first == "Tsmixer forecasts with 20 % less squared error than Ets, the best baseline: 0.400 against 0.500 on 40 forecasts of the held-out rows."  # fmt: skip
    assert rest == ["90 % intervals covered 88 % of the held-out values."]
    even = report([line("tsmixer", 0.4, 0.4), line("ets", 0.41, 0.4, "baseline")], "tsmixer")
    assert "not more than chance may give" in verdict.advice(even)[0]
    simple = report([line("ets", 0.3, 0.3, "baseline"), line("tsmixer", 0.6, 0.3)], "ets")
    assert verdict.advice(simple)[0] == (
        "No trained model is better here than a baseline, so Ets makes the forecast: the best model, Tsmixer, has 2.00× its squared error on the held-out rows."
    )
    simple["chosen"]["by"] = ("search",)
    assert verdict.advice(simple)[0].startswith(
        "No trained model is better on the search rows, which decided, than"
    )
    stubborn = report([line("tsmixer", 0.6, 0.6), line("ets", 0.3, 0.6, "baseline")], "tsmixer", named=True)
    told = verdict.advice(stubborn)
    assert "100 % more squared error than Ets" in told[0] and "Leave --model out" in told[1]


def test_the_table_says_everything_in_plain_text() -> None:
    rows = [line("tsmixer", 0.4, 0.4), line("ets", 0.5, 0.4, "baseline", windows=12)]
    rows.append({**line("gpht", 1, 0.4), "error": "it diverged"})
    out = io.StringIO()
    Console(file=out, width=150).print(verdict.table(report(verdict.ordered(rows), "tsmixer")))
    text = out.getvalue()
    assert re.search(r"→ +Tsmixer +0\.400", text) and re.search(r"Ets \(12 forecasts\) +0\.500.+1\.25×", text)
    assert "not Gpht: it diverged" in text and "a gap <script>" in text and "One sentence." in text


def test_files_hold_the_forecast(tmp_path: Path) -> None:
    made = report([line("tsmixer", 0.4, 0.4)], "tsmixer")
    with open(written.write_csv(made, tmp_path), encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == [
        "date",
        "a",
        "a_lower",
        "a_upper",
        "<b>b</b>",
        "<b>b</b>_lower",
        "<b>b</b>_upper",
    ]
    assert rows[3] == {"date": "2024-01-01 11:00:00", "a": "4", "a_lower": "3", "a_upper": "5", "<b>b</b>": "4",
                       "<b>b</b>_lower": "3", "<b>b</b>_upper": "5"}  # fmt: skip
    picture = written.write_png(made, tmp_path)
    assert picture.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" and picture.stat().st_size > 10_000
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["forecast.csv", "forecast.png"]


def test_the_page_is_whole_and_escaped() -> None:
    failed = {**line("gpht", 1, 0.4), "error": "it <diverged>"}
    text = page.render(
        report([line("tsmixer", 0.4, 0.4), line("ets", 0.5, 0.4, "baseline"), failed], "tsmixer")
    )
    body = text[: text.index('<script type="application/json"')]
    for raw in ("<b>b</b>", "<i>data</i>", "<b>cpu</b>", "a gap <script>", "it <diverged>"):
        assert raw not in body
    assert "it &lt;diverged&gt;" in body and "One sentence." in body and "0.500" in body
    assert not re.search(r'(src|href)="(?!data:)', body)
    assert body.count("data-view=") == 2 and 'class="chosen"' in body


def test_the_chart_has_history_interval_and_forecast() -> None:
    figure = plot.chart(report([line("tsmixer", 0.4, 0.4)], "tsmixer"), "a")
    found = {trace["name"]: trace for trace in figure["data"]}
    assert set(found) == set(plot.KINDS)
    assert found["interval"]["y"] == [2.0, 3.0, 4.0, 5.0, 3.0, 2.0, 1.0, 0.0]
    assert found["held out"]["x"] == [f"2024-01-01 {h:02d}:00:00" for h in range(4, 8)]
    assert found["seen"]["y"][2] is None and found["seen"]["connectgaps"] is False
