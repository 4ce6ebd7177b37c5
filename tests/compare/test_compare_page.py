"""What a comparison says: advice, table, plot and page, from reports made by hand."""

from __future__ import annotations

import io
import re
from typing import Any

import compare_world as world
import pytest
from rich.console import Console

from lightformers.compare import advice, page, plot


def report(*rows: dict[str, Any]) -> dict[str, Any]:
    made = world.report(list(rows))
    return made | {"advice": advice.advice(made)}


GOOD = world.row("good", 0.995, 4000, 1.2)
SMALL = world.row("small", 0.992, 2000, 0.7, kind="quantize", native=False)
QUICK = world.row("quick", 0.985, 5000, 2.4)
POOR = world.row("poor", 0.6, 1000, 3.0)
FREE = world.row("free", 1.0, 7900, 1.0, sized=False, labels=True)
BROKEN = {
    "name": "broken",
    "kind": "prune",
    "sized": True,
    "note": "",
    "state": "failed",
    "reason": "it <broke>",
}


def test_advice_names_the_best_the_fastest_and_the_smallest_that_keep_enough() -> None:
    said = report(POOR, QUICK, GOOD, SMALL, FREE, BROKEN)["advice"]
    assert said[0].startswith("Most quality at 50% of the blocks' bytes: good, 0.995 [0.985, 1.005]")
    assert (
        "Not to be told apart on this data: small, quick." in said[0]
    )  # not poor, and not one of its own size
    assert "quick, 2.40 times as fast as the original in torch" in said[1]
    assert "small, 2.00 kB instead of 8.00 kB" in said[2]


def test_advice_where_nothing_keeps_enough_or_nothing_ended() -> None:
    assert "Nothing here can be said to keep 99%" in report(POOR)["advice"][-1]
    assert report(BROKEN)["advice"] == ["No method came to an end: see the reasons below."]


def test_a_speed_in_openvino_counts_as_one() -> None:
    row = world.row(
        "graph",
        0.99,
        10,
        1.1,
        openvino={"throughput": 1.0, "speedup": {"estimate": 3.0, "low": 2, "high": 4}},
    )
    assert advice.speed_of(row) == (3.0, "openvino") and "3.00 times as fast in openvino" in advice.line(row)


def test_the_table_says_everything_in_plain_text() -> None:
    out = io.StringIO()
    Console(file=out, width=140).print(advice.table(report(POOR, GOOD, FREE, BROKEN)))
    text = out.getvalue()
    order = [text.index(name) for name in ("the original", "free", "good", "poor", "broken")]
    assert order == sorted(order)
    assert "(own size) +labels" in text and "it <broke>" in text and "0.995 [0.985, 1.005]" in text


def test_the_plot_holds_every_finished_row_once() -> None:
    made = report(GOOD, SMALL, QUICK, POOR, BROKEN)
    figure = plot.chart(made, "size")
    assert figure is not None
    shown = [(name, x) for t in figure["data"] if t.get("customdata") for name, x in zip(t["text"], t["x"])]
    assert sorted(shown) == [("good", 4000), ("poor", 1000), ("quick", 5000), ("small", 2000)]
    low = figure["layout"]["yaxis"]["range"][0]
    heights = [y for t in figure["data"] for y in t["y"]]
    assert min(heights) >= low and plot.chart(made, "openvino") is None
    symbols = {s for t in figure["data"] if t.get("customdata") for s in t["marker"]["symbol"]}
    assert symbols == {"circle", "triangle-down-open"}  # poor is drawn on the edge


def test_labels_of_close_points_stand_apart() -> None:
    near = [(1.0, 0.99, "first"), (1.01, 0.99, "second"), (1.02, 0.99, "third")]
    placed = plot.labels(near, (-0.3, 0.3), (0.9, 1.0))
    assert [p["text"] for p in placed] == ["first", "second", "third"]
    boxes = [(800 * (p["x"] + 0.3) / 0.6 + p["ax"], p["ay"], 3.1 * len(p["text"])) for p in placed]
    for i, (x, y, half) in enumerate(boxes):
        for a, b, other in boxes[:i]:
            assert abs(x - a) >= half + other or abs(y - b) >= 15


def test_the_page_needs_nothing_else_and_escapes_what_it_is_given() -> None:
    plotly = pytest.importorskip("plotly")
    text = page.render(report(GOOD, SMALL, BROKEN))
    body = re.sub(r'<script type="text/plain" id="plotly">.*?</script>', "", text, flags=re.S)
    assert "<b>tiny</b>" not in body and "&lt;b&gt;tiny" in body and "it <broke>" not in body
    assert not re.search(r'(?:src|href)="(?!data:)', body) and "http" not in body.replace("http-equiv", "")
    assert body.count("<tr") == 4 and 'id="frontier"' in body  # head, original, two methods
    for figure in (plot.chart(report(GOOD, SMALL), view) for view in ("size", "torch")):
        plain = re.sub(r"@\w+", "#123456", __import__("json").dumps(figure))
        plotly.io.from_json(plain)
