"""The report page and the terminal table, on a run as slim makes it: fourteen trials, eight baselines."""

from __future__ import annotations

import copy
import io
import json
import re

import numpy as np
import pytest
from report_example import example, figures_of, text_of
from rich.console import Console

from lightformers.slim import numbers, report

NAUGHTY = '<script>alert("x")</script><img src=http://evil.example/a.png>'


@pytest.fixture(scope="module")
def page() -> str:
    return report.render(example())


def test_verdict_and_big_figures(page: str) -> None:
    text = text_of(page)
    for said in ("PROVEN", "1.58× faster than OpenVINO + NNCF int8, sorted", "23.8× faster than eager fp32, arrival order",
                 "4.94× smaller", "90.9 MB → 18.4 MB", "0.984 of the original",
                 "at least 0.971 with 95 % confidence · floor 0.97"):  # fmt: skip
        assert said in text, said
    assert "NOT PROVEN" not in text


def test_every_part_is_there(page: str) -> None:
    text = text_of(page)
    for trial in example()["trials"]:
        assert trial["name"] in text
    for rival in example()["baselines"]:
        assert rival["name"] in text
    for said in ("RuntimeError: out of memory in low rank 64, int8", "1.142 [1.112, 1.172]", "trained on the labels for 221 s",
                 "48 % of the time is not matrix multiplication", "1. Drop blocks", "−32 %", "+0.257",
                 "feed-forward", "✓ yes", "1.2e-07", "Intel Xeon Platinum 8481C", "8.00 GB", "2026.4.1", "1,289",
                 "Seed", "9 min 31 s of 10 min 00 s", "--budget 10min --out minilm-slim",
                 'SentenceTransformer("minilm-slim")', "Labels lift the original by 14 %"):  # fmt: skip
        assert said in text, said


def test_nothing_is_loaded_from_elsewhere(page: str) -> None:
    assert not re.search(r"(src|href|action|srcset|data)\s*=\s*[\"']?\s*(https?:)?//", page, re.IGNORECASE)
    assert not re.search(r"@import|url\(", page)
    assert not re.search(r"https?://", page)
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', page)
    assert policy and policy[1].startswith("default-src 'none'")
    assert "http" not in policy[1] and "*" not in policy[1]


def test_plotly_is_inside_once_and_small(page: str) -> None:
    import base64
    import gzip

    from plotly.offline import get_plotlyjs

    packed = re.findall(r'<script type="text/plain" id="plotly">([^<]+)</script>', page)
    assert len(packed) == 1
    assert gzip.decompress(base64.b64decode(packed[0])).decode() == get_plotlyjs()
    assert len(page.encode()) < 2_500_000
    assert len(page.encode()) - len(packed[0]) < 120_000


def test_everything_from_the_report_is_escaped() -> None:
    def spoil(value: object) -> object:
        if isinstance(value, dict):
            return {key: spoil(item) for key, item in value.items()}
        if isinstance(value, list):
            return [spoil(item) for item in value]
        return value + NAUGHTY if isinstance(value, str) and value not in keep else value

    keep = {"complete", "failed", "stopped", "running", "throughput"}
    spoilt = spoil(example())
    assert isinstance(spoilt, dict)
    page = report.render(spoilt)
    assert "<script>alert" not in page
    assert "<img" not in page
    assert page.count("</script>") == report.render(example()).count("</script>")
    for figure in figures_of(page).values():  # plotly reads tags in text: they must be entities there
        assert "<img" not in json.dumps(figure) and "<script" not in json.dumps(figure)
    console = Console(file=io.StringIO(), width=80)
    console.print(
        report.table({**example(), "verdict": {"proven": False, "sentence": "[bold]not markup[/bold]"}})
    )
    assert "[bold]not markup[/bold]" in console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize("missing", ["absent", "none", "empty"])
def test_missing_parts_render(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "plotly", lambda: "left out")  # two megabytes less to search through
    whole = example()
    for key in whole:
        cut = copy.deepcopy(whole)
        if missing == "absent":
            del cut[key]
        else:
            cut[key] = None if missing == "none" else type(cut[key])()
        page = report.render(cut)
        text = text_of(page)
        assert "PROVEN" in text and "How it was measured" in text
        assert "None" not in text and "nan" not in text.split(), key
        Console(file=io.StringIO(), width=80).print(report.table(cut))


def test_an_empty_report_renders() -> None:
    page = report.render({})
    text = text_of(page)
    assert "NOT PROVEN" in text and "No model was chosen" in text
    assert "plotly" not in re.findall(r'<script[^>]*id="(\w+)"', page)
    assert "The frontier" not in text


def test_missing_values_inside_rows_render() -> None:
    cut = example()
    for part in ("baselines", "trials", "steps", "reload"):
        cut[part] = [{"name": "x", "step": "X", "format": "f", "state": "complete"}, *cut[part]]
    cut["chosen"] = {"name": "only a name"}
    cut["control"] = {"quality": None, "ratio": None, "note": None}
    text = text_of(report.render(cut))
    assert "None" not in text and "nan" not in text.split()


def test_not_proven_is_said_and_never_rounded_into_proof() -> None:
    lost = example()
    lost["verdict"] = {
        "proven": False,
        "ratio": {"estimate": 0.98, "low": 0.96, "high": 1.0, "bound": 0.96996},
    }
    text = text_of(report.render(lost))
    assert "NOT PROVEN" in text
    assert "at least 0.96996 with" in text
    assert numbers.ratio(0.96996, 0.97) == "0.96996"
    assert numbers.ratio(0.9701, 0.97) == "0.970"


def test_differences_are_told_as_differences() -> None:
    whole = example() | {"floor": None, "max_drop": 0.01}
    whole["verdict"] = {
        "proven": True,
        "ratio": {"estimate": -0.002, "low": -0.006, "high": 0.002, "bound": -0.005},
    }
    text = text_of(report.render(whole))
    assert "at least -0.005 with 95 % confidence · floor −0.01" in text
    assert "change of mrr" in text and "of the original's quality, proven" not in text
    assert "of that" not in text  # a quotient of differences means nothing


def test_write_puts_both_files_and_strict_json(tmp_path) -> None:
    made = example() | {"extra": np.float64("nan"), "array": np.arange(3), "place": tmp_path}
    path = report.write(made, tmp_path / "out")
    assert path == tmp_path / "out" / "report.html" and path.read_text(encoding="utf-8").startswith(
        "<!doctype html>"
    )
    values = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    assert values["extra"] is None and values["array"] == [0, 1, 2] and values["place"] == str(tmp_path)
    assert values["trials"] == example()["trials"]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["report.html", "report.json"]


def test_terminal_table_fits_80_columns_without_colour() -> None:
    console = Console(file=io.StringIO(), width=80, no_color=True, force_terminal=False)
    console.print(report.table(example()))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    lines = shown.splitlines()
    assert max(map(len, lines)) <= 80 and "\x1b" not in shown
    for rival in example()["baselines"]:
        assert any(rival["name"] in line for line in lines), rival["name"]
    chosen = next(line for line in lines if line.lstrip().startswith("> 4 blocks"))
    assert all(said in chosen for said in ("3.10 ms", "741", "0.984", "18.4 MB"))
    honest = next(line for line in lines if "int8, sorted *" in line)
    assert "1.58x" in honest
    assert "PROVEN  1.58x the throughput" in shown and "floor 0.97" in shown and "Control" in shown
    shown.replace("─", "-").encode("ascii")
