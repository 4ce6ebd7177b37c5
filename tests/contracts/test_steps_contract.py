"""Every step on every kind of model: it works under forward, backward, save and load, or refuses with a reason."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import lightformers as lf
from lightformers import compress
from lightformers.bundle import Bundle
from lightformers.errors import ModelError, UserError
from lightformers.steps import Recipe, Run, Step

sys.path.insert(0, str(Path(__file__).parent.parent / "compress"))
import steps_world as world

STEPS: dict[str, Step] = {
    "DropBlocks": compress.DropBlocks(keep=3),
    "DropBlocks influence": compress.DropBlocks(keep=2, score="influence"),
    "PruneChannels": compress.PruneChannels(keep=0.5),
    "PruneChannels global": compress.PruneChannels(keep=0.5, uniform=False, round_to=4),
    "PruneHeads": compress.PruneHeads(keep=0.5),
    "PruneWidth": compress.PruneWidth(keep=0.5),
    "ToRMSNorm": compress.ToRMSNorm(),
    "ToRMSNorm crms": compress.ToRMSNorm("crms"),
    "DenseSparse once": compress.DenseSparse(1.4, block=16, atoms=8, method="once"),
    "Greenformers": compress.Greenformers(),
    "LowRank": compress.LowRank(rank=6),
    "EssentialSparsity": compress.EssentialSparsity(sparsity=0.4),
    "GradualMagnitude": compress.GradualMagnitude(sparsity=0.5, block=4),
    "OptimalBertSurgeon": compress.OptimalBertSurgeon(sparsity=0.5, gradients=12, batch=1, fisher_block=16),
    "Minitron": compress.Minitron(blocks=0.5, heads=0.5, channels=0.5, examples=16),
    "Minitron width": compress.Minitron(width=0.5, channels=0.5, examples=16),
    "PackSparse": compress.PackSparse(),
    "LLMInt8": compress.LLMInt8(),
    "FloatQuantize": compress.FloatQuantize(candidates=4, rounds=1, rows=64),
    "BlockwiseQuantize": compress.BlockwiseQuantize(bits=4),
    "SwapAttention": compress.SwapAttention("performer", {"features": 8}),
    "SwapAttention reformer": compress.SwapAttention("reformer", {"buckets": 4, "chunk": 8}),
    "EcoFormer": compress.EcoFormer(bits=4, anchors=6, near=3, steps=2, examples=4),
    "TrimVocabulary": compress.TrimVocabulary(),
    "Cascade": compress.Cascade(sure=0.9),
}
# what a family cannot do, and a word of the reason it gives
REFUSED = {
    ("TrimVocabulary", "vit"): "tokenizer",
    ("PruneWidth", "t5"): "share one hidden size",
    ("Minitron width", "t5"): "share one hidden size",
    **{("PackSparse", family): "sparse enough" for family in world.FAMILIES},  # nothing is pruned yet
    **{("Cascade", family): "classes" for family in ("bert", "gpt2", "llama", "t5")},
    **{
        (kind, family): reason
        for kind in ("SwapAttention", "SwapAttention reformer", "EcoFormer")
        for family, reason in (("gpt2", "decoder"), ("llama", "decoder"), ("t5", "distance of two positions"))
    },
    **{
        (f"ToRMSNorm{kind}", family): reason
        for kind in ("", " crms")
        for family, reason in (
            ("bert", "post-norm"),
            ("bert-classifier", "post-norm"),
            ("llama", "no LayerNorm"),
            ("t5", "no LayerNorm"),
        )
    },
}
#: Steps that look at no data.
BLIND = (
    "EssentialSparsity", "GradualMagnitude", "PackSparse", "LLMInt8", "BlockwiseQuantize", "DenseSparse once",
    "Greenformers", "ToRMSNorm", "ToRMSNorm crms", "SwapAttention", "SwapAttention reformer", "Cascade",
)  # fmt: skip
#: Steps that train, ask for a loss, or make another architecture; their own tests hold them.
TRAINED = {
    "AdaptiveModules", "AxFormer", "DSEE", "FuseBlocks", "LocalToGlobal", "MiniLM", "MinitronRetrain", "MixedSpans", "Pela", "Recover",
    "SparsePretraining", "TeacherIntervention", "ToLong", "VTrans", "ZeroShotTokenizer",
}  # fmt: skip
QUIET = Run(dtype="fp32")


@pytest.fixture(scope="module")
def bundles() -> dict[str, Bundle]:
    return {family: world.bundle(family) for family in world.FAMILIES}


def parameters() -> list[Any]:
    return [pytest.param(s, f, id=f"{s}-{f}") for s in STEPS for f in world.FAMILIES]


def _rebuilt(edited: Bundle) -> Bundle:
    """The edited model through its state dict: the same structure with other weights, then loaded."""
    fresh = edited.copy()
    with torch.no_grad():
        for tensor in fresh.model.state_dict().values():
            tensor.zero_()
    saved = {name: tensor.clone() for name, tensor in edited.model.state_dict().items()}
    fresh.model.load_state_dict(saved, strict=True)
    return fresh


@pytest.mark.parametrize(("name", "family"), parameters())
def test_step_on_family(name: str, family: str, bundles: dict[str, Bundle]) -> None:
    step, original = STEPS[name], bundles[family]
    before = {k: v.clone() for k, v in original.model.state_dict().items()}
    task = world.task(family)
    if (name, family) in REFUSED:
        with pytest.raises((ModelError, UserError), match=REFUSED[name, family]):
            Recipe([step]).apply(original, task, QUIET)
        return
    edited = Recipe([step]).apply(original, task, QUIET)

    # the caller's model is untouched, and something was done to the copy
    assert all(torch.equal(v, before[k]) for k, v in original.model.state_dict().items())
    after = edited.model.state_dict()
    assert set(after) != set(before) or any(not _same(v, before[k]) for k, v in after.items())
    assert edited.history[-1]["step"] == type(step).__name__

    out = world.outputs(edited)
    assert torch.isfinite(out).all()
    # every parameter that is left takes part: it gets a gradient
    trained = edited.copy()
    trained.model.train(False).requires_grad_(True)
    world.outputs(trained).square().sum().backward()
    silent = [
        n for n, p in trained.model.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()
    ]
    assert not [n for n in silent if "pooler" not in n]

    assert torch.equal(world.outputs(_rebuilt(edited)), out)
    # the same seed gives the same model
    again = Recipe([step]).apply(original, task, QUIET)
    assert torch.equal(world.outputs(again), out)


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a, b)


@pytest.mark.parametrize("name", [n for n in STEPS if n not in BLIND])
def test_looking_at_data_needs_a_task(name: str, bundles: dict[str, Bundle]) -> None:
    with pytest.raises(UserError, match="task"):
        STEPS[name].apply(bundles["bert"].copy(), None, QUIET)


@pytest.mark.parametrize("name", STEPS)
def test_recipe_file_round_trip(name: str) -> None:
    recipe = lf.Recipe([STEPS[name]])
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe


def test_every_step_is_held_to_the_contract() -> None:
    public = set(compress.__all__) - TRAINED
    assert {type(s).__name__ for s in STEPS.values()} == public
    for name in public:
        kind = getattr(compress, name)
        assert dataclasses.is_dataclass(kind) and kind.__dataclass_params__.frozen and kind.__doc__
