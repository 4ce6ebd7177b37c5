"""FuseGPT: influence, groups, the fused layer, the step."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import steps_world as world
import torch
from torch import nn

from lightformers import anatomy
from lightformers.bundle import Bundle
from lightformers.compress import DropBlocks, FuseBlocks, calibration
from lightformers.compress.fold.blocks import play, trace
from lightformers.compress.fold.fused import FusedLinear, group_of, influence
from lightformers.compress.fold.fusegpt import macro_influences
from lightformers.errors import ModelError, UserError
from lightformers.manifest import build_from_manifest, write_manifest
from lightformers.steps import Recipe, Run

SMALL: dict[str, Any] = {
    "group": 4,
    "rank": 4,
    "examples": 16,
    "scoring": 8,
    "epochs": 6.0,
    "lr": 1e-2,
    "base_lr": 1e-3,
}
QUIET = Run(dtype="fp32")


def blocks_of(bundle: Bundle) -> list[nn.Module]:
    return [anatomy.get(bundle.model, b.path) for b in anatomy.of(bundle.model).blocks]


def gap(bundle: Bundle, original: Bundle) -> float:
    return float((world.outputs(bundle) - world.outputs(original)).detach().norm())


def test_groups_are_those_of_the_card() -> None:
    def literal(p: int, size: int, depth: int) -> list[int]:
        if size > depth:
            return list(range(depth))
        if p == 0:
            return list(range(size))
        t = p - 1
        if t - (size // 2 - 1) < 0:
            return list(range(size))
        if p + (size // 2 - 1) > depth - 1:
            return list(range(depth - size, depth))
        return list(range(t - (size // 2 - 1), p + (size // 2 - 1) + 1))

    for depth in (1, 2, 5, 8, 32):
        for size in (2, 4, 8):
            for p in range(depth):
                assert list(group_of(p, size, depth)) == literal(p, size, depth)
    assert list(group_of(3, 3, 6)) == [2, 3, 4]


def test_the_fused_layer_is_the_literal_sum() -> None:
    torch.manual_seed(0)
    weight, bias, other, other_bias = torch.randn(5, 7), torch.randn(5), torch.randn(5, 7), torch.randn(5)
    layer, x = FusedLinear(weight, bias, other, other_bias, 3), torch.randn(2, 4, 7)
    torch.testing.assert_close(layer(x), nn.functional.linear(x, weight, bias))
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_()
    (b, a), (lb, la), c = layer.coefficients, layer.lora, layer.bias_coefficient
    want = torch.zeros(5, 7)
    for o in range(5):
        for i in range(7):
            want[o, i] = weight[o, i] + lb[o] @ la[:, i] + (b[o] @ a[:, i]) * other[o, i]
    torch.testing.assert_close(
        layer(x), nn.functional.linear(x, want.detach(), (bias + c * other_bias).detach())
    )
    assert set(dict(layer.named_buffers())) == {"base", "injected", "base_bias", "injected_bias"}
    assert FusedLinear(weight, None, other, None, 50).coefficients[1].shape == (5, 7)


def test_a_removed_matrix_is_taken_in_where_a_low_rank_update_cannot() -> None:
    torch.manual_seed(0)
    weight, other, x = torch.randn(12, 10), torch.randn(12, 10), torch.randn(200, 10)
    lost = {}
    for name, fields in (("inject", {"lora": False}), ("lora", {"inject": False})):
        layer = FusedLinear(weight, None, other, None, 1, **fields)
        optimizer = torch.optim.Adam(layer.parameters(), lr=0.02)
        for _ in range(300):
            optimizer.zero_grad()
            loss = (layer(x) - x @ (weight + other).T).square().mean()
            loss.backward()
            optimizer.step()
        lost[name] = float(loss.detach())
    assert lost["inject"] < 0.01 * lost["lora"]


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama", "t5", "vit"])
def test_blocks_played_alone_give_what_the_model_gives(family: str) -> None:
    bundle, task = world.bundle(family), world.task(family)
    blocks = blocks_of(bundle)
    batch = calibration.batches(bundle, task.calibration(6))[0]
    one = trace(bundle.model, bundle.module(), blocks, batch)
    with torch.no_grad():
        torch.testing.assert_close(play(blocks[1:], one.rest[1:], one.inputs[1]), one.output)
        if family == "t5":  # its first block serves the others with a position bias
            return
        for i in range(4):
            cut = bundle.copy()
            anatomy.surgery.keep_blocks(cut.model, [k for k in range(4) if k != i])
            less = trace(cut.model, cut.module(), blocks_of(cut), batch)
            torch.testing.assert_close(play(blocks[i + 1 :], one.rest[i + 1 :], one.inputs[i]), less.output)


def test_influence_finds_the_block_that_does_nothing() -> None:
    bundle = world.bundle("gpt2")
    with torch.no_grad():
        for name in ("attention.o", "feed_forward.down"):
            block = anatomy.of(bundle.model).blocks[2]
            part, leaf = name.split(".")
            weight, bias = anatomy.linear(bundle.model, getattr(getattr(block, part), leaf))
            weight.zero_()
            bias.zero_()
    values = macro_influences(
        bundle, blocks_of(bundle), calibration.batches(bundle, world.task().calibration(6))
    )
    assert values[2] == pytest.approx(0, abs=1e-6) and min(v for i, v in enumerate(values) if i != 2) > 1e-3
    edited = Recipe([FuseBlocks(**SMALL)]).apply(bundle, world.task(), QUIET)
    assert edited.origin.blocks == {"decoder": (0, 1, 3)} and gap(edited, bundle) < 0.05 * float(
        world.outputs(bundle).detach().norm()
    )
    torch.manual_seed(0)
    a, b = torch.randn(5, 4), torch.randn(5, 4)
    want = 1 - sum(float(a[i] @ b[i] / a[i].norm() / b[i].norm()) for i in range(5)) / 5
    assert influence(a, b) == pytest.approx(want, abs=1e-6)


@pytest.mark.parametrize("family", ["bert", "bert-classifier", "gpt2", "llama", "t5", "vit"])
def test_every_family(family: str, tmp_path: Path) -> None:
    original, task = world.bundle(family), world.task(family)
    before = {k: v.clone() for k, v in original.model.state_dict().items()}
    step = FuseBlocks(**SMALL | {"epochs": 1.0})
    edited = Recipe([step]).apply(original, task, QUIET)
    assert len(anatomy.of(edited.model).blocks) == 3 and torch.isfinite(world.outputs(edited)).all()
    assert all(torch.equal(v, before[k]) for k, v in original.model.state_dict().items())
    assert not any(isinstance(m, FusedLinear) for m in edited.model.modules()) and not edited.model.training
    assert not anatomy.native_reasons(edited.model)
    write_manifest(edited, tmp_path)
    again = edited.copy()
    again.model = build_from_manifest(tmp_path, edited.model.config)
    assert torch.equal(world.outputs(again), world.outputs(edited))
    world.outputs(again).square().sum().backward()


def test_tuning_beats_mere_removal_and_folding_changes_nothing() -> None:
    original, task = world.bundle("gpt2"), world.task()
    dropped = Recipe([FuseBlocks(**SMALL | {"epochs": 0.0})]).apply(original, task, QUIET)
    kept = dropped.origin.blocks["decoder"]
    plain = Recipe([DropBlocks(blocks=kept)]).apply(original)
    assert torch.equal(world.outputs(plain), world.outputs(dropped))
    for loss in ("kl", "mse", "batch-kl"):
        fused = Recipe([FuseBlocks(**SMALL, loss=loss)]).apply(original, task, QUIET)  # type: ignore[arg-type]
        assert fused.origin.blocks["decoder"] == kept
        batch = calibration.batches(original, task.calibration(16))[0]
        last = [trace(b.model, b.module(), blocks_of(b), batch).output for b in (original, dropped, fused)]
        distance = [
            float(FuseBlocks(loss=loss).distance(s, last[0], batch.inputs["attention_mask"]))
            for s in last[1:]
        ]  # type: ignore[arg-type]
        assert distance[1] < (0.8 if loss != "batch-kl" else 1.0) * distance[0]
    same = Recipe([FuseBlocks(**SMALL)]).apply(original, task, QUIET)
    assert torch.equal(
        world.outputs(same), world.outputs(Recipe([FuseBlocks(**SMALL)]).apply(original, task, QUIET))
    )


def test_folding_equals_the_fused_layers() -> None:
    bundle = world.bundle("gpt2")
    twin = copy.deepcopy(bundle)
    path = anatomy.of(bundle.model).blocks[1].attention.qkv
    other = anatomy.linear(bundle.model, anatomy.of(bundle.model).blocks[2].attention.qkv)
    layer = FusedLinear(*anatomy.linear(bundle.model, path), *other, 4)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(0, 0.1)
        weight, bias = layer.merged()
        anatomy.linear(twin.model, path)[0].copy_(weight)
        anatomy.linear(twin.model, path)[1].copy_(bias)
    anatomy.surgery.replace(bundle.model, path, layer)
    torch.testing.assert_close(world.outputs(bundle), world.outputs(twin), rtol=1e-4, atol=1e-5)


def test_several_removals_and_budgets() -> None:
    original, task = world.bundle("llama"), world.task()
    for iterative in (True, False):
        step = FuseBlocks(**SMALL | {"rate": 0.5}, iterative=iterative)
        edited = Recipe([step]).apply(original, task, Run(dtype="fp32", tokens=400))
        sources = edited.origin.blocks["decoder"]
        assert (
            len(sources) == 2
            and len(anatomy.of(edited.model).blocks) == 2
            and list(sources) == sorted(sources)
        )
        first = min(range(4), key=macro_influences(original, blocks_of(original), calibration.batches(original, task.calibration(8))).__getitem__)  # fmt: skip
        assert first not in sources
    told: list[dict[str, Any]] = []
    Recipe([FuseBlocks(**SMALL)]).apply(original, task, Run(dtype="fp32", seconds=0.2, progress=told.append))
    assert told and 0 <= told[-1]["fraction"] < 1


def test_bad_input_is_refused_untouched() -> None:
    for fields, word in (
        ({"rate": 0.0}, "rate"), ({"rate": 1.0}, "rate"), ({"group": 1}, "group"), ({"lr": 0.0}, "lr"),
        ({"loss": "l1"}, "loss"), ({"epochs": -1.0}, "epochs"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=word):
            FuseBlocks(**fields)  # type: ignore[arg-type]
    bundle = world.bundle()
    with pytest.raises(UserError, match="task"):
        FuseBlocks(**SMALL).apply(bundle, None, QUIET)
    before = {k: v.clone() for k, v in bundle.model.state_dict().items()}
    with pytest.raises(ModelError, match="one must stay"):
        FuseBlocks(**SMALL | {"rate": 0.9}).apply(bundle, world.task(), QUIET)
    assert all(torch.equal(v, before[k]) for k, v in bundle.model.state_dict().items())
    anatomy.surgery.keep_channels(bundle.model, {1: range(20)})
    with pytest.raises(ModelError, match="other matrices"):
        FuseBlocks(**SMALL).apply(bundle, world.task(), QUIET)
