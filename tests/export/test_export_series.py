"""Forecasters of transformers, exported: the same forecasts from every runtime, and the reload check on windows."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import lightformers as lf
from lightformers import runners
from lightformers.bundle import Bundle
from lightformers.export import card, graph, huggingface, onnx, openvino, reload
from lightformers.steps import Deploy
from lightformers.tasks import Forecasting

ROWS = 400


def _series() -> np.ndarray:
    phase = np.arange(ROWS)[:, None] * 2 * np.pi / 24 + np.arange(3)
    return 5 + np.arange(3) + np.sin(phase) + 0.1 * np.random.default_rng(0).standard_normal((ROWS, 3))


def patch_tst() -> torch.nn.Module:
    from transformers import PatchTSTConfig, PatchTSTForPrediction

    return PatchTSTForPrediction(
        PatchTSTConfig(
            context_length=24,
            prediction_length=6,
            num_input_channels=3,
            d_model=16,
            num_attention_heads=2,
            ffn_dim=32,
            num_hidden_layers=2,
            patch_length=4,
            patch_stride=4,
            scaling="std",
        )
    )


def patch_mixer() -> torch.nn.Module:
    from transformers import PatchTSMixerConfig, PatchTSMixerForPrediction

    return PatchTSMixerForPrediction(
        PatchTSMixerConfig(
            context_length=24,
            prediction_length=6,
            num_input_channels=3,
            d_model=8,
            num_layers=2,
            patch_length=4,
            patch_stride=4,
            scaling="std",
        )
    )


MAKERS = {"patchtst": patch_tst, "patchtsmixer": patch_mixer}


def world(kind: str, holes: bool = False) -> tuple[Bundle, Forecasting]:
    torch.manual_seed(0)
    values = _series()
    if holes:
        values[100:110, 1] = np.nan
    task = Forecasting.from_values(values, ["a", "b", "c"], 6)
    bundle = Bundle(MAKERS[kind]().eval(), None, "forecasting")
    task.check(bundle)
    return bundle, task


@pytest.mark.slow
@pytest.mark.parametrize("kind", MAKERS)
def test_every_runtime_forecasts_the_same(kind: str) -> None:
    pytest.importorskip("openvino")
    bundle, task = world(kind)
    wanted = task.evaluate(runners.build(bundle, Deploy(batch_size=32)), limit=40).value
    for deploy, allowed in (
        (Deploy(precision="bf16"), 0.02), (Deploy("openvino"), 1e-4), (Deploy("openvino", "bf16"), 0.02),
        (Deploy("openvino", "int8"), 0.1),
    ):  # fmt: skip
        runner = runners.build(bundle, deploy, task.calibration(24))
        assert task.evaluate(runner, limit=40).value == pytest.approx(wanted, rel=allowed), str(deploy)
        runner.close()


@pytest.mark.slow
def test_onnx_runtime_forecasts_the_same() -> None:
    pytest.importorskip("onnxruntime")
    bundle, task = world("patchtst")
    wanted = task.evaluate(runners.build(bundle, Deploy()), limit=40).value
    runner = runners.build(bundle, Deploy("onnxruntime"))
    assert task.evaluate(runner, limit=40).value == pytest.approx(wanted, rel=1e-4)


def test_a_mask_is_an_input_of_the_graph() -> None:
    pytest.importorskip("openvino")
    bundle, task = world("patchtst", holes=True)
    runner = runners.build(bundle, Deploy("openvino"))
    assert set(runner.inputs) == {"past_values", "past_observed_mask"}
    wanted = task.evaluate(runners.build(bundle, Deploy()), "search").value
    assert task.evaluate(runner, "search").value == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("kind", [pytest.param("patchtst", marks=pytest.mark.slow), "patchtsmixer"])
def test_a_saved_folder_opens_and_passes_the_reload_check(kind: str, tmp_path) -> None:
    """Plain transformers opens the folder; the check compares forecasts without lightformers in the process."""
    bundle, task = world(kind)
    assert huggingface.save(bundle, tmp_path / "m") == []
    again = lf.load(tmp_path / "m")
    assert again.task == "forecasting" and again.processor == bundle.processor
    batch = task.splits["verify"][:3]
    with torch.no_grad():
        one, two = (b.module()(**b.collate(batch).inputs).prediction_outputs for b in (bundle, again))
    torch.testing.assert_close(one, two)
    (found,) = reload.check(tmp_path / "m", task.workload(40), bundle, rounds=1)
    assert found["ok"] and found["format"] == "transformers" and found["max_difference"] < 1e-5, found
    with torch.no_grad():
        list(again.model.parameters())[-1].add_(0.1)
    huggingface.save(again, tmp_path / "m")
    (bad,) = reload.check(tmp_path / "m", task.workload(40), bundle, rounds=1)
    assert not bad["ok"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", MAKERS)
def test_graphs_pass_the_reload_check(kind: str, tmp_path) -> None:
    pytest.importorskip("openvino")
    bundle, task = world(kind)
    huggingface.save(bundle, tmp_path)
    openvino.save(bundle, Deploy("openvino", "int8"), tmp_path, task.calibration(24))
    onnx.save(bundle, Deploy("onnxruntime"), tmp_path)
    held = json.loads((tmp_path / "openvino" / "deploy.json").read_text())
    assert held["output"] == "prediction" and held["inputs"] == ["past_values"]
    probes = task.workload(40)
    runner = runners.openvino_folder(tmp_path / "openvino", bundle)
    expected = {"openvino": reload.record(bundle, probes, runner)}
    for found in reload.check(tmp_path, probes, bundle, expected, rounds=1):
        assert found["ok"], found
    wanted = task.evaluate(runners.build(bundle, Deploy()), limit=40).value
    assert task.evaluate(runner, limit=40).value == pytest.approx(wanted, rel=0.1)


def test_what_a_graph_is_traced_with_and_how_it_is_used(tmp_path) -> None:
    bundle, _ = world("patchtst")
    inputs = graph.sample(bundle, None)
    assert {k: tuple(v.shape) for k, v in inputs.items()} == {"past_values": (2, 24, 3)}
    assert graph.output_name(bundle) == "prediction"
    with torch.no_grad():
        assert set(graph.ready(bundle)(**inputs)) == {"prediction"}
    huggingface.save(bundle, tmp_path)
    (snippet,) = card.snippets(bundle, tmp_path, str(tmp_path))
    room: dict = {"values": _series()[:24]}
    exec(snippet["code"], room)
    assert room["outputs"].prediction_outputs.shape == (1, 6, 3)
    assert "pipeline_tag: time-series-forecasting" in card.write(bundle, tmp_path).read_text()
