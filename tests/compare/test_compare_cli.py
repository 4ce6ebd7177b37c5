"""`lightformers compare` from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import compare_world as world
import pytest

from lightformers.bundle import Bundle
from lightformers.cli import compare as room
from lightformers.cli import main
from lightformers.compare.session import Session
from lightformers.errors import UserError


@pytest.fixture
def folder(original: Bundle, tmp_path: Path) -> Path:
    original.model.save_pretrained(tmp_path / "model")
    original.processor.save_pretrained(tmp_path / "model")
    rows = "\n".join(json.dumps(e) for e in world.examples(300, 1))
    (tmp_path / "data.jsonl").write_text(rows, encoding="utf-8")
    return tmp_path


def call(monkeypatch: pytest.MonkeyPatch, folder: Path, *more: str) -> int:
    words = ["lightformers", "compare", str(folder / "model"), "--task", "text-classification",
             "--data", str(folder / "data.jsonl"), "--out", str(folder / "out"), *more]  # fmt: skip
    monkeypatch.setattr("sys.argv", words)
    monkeypatch.setattr(Session, "graph", None)
    with pytest.raises(SystemExit) as left:
        main()
    return int(left.value.code or 0)


def test_a_comparison_as_json(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("lightformers.compare.session.PASS", 0.05)
    more = ("--steps", "llm-int8,pre-crmsnorm", "--seconds", "0", "--rounds", "3", "--batch", "8", "--json")
    assert call(monkeypatch, folder, *more) == 0
    report = json.loads(capsys.readouterr().out)
    assert [r["state"] for r in report["rows"]] == ["done", "refused"]
    assert (folder / "out" / "compare.html").is_file() and report["command"].startswith(
        "lightformers compare"
    )


def test_a_dry_run_names_steps_and_reasons(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, folder, "--dry-run", "--steps", "minitron,pre-crmsnorm") == 0
    said = capsys.readouterr().out
    assert "minitron: Minitron + Recover" in said and "not pre-crmsnorm:" in said
    assert not (folder / "out").exists()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--latency", "fast"), "such as 2x"),
        (("--ratio", "2"), "--ratio"),
        (("--steps", "nothing"), "known methods"),
    ],
)
def test_wrong_options_end_with_status_2(
    more: tuple[str, ...],
    said: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert call(monkeypatch, folder, *more) == 2
    assert said in capsys.readouterr().err.replace("\n", " ")


def test_times() -> None:
    assert (room.times("2x"), room.times("1.5"), room.times(None)) == (2.0, 1.5, None)
    with pytest.raises(UserError, match="such as 2x"):
        room.times("x2")
