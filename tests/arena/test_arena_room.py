"""`arena`: a whole run, its resumption, what it refuses, and that what it trains learns."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lightformers.arena import arena, cell, mixers, model, run
from lightformers.arena.cell import Job
from lightformers.arena.rows import ROWS, Row, is_probe, tasks
from lightformers.arena.settings import Settings
from lightformers.errors import DataError, Interrupted, UserError
from lightformers.models.matching import parameters
from lightformers.tasks.sequences import Sequences, Split

FEW = {"steps": 2, "examples": 60, "rounds": 3}


def split(count: int = 64, length: int = 12, pairs: bool = False) -> Split:
    """The label is whether a 1 occurs; of pairs, whether it occurs in both."""
    rng = np.random.default_rng(0)

    def some() -> list[np.ndarray]:
        return [rng.integers(1, 9, int(rng.integers(4, length + 1))) for _ in range(count)]

    first, second = some(), some()
    labels = np.array([int(1 in a and (1 in b or not pairs)) for a, b in zip(first, second)])
    part = Sequences(first, labels, second if pairs else None)
    return Split(part, part, 2, 9, length)


def job(made: Split | None = None, task: str = "listops", **row: Any) -> Job:
    return Job(task, Row(**{"width": 32, "heads": 2, "layers": 1, "hidden": 64, **row}), Settings(), made)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every training that is begun."""
    seen: list[str] = []
    real = cell.attempt

    def attempt(job: Job, who: mixers.Contender, *rest: Any) -> dict[str, Any]:
        seen.append(f"{who.name} on {job.task}")
        return real(job, who, *rest)

    monkeypatch.setattr(cell, "attempt", attempt)
    return seen


def test_a_whole_run_and_its_resumption(tmp_path: Path, counted: list[str]) -> None:
    names = ["fourier:relative=128", "attention"]
    found = arena(["listops", "induction"], names, out=tmp_path, **FEW)
    report = found.report
    assert counted == ["attention on listops", "fourier:relative=128 on listops", "attention on induction"]
    assert [(r["task"], r["mixer"], r["state"]) for r in report["rows"]] == [
        ("listops", "attention", "done"), ("listops", "fourier:relative=128", "done"), ("induction", "attention", "done")
    ]  # fmt: skip
    assert report["refused"] == [
        {"task": "induction", "mixer": "fourier:relative=128", "reason": "it looks both ways, and this task asks a decoder"}
    ]  # fmt: skip
    for row in report["rows"]:
        assert row["steps"] == 2 and 0.97 < row["share"] < 1.03 and row["memory"] > 100_000
        assert row["quality"]["low"] <= row["quality"]["estimate"] <= row["quality"]["high"]
        assert row["train"]["throughput"] > 0 and row["infer"]["speedup"]["low"] > 0
    assert report["rows"][0]["train"]["speedup"]["estimate"] == 1.0
    assert json.loads((tmp_path / "arena.json").read_text()) == report
    assert "fourier:relative=128" in (tmp_path / "report.html").read_text()
    examples = {t["name"]: t["examples"] for t in report["tasks"]}
    assert examples == {"listops": {"train": 60, "test": 12}, "induction": None}

    counted.clear()
    again = arena(["listops", "induction"], names, out=tmp_path, **FEW).report
    assert not counted
    assert [r["quality"] for r in again["rows"]] == [r["quality"] for r in report["rows"]]
    more = arena(["induction"], [*names[1:], "attention:rotary=false"], out=tmp_path, **FEW, seeds=2).report
    assert counted == [f"{name} on induction" for name in ("attention", "attention:rotary=false", "attention:rotary=false")]  # fmt: skip
    assert [len(r["seeds"]) for r in more["rows"]] == [2, 2]
    with pytest.raises(UserError, match="another request"):
        arena(["induction"], ["attention"], out=tmp_path, **{**FEW, "steps": 3})
    arena(["induction"], ["attention"], out=tmp_path, **{**FEW, "steps": 1}, restart=True)


def test_a_killed_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, counted: list[str]) -> None:
    """It is stopped in the middle of the second training; the first is not done again."""
    real = cell.fit

    def stopped(*given: Any, **more: Any) -> Any:
        if len(counted) == 2:
            raise KeyboardInterrupt
        return real(*given, **more)

    monkeypatch.setattr(cell, "fit", stopped)
    asked = {
        "tasks": ["induction"],
        "contenders": ["attention", "attention:window=4"],
        "out": tmp_path,
        **FEW,
    }
    with pytest.raises(Interrupted, match="The same command goes on"):
        arena(**asked)
    assert not (tmp_path / "arena.json").exists()
    monkeypatch.setattr(cell, "fit", real)
    counted.clear()
    assert len(arena(**asked).report["rows"]) == 2 and counted == ["attention:window=4 on induction"]


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        ({"tasks": ["chess"]}, "'chess' is not one of listops, text"),
        ({"contenders": ["magic"]}, "'magic' is not one of .*attention"),
        ({"contenders": ["attention:wide=3"]}, "attention has no option wide; it takes heads"),
        ({"contenders": ["attention:window"]}, "written as name=value"),
        ({"tasks": ["mqar"], "contenders": ["fourier"]}, "no mixer is left to try: fourier on mqar: it looks both ways"),
        ({"tasks": ["mqar"], "budget": 1.0, "contenders": ["attention"], "seeds": 3}, "for each of 3 models: give at least 4 s"),
        ({"steps": 3, "seconds": 2.0}, "--steps and --seconds say twice"),
        ({"seconds": 0.0}, "must be more than 0"),
        ({"scale": "huge"}, "small, paper"),
        ({"device": "tpu"}, "cpu or cuda"),
        ({"seeds": 0}, "--seeds is at least 1"),
        ({"examples": 10}, "at least 50"),
        ({"tasks": ["listops"], "data": {"text": "x.csv"}}, "--data is given for text"),
    ],
)  # fmt: skip
def test_what_cannot_be_tried_is_said_before_anything_runs(
    asked: dict[str, Any], why: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=why):
        arena(out=tmp_path / "out", **asked)
    assert not (tmp_path / "out").exists()


def test_absent_data_is_passed_over_and_given_data_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(task: str, *rest: Any, **more: Any) -> Split:
        raise DataError("there is none")

    monkeypatch.setattr(cell.tasks, "load", absent)
    found = arena(["text", "induction"], ["attention"], out=tmp_path / "a", **FEW).report
    assert [r["task"] for r in found["rows"]] == ["induction"]
    assert found["refused"] == [{"task": "text", "mixer": "attention", "reason": "there is none"}]
    with pytest.raises(UserError, match="no mixer is left"):
        arena(["text"], ["attention"], out=tmp_path / "b", **FEW)
    with pytest.raises(DataError, match="there is none"):
        arena(["text", "induction"], ["attention"], out=tmp_path / "c", **FEW, data={"text": "mine.csv"})


def test_a_mixer_that_does_not_fit_is_refused_and_one_that_breaks_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["attention", "attention:heads=7", "attention:window=8"]
    real = cell.fit

    def breaks(module: Any, *given: Any, **more: Any) -> Any:
        if any(getattr(m, "window", None) == 8 for m in module.modules()):
            raise RuntimeError("out of memory\nat length")
        return real(module, *given, **more)

    monkeypatch.setattr(cell, "fit", breaks)
    report = arena(["induction"], names, out=tmp_path, **FEW).report
    assert "7 heads do not divide" in report["refused"][0]["reason"]
    states = {r["mixer"]: r for r in report["rows"]}
    assert (
        states["attention"]["state"] == "done" and states["attention:window=8"]["reason"] == "out of memory"
    )


def test_a_dry_run_says_the_plan(tmp_path: Path) -> None:
    found = arena(
        ["listops", "mqar"], ["attention", "fourier"], out=tmp_path / "a", dry_run=True, budget=60
    ).report
    assert len(found["plan"]) == 3 and len(found["refused"]) == 1 and found["seconds"] == pytest.approx(15)
    assert not (tmp_path / "a").exists()


def test_what_is_trained_learns() -> None:
    """Encoders of one text and of pairs, and a decoder: what is asked is learnt far beyond a guess."""
    attention = mixers.contender("attention")
    for made, floor in (
        (job(split(256), lr=5e-3, steps=60), 0.9),
        (job(split(256, pairs=True), lr=5e-3, steps=60), 0.9),
    ):
        result = made.train(attention, 64, 0, None, lambda _: None)
        assert result["quality"]["estimate"] > floor and result["steps"] == 60
        assert result["losses"][-1] < result["losses"][0]


@pytest.mark.parametrize("pairs", [False, True])
def test_padding_does_not_matter(pairs: bool) -> None:
    made = job(split(8, pairs=pairs))
    torch.manual_seed(0)
    module = made.build(mixers.contender("attention"), 16).eval().double()
    whole = module(**made.split.train.batch(range(8)).inputs)
    for i in range(8):
        alone = module(**made.split.train.batch([i]).inputs)
        for name in ("logits",):
            a, b = (x[name] if isinstance(x, dict) else getattr(x, name) for x in (whole, alone))
            assert torch.allclose(a[i], b[0], atol=1e-9)


def test_pairs_are_read_by_one_encoder() -> None:
    made = job(split(8, pairs=True))
    module = made.build(mixers.contender("attention"), 16)
    assert isinstance(module, model.PairClassifier)
    module(**made.split.train.batch(range(8)).inputs)["logits"].sum().backward()
    assert all(
        p.grad is not None and p.grad.abs().sum() > 0
        for n, p in module.named_parameters()
        if "classifier" not in n
    )


def test_models_are_made_equally_large() -> None:
    made = job(split())
    kinds = ["attention", "fourier", "mixed", "attention:kv_heads=1"]
    sizes = {kind: made.size(mixers.contender(kind)) for kind in kinds}
    target = parameters(made.build(mixers.contender("attention"), 64))
    for kind, size in sizes.items():
        assert parameters(made.build(mixers.contender(kind), size.width)) == size.parameters
        assert abs(size.ratio - 1) < 0.03 and size.target == target, kind
    own = Job("listops", made.row, Settings(equal=False), made.split).size(mixers.contender("fourier"))
    assert own.width == 64 and own.ratio < 0.99


def test_causality_of_mixers() -> None:
    assert mixers.runs_on("attention") and not mixers.runs_on("fourier")
    assert not mixers.looks_back("attention") and not mixers.looks_back("fourier")
    options = mixers.options(mixers.contender("attention:window=8:heads=2"), 4, 100, False)
    assert options == {"heads": 2, "rotary": False, "causal": False, "window": 8}
    assert mixers.options(mixers.contender("attention"), 4, 100, True) == {"heads": 4}


@pytest.mark.parametrize("task", tasks())
def test_every_task_has_a_row_at_both_scales(task: str) -> None:
    for scale, rows in ROWS.items():
        row = rows[task]
        assert row.width % row.heads == 0 and row.steps > 0
        if is_probe(task):
            made = Job.of(task, Settings(scale=scale))
            batch = made._probe_batch(1, 0)
            assert batch.inputs["input_ids"].shape == batch.targets["asked"].shape
            assert 0 < made.chance <= 0.5


def test_losses_are_thinned_to_means() -> None:
    assert cell._thin([1.0, 2, 3, 4], 2) == [1.5, 3.5] and cell._thin([]) == []
    assert np.mean(cell._thin([float(i) for i in range(600)], 60)) == pytest.approx(299.5)


def test_default_mixers_are_those_that_there_are(tmp_path: Path) -> None:
    found = arena(["listops"], out=tmp_path, dry_run=True).report
    assert [p["mixer"] for p in found["plan"]] == [name for name in run.DEFAULT if name in mixers.MIXERS]
    probes = arena(["mqar"], out=tmp_path, dry_run=True).report
    assert (
        probes["plan"] and all(mixers.runs_on(p["mixer"]) for p in probes["plan"]) and not probes["refused"]
    )
