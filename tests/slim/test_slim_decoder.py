"""Slim on decoders of our own, (slow) from a text file to proof: one that OpenVINO runs, and one that only torch does."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from test_slim_series import run
from transformers import AutoModelForCausalLM

import lightformers as lf
from lightformers.bundle import Bundle
from lightformers.slim import space
from lightformers.slim.settings import Settings

KINDS: dict[str, dict[str, Any]] = {
    "attention": {"mixer": {"kind": "attention", "heads": 4}, "ffn": {"kind": "swiglu", "hidden": 128}},
    "mamba": {"mixer": {"kind": "mamba"}, "ffn": {"kind": "mlp", "hidden": 128}},
}


def text(path: Path) -> Path:
    """Sentences that a small model learns in seconds."""
    drawn = random.Random(0)
    words = [
        ["the", "a", "every"],
        ["old", "small", "red"],
        ["cat", "dog", "bird"],
        ["sees", "likes", "follows"],
    ]
    lines = [" ".join(drawn.choice(w) for w in [*words, *words[:3]]) + "." for _ in range(12000)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def untrained(kind: str, folder: Path) -> Path:
    torch.manual_seed(0)
    model = lf.create_model("transformer-3m", vocab_size=300, hidden_size=64, layers=[KINDS[kind]] * 4)
    model.save_pretrained(folder)
    return folder


def test_what_a_decoder_has_not_is_not_cut() -> None:
    torch.manual_seed(0)
    for kind, heads in (("attention", True), ("mamba", False)):
        model = lf.create_model("transformer-3m", vocab_size=64, hidden_size=64, layers=[KINDS[kind]] * 3)
        drawn = space.draw(Bundle(model, None, "causal-lm"), Settings())
        assert (len(drawn.heads) > 1) is heads and len(drawn.channels) > 1 and len(drawn.blocks) > 1
        assert heads or "PruneHeads: this decoder model has no heads to cut" in drawn.closed


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_from_text_to_proof(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openvino")
    data, model, out = text(tmp_path / "text.txt"), tmp_path / "model", tmp_path / "out"
    trained = ["train", "--model", str(untrained(kind, tmp_path / "start")), "--data", str(data), "--tokenizer", "bpe",
               "--vocabulary", "300", "--length", "32", "--budget", "20s", "--out", str(model), "--quiet"]  # fmt: skip
    assert run(trained, monkeypatch) == 0
    asked = [
        "slim",
        str(model),
        "--task",
        "causal-lm",
        "--data",
        str(data),
        "--floor",
        "0.8",
        "--budget",
        "90s",
    ]
    code = run([*asked, "--goal", "throughput", "--out", str(out)], monkeypatch)
    report = json.loads((out / "report.json").read_text())
    assert code == 0 and report["verdict"]["proven"] and all(r["ok"] for r in report["reload"])
    assert report["task"]["metric"] == "perplexity" and report["chosen"]["ratio"]["bound"] >= 0.8
    names = [row["name"] for row in report["baselines"]]
    assert any("NNCF" in name for name in names) is (kind == "attention")
    assert any("delivered in torch" in w for w in report["warnings"]) is (kind == "mamba")
    if kind == "mamba":
        small = AutoModelForCausalLM.from_pretrained(out)
        ids = torch.randint(1, 300, (2, 5))
        assert small.generate(input_ids=ids, max_new_tokens=3, do_sample=False, pad_token_id=0).shape == (
            2,
            8,
        )
