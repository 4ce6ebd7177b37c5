"""The report page and the terminal table, on a run as slim makes it: fourteen trials, eight baselines."""

from __future__ import annotations

import copy
import io
import json
import math
import re

import numpy as np
import pytest
from rich.console import Console

from lightformers.slim import charts, digest, numbers, report

NAUGHTY = '<script>alert("x")</script><img src=http://evil.example/a.png>'


def _bound(estimate: float, spread: float) -> dict:
    return {
        "estimate": estimate,
        "low": estimate - spread,
        "high": estimate + spread,
        "bound": round(estimate - 0.84 * spread, 4),
    }


def _quality(value: float) -> dict:
    return {"estimate": value, "low": value - 0.014, "high": value + 0.014}


def example() -> dict:
    """A realistic run of the embedded default."""
    deploy = {
        "runtime": "openvino",
        "precision": "int8",
        "batching": "sorted",
        "batch_size": 32,
        "threads": 2,
    }
    rows = [  # name, blocks kept, channels kept, state, rung, predicted, latency, throughput, ratio, MB
        ("int8, sorted", 6, 1.0, "complete", 0, 4.9, 4.7, 471, 0.994, 23.1),
        ("bf16, sorted", 6, 1.0, "complete", 0, 5.6, 5.5, 440, 1.000, 45.6),
        ("5 blocks, int8", 5, 1.0, "complete", 2, 4.1, 4.0, 573, 0.991, 21.3),
        ("5 blocks, FFN 75 %, int8", 5, 0.75, "complete", 2, 3.9, 3.8, 612, 0.986, 19.9),
        ("4 blocks, int8", 4, 1.0, "complete", 2, 3.4, 3.3, 692, 0.983, 19.5),
        ("4 blocks, FFN 75 %, int8", 4, 0.75, "complete", 3, 3.2, 3.1, 741, 0.984, 18.4),
        ("4 blocks, FFN 50 %, int8", 4, 0.5, "complete", 2, 3.0, 2.9, 780, 0.962, 17.3),
        ("3 blocks, int8", 3, 1.0, "complete", 2, 2.7, 2.6, 862, 0.938, 17.7),
        ("3 blocks, FFN 50 %, int8", 3, 0.5, "stopped", 1, 2.4, None, None, 0.905, 16.1),
        ("6 blocks, FFN 50 %, int8", 6, 0.5, "complete", 1, 4.4, None, None, 0.957, 20.4),
        ("2 blocks, int8", 2, 1.0, "stopped", 0, 2.0, None, None, 0.611, 15.9),
        ("4 blocks, width 256, int8", 4, 1.0, "failed", 0, 2.8, None, None, None, 14.2),
        ("low rank 64, int8", 6, 1.0, "failed", 0, 4.6, None, None, None, 19.0),
        ("4 blocks, vocabulary 20k, int8", 4, 1.0, "running", 1, 3.3, None, 690, 0.979, 15.2),
    ]
    trials = [
        {
            "id": index, "name": name, "state": state, "rung": rung, "seconds": 14.2 + 3 * index,
            "recipe": [
                *([{"step": "DropBlocks", "parameters": {"keep": blocks}}] if blocks < 6 else []),
                *([{"step": "PruneChannels", "parameters": {"keep": channels}}] if channels < 1 else []),
                *([{"step": "MiniLM", "parameters": {"epochs": rung}}] if rung else []),
            ],
            "deploy": deploy, "predicted_ms": predicted, "latency_ms": latency, "throughput": throughput,
            "quality": None if ratio is None else 0.566 * ratio, "ratio": ratio, "size_bytes": int(size * 1e6),
            "parameters": int(size * 0.98e6), "error": None if state != "failed" else f"RuntimeError: out of memory in {name}",
        }
        for index, (name, blocks, channels, state, rung, predicted, latency, throughput, ratio, size) in enumerate(rows)
    ]  # fmt: skip
    baselines = [
        ("eager fp32, arrival order", 22.4, 31.2, 1.0, 90.9), ("eager fp32, sorted", 22.1, 97.3, 1.0, 90.9),
        ("torch bf16, sorted", 14.9, 243.0, 0.9997, 90.9), ("SentenceTransformer.encode fp32", 23.8, 104.0, 1.0, 90.9),
        ("ONNX Runtime int8 dynamic, sorted", 8.4, 262.0, 0.981, 23.4), ("OpenVINO default, sorted", 5.6, 440.0, 0.9998, 90.9),
        ("OpenVINO + NNCF int8, arrival order", 4.8, 135.0, 0.994, 23.1), ("OpenVINO + NNCF int8, sorted", 4.8, 470.0, 0.994, 23.1),
    ]  # fmt: skip
    names = [name for name, *_ in baselines]
    gains = [741 / through for _, _, through, _, _ in baselines]
    kinds = [("attention", 2.1), ("feed-forward", 2.6), ("normalization", 0.7)]

    def profile(blocks: int, share: float) -> list[dict]:
        found = [{"name": "embeddings", "kind": "embeddings", "ms": 1.2}]
        for block in range(blocks):
            found += [
                {"name": f"encoder.layer.{block}.{kind}", "kind": kind, "ms": ms * share}
                for kind, ms in kinds
            ]
        found.append({"name": "pooling", "kind": "other", "ms": 0.3})
        total = sum(layer["ms"] for layer in found)
        return [{**layer, "share": layer["ms"] / total} for layer in found]

    steps = [
        ("DropBlocks", {"keep": 4}, 90.9, 76.7, 22.4, 15.3, 1.0, 0.797, 0.8),
        ("PruneChannels", {"keep": 0.75, "score": "taylor"}, 76.7, 72.0, 15.3, 13.9, 0.797, 0.731, 6.2),
        ("MiniLM", {"epochs": 1.4, "relations": 48}, 72.0, 72.0, 13.9, 13.9, 0.731, 0.988, 221.0),
        ("Deploy", {"runtime": "openvino", "precision": "int8"}, 72.0, 18.4, 13.9, 3.1, 0.988, 0.984, 7.1),
    ]
    keys = ("step", "parameters", "size_before", "size_after", "latency_before_ms", "latency_after_ms",
            "ratio_before", "ratio_after", "seconds")  # fmt: skip
    ratio = _bound(0.984, 0.015)
    return {
        "version": "0.1.0", "created": "2026-03-02 14:05 UTC", "seed": 0,
        "command": "lightformers slim ./all-MiniLM-L6-v2 --task embedding --data pairs.jsonl --floor 0.97"
                   " --goal throughput --budget 10min --out minilm-slim",
        "machine": {"cpu": "Intel Xeon Platinum 8481C", "cores": 2, "memory_bytes": 8_000_000_000, "avx512_vnni": True,
                    "amx_bf16": True, "amx_int8": True, "versions": {"torch": "2.13.0", "transformers": "5.23.0",
                                                                     "openvino": "2026.4.1", "nncf": "3.4.0"}},
        "model": {"name": "all-MiniLM-L6-v2", "family": "bert", "parameters": 22_713_216, "size_bytes": 90_868_864},
        "task": {"name": "embedding", "metric": "mrr", "higher_is_better": True,
                 "splits": {"train": 3270, "search": 664, "verify": 1289}, "note": "candidate pools of 500, fixed"},
        "goal": "throughput", "floor": 0.97, "confidence": 0.95, "use_labels": False, "budget_seconds": 600, "seconds": 571.3,
        "verdict": {"proven": True, "ratio": ratio, "exit_code": 0,
                    "sentence": "1.58× the throughput of OpenVINO + NNCF int8 at 0.984 of the original's quality, proven above 0.97."},
        "original": {"quality": _quality(0.566)},
        "baselines": [{"name": name, "quality": _quality(0.566 * q), "ratio": None if q == 1 and i else _bound(q, 0.0 if q == 1 else 0.006),
                       "latency_ms": latency, "throughput": through, "size_bytes": int(size * 1e6)}
                      for i, (name, latency, through, q, size) in enumerate(baselines)],
        "chosen": {"name": "4 blocks, FFN 75 %, int8", "quality": _quality(0.557), "ratio": ratio, "latency_ms": 3.1,
                   "throughput": 741.0, "size_bytes": 18_400_000, "parameters": 17_982_000, "recipe": trials[5]["recipe"],
                   "deploy": deploy, "speedups": {name: {"ratio": g, "low": g * 0.97, "high": g * 1.03}
                                                  for name, g in zip(names, gains)}},
        "control": {"quality": _quality(0.646), "ratio": _bound(1.142, 0.03), "note": "trained on the labels for 221 s"},
        "trials": trials,
        "steps": [dict(zip(keys, (name, parameters, before * 1e6, after * 1e6, *rest)))
                  for name, parameters, before, after, *rest in steps],
        "layers": {"before": profile(6, 1.0), "after": profile(4, 0.42)},
        "why_not_faster": ["48 % of the time is not matrix multiplication: int8 cannot touch it.",
                           "Batches hold 93 tokens an example on average; the cores wait for memory in the embeddings (memory-bound).",
                           "Two cores: more streams gain nothing."],
        "reload": [{"format": "Hugging Face folder (transformers)", "ok": True, "max_difference": 0.0, "throughput": 128.0, "note": "plain transformers 5.23"},
                   {"format": "sentence-transformers", "ok": True, "max_difference": 1.2e-7, "throughput": 126.0, "note": None},
                   {"format": "OpenVINO", "ok": True, "max_difference": 0.0, "throughput": 738.0, "note": "ExportedModel.from_pretrained"}],
        "warnings": ["Labels lift the original by 14 %: what the same labels would give is shown as the control."],
        "usage": [{"title": "sentence-transformers", "code": 'from sentence_transformers import SentenceTransformer\n\nmodel = SentenceTransformer("minilm-slim")\nvectors = model.encode(["A short text."])'},
                  {"title": "OpenVINO", "code": 'import lightformers as lf\n\nrunner = lf.runners.openvino_folder("minilm-slim/openvino", lf.load("minilm-slim"))'}],
    }  # fmt: skip


@pytest.fixture(scope="module")
def page() -> str:
    return report.render(example())


def _text(page: str) -> str:
    """What a reader sees: no scripts, no styles, no tags, entities decoded."""
    import html

    body = re.sub(r"<(script|style)\b.*?</\1>", " ", page, flags=re.DOTALL)
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", body)))


def _figures(page: str) -> dict:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found
    return json.loads(found[1])["figures"]


def test_verdict_and_big_figures(page: str) -> None:
    text = _text(page)
    for said in ("PROVEN", "1.58× faster than OpenVINO + NNCF int8, sorted", "23.8× faster than eager fp32, arrival order",
                 "4.94× smaller", "90.9 MB → 18.4 MB", "0.984 of the original",
                 "at least 0.971 with 95 % confidence · floor 0.97"):  # fmt: skip
        assert said in text, said
    assert "NOT PROVEN" not in text


def test_every_part_is_there(page: str) -> None:
    text = _text(page)
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
    for figure in _figures(page).values():  # plotly reads tags in text: they must be entities there
        assert "<img" not in json.dumps(figure) and "<script" not in json.dumps(figure)
    console = Console(file=io.StringIO(), width=80)
    console.print(
        report.table({**example(), "verdict": {"proven": False, "sentence": "[bold]not markup[/bold]"}})
    )
    assert "[bold]not markup[/bold]" in console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize("missing", ["absent", "none", "empty"])
def test_missing_parts_render(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "_plotly", lambda: "left out")  # two megabytes less to search through
    whole = example()
    for key in whole:
        cut = copy.deepcopy(whole)
        if missing == "absent":
            del cut[key]
        else:
            cut[key] = None if missing == "none" else type(cut[key])()
        page = report.render(cut)
        text = _text(page)
        assert "PROVEN" in text and "How it was measured" in text
        assert "None" not in text and "nan" not in text.split(), key
        Console(file=io.StringIO(), width=80).print(report.table(cut))


def test_an_empty_report_renders() -> None:
    page = report.render({})
    text = _text(page)
    assert "NOT PROVEN" in text and "No model was chosen" in text
    assert "plotly" not in re.findall(r'<script[^>]*id="(\w+)"', page)
    assert "The frontier" not in text


def test_missing_values_inside_rows_render() -> None:
    cut = example()
    for part in ("baselines", "trials", "steps", "reload"):
        cut[part] = [{"name": "x", "step": "X", "format": "f", "state": "complete"}, *cut[part]]
    cut["chosen"] = {"name": "only a name"}
    cut["control"] = {"quality": None, "ratio": None, "note": None}
    text = _text(report.render(cut))
    assert "None" not in text and "nan" not in text.split()


def test_not_proven_is_said_and_never_rounded_into_proof() -> None:
    lost = example()
    lost["verdict"] = {
        "proven": False,
        "ratio": {"estimate": 0.98, "low": 0.96, "high": 1.0, "bound": 0.96996},
    }
    text = _text(report.render(lost))
    assert "NOT PROVEN" in text
    assert "at least 0.96996 with" in text
    assert numbers.ratio(0.96996, 0.97) == "0.96996"
    assert numbers.ratio(0.9701, 0.97) == "0.970"


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


def test_differences_are_told_as_differences() -> None:
    whole = example() | {"floor": None, "max_drop": 0.01}
    whole["verdict"] = {
        "proven": True,
        "ratio": {"estimate": -0.002, "low": -0.006, "high": 0.002, "bound": -0.005},
    }
    text = _text(report.render(whole))
    assert "at least -0.005 with 95 % confidence · floor −0.01" in text
    assert "change of mrr" in text and "of the original's quality, proven" not in text
    assert "of that" not in text  # a quotient of differences means nothing


def test_figures_are_valid_plotly_in_both_palettes(page: str) -> None:
    go = pytest.importorskip("plotly.graph_objects")
    figures = _figures(page)
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
    figure = _figures(page)["frontier-latency"]
    traces = {trace["name"]: trace for trace in figure["data"]}
    assert {name: len(trace["x"]) for name, trace in traces.items() if name != "frontier"} == {
        "trial": 8, "baseline": 8, "chosen": 1,
    }  # fmt: skip
    throughput = {trace["name"]: trace for trace in _figures(page)["frontier-throughput"]["data"]}
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
