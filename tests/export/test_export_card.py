"""Model cards say what was done and measured, and their code runs."""

from __future__ import annotations

import re

import pytest
import yaml
from export_models import EXAMPLES, make
from typer.testing import CliRunner

from lightformers.bundle import Origin
from lightformers.export import card, graph, huggingface
from lightformers.steps import Deploy

REPORT = {
    "created": "2026-01-02T03:04:05", "confidence": 0.9,
    "machine": {"cpu": "Some CPU", "cores": 2, "isa": ["avx2"], "amx": True},
    "task": {"name": "embedding", "metric": "mrr", "splits": {"verify": 123}},
    "verdict": {"sentence": "Proven to keep at least 99 % of the mrr."},
    "baselines": [{"name": "eager fp32", "quality": {"estimate": 0.5, "low": 0.4, "high": 0.6}, "ratio": None,
                   "latency_ms": 3.0, "throughput": 10.0, "size_bytes": 2_000_000}],
    "chosen": {"name": "4 blocks", "quality": {"estimate": 0.51, "low": 0.4, "high": 0.6},
               "ratio": {"estimate": 1.01, "low": 0.99, "high": 1.03, "bound": 0.995},
               "latency_ms": 1.0, "throughput": 40.0, "size_bytes": 500_000},
    "control": {"quality": 0.6, "ratio": 1.2, "note": ""},
    "warnings": ["the labels are few"],
}  # fmt: skip


def header(text):
    return yaml.safe_load(text.split("---")[1])


def test_a_card_tells_method_evaluation_hardware_use_and_limits(tmp_path):
    bundle = make("embedder")
    bundle.source, bundle.deploy = "someone/some-model", Deploy("openvino", "int8", "sorted")
    bundle.history = [
        {"step": "DropBlocks", "parameters": {"keep": 4}, "size_before": 9_000_000, "size_after": 6_000_000}
    ]
    bundle.origin = Origin(vocabulary=tuple(range(25)))
    huggingface.save(bundle, tmp_path)
    (tmp_path / "openvino").mkdir()
    deploy = Deploy("openvino", "int8")
    graph.write_deploy(tmp_path / "openvino", bundle, deploy, {}, "m", ["input_ids"], avoid_lengths=[32])
    text = card.write(bundle, tmp_path, REPORT, "lightformers: 1\n").read_text()
    assert header(text) == {
        "base_model": "someone/some-model", "library_name": "sentence-transformers",
        "pipeline_tag": "sentence-similarity", "tags": ["lightformers", "openvino"],
    }  # fmt: skip
    for piece in (
        "| DropBlocks | keep=4 | 6,000,000 |", "9.0 million", "openvino int8, sorted", "lightformers: 1",
        "Proven to keep at least 99 %", "123 examples", "90 % intervals", "Some CPU, cores 2",
        "| eager fp32 | 0.5000 [0.4000, 0.6000] | - | 10 | 3.0 | 2.0 |",
        "| **this model** (4 blocks) | 0.5100 [0.4000, 0.6000] | 1.0100 [0.9900, 1.0300] | 40 | 1.0 | 0.5 |",
        "control: the original", "SentenceTransformer", "openvino_model.xml", "the labels are few",
        "after 12 tokens", "trimmed to 25", "exactly 32 tokens",
    ):  # fmt: skip
        assert piece in text, piece


def test_a_local_model_has_no_base_model_and_nothing_is_claimed_unmeasured(tmp_path):
    bundle = make("classifier")
    bundle.source = str(tmp_path)
    huggingface.save(bundle, tmp_path / "m")
    text = card.write(bundle, tmp_path / "m").read_text()
    named = card.write(bundle, tmp_path / "m", name="slim-mine").read_text()
    assert "# slim-mine" in named and '"slim-mine"' in named and "# m\n" in text
    assert "base_model" not in header(text) and str(tmp_path) not in text
    assert "## Evaluation" not in text and "No quality was measured" in text


def test_the_code_of_the_card_runs(tmp_path, monkeypatch):
    bundle = make("classifier")
    huggingface.save(bundle, tmp_path / "m")
    (code,) = re.findall(r"```python\n(.*?)```", card.write(bundle, tmp_path / "m").read_text(), re.S)
    monkeypatch.chdir(tmp_path)
    held: dict = {}
    exec(code, held)
    assert held["outputs"].logits.shape == (1, 3)


def invoke(*arguments):
    import typer

    from lightformers.cli.export import export

    app = typer.Typer()
    app.command()(export)
    return CliRunner().invoke(app, [*map(str, arguments)])


def test_the_command_writes_folder_and_card(tmp_path):
    import json

    huggingface.save(make("classifier"), tmp_path / "in")
    done = invoke(tmp_path / "in", "--out", tmp_path / "out", "--no-check", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["custom"] == []
    assert {"README.md", "config.json", "model.safetensors", "tokenizer.json"} <= {
        p.name for p in (tmp_path / "out").iterdir()
    }


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--runtime", "tensorrt"], "openvino, onnx"),
        (["--precision", "int8"], "needs a runtime"),
        (["--runtime", "openvino", "--precision", "int8"], "--data FILE"),
        (["--data", "DATA", "--text", "nothing"], "columns there: 'body'"),
    ],
)
def test_the_command_refuses_with_the_way_out(arguments, said, tmp_path):
    from lightformers.errors import UserError

    huggingface.save(make("classifier"), tmp_path / "in")
    (tmp_path / "data.csv").write_text("body\n" + "\n".join(e["text"] for e in EXAMPLES))
    arguments = [str(tmp_path / "data.csv") if a == "DATA" else a for a in arguments]
    done = invoke(tmp_path / "in", "--out", tmp_path / "out", "--no-check", *arguments)
    assert isinstance(done.exception, UserError) and said in str(done.exception), done.output


@pytest.mark.slow
def test_the_command_end_to_end_with_int8(tmp_path):
    import json

    huggingface.save(make("embedder"), tmp_path / "in")
    (tmp_path / "data.csv").write_text("text\n" + "\n".join(e["text"] for e in EXAMPLES))
    done = invoke(
        tmp_path / "in", "--out", tmp_path / "out", "--runtime", "openvino", "--precision", "int8",
        "--data", tmp_path / "data.csv", "--json",
    )  # fmt: skip
    held = json.loads(done.stdout)
    assert [f["format"] for f in held["reload"]] == ["transformers", "sentence-transformers", "openvino"]
    assert all(f["ok"] for f in held["reload"][:2])
