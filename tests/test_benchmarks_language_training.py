"""The plain decoder's benchmark at tiny sizes: both trainers train the same form, both speakers say the same."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

import language_rows
import language_training

import lightformers as lf
from lightformers.models.patterns import stack
from lightformers.models.preset import Preset
from lightformers.models.presets import PRESETS

LAYER = {"mixer": {"kind": "attention", "heads": 2, "kv_heads": 2}, "ffn": {"kind": "swiglu", "hidden": 24}}


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    fields = {"vocab_size": 40, "hidden_size": 16, "layers": stack("A" * 2, {"A": LAYER}), "norm_eps": 1e-5}
    monkeypatch.setitem(PRESETS, "tiny", Preset(fields, 0))


def test_the_model_by_hand_is_ours() -> None:
    torch.manual_seed(0)
    plain, ours = language_training.Plain(40, 16, 2, 2, 24), lf.create_model("tiny").eval()
    with torch.no_grad():
        ours.embedding.weight.copy_(plain.embedding.weight)
        for block, layer in zip(plain.blocks, ours.layers):
            for path, part in zip(("query", "key", "value"), block.qkv.weight.chunk(3)):
                layer.mixer.get_submodule(path).weight.copy_(part)
            layer.mixer.out.weight.copy_(block.out.weight)
            for path, part in zip(("gate", "up"), block.up.weight.chunk(2)):
                layer.ffn.get_submodule(path).weight.copy_(part)
            layer.ffn.down.weight.copy_(block.down.weight)
        ids = torch.randint(40, (2, 9))
        assert (plain(ids) - ours(input_ids=ids).logits).abs().max() < 1e-5


def test_both_trainers_learn_and_are_timed() -> None:
    calls = language_training.calls("tiny", batch=2, length=8, steps=10)
    for call in calls.values():
        first = call()
        assert min(call() for _ in range(6)) < first
    found = language_training.training("tiny", batch=2, length=8, steps=1, rounds=2)
    assert set(found["tokens per second"]) == {language_rows.OURS, language_training.BY_HAND}
    assert found["faster"]["low"] <= found["faster"]["estimate"] <= found["faster"]["high"]
    page = "\n".join(language_training.page({"training": {"tiny": found}}))
    assert "tiny, batches of 2 texts of 8 tokens." in page


def test_both_speakers_say_the_same_and_are_timed() -> None:
    found = language_training.speaking("tiny", contexts=(4, 9), tokens=4, rounds=2)
    assert set(found["faster"]) == {"4", "9"} == set(found["seconds per token"])
    page = language_training.page({"speaking": {"tiny": found}})
    assert page[-1].startswith("| tiny | 9 | ")
