"""Curves are drawn where their numbers say."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from lightformers.reproduce import plots

SVG = "{http://www.w3.org/2000/svg}"
PLOT = plots.curves("pairs <n>", "right & exact", [100, 1000, 10000], {"A & B": [[0.0, 0.2], [0.5, 0.5], [1.0, 1.0]], "C": [[0.1], [0.2], [0.3]]}, log=True)  # fmt: skip


def parse(text: str) -> ElementTree.Element:
    return ElementTree.fromstring(text)


def test_points_stand_where_their_numbers_say() -> None:
    root = parse(plots.svg(PLOT, "a title"))
    first, second = root.findall(f".//{SVG}polyline")
    points = [tuple(map(float, p.split(","))) for p in first.attrib["points"].split()]
    xs, ys = zip(*points)
    assert xs[1] - xs[0] == pytest.approx(xs[2] - xs[1], abs=0.2)  # equal factors, equal steps
    assert ys[0] > ys[1] > ys[2]  # up is down in SVG
    # the axis says where 0 and 1 are, and between them the middle point is
    zero, one = (
        next(float(t.attrib["y"]) for t in root.iter(f"{SVG}text") if t.text == said) for said in "01"
    )
    assert ys[1] == pytest.approx((zero + one) / 2, abs=0.2) and ys[2] == pytest.approx(one, abs=0.2)
    assert len(root.findall(f".//{SVG}circle")) == 6 and second is not None
    for x, y in points:
        assert 0 < x < plots.WIDTH and 0 < y < float(root.attrib["viewBox"].split()[3])


def test_bars_are_the_intervals_and_none_for_one_seed() -> None:
    root = parse(plots.svg(PLOT, "t"))
    groups = [g for g in root.iter(f"{SVG}g") if g.find(f"{SVG}polyline") is not None]
    assert [len(g.findall(f"{SVG}line")) for g in groups] == [3, 0]
    bar, dot = groups[0].findall(f"{SVG}line")[0], groups[0].findall(f"{SVG}circle")[0]
    middle = (float(bar.attrib["y1"]) + float(bar.attrib["y2"])) / 2
    assert middle == pytest.approx(float(dot.attrib["cy"]), abs=0.2)


def test_intervals_end_where_values_do() -> None:
    line = plots.curves("x", "y", [1, 2], {"a": [[0.0, 0.2], [0.9, 1.0]]}, within=(0, 1))["lines"]["a"]
    assert line["low"][0] == 0 and line["high"][1] == 1 and line["mean"] == pytest.approx([0.1, 0.95])
    free = plots.curves("x", "y", [1, 2], {"a": [[0.0, 0.2], [0.9, 1.0]]})["lines"]["a"]
    assert free["low"][0] < 0 and free["high"][1] > 1


def test_text_is_escaped_named_and_takes_the_colour_of_the_page() -> None:
    text = plots.svg(PLOT, 'x "<y>"')
    assert "\n" not in text and "currentColor" in text and "<style>" not in text
    said = [t.text for t in parse(text).iter(f"{SVG}text")]
    assert {"pairs <n>", "right & exact", "A & B", "C", "100", "1,000", "10,000"} <= set(said)
    assert parse(text).attrib["aria-label"] == 'x "<y>"'


def test_a_file_of_its_own_knows_light_and_dark() -> None:
    both = plots.page({"one": PLOT, "two": PLOT})
    root = parse(both)
    assert len(root.findall(f".//{SVG}polyline")) == 4 and "prefers-color-scheme:dark" in both
    assert float(root.attrib["viewBox"].split()[3]) > 2 * plots.HEIGHT
    assert parse(plots.svg(PLOT, "t", page=True)).find(f"{SVG}style") is not None


def test_colours_are_seen_on_light_and_dark_pages() -> None:
    def light(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
        return 0.2126 * r + 0.7152 * g + 0.0722 * b

    for colour in plots.COLOURS:
        for ground in ("#ffffff", "#1e2129", "#121315"):
            high, low = sorted((light(colour), light(ground)), reverse=True)
            assert (high + 0.05) / (low + 0.05) >= 3, (colour, ground)


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (0.03, 0.97), (-3, 12), (5, 5), (0, 0), (99.4, 101), (1e-5, 3e-5)]
)
def test_ticks_are_round_and_hold_everything(low: float, high: float) -> None:
    first, last, steps = plots.ticks(low, high)
    assert first <= low and high <= last and first < last and 2 <= len(steps) <= 8
    step = steps[1] - steps[0]
    assert steps == pytest.approx([first + i * step for i in range(len(steps))])
    assert f"{step:.3e}"[:5] in ("1.000", "2.000", "5.000")


def test_many_lines_and_points_fit() -> None:
    many = plots.curves(
        "place", "accuracy", list(range(1, 41)), {f"a long name {i}": [[i / 9]] * 40 for i in range(9)}
    )
    root = parse(plots.svg(many, "t"))
    height = float(root.attrib["viewBox"].split()[3])
    assert height > plots.HEIGHT  # the legend takes rows
    assert all(0 <= float(t.attrib["y"]) <= height for t in root.iter(f"{SVG}text"))


def test_drawable_leaves_other_plots_out() -> None:
    assert list(plots.drawable({"a": PLOT, "b": [1, 2], "c": {"x": [1]}})) == ["a"]


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="2 points"):
        plots.curves("x", "y", [1, 2], {"a": [[1]]})
    with pytest.raises(ValueError, match="logarithm"):
        plots.curves("x", "y", [0, 2], {"a": [[1], [1]]}, log=True)
    with pytest.raises(ValueError, match="nothing"):
        plots.page({})
