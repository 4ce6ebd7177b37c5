"""A comparison on a tiny classifier: rows, resumption, failures, matching by speed, and what steps may see."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import compare_world as world
import pytest

from lightformers.bundle import Bundle
from lightformers.compare import compare
from lightformers.compare import rows as rows_of
from lightformers.compare import run as run_room
from lightformers.compare.session import Apart, Session
from lightformers.compare.settings import Settings
from lightformers.compress import methods, weights
from lightformers.errors import UserError
from lightformers.slim.progress import Progress
from lightformers.steps import Recipe

QUICK: dict[str, Any] = {"seconds": 0.1, "rounds": 3, "batch": 8, "examples": 40}


@pytest.fixture(autouse=True)
def _torch_only(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Converting graphs takes seconds: the slow test does it."""
    if "slow" not in request.keywords:
        monkeypatch.setattr(Session, "graph", None)
    monkeypatch.setattr("lightformers.compare.session.PASS", 0.05)


def session(bundle: Bundle, out: Path, **changes: Any) -> Session:
    return Session(bundle, world.task(bundle), Settings(**{**QUICK, **changes}), out, Progress(quiet=True))


@pytest.fixture(scope="module")
def compared(original: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A comparison of three methods, and where it lies."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Session, "graph", None)
        patch.setattr("lightformers.compare.session.PASS", 0.05)
        return compare(
            original, world.task(original), out=tmp_path_factory.mktemp("compared"),
            only=("drop-blocks", "llm-int8", "pre-crmsnorm"), **QUICK,
        )  # fmt: skip


def test_every_method_is_a_row_and_the_table_is_written(compared: Any) -> None:
    report = compared.report
    state = {r["name"]: r["state"] for r in report["rows"]}
    assert state == {"drop-blocks": "done", "llm-int8": "done", "pre-crmsnorm": "refused"}
    by_name = {r["name"]: r for r in report["rows"]}
    whole, cut, packed = report["original"], by_name["drop-blocks"], by_name["llm-int8"]
    assert cut["blocks"] == pytest.approx(0.5) and cut["native"] and not packed["native"]
    assert 0.2 < packed["blocks"] < 0.4 and packed["parameters"] == whole["parameters"] > cut["parameters"]
    assert whole["bytes"] > cut["bytes"] > packed["bytes"] > 0
    assert [next(iter(s)) for s in cut["recipe"]] == ["DropBlocks", "Recover"]
    for row in (cut, packed):
        assert row["ratio"]["low"] <= row["ratio"]["estimate"] <= row["ratio"]["high"]
        assert row["torch"]["speedup"]["estimate"] > 0 and row["openvino"] is None
    assert cut["torch"]["speedup"]["estimate"] > 1.1  # half of the blocks
    assert packed["ratio"]["estimate"] > 0.95  # eight bits keep nearly everything
    assert "post-norm" in by_name["pre-crmsnorm"]["reason"]
    assert json.loads((compared.folder / "compare.json").read_text()) == report
    page = (compared.folder / "compare.html").read_text(encoding="utf-8")
    assert all(name in page for name in state) and "default-src 'none'" in page


def test_the_recipe_of_a_row_can_be_replayed(compared: Any, original: Bundle) -> None:
    row = next(r for r in compared.report["rows"] if r["name"] == "llm-int8")
    made = Recipe.from_dict({"lightformers": 1, "steps": row["recipe"]}).apply(original)
    assert weights.block_bytes(made.model) / weights.block_bytes(original.model) == row["blocks"]


def test_finished_rows_are_kept_and_new_ones_added(
    compared: Any, original: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    real = rows_of.row

    def counted(state: Session, method: methods.Method) -> Any:
        asked.append(method.name)
        return real(state, method)

    monkeypatch.setattr(rows_of, "row", counted)
    again = compare(
        original, world.task(original), out=compared.folder, only=("drop-blocks", "greenformers"), **QUICK
    )
    assert asked == ["greenformers"]
    old = {r["name"]: r for r in compared.report["rows"]}
    assert next(r for r in again.report["rows"] if r["name"] == "drop-blocks") == old["drop-blocks"]
    with pytest.raises(UserError, match="another request"):
        compare(original, world.task(original), out=compared.folder, **{**QUICK, "seconds": 0.2})


def test_a_method_that_breaks_is_a_row_and_the_others_go_on(
    original: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(ratio: float, bundle: Bundle) -> Any:
        raise RuntimeError("out of beans\nmore lines")

    table = tuple(dataclasses.replace(m, make=breaks) if m.name == "low-rank" else m for m in methods.METHODS)
    monkeypatch.setattr(methods, "METHODS", table)
    monkeypatch.setattr(run_room, "METHODS", table)
    found = compare(
        original, world.task(original), out=tmp_path, only=("low-rank", "llm-int8"), **QUICK
    ).report["rows"]
    assert [r["state"] for r in found] == ["failed", "done"]
    assert found[0]["reason"] == "RuntimeError: out of beans"


def test_steps_never_see_what_they_are_judged_on(original: Bundle) -> None:
    task = world.task(original)
    seen = Apart(task)
    train = {e["text"] for e in task.splits["train"]}
    assert seen.splits["search"] and {e["text"] for e in seen.splits["search"]} <= train
    assert not seen.splits["verify"] and not train & {e["text"] for e in task.splits["search"]}
    assert seen.training_examples(False) == task.training_examples(False)
    assert seen.fingerprint == task.fingerprint and seen.name == task.name


@pytest.mark.parametrize(
    ("name", "steps"),
    [
        ("drop-blocks", ["DropBlocks", "Recover"]),
        ("essential-sparsity", ["EssentialSparsity", "Recover", "PackSparse"]),
        ("llm-int8", ["LLMInt8"]),
        ("vtrans", ["VTrans", "Recover"]),
        ("gradual-magnitude", ["GradualMagnitude", "PackSparse"]),
        ("trim-vocabulary", ["TrimVocabulary"]),
    ],
)
def test_recovery_comes_once_and_before_what_only_packs(
    name: str, steps: list[str], original: Bundle, tmp_path: Path
) -> None:
    (method,) = methods.named([name])
    made = rows_of.steps_of(method, 0.5, session(original, tmp_path))
    assert [type(s).__name__ for s in made] == steps
    untrained = rows_of.steps_of(method, 0.5, session(original, tmp_path, seconds=0.0))
    assert "Recover" not in [type(s).__name__ for s in untrained] or name == "vtrans"


def test_sizes_are_stepped_until_the_speed_is_there(
    original: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = weights.block_bytes(original.model)
    tried: list[float] = []

    def speed(self: Session, bundle: Bundle, deploy: Any, rounds: int | None = None) -> dict[str, Any]:
        tried.append(weights.block_bytes(bundle.model) / whole)
        return {"speedup": {"estimate": 1 / tried[-1] if linear else 0.9}}

    monkeypatch.setattr(Session, "speed", speed)
    state = session(original, tmp_path, speedup=2.0)
    (low_rank, int8) = methods.named(["low-rank", "llm-int8"])
    linear = True
    ratio = rows_of.matched(state, low_rank)
    assert ratio == 0.5 and len(tried) <= 4  # halves, not steps
    linear = False
    with pytest.raises(UserError, match=r"not 2 times as fast at any size: 0\.90 times"):
        rows_of.matched(state, low_rank)
    with pytest.raises(UserError, match="not 2 times"):
        rows_of.matched(state, int8)


@pytest.mark.parametrize(
    "wrong",
    [{"ratio": 1.0}, {"ratio": 0.0}, {"speedup": 1.0}, {"seconds": -1.0}, {"rounds": 2}, {"batch": 0}, {"examples": 3}],
)  # fmt: skip
def test_wrong_settings_are_said_at_once(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="--"):
        Settings(**wrong)


def test_unknown_and_exhausted_choices_of_methods(original: Bundle, tmp_path: Path) -> None:
    task = world.task(original)
    with pytest.raises(UserError, match="known methods: drop-blocks"):
        compare(original, task, out=tmp_path, only=("minotron",))
    with pytest.raises(UserError, match="no method is left to try: pre-crmsnorm: "):
        compare(original, task, out=tmp_path, only=("pre-crmsnorm",))


def test_a_dry_run_says_what_would_be_tried_and_writes_nothing(original: Bundle, tmp_path: Path) -> None:
    out = tmp_path / "none"
    report = compare(original, world.task(original), out=out, dry_run=True, exclude=("obert",)).report
    plan = {r["name"]: r["steps"] for r in report["plan"]}
    assert plan["low-rank"] == ["LowRank", "Recover"] and "obert" not in plan
    reasons = {r["name"]: r["reason"] for r in report["refused"]}
    assert "post-norm" in reasons["pre-crmsnorm"] and "attention" in reasons["prune-heads"]
    assert not out.exists()


@pytest.mark.slow
def test_everything_on_a_tiny_classifier_with_openvino(original: Bundle, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    report = compare(original, world.task(original), out=tmp_path, **{**QUICK, "seconds": 0.3}).report
    state = {r["name"]: r["state"] for r in report["rows"]}
    assert not [n for n, s in state.items() if s == "failed"], report["rows"]
    assert sum(s == "done" for s in state.values()) >= 15
    for row in report["rows"]:
        if row["state"] == "done":
            assert (row["openvino"] is not None) == row["native"], row.get("openvino_note")
            assert not row["sized"] or row["blocks"] <= 0.5 * (1 + weights.TOLERANCE), row["name"]
