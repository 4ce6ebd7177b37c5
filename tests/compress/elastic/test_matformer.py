"""MatFormer: nested feed-forwards, mixtures, what is trained in a step, and what comes out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import elastic_world
import numpy as np
import pytest
import steps_world as world
import torch
import transformers as T
from torch import Tensor, nn

import lightformers as lf
from lightformers import anatomy, export
from lightformers.bundle import Batch, Bundle
from lightformers.compress.elastic import matformer, order
from lightformers.compress.elastic.matformer import MatFormer, Nested, mix_and_match, mixtures
from lightformers.compress.elastic.shared import Shared
from lightformers.compress.elastic.size import Nesting, Size, cut
from lightformers.errors import ModelError, UserError
from lightformers.steps import Run

QUARTERS = MatFormer(ratios=(0.25, 0.5, 1.0), sort=False)


def sub(bundle: Bundle, size: Size) -> Bundle:
    small = bundle.copy()
    cut(small.model, size, Nesting())
    return small


def test_a_granularity_is_the_first_units_of_each_matrix() -> None:
    x = torch.randn(2, 5, world.WIDTH, generator=torch.Generator().manual_seed(0))
    gpt, size = world.bundle("gpt2"), Size(4, (4,) * 4, (16, 64, 32, 8), 32)
    for whole, small in zip(gpt.model.transformer.h, sub(gpt, size).model.transformer.h):
        m = small.mlp.c_fc.weight.shape[1]
        inner = whole.mlp.act(x @ whole.mlp.c_fc.weight[:, :m] + whole.mlp.c_fc.bias[:m])
        assert torch.allclose(
            small.mlp(x), inner @ whole.mlp.c_proj.weight[:m] + whole.mlp.c_proj.bias, atol=1e-5
        )
    llama = world.bundle("llama")
    for whole, small in zip(llama.model.model.layers, sub(llama, size).model.model.layers):
        m, parts = small.mlp.up_proj.weight.shape[0], whole.mlp
        inner = parts.act_fn(x @ parts.gate_proj.weight[:m].T) * (x @ parts.up_proj.weight[:m].T)
        assert torch.allclose(small.mlp(x), inner @ parts.down_proj.weight[:, :m].T, atol=1e-5)


@pytest.mark.parametrize("family", elastic_world.FAMILIES)
def test_order_changes_no_output_and_puts_what_matters_first(family: str) -> None:
    bundle, task = world.bundle(family), elastic_world.lessons(family)
    forward = anatomy.of(bundle.model).blocks[1].feed_forward
    down = anatomy.linear(bundle.model, forward.down)[0]
    with torch.no_grad():
        down[:, 50] *= 40  # planted: block 1 writes most with channel 50
    before = world.outputs(bundle, task.splits["verify"][:4])
    ranks = order.channel_order(bundle, task, Run(dtype="fp32"), 12)
    order.reorder_channels(bundle.model, ranks)
    after = world.outputs(bundle, task.splits["verify"][:4])
    assert torch.allclose(after, before, atol=1e-4)
    assert ranks[1][0] == 50 and all(ranks[i] != list(range(64)) for i in range(4))
    moved = down.norm(dim=0)
    assert int(moved.argmax()) == 0
    with pytest.raises(ModelError, match="each of its inner channels once"):
        order.reorder_channels(bundle.model, {0: [0] * 64})


def test_mixtures_change_least_and_never_fall_with_depth() -> None:
    space = MatFormer().space(world.bundle("gpt2"))
    assert space.channels == (8, 16, 32, 64) and space.count == 4**4
    rows = [size.channels for size in mixtures(space)]
    assert len(rows) == len(set(rows)) == 3 * 4 + 1
    assert rows[:5] == [(8, 8, 8, 8), (8, 8, 8, 16), (8, 8, 16, 16), (8, 16, 16, 16), (16,) * 4]
    assert all(tuple(sorted(row)) == row and len(set(row)) <= 2 for row in rows)
    assert [sum(row) for row in rows] == sorted(sum(row) for row in rows)
    assert all(size in space for size in mixtures(space))
    assert mix_and_match(space, 10**6) == space.largest and mix_and_match(space, 32) == space.smallest
    assert mix_and_match(space, 127).channels == (16, 32, 32, 32)
    with pytest.raises(UserError, match="the smallest has 32"):
        mix_and_match(space, 31)


def _distance(module: nn.Module, batch: Batch) -> Tensor:
    return module(**batch.inputs)["logits"].square().mean()


def test_a_step_draws_one_granularity_or_weighs_them_all() -> None:
    bundle = world.bundle("bert-classifier")
    space, shared = QUARTERS.space(bundle), Shared(bundle)
    sizes, module = matformer.granularities(space), bundle.module()
    assert [size.channels for size in sizes] == [(16,) * 4, (32,) * 4, (64,) * 4]
    batch = bundle.collate(world.task().splits["train"][:2])

    def at(position: int) -> Batch:
        return Batch(batch.inputs, batch.targets | {"position": position})

    each = [float(_distance(sub(bundle, size).model, batch).detach()) for size in sizes]
    drawing = Nested(shared, sizes, _distance, seed=3)
    found = [float(drawing(module, at(i)).detach()) for i in range(24)]
    assert found == pytest.approx([each[i] for i in drawing.drawn], rel=1e-4)
    assert set(drawing.drawn) == {0, 1, 2}
    again = Nested(shared, sizes, _distance, seed=3)
    again(module, at(17))
    assert again.drawn == [drawing.drawn[17]]  # a function of seed and position alone
    never = Nested(shared, sizes, _distance, weights=(0.0, 3.0, 1.0))
    [never(module, at(i)) for i in range(24)]
    assert set(never.drawn) == {1, 2} and never.drawn.count(1) > never.drawn.count(2)
    joint = Nested(shared, sizes, _distance, "joint", (1.0, 2.0, 1.0))
    assert float(joint(module, at(0)).detach()) == pytest.approx(np.dot(each, (0.25, 0.5, 0.25)), rel=1e-4)


def test_nested_training_makes_small_sizes_work_where_slicing_does_not() -> None:
    """Planted: feed-forwards that matter. A classifier is learnt from labels; its smallest size is nested, or sliced."""
    task = elastic_world.classification()
    method = MatFormer(ratios=(0.125, 1.0), sort=False, lr=3e-3, max_tokens=400)
    losses = {}
    for name in ("nested", "plain"):
        bundle = elastic_world.two_blocks(feed_forward=4.0)
        task.check(bundle)
        space = method.space(bundle)
        run = Run(dtype="fp32", tokens=16_000, use_labels=True)
        if name == "nested":
            method.train(bundle, task, run)
        else:
            elastic_world.plainly(bundle, task, tokens=16_000)
        batch = bundle.collate(task.splits["verify"])
        for size in (space.smallest, space.largest):
            with torch.no_grad():
                losses[name, size.channels[0]] = float(
                    task.loss(sub(bundle, size).model(**batch.inputs), batch)
                )
    assert losses["plain", 64] < 0.15 and losses["nested", 64] < 0.15
    assert losses["nested", 8] < 0.5 * losses["plain", 8]


@pytest.mark.parametrize("family", elastic_world.FAMILIES)
def test_families_learn_from_the_teacher_without_labels(family: str) -> None:
    original, task = world.bundle(family), elastic_world.lessons(family)
    before = {k: v.clone() for k, v in original.model.state_dict().items()}
    method = MatFormer(ratios=(0.25, 1.0), lr=1e-3, examples=8, mode="joint")
    work = original.copy()
    tokens = 6 * sum(original.length(e) for e in original.encode(task.training_examples(False)))
    space = method.space(work)
    start = original.copy()
    order.reorder_channels(start.model, order.channel_order(start, task, Run(dtype="fp32"), 8))
    rows = task.training_examples(False)[:6]
    goal = world.outputs(original, rows)
    far = (world.outputs(sub(start, space.smallest), rows) - goal).norm()
    method.train(work, task, Run(teacher=original, dtype="fp32", tokens=tokens))
    near = (world.outputs(sub(work, space.smallest), rows) - goal).norm()
    assert near < 0.95 * far
    assert all(torch.equal(v, before[k]) for k, v in original.model.state_dict().items())
    assert not work.model.training


@pytest.mark.parametrize("channels", [(16,) * 4, (16, 16, 32, 64)])
def test_an_extracted_size_reloads_with_equal_outputs(channels: tuple[int, ...], tmp_path: Path) -> None:
    bundle = world.bundle("llama")
    bundle.task = "causal-lm"
    small = sub(bundle, Size(4, (4,) * 4, channels, 32))
    mixed = len(set(channels)) > 1
    reasons = export.save(small, tmp_path / "small", allow_custom=mixed)
    assert bool(reasons) == mixed
    again = lf.load(tmp_path / "small", task="causal-lm")
    batch = small.collate(world.task().splits["verify"][:3])
    mine = Shared(bundle)(Size(4, (4,) * 4, channels, 32), **batch.inputs)["logits"]
    assert torch.allclose(again.model(**batch.inputs)["logits"], mine, atol=1e-5)


def test_weights_are_those_that_were_counted() -> None:
    """The shape of Llama-3.2-1B, whole and at an eighth of its inner channels; nothing is allocated."""
    config = T.LlamaConfig(
        vocab_size=128_256, hidden_size=2048, num_hidden_layers=16, num_attention_heads=32, num_key_value_heads=8,
        intermediate_size=8192, head_dim=64, tie_word_embeddings=True,
    )  # fmt: skip
    with torch.device("meta"):
        bundle = Bundle(T.LlamaForCausalLM(config), task="causal-lm")
    space = MatFormer().space(bundle)
    shared = Shared(bundle)
    assert space.largest.channels[0] == 8192 and space.smallest.channels[0] == 1024
    assert shared.parameters_of(space.largest) == bundle.parameters == 1_235_814_400
    assert shared.parameters_of(space.smallest) == 531_171_328


def test_bad_input() -> None:
    bad: list[tuple[dict[str, Any], str]] = [
        ({"ratios": (0.5, 0.25, 1.0)}, "rise"),
        ({"ratios": (0.0, 1.0)}, "rise"),
        ({"ratios": (0.5, 1.5)}, "rise"),
        ({"ratios": (0.25, 0.5)}, "up to 1"),
        ({"weights": (1.0,)}, "as many as ratios"),
        ({"mode": "each"}, "sample, joint"),
    ]
    for fields, why in bad:
        with pytest.raises(UserError, match=why):
            MatFormer(**fields)
    bundle = world.bundle("bert-classifier")
    before = {k: v.clone() for k, v in bundle.model.state_dict().items()}
    with pytest.raises(ModelError, match=r"no granularity of 6\.4 channels"):
        MatFormer(ratios=(0.1, 1.0)).space(bundle)
    with pytest.raises(UserError, match="needs a task"):
        MatFormer().train(bundle, None, Run())
    with pytest.raises(UserError, match="learns from a teacher"):
        MatFormer().train(bundle, elastic_world.classification(), Run())
    with pytest.raises(ModelError, match="one model"):
        MatFormer().train(bundle, elastic_world.classification(), Run(teacher=bundle))
    assert all(torch.equal(v, before[k]) for k, v in bundle.model.state_dict().items())
