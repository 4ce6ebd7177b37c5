"""`lightformers elastic` on the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import elastic_world
import steps_world as world
from typer.testing import CliRunner

import lightformers as lf
from lightformers.bundle import Bundle
from lightformers.cli import app
from lightformers.elastic import Elastic
from lightformers.errors import UserError


def call(*arguments: Any) -> Any:
    return CliRunner().invoke(app, ["elastic", *map(str, arguments)])


def test_the_command_line(tmp_path: Path) -> None:
    """Train, then extract by weights with and without a task."""
    bundle, task = world.bundle("bert-classifier"), elastic_world.classification(24)
    lf.export.save(bundle, tmp_path / "model")
    rows = [r for split in task.splits.values() for r in split]
    data = tmp_path / "rows.jsonl"
    data.write_text(
        "".join(json.dumps({"words": r["text"], "label": f"LABEL_{r['label']}"}) + "\n" for r in rows)
    )
    asked = ["--task", "text-classification", "--data", str(data), "--text", "words"]

    train = ["train", tmp_path / "model", *asked, "--out", tmp_path / "e", "--budget", "0.1s"]
    done = call(
        *train, "--method", "matformer", "--set", "ratios=[0.5, 1.0]", "--set", "examples=8", "--json"
    )
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)
    assert said["sizes"] == 16 and said["smallest"]["channels"] == [32] * 4
    limit = said["largest"]["parameters"] - 1
    out = tmp_path / "small"
    done = call("extract", tmp_path / "e", "--budget", f"params={limit}", "--out", out, "--json")
    assert done.exit_code == 0, done.output
    small = json.loads(done.stdout)
    assert small["parameters"] == said["smallest"]["parameters"] and not small["needs_lightformers"]
    assert lf.load(out, "text-classification").parameters == small["parameters"]
    done = call("extract", tmp_path / "e", "--budget", f"params={limit}", "--out", tmp_path / "mixed", "--allow-custom",
                *asked, "--number", 2)  # fmt: skip
    assert done.exit_code == 0 and "the best of 2" in done.stdout, done.output
    assert lf.load(tmp_path / "mixed", "text-classification").parameters <= limit


def test_the_command_line_refuses(trained: tuple[Elastic, Bundle, Any], tmp_path: Path) -> None:
    trained[0].save(tmp_path / "e")
    out = ["--out", tmp_path / "small"]
    train = ["train", tmp_path / "e", "--task", "text-classification", "--data", tmp_path / "none.csv", *out]
    for arguments, why in (
        ([*train, "--method", "magic"], "unknown method"),
        ([*train, "--method", "matformer", "--set", "ratios"], "NAME=VALUE"),
        ([*train, "--method", "matformer", "--set", "ratios=[2, 1]"], "rise"),
        ([*train, "--method", "matformer", "--budget", "soon"], "is no time"),
        (["extract", tmp_path / "e", "--budget", "params=1", *out], "smallest possible"),
        (["extract", tmp_path / "e", "--budget", "10M", *out], "is no budget"),
        (["extract", tmp_path, "--budget", "params=1M", *out], "no elastic model"),
        (["extract", tmp_path / "e", "--budget", "params=1M", "--out", tmp_path / "e"], "another folder"),
        (["extract", tmp_path / "e", "--budget", "latency=5ms", *out], "give a task"),
        (["extract", tmp_path / "e", "--budget", "params=1M", *out, "--task", "x"], "go together"),
    ):
        failed = call(*arguments)
        assert isinstance(failed.exception, UserError) and why in str(failed.exception), (
            arguments,
            failed.exception,
        )
    assert not (tmp_path / "small").exists()
