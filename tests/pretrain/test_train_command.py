"""`lightformers train`: whole runs on little text, resumed, refused, and shared out over two processes."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lightformers import pretrain
from lightformers.cli import main
from lightformers.errors import UserError
from lightformers.pretrain import page, run

TEXT = "the cat sat on the mat; " * 400
SMALL = [
    "--model", "transformer-gpt2-124m", "--set", "hidden_size=32", "--set", "max_position_embeddings=32",
    "--set", "layers=[{mixer: {kind: attention, heads: 2, rotary: false}, ffn: {kind: mlp, hidden: 64}}]",
    "--tokenizer", "characters", "--length", "16", "--batch", "256", "--lr", "0.01", "--precision", "fp32",
]  # fmt: skip


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


def plan(text: Path, **more: object) -> pretrain.Plan:
    layers = [
        {"mixer": {"kind": "attention", "heads": 2, "rotary": False}, "ffn": {"kind": "mlp", "hidden": 64}}
    ]
    given = {"model": "transformer-gpt2-124m", "text": str(text), "tokenizer": "characters", "length": 16, "batch": 256,
             "lr": 0.01, "precision": "fp32", "steps": 60,
             "overrides": {"hidden_size": 32, "max_position_embeddings": 32, "layers": layers}}  # fmt: skip
    return pretrain.Plan(**{**given, **more})  # type: ignore[arg-type]


def call(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", ["lightformers", "train", *arguments])
    with pytest.raises(SystemExit) as stop:
        main()
    return int(stop.value.code or 0)


def test_a_model_learns_is_written_and_opens_in_transformers(text, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    assert (
        call(
            [*SMALL, "--data", str(text), "--steps", "120", "--out", str(out), "--json", "--prompt", "the c"],
            monkeypatch,
        )
        == 0
    )
    found = json.loads(capsys.readouterr().out)
    assert found["valid"] < 0.5 < found["curve"][0]["valid"] and len(found["curve"]) == run.PARTS
    assert found["bits_per_byte"] == pytest.approx(found["valid"] / 0.6931, rel=0.05)
    assert found["sample"].startswith("the c")
    model, words = AutoModelForCausalLM.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    ids = words("the cat sat on", return_tensors="pt", add_special_tokens=False)["input_ids"]
    assert words.decode(model.generate(ids, max_new_tokens=4, do_sample=False)[0]) == "the cat sat on the"
    html = (out / "training.html").read_text(encoding="utf-8")
    assert "bits a byte" in html and "http://" not in html.split("plotly")[0]
    assert not (out / run.WORK).exists()


def test_a_stopped_training_goes_on_as_if_it_had_not(text, tmp_path, monkeypatch):
    whole = pretrain.train(plan(text), tmp_path / "whole")
    parts = iter(range(100))

    def stop(*args: object) -> object:
        if next(parts) == 7:
            raise KeyboardInterrupt
        return save(*args)

    save = run.TrainState.save
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(run.TrainState, "save", stop)
        pretrain.train(plan(text), tmp_path / "parts")
    resumed = pretrain.train(plan(text), tmp_path / "parts")
    assert [row["valid"] for row in resumed["curve"]] == pytest.approx(
        [row["valid"] for row in whole["curve"]], rel=1e-4
    )
    assert resumed["steps"] == whole["steps"] == 60
    assert pretrain.train(plan(text), tmp_path / "parts") == resumed  # a finished one is not trained again


def test_other_options_are_refused_in_the_same_folder(text, tmp_path, monkeypatch):
    def stop(*args: object, **more: object) -> object:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(run, "fit", stop)
        pretrain.train(plan(text), tmp_path)
    with pytest.raises(UserError, match="other options"):
        pretrain.train(plan(text, lr=0.02), tmp_path)


def test_a_folder_is_trained_on(text, tmp_path):
    first = pretrain.train(plan(text, steps=40), tmp_path / "first")
    more = plan(text, model=str(tmp_path / "first"), tokenizer=None, overrides={}, steps=40)
    second = pretrain.train(more, tmp_path / "second")
    assert second["curve"][0]["valid"] < first["curve"][0]["valid"]
    assert second["parameters"] == first["parameters"]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--steps", "5", "--model", "mambo-130m"], "no model"),
        (["--data", "nowhere.txt", "--steps", "5"], "no file"),
        ([], "--budget"),
        (["--steps", "5", "--length", "64", "--batch", "256"], "32 positions"),
        (["--steps", "5", "--batch", "8"], "--batch"),
        (["--steps", "5", "--tokenizer", "no/such/folder"], "--tokenizer"),
        (["--steps", "5", "--set", "hidden_size"], "NAME=VALUE"),
        (["--steps", "5", "--set", "depth=3"], "no field"),
    ],
)
def test_wrong_options_end_in_one_line(text, tmp_path, monkeypatch, capsys, more, said):
    assert call([*SMALL, "--data", str(text), "--out", str(tmp_path / "out"), *more], monkeypatch) == 2
    captured = capsys.readouterr()
    assert said in captured.err and "Traceback" not in captured.err and not captured.out


def test_the_page_escapes_what_it_shows(text, tmp_path):
    found = pretrain.train(plan(text, steps=20), tmp_path)
    html = page.render({**found, "sample": "<script>alert(1)</script>"})
    assert "<script>alert(1)" not in html and "&lt;script&gt;alert" in html


def test_two_processes_give_what_one_gives(text, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    both = [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-addr", "127.0.0.1",
        "--master-port", str(port), "-m", "lightformers", "train", *SMALL, "--data", str(text), "--steps", "20",
        "--device", "cpu", "--quiet", "--out", str(tmp_path / "two"),
    ]  # fmt: skip
    done = subprocess.run(both, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    alone = pretrain.train(plan(text, steps=20), tmp_path / "one")
    one, two = (AutoModelForCausalLM.from_pretrained(tmp_path / name).state_dict() for name in ("one", "two"))
    for name in one:
        torch.testing.assert_close(two[name], one[name], atol=2e-4, rtol=1e-3)
    together = json.loads((tmp_path / "two" / "training.json").read_text(encoding="utf-8"))["curve"]
    assert [r["tokens"] for r in together] == [r["tokens"] for r in alone["curve"]]
    assert [r["loss"] for r in together] == pytest.approx([r["loss"] for r in alone["curve"]], rel=1e-3)
