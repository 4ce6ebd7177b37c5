"""Tests of the door to elastic models use the worlds of the steps, and share one that is trained."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

_COMPRESS = Path(__file__).parent.parent / "compress"
sys.path[:0] = [str(_COMPRESS), str(_COMPRESS / "elastic")]


@pytest.fixture(scope="session")
def trained() -> tuple[Any, Any, Any]:
    """A tiny classifier, trained elastic without labels; the model it came from, untouched; its task."""
    import elastic_world
    import steps_world as world

    from lightformers.compress.elastic.matformer import MatFormer
    from lightformers.elastic import Elastic
    from lightformers.steps import Run

    original, task = world.bundle("bert-classifier"), elastic_world.classification(32)
    task.check(original)
    before = {k: v.clone() for k, v in original.model.state_dict().items()}
    method = MatFormer(ratios=(0.25, 0.5, 1.0), lr=2e-3, max_tokens=400, examples=16)
    made = Elastic.train(original, task, method, Run(dtype="fp32", tokens=3000))
    assert all(torch.equal(v, before[k]) for k, v in original.model.state_dict().items())
    assert not torch.equal(made.bundle.model.state_dict()["classifier.weight"], before["classifier.weight"])
    return made, original, task
