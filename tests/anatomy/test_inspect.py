"""`lightformers inspect`, and the arithmetic under it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import typer
import zoo
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from lightformers import anatomy
from lightformers.cli.inspect import inspect
from lightformers.errors import ModelError

app = typer.Typer()
app.command()(inspect)


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments))
    if result.exception is not None:
        raise result.exception
    return result.output


@pytest.mark.parametrize(
    "name", ["bert", "gpt2", "qwen3", "t5", "vit", "clip", "albert", "whisper", "wav2vec2"]
)
def test_tree_and_json(name: str, tmp_path: Path) -> None:
    model = zoo.make(name)
    model.save_pretrained(tmp_path)
    facts = json.loads(run(str(tmp_path), "--json", "--length", "9"))
    assert facts["class"] == type(model).__name__ and facts["parameters"] == model.num_parameters()
    assert facts["native_reasons"] == []
    pieces = [facts[k]["parameters"] for k in ("embeddings", "positions") if facts[k]]
    pieces += [stack["parameters"] for stack in facts["stacks"]] + [facts["other"]["parameters"]]
    assert sum(pieces) + (facts["head"] or {"parameters": 0})["parameters"] == facts["parameters"]
    shares = (
        sum(stack["flops_share"] for stack in facts["stacks"])
        + (facts["head"] or {"flops_share": 0})["flops_share"]
    )
    assert shares == pytest.approx(1.0)
    text = run(str(tmp_path))
    found = anatomy.of(model)
    assert found.family in text and "heads of" in text and "feed-forward" in text
    assert ("not heads" in text) == (facts["native"]["heads"] is not None)
    if name == "gpt2":
        assert "tied to the embeddings" in text and "blocks 0 to 2, each" in text


@pytest.mark.parametrize("name", ["bert:BertModel", "gpt2", "llama", "gemma", "phi", "opt"])
def test_flops_match_torchs_counter(name: str) -> None:
    """Matrix products of blocks and head, as torch counts them (its scores are halved for causal attention)."""
    model = zoo.make(name)
    model.set_attn_implementation("eager")
    given = {"input_ids": zoo.inputs(model)["input_ids"][:1]}
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(**given)
    ours = anatomy.total(model, zoo.LENGTH).flops
    extra = 0
    for path, module in model.named_modules():  # what lies outside blocks and head
        if path.endswith(("pooler.dense", "project_in", "project_out")):
            into, out = anatomy.features(module)
            extra += 2 * into * out * (1 if "pooler" in path else zoo.LENGTH)
    assert counter.get_total_flops() == pytest.approx(ours + extra, rel=0.02)


def test_errors(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(ModelError, match="pickle"):
        run(str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"x")  # never opened: only the config is read
    assert "BertModel" in run(str(tmp_path), "--length", "8")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "no-such-thing"}))
    with pytest.raises(ModelError, match="unknown architecture"):
        run(str(tmp_path))
    with pytest.raises(ModelError, match="no folder"):
        run("./nowhere")
