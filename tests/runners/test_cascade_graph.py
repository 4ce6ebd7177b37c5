"""A cascade in OpenVINO answers as in torch, whether some rows or none go to the second model."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import lightformers as lf
from lightformers import runners
from lightformers.bundle import Bundle
from lightformers.compress import Cascade, DropBlocks
from lightformers.steps import Deploy, Recipe, Run

pytest.importorskip("openvino")
pytest.importorskip("nncf")
sys.path.insert(0, str(Path(__file__).parents[1] / "slim"))
import test_slim as texts


@pytest.fixture(scope="module")
def trained() -> Bundle:
    return texts.classifier(texts.examples(400, 1), steps=20)


def logits(outputs, batch) -> list:
    return list(outputs["logits"].float().numpy())


@pytest.mark.parametrize("share", [0.0, 0.4])
def test_as_in_torch(trained: Bundle, share: float, tmp_path: Path) -> None:
    examples = texts.examples(48, 3)
    made = Recipe([DropBlocks(blocks=(0, 1)), Cascade(0.5)]).apply(trained, None, Run())
    first = lf.runners.build(Bundle(made.model.first, made.processor, made.task, max_length=64))
    probabilities = np.sort([torch.softmax(torch.tensor(row), -1).max() for row in first(examples, logits)])
    made.model.config.sure = float(probabilities[int(share * 47)] + 1e-4) if share else 0.0
    wanted = np.stack(runners.build(made)(examples, logits))
    deploy = Deploy("openvino", "fp32", "sorted", batch_size=7)
    runner = runners.build(made, deploy)
    assert np.abs(np.stack(runner(examples, logits)) - wanted).max() < 1e-4
    runner.close()
    if not share:
        return
    lf.export.save_openvino(made, deploy, tmp_path)
    opened = runners.openvino_folder(tmp_path / "openvino", made)
    assert np.abs(np.stack(opened(examples, logits)) - wanted).max() < 1e-4
    opened.close()


def test_both_models_are_quantized(trained: Bundle) -> None:
    examples = texts.examples(24, 4)
    made = Recipe([DropBlocks(blocks=(0, 1)), Cascade(0.9)]).apply(trained, None, Run())
    deploy = Deploy("openvino", "int8", "sorted", batch_size=8)
    runner = runners.build(made, deploy, examples)
    held = [op.get_friendly_name() for op in runner.model.get_ops() if op.get_type_name() == "FakeQuantize"]
    assert len(held) >= 2 * 6 * 2
    told = [int(np.argmax(row)) for row in runner(examples, logits)]
    plain = [int(np.argmax(row)) for row in runners.build(made)(examples, logits)]
    assert np.mean(np.array(told) == np.array(plain)) > 0.9
    runner.close()
