"""The charts and figures of the report: valid, complete, legible, and honest about what was not measured."""

from __future__ import annotations

import math

import pytest
from report_example import example, figures_of

from lightformers.slim import charts, digest, numbers, report


@pytest.fixture(scope="module")
def page() -> str:
    return report.render(example())


def test_honest_rival_is_the_fastest_sorted_int8_and_falls_back() -> None:
    whole = example()
    assert digest.honest(whole)["name"] == "OpenVINO + NNCF int8, sorted"  # type: ignore[index]
    assert digest.eager(whole)["name"] == "eager fp32, arrival order"  # type: ignore[index]
    whole["baselines"] = [row for row in whole["baselines"] if "OpenVINO" not in row["name"]]
    assert digest.honest(whole)["name"] == "ONNX Runtime int8 dynamic, sorted"  # type: ignore[index]
    assert digest.honest({**whole, "baselines": []}) is None


def test_speedups_are_paired_where_they_fit_and_quotients_elsewhere() -> None:
    whole = example()
    rival = digest.honest(whole)
    assert digest.speedup(whole, rival) == pytest.approx(
        {"ratio": 741 / 470, "low": 741 / 470 * 0.97, "high": 741 / 470 * 1.03}
    )
    whole["goal"] = "latency"  # the paired figures are of throughput: they do not speak of latency
    assert digest.speedup(whole, rival) == {"ratio": pytest.approx(4.8 / 3.1), "low": None, "high": None}
    whole["chosen"]["speedups_of"] = "latency"
    assert digest.speedup(whole, rival)["ratio"] == pytest.approx(741 / 470)  # type: ignore[index]
    assert digest.faster(0.5) == "2.00× slower" and digest.faster(1.001) == "as fast"


def test_ratios_that_were_not_measured() -> None:
    whole = example()
    assert digest.ratio_of(whole, {"name": "eager fp32"}) == 1.0
    assert digest.ratio_of(whole, {"name": "torch int8"}) is None
    assert digest.ratio_of(whole, {"name": "x", "quality": {"estimate": 0.283}}) == pytest.approx(0.5)
    whole["task"]["higher_is_better"] = False
    assert digest.ratio_of(whole, {"name": "x", "quality": {"estimate": 0.283}}) == pytest.approx(2.0)


def test_figures_are_valid_plotly_in_both_palettes(page: str) -> None:
    go = pytest.importorskip("plotly.graph_objects")
    figures = figures_of(page)
    assert set(figures) == {"frontier-latency", "frontier-throughput", "frontier-size", "layers"}
    for shade in (0, 1):

        def paint(value: object, shade: int = shade) -> object:
            if isinstance(value, dict):
                return {key: paint(item) for key, item in value.items()}
            if isinstance(value, list):
                return [paint(item) for item in value]
            return (
                charts.PALETTE[value[1:]][shade]
                if isinstance(value, str) and value.startswith("@")
                else value
            )

        for figure in figures.values():
            go.Figure(paint(figure))  # raises where plotly does not know a property or a value


def test_frontier_has_every_trial_once(page: str) -> None:
    figure = figures_of(page)["frontier-latency"]
    traces = {trace["name"]: trace for trace in figure["data"]}
    assert {name: len(trace["x"]) for name, trace in traces.items() if name != "frontier"} == {
        "trial": 8, "baseline": 8, "chosen": 1,
    }  # fmt: skip
    throughput = {trace["name"]: trace for trace in figures_of(page)["frontier-throughput"]["data"]}
    assert len(throughput["trial"]["x"]) == 8 and len(throughput["predicted"]["x"]) == 1
    assert len(throughput["stopped"]["x"]) == 3  # placed by their prediction, which is of throughput here
    assert throughput["predicted"]["x"] == pytest.approx([1000 / 4.4])
    hover = next(text for text in traces["trial"]["customdata"] if "4 blocks, FFN 75 %" in text)
    for said in ("complete, rung 3", "Drop blocks keep=4 → Prune", "0.984", "3.10 ms", "741/s", "18.4 MB"):
        assert said in hover.replace("<br>", " "), said
    sizes = traces["trial"]["marker"]["size"]
    assert traces["trial"]["marker"]["sizemode"] == "area" and sizes[0] == 23_100_000
    lowest = figure["layout"]["yaxis"]["range"][0]
    for trace in traces.values():  # marks far below the floor sit on the lower edge and look different
        for y, symbol in zip(trace["y"], trace.get("marker", {}).get("symbol", [])):
            assert y >= lowest and isinstance(symbol, str)
    assert "triangle-down-open" in throughput["stopped"]["marker"]["symbol"]
    assert {note["text"] for note in figure["layout"]["annotations"]} == {
        "floor 0.97", "control 1.142", "<b>chosen</b>", "<b>honest baseline</b>",
    }  # fmt: skip


def test_pareto_keeps_what_nothing_beats() -> None:
    from lightformers.slim.frontier import pareto

    points = [{"x": x, "y": y} for x, y in ((1, 0.5), (2, 0.9), (3, 0.8), (4, 0.95), (4, 0.7))]
    assert [(p["x"], p["y"]) for p in pareto(points, more=False)] == [(1, 0.5), (2, 0.9), (4, 0.95)]
    assert [(p["x"], p["y"]) for p in pareto(points, more=True)] == [(4, 0.95)]


def test_text_tokens_have_contrast_in_both_palettes() -> None:
    def luminance(color: str) -> float:
        parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    pairs = [
        (ink, page)
        for ink in ("ink", "muted", "accent", "good", "bad", "control")
        for page in ("surface", "page")
    ]
    pairs += [("muted", "sunken"), ("good", "goodtint"), ("bad", "badtint"), ("warn", "warntint"), ("ink", "warntint"),
              ("ink", "tint"), ("muted", "tint"), ("accent", "tint")]  # fmt: skip
    for ink, ground in pairs:
        for shade in (0, 1):
            one, two = (luminance(charts.PALETTE[name][shade]) for name in (ink, ground))
            contrast = (max(one, two) + 0.05) / (min(one, two) + 0.05)
            assert contrast >= 4.5, (ink, ground, shade, contrast)


def test_numbers() -> None:
    assert (
        numbers.size(90_868_864) == "90.9 MB"
        and numbers.size(999) == "999 B"
        and numbers.size(999_700) == "1.00 MB"
    )
    assert numbers.milliseconds(0.01234) == "0.0123 ms" and numbers.rate(12345.6) == "12,346/s"
    assert (
        numbers.times(1.578) == "1.58×" and numbers.times(23.75) == "23.8×" and numbers.times(123.4) == "123×"
    )
    assert numbers.count(22_713_216) == "22.7 M" and numbers.count(1289) == "1,289"
    assert numbers.change(22.4, 15.3) == "−32 %" and numbers.change(0, 1) == numbers.NONE
    assert numbers.shift(0.731, 0.988) == "+0.257" and numbers.shift(0.9, 0.8) == "−0.100"
    assert [numbers.duration(x) for x in (0.42, 9.97, 59.6, 581, 7530)] == [
        "0.4 s", "10 s", "1 min 00 s", "9 min 41 s", "2 h 05 min",
    ]  # fmt: skip
    assert numbers.clock(187) == "3:07" and numbers.clock(3765) == "1:02:45"
    assert numbers.words("DropBlocks") == "Drop blocks" and numbers.words("MiniLM") == "MiniLM"
    for nothing in (None, math.nan, math.inf, "text", {}):
        assert (
            numbers.milliseconds(nothing) == numbers.size(nothing) == numbers.ratio(nothing) == numbers.NONE
        )
