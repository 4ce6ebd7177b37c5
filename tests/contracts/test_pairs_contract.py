"""Every two steps whose stages allow it, one after the other: the result works and reloads, or the second refuses.

By default one step of each stage followed by one of the next; `-m slow` runs all pairs.
"""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from test_steps_contract import QUIET, REFUSED, STEPS, world
from transformers import ViTImageProcessor

from lightformers import export
from lightformers.bundle import Bundle, load
from lightformers.errors import ModelError, UserError
from lightformers.steps import Recipe

FAMILIES = ("bert", "llama", "t5", "vit")
CHAIN = ("DropBlocks", "PruneChannels", "LowRank", "TrimVocabulary", "EssentialSparsity", "LLMInt8")
PAIRS = [(a, b) for a, b in itertools.product(STEPS, STEPS) if a != b and STEPS[a].stage <= STEPS[b].stage]


@pytest.fixture(scope="module")
def bundles() -> dict[str, Bundle]:
    return {family: world.bundle(family) for family in FAMILIES}


def parameters() -> list[Any]:
    quick = set(itertools.pairwise(CHAIN))
    return [
        pytest.param(a, b, f, id=f"{a}+{b}-{f}", marks=() if (a, b) in quick else pytest.mark.slow)
        for a, b in PAIRS
        for f in FAMILIES
        if (a, f) not in REFUSED  # the contract of single steps holds these to their reasons
    ]


@pytest.mark.parametrize(("first", "second", "family"), parameters())
def test_pair(first: str, second: str, family: str, bundles: dict[str, Bundle], tmp_path: Path) -> None:
    task = world.task(family)
    half = Recipe([STEPS[first]]).apply(bundles[family], task, QUIET)
    before = {k: v.clone() for k, v in half.model.state_dict().items()}
    try:
        made = STEPS[second].apply(half, task, dataclasses.replace(QUIET, teacher=bundles[family]))
    except (ModelError, UserError) as refusal:
        assert len(str(refusal)) > 15  # says why
        after = half.model.state_dict()  # and has changed nothing
        assert set(after) == set(before) and all(torch.equal(v, before[k]) for k, v in after.items())
        return

    out = world.outputs(made)
    assert torch.isfinite(out).all()
    trained = made.copy()
    trained.model.train(False).requires_grad_(True)
    world.outputs(trained).square().sum().backward()
    gradients = [p.grad for p in trained.model.parameters() if p.grad is not None]
    assert gradients and all(torch.isfinite(g).all() for g in gradients)

    # the image processor of the small world is no file
    processor = ViTImageProcessor(size={"height": 16, "width": 16}) if family == "vit" else made.processor
    export.save(dataclasses.replace(made, processor=processor), tmp_path / "made", allow_custom=True)
    back = load(tmp_path / "made", task=made.task)
    assert torch.equal(world.outputs(dataclasses.replace(back, processor=made.processor)), out)
