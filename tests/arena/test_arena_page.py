"""What an arena says: scores, sentences, table, plot and page, from reports made by hand; and the command line."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from lightformers.arena import page, plot, verdict
from lightformers.cli import main
from lightformers.slim.labels import labels


def interval(value: float, half: float = 0.01) -> dict[str, float]:
    return {"estimate": value, "low": value - half, "high": value + half}


def row(task: str, mixer: str, quality: float, speed: float = 1.0, memory: int = 1000) -> dict[str, Any]:
    timed = {"throughput": 100.0 * speed, "speedup": interval(speed)}
    return {
        "task": task, "mixer": mixer, "hidden": 128, "parameters": 5000, "share": 1.0, "memory": memory, "train": timed,
        "infer": timed, "state": "done", "quality": interval(quality), "seeds": [quality], "steps": 100, "seconds": 3.0,
        "losses": [2.0, 1.0],
    }  # fmt: skip


def report(*rows: dict[str, Any], **more: Any) -> dict[str, Any]:
    shape = {"width": 64, "layers": 2, "heads": 4, "batch": 32}
    known = {
        "listops": {"name": "listops", "probe": False, "about": "lists", "length": 128, "answers": 10, "chance": 0.17,
                    "examples": {"train": 100, "test": 20}, "row": shape},
        "image": {"name": "image", "probe": False, "about": "<i>digits</i>", "length": 64, "answers": 10, "chance": 0.1,
                  "examples": {"train": 100, "test": 20}, "row": shape},
        "mqar": {"name": "mqar", "probe": True, "about": "recall", "length": 64, "answers": 32, "chance": 1 / 32,
                 "examples": None, "row": shape},
    }  # fmt: skip
    made: dict[str, Any] = {
        "version": "1", "created": "now", "machine": {"cpu": "a <b>cpu</b>"}, "baseline": "attention",
        "settings": {"scale": "small", "equal": True, "seeds": 1, "rounds": 5, "seconds": None, "budget": None},
        "tasks": [known[name] for name in dict.fromkeys(r["task"] for r in rows)],
        "mixers": [{"name": m, "kind": m.split(":")[0], "runs_on": m.startswith(("attention", "mamba"))}
                   for m in dict.fromkeys(r["mixer"] for r in rows)],
        "rows": list(rows), "refused": [], "warnings": [], "command": "lightformers arena", "seconds": 1.0, **more,
    }  # fmt: skip
    made["scores"] = verdict.scores(made)
    return made | {"advice": verdict.advice(made)}


BOTH = report(
    row("listops", "attention", 0.40), row("image", "attention", 0.60, memory=4000),
    row("listops", "linear:heads=2", 0.36, 4.0, 250), row("image", "linear:heads=2", 0.62, 1.0, 1000),
    row("mqar", "attention", 0.99), row("mqar", "mamba", 0.035, 0.5),
    {**row("listops", "mamba", 0.4), "state": "failed", "reason": "it <broke>"},
    refused=[{"task": "mqar", "mixer": "linear:heads=2", "reason": "it looks both ways"}], warnings=["mamba reads on"],
)  # fmt: skip


def test_scores_are_means_over_tasks_that_a_mixer_finished() -> None:
    found = [(s["group"], s["mixer"], round(s["score"], 3)) for s in BOTH["scores"]]
    assert found == [("arena", "attention", 0.5), ("arena", "linear:heads=2", 0.49), ("probes", "attention", 0.99), ("probes", "mamba", 0.035)]  # fmt: skip
    linear = BOTH["scores"][1]
    assert linear["train"] == pytest.approx(2.0) and linear["memory"] == pytest.approx(0.25)


def test_sentences_come_from_the_numbers() -> None:
    said = BOTH["advice"]
    best = "Best over 2 tasks (listops, image): attention, 0.500 of the answers right."
    assert said[0] == f"{best} Not to be told apart on this data: linear:heads=2."
    far = report(row("mqar", "attention", 0.9), row("mqar", "mamba", 0.88))
    assert far["advice"][0].endswith("0.900 of the answers right.")
    assert "linear:heads=2, 2.00 times as fast as attention (score 0.490)" in said[1]
    assert "linear:heads=2, 0.25 of attention's" in said[2]
    assert said[3].startswith("Best over 1 task (mqar): attention") and len(said) == 4
    dull = report(row("mqar", "attention", 0.04))
    assert "Nothing was learnt on mqar (a guess is right in 0.031)" in dull["advice"][-1]
    broken = report({**row("mqar", "attention", 0), "state": "failed", "reason": "no"})
    assert broken["advice"] == ["No training came to an end: see the reasons below."]


def test_trainings_are_joined_over_seeds() -> None:
    about = {"sizes": {"a": {"width": 8, "parameters": 90, "target": 100}}, "speeds": {"a": {"memory": 5}}}
    done = [
        {"state": "done", "quality": interval(q), "steps": s, "seconds": 1.5, "losses": [1.0]}
        for q, s in ((0.5, 10), (0.7, 20))
    ]
    one = verdict.joined("t", "a", done[:1], about)
    assert one["quality"] == interval(0.5) and one["share"] == 0.9 and one["memory"] == 5
    two = verdict.joined("t", "a", done, about)
    assert (
        two["quality"]["estimate"] == pytest.approx(0.6)
        and two["quality"]["high"] == 1.0
        and two["steps"] == 15
    )
    assert two["seconds"] == 3.0 and two["seeds"] == [0.5, 0.7]
    failed = verdict.joined("t", "a", [done[0], {"state": "failed", "reason": "no"}], about)
    assert (failed["state"], failed["reason"]) == ("failed", "no")


def test_the_table_says_everything_in_plain_text() -> None:
    out = io.StringIO()
    Console(file=out, width=140).print(verdict.table(BOTH))
    text = out.getvalue()
    assert re.search(r"attention +0\.400 +0\.600 +0\.500 +1\.00×", text) and "a guess" in text
    assert "it <broke>" in text and "it looks both ways" in text and "mamba reads on" in text


def test_the_plot_shows_speed_quality_and_memory() -> None:
    assert list(plot.views(BOTH)) == ["arena", "listops", "image", "mqar"]
    for view, names in (("arena", {"attention", "linear:heads=2"}), ("mqar", {"attention", "mamba"})):
        figure = plot.chart(BOTH, view)
        assert figure is not None
        marks = [t for t in figure["data"] if t.get("customdata")]
        assert {name for t in marks for name in t["text"]} == names
        assert {a["text"] for a in figure["layout"]["annotations"]} == names
    figure = plot.chart(BOTH, "image")
    assert figure is not None
    sizes = {
        name: s
        for t in figure["data"]
        if t.get("customdata")
        for name, s in zip(t["text"], t["marker"]["size"])
    }
    assert sizes["attention"] == pytest.approx(2 * sizes["linear:heads=2"])  # four times the area
    assert figure["layout"]["shapes"][0]["y0"] == 0.1
    assert plot.chart(report(row("mqar", "mamba", 0.5)) | {"rows": []}, "mqar") is None


def test_the_page_needs_nothing_else_and_escapes_what_it_is_given() -> None:
    text = page.render(BOTH)
    body = re.sub(r'<script type="text/plain" id="plotly">.*?</script>', "", text, flags=re.S)
    assert "<i>digits" not in body and "&lt;i&gt;digits" in body and "it <broke>" not in body
    assert not re.search(r'(?:src|href)="(?!data:)', body) and "http" not in body.replace("http-equiv", "")
    assert body.count("<table") == 4 and 'id="frontier"' in body


def call(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr("sys.argv", ["lightformers", "arena", *words])
    with pytest.raises(SystemExit) as left:
        main()
    return int(left.value.code or 0)


def test_from_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    few = (
        "--tasks",
        "parity",
        "--mixers",
        "attention",
        "--steps",
        "2",
        "--rounds",
        "3",
        "--out",
        str(tmp_path),
    )
    assert call(monkeypatch, *few, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["rows"][0]["steps"] == 2 and found["command"].startswith("lightformers arena --tasks parity")
    assert call(monkeypatch, *few) == 0
    said = capsys.readouterr().out
    assert "attention" in said and "page:" in said


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("--data", "text"), "task=FILE"),
        (("--budget", "soon"), "90s, 30m"),
        (("--tasks", "chess"), "'chess' is not one of"),
        (("--mixers", "magic"), "'magic' is not one of"),
        (("--budget", "2s"), "give at least"),
    ],
)
def test_wrong_words_end_as_one_line(
    words: tuple[str, ...], why: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, *words) == 2
    assert why in " ".join(capsys.readouterr().err.split())


def test_a_dry_run_prints_the_plan(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "--tasks", "mqar,listops", "--mixers", "attention,fourier", "--dry-run") == 0
    said = capsys.readouterr().out
    assert (
        "attention on mqar" in said
        and "fourier on listops" in said
        and "not fourier on mqar: it looks both ways" in said
    )


def test_labels_keep_off_large_marks() -> None:
    placed = labels([(1.0, 0.5, "one"), (1.02, 0.52, "two")], (-0.3, 0.3), (0.0, 1.0), radius=23)
    for label in placed:
        assert abs(label["ay"]) >= 22 or abs(label["ax"]) >= 23
