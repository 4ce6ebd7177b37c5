"""EcoFormer as a step on encoders of transformers."""

from __future__ import annotations

from pathlib import Path

import pytest
import steps_world as world
import torch

from lightformers.compress.ecoformer import EcoFormer
from lightformers.errors import ModelError, UserError
from lightformers.manifest import build_from_manifest, write_manifest
from lightformers.parts.attention import hashing, swapped
from lightformers.parts.attention.ecoformer import unit
from lightformers.steps import Recipe, Run

STEP = EcoFormer(bits=4, anchors=6, near=3, steps=2, examples=4)
STEP_OF_LAST = EcoFormer(bits=4, anchors=6, near=3, steps=2, examples=4, blocks=(world.DEPTH - 1,))
QUIET = Run(dtype="fp32")


@pytest.mark.parametrize("family", ["bert", "vit"])
def test_codes_stand_in_for_softmax_and_are_saved(family: str, tmp_path: Path) -> None:
    original = world.bundle(family)
    before = {k: v.clone() for k, v in original.model.state_dict().items()}
    made = Recipe([STEP]).apply(original, world.task(family), QUIET)
    assert all(torch.equal(v, before[k]) for k, v in original.model.state_dict().items())
    cores = swapped.cores(made.model)
    assert len(cores) == world.DEPTH and all(bool(c.core.fitted) for c in cores.values())
    assert not made.model.training and "recovered by training" in made.history[-1]["note"]
    out = world.outputs(made)
    assert torch.isfinite(out).all() and (out - world.outputs(original)).abs().max() > 1e-3
    write_manifest(made.model, tmp_path)
    made.model.config.save_pretrained(tmp_path)
    again = made.copy()
    again.model = build_from_manifest(tmp_path, made.model.config)
    assert torch.equal(world.outputs(again), out)
    # the projection of the queries serves both, that of the keys is gone
    names = [n for n, _ in made.model.named_parameters()]
    assert any("query" in n or "q_proj" in n for n in names) and not any(
        ".key." in n or "k_proj" in n for n in names
    )


def test_a_block_does_what_is_written() -> None:
    """The last block alone, by hand from its queries and values."""
    made = STEP_OF_LAST.apply(world.bundle("vit"), world.task("vit"), QUIET)
    (core,) = swapped.cores(made.model).values()
    seen: dict[str, torch.Tensor] = {}
    core.register_forward_hook(lambda m, a, o: seen.update(q=a[0], v=a[2], out=o))
    world.outputs(made)
    h = hashing.codes(unit(seen["q"]), core.core.hash)
    assert set(h.unique().tolist()) == {-1.0, 1.0}
    alike = h @ h.transpose(-1, -2) + 5
    wanted = alike / alike.sum(-1, keepdim=True) @ seen["v"]
    torch.testing.assert_close(seen["out"], wanted, rtol=1e-4, atol=1e-5)


def test_gradients_reach_what_is_read() -> None:
    made = STEP.apply(world.bundle("vit"), world.task("vit"), QUIET)
    made.model.requires_grad_(True)
    world.outputs(made).square().sum().backward()
    silent = [n for n, p in made.model.named_parameters() if p.grad is None or not p.grad.abs().sum()]
    assert not silent


def test_what_cannot_be_done_is_refused() -> None:
    bundle = world.bundle("bert")
    with pytest.raises(UserError, match="give a task"):
        STEP.apply(bundle, None, QUIET)
    with pytest.raises(UserError, match="40 anchors"):
        EcoFormer(anchors=40, near=3, examples=1).apply(bundle, world.task(), QUIET)
    assert not swapped.cores(bundle.model)  # as it was
    with pytest.raises(ModelError, match="decoder"):
        STEP.apply(world.bundle("llama"), world.task("llama"), QUIET)
    for wrong in ({"bits": 0}, {"steps": -1}, {"value_bias": "both"}):
        with pytest.raises(UserError):
            EcoFormer(**wrong)
    assert Recipe.from_yaml(Recipe([STEP]).to_yaml()).steps == (STEP,)
