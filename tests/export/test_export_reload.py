"""The reload check runs in a process without lightformers, and it notices a damaged folder."""

from __future__ import annotations

import runpy

import numpy as np
import pytest
import torch
from export_models import IMAGES, MAKERS, examples_of, make
from safetensors.torch import load_file, save_file

from lightformers.errors import UserError
from lightformers.export import huggingface, reload
from lightformers.parts.low_rank import LowRankLinear

SLOW = {"classifier", "gpt2", "vit"}


def spoil(folder, by=0.5):
    path = folder / "model.safetensors"
    weights = load_file(path)
    name = next(
        n for n in weights if n.endswith(("intermediate.dense.weight", "mlp.c_fc.weight", "fc1.weight"))
    )
    weights[name][0, 0] += by * 20
    save_file(weights, path, {"format": "pt"})


@pytest.mark.parametrize(
    "kind", [k if k not in SLOW else pytest.param(k, marks=pytest.mark.slow) for k in MAKERS]
)
def test_a_good_folder_passes_and_a_changed_weight_is_caught(kind, tmp_path):
    bundle, probes = make(kind), examples_of(kind)
    huggingface.save(bundle, tmp_path / "m")
    good = {r["format"]: r for r in reload.check(tmp_path / "m", probes, bundle, rounds=1)}
    assert set(good) == {"transformers", "sentence-transformers"} if kind == "embedder" else {"transformers"}
    for found in good.values():
        assert found["ok"] and found["max_difference"] < 1e-5 and found["throughput"] > 0, found
    spoil(tmp_path / "m")
    (bad,) = reload.check(tmp_path / "m", probes, bundle, rounds=1, only=["transformers"])
    assert not bad["ok"] and bad["max_difference"] > 1e-4


def test_missing_weights_are_a_failure_not_random_numbers(tmp_path):
    bundle = make("classifier")
    huggingface.save(bundle, tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["classifier.weight"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    script = runpy.run_path(str(reload.SCRIPT))
    with pytest.raises(SystemExit, match=r"classifier\.weight"):
        script["transformers_runner"]({"folder": str(tmp_path), "task": "text-classification"})


def test_a_custom_folder_is_checked_with_lightformers_and_says_so(tmp_path):
    bundle = make("embedder")
    bundle.model.encoder.layer[0].intermediate.dense = LowRankLinear(32, 64, 4)
    huggingface.save(bundle, tmp_path, allow_custom=True)
    (found,) = reload.check(tmp_path, examples_of("embedder"), bundle, rounds=1)
    assert found["format"] == "lightformers" and found["ok"] and found["max_difference"] < 1e-5
    assert "lightformers.load only" in found["note"]


def test_the_script_itself_knows_nothing_of_lightformers():
    import ast

    tree = ast.parse(reload.SCRIPT.read_text())
    names = {a.name.split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    names |= {n.module.split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    assert names <= {
        "json", "os", "sys", "time", "numpy", "torch", "transformers", "sentence_transformers", "openvino",
        "onnxruntime", "lightformers",
    }  # fmt: skip
    users = [
        f.name
        for f in tree.body
        if isinstance(f, ast.FunctionDef) and "import lightformers" in ast.unparse(f)
    ]
    assert users == ["lightformers_runner"]


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_the_verdict_follows_the_precision(precision):
    found = {"max_difference": 0.0, "scale": 1.0, "cosine": 1.0, "throughput": 1.0, "without_lightformers": True,
             "by_exported_model": True}  # fmt: skip
    assert reload._judge("openvino", precision, False, found)["ok"]
    far = {**found, "max_difference": 0.5, "cosine": 0.8}
    assert not reload._judge("openvino", precision, False, far)["ok"]
    assert not reload._judge("openvino", precision, True, far)["ok"]
    rounding = {**found, "max_difference": 0.01, "cosine": 0.9999}
    assert reload._judge("openvino", precision, True, rounding)["ok"] == (precision != "fp32")
    leaked = reload._judge("openvino", precision, True, {**found, "without_lightformers": False})
    assert not leaked["ok"] and "imported" in leaked["note"]
    assert not reload._judge("openvino", precision, True, {"error": "boom"})["ok"]


def test_recorded_rows_are_per_example_and_ignore_padding():
    bundle = make("gpt2")
    together = reload.record(bundle, examples_of("gpt2"), batch_size=6)
    alone = np.concatenate([reload.record(bundle, [e]) for e in examples_of("gpt2")])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    assert reload.record(make("vit"), IMAGES).shape == (4, 3)
    with pytest.raises(UserError, match="logits"):
        reload.rows({"loss": torch.zeros(1)}, None)


def test_no_probes_is_refused(tmp_path):
    with pytest.raises(UserError, match="examples"):
        reload.check(tmp_path, [], make("classifier"))


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"])
def test_graphs_are_opened_compared_and_a_spoiled_one_is_caught(runtime, precision, tmp_path):
    from lightformers.export import onnx, openvino
    from lightformers.steps import Deploy

    bundle, probes = make("embedder"), examples_of("embedder")
    huggingface.save(bundle, tmp_path)
    writer = openvino if runtime == "openvino" else onnx
    writer.save(bundle, Deploy(runtime, precision), tmp_path, probes)
    form = "openvino" if runtime == "openvino" else "onnx"
    (good,) = reload.check(tmp_path, probes, bundle, rounds=1, only=[form])
    assert good["ok"] and good["throughput"] > 0, good
    assert ("ExportedModel" in good["note"]) == (form == "openvino")
    writer.save(make("embedder", seed=1), Deploy(runtime, precision), tmp_path, probes)
    (bad,) = reload.check(tmp_path, probes, bundle, rounds=1, only=[form])
    assert not bad["ok"], bad
