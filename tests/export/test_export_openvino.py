"""OpenVINO folders hold the same function: opened by transformers' ExportedModel and by plain OpenVINO."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from export_models import MAKERS, examples_of, make

from lightformers.errors import UserError
from lightformers.export import graph, openvino
from lightformers.steps import Deploy

pytest.importorskip("openvino")
#: transformers' exporter takes seconds even for a tiny model, so one bundle stands for all in the fast tests.
FAST = ["embedder"]
REST = [pytest.param(kind, marks=pytest.mark.slow) for kind in MAKERS if kind not in FAST]


def compiled(folder):
    import openvino as ov

    core = ov.Core()
    settings = json.loads((folder / "deploy.json").read_text())
    return core.compile_model(
        core.read_model(folder / "openvino_model.xml"), "CPU", settings["properties"]
    ), settings


def expected(bundle, batch, settings):
    with torch.no_grad():
        return bundle.module()(**batch.inputs)[settings["output"]].numpy()


@pytest.mark.parametrize("kind", FAST + REST)
def test_fp32_equals_torch_at_other_shapes_than_it_was_traced_at(kind, tmp_path):
    bundle = make(kind)
    result = openvino.save(bundle, Deploy("openvino"), tmp_path, examples_of(kind)[:2])
    assert (result.path, result.note) == (tmp_path / "openvino", "")
    assert result.size > bundle.parameters * 4 * 0.9
    model, settings = compiled(result.path)
    assert settings["properties"]["INFERENCE_PRECISION_HINT"] == "f32"
    for examples in (examples_of(kind)[:1], examples_of(kind)):
        batch = bundle.collate(examples)
        got = model({k: v.numpy() for k, v in batch.inputs.items()})[settings["output"]]
        if kind == "gpt2":  # what stands at padding means nothing
            mask = batch.inputs["attention_mask"].bool().numpy()
            assert np.abs(got - expected(bundle, batch, settings))[mask].max() < 1e-4
        else:
            np.testing.assert_allclose(got, expected(bundle, batch, settings), atol=1e-4)
    assert (
        json.loads((result.path / "config.json").read_text())["model_type"] == bundle.model.config.model_type
    )
    np.savez(tmp_path / "in.npz", **{k: v.numpy() for k, v in batch.inputs.items()})
    arguments = [result.path, tmp_path / "in.npz", tmp_path / "out.npy", settings["output"]]
    done = subprocess.run([sys.executable, "-c", OPEN, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), got, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", MAKERS)
def test_int8_stays_close_and_is_smaller(kind, tmp_path):
    bundle = make(kind)
    plain = openvino.save(bundle, Deploy("openvino"), tmp_path / "plain", examples_of(kind))
    small = openvino.save(bundle, Deploy("openvino", "int8"), tmp_path / "int8", examples_of(kind))
    weights = [(r.path / "openvino_model.bin").stat().st_size for r in (plain, small)]
    assert weights[1] < 0.6 * weights[0]
    model, settings = compiled(small.path)
    got, want = [], []
    for example in examples_of(kind):
        batch = bundle.collate([example])
        got.append(model({k: v.numpy() for k, v in batch.inputs.items()})[settings["output"]].ravel())
        want.append(expected(bundle, batch, settings).ravel())
    a, b = np.concatenate(got), np.concatenate(want)
    cosine = (a * b).sum() / (np.linalg.norm(a) * np.linalg.norm(b))
    assert 0.85 < cosine < 0.9999999, (
        cosine
    )  # random weights are the hardest to quantize; a wrong graph gives about 0


OPEN = """
import json, sys
import numpy, torch
sys.modules["openvino_telemetry"] = None
from transformers.exporters import ExportedModel
folder, inputs = sys.argv[1], numpy.load(sys.argv[2])
properties = json.load(open(folder + "/deploy.json"))["properties"]
model = ExportedModel.from_pretrained(folder, device="cpu", config=properties)
out = model(**{k: torch.from_numpy(inputs[k]) for k in inputs.files})
assert "lightformers" not in sys.modules
numpy.save(sys.argv[3], out[sys.argv[4]].numpy())
"""


def test_a_model_that_the_exporter_cannot_take_goes_through_openvino_itself(tmp_path, monkeypatch):
    def refuse(*_):
        raise RuntimeError("no such operation")

    monkeypatch.setattr(openvino, "_by_transformers", refuse)
    bundle = make("classifier")
    result = openvino.save(bundle, Deploy("openvino"), tmp_path, examples_of("classifier"))
    assert "no such operation" in result.note and "ExportedModel" in result.note
    model, settings = compiled(result.path)
    batch = bundle.collate(examples_of("classifier"))
    got = model({k: v.numpy() for k, v in batch.inputs.items()})["logits"]
    np.testing.assert_allclose(got, expected(bundle, batch, settings), atol=1e-4)
    small = openvino.save(
        bundle, Deploy("openvino", "int8-weights"), tmp_path / "w", examples_of("classifier")
    )
    got = compiled(small.path)[0]({k: v.numpy() for k, v in batch.inputs.items()})["logits"]
    assert 1e-7 < np.abs(got - expected(bundle, batch, settings)).max() < 0.1


def test_threads_and_streams_are_said():
    held = openvino.properties(Deploy("openvino", "fp32", threads=2, streams=3))
    assert held == {"INFERENCE_PRECISION_HINT": "f32", "NUM_STREAMS": 3, "INFERENCE_NUM_THREADS": 6}


def test_int8_without_examples_is_refused_with_the_way_out(tmp_path):
    with pytest.raises(UserError, match="--data"):
        openvino.save(make("classifier"), Deploy("openvino", "int8"), tmp_path)
    with pytest.raises(UserError, match="openvino"):
        openvino.save(make("classifier"), Deploy("torch"), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", MAKERS)
def test_a_sample_to_trace_with_never_has_an_axis_of_one(kind):
    for examples in (None, examples_of(kind)[:1]):
        assert min(size for value in graph.sample(make(kind), examples).values() for size in value.shape) > 1
