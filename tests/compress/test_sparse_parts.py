"""Layers without their zeros: equal to the dense ones, trainable, saved small, rebuilt exactly."""

from __future__ import annotations

from pathlib import Path

import pytest
import steps_world as world
import torch

import lightformers as lf
from lightformers import anatomy, manifest
from lightformers.compress import EssentialSparsity, GradualMagnitude, PackSparse
from lightformers.compress.layers import linears
from lightformers.compress.prune import masks
from lightformers.compress.prune.essential_sparsity import shares
from lightformers.compress.prune.pack import packed
from lightformers.errors import ModelError
from lightformers.parts.sparse import (
    BlockSparseLinear,
    NOfMLinear,
    pack_bits,
    place_bits,
    stored_bytes,
    unpack_bits,
)
from lightformers.steps import Recipe, Run


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("count", [1, 7, 8, 33])
def test_bits_round_trip(bits: int, count: int) -> None:
    numbers = torch.randint(0, 2**bits, (count,), dtype=torch.uint8)
    held = pack_bits(numbers, bits)
    assert len(held) == -(-count * bits // 8)
    assert torch.equal(unpack_bits(held, bits, count), numbers)


def test_the_lowest_bits_come_first() -> None:
    """The layout of files that are already written."""
    numbers = torch.tensor([1, 0, 1, 1, 0, 0, 0, 0, 1], dtype=torch.uint8)
    assert pack_bits(numbers, 1).tolist() == [0b00001101, 1]
    assert pack_bits(torch.tensor([3, 0, 2, 1, 2], dtype=torch.uint8), 2).tolist() == [0b01100011, 2]
    assert pack_bits(torch.tensor([15, 4, 9], dtype=torch.uint8), 4).tolist() == [0x4F, 9]


def sparse(n: int, m: int, shape: tuple[int, int] = (6, 16)) -> torch.Tensor:
    torch.manual_seed(0)
    weight = torch.randn(shape)
    return weight * masks.n_of_m({"a": weight.abs()}, n, m)["a"]


def layers() -> list[torch.nn.Module]:
    bias = torch.randn(6)
    weight = torch.randn(6, 16) * (torch.rand(6, 16) > 0.7)
    return [
        NOfMLinear.from_weight(sparse(2, 4), bias, 2, 4),
        NOfMLinear.from_weight(sparse(1, 8), None, 1, 8),
        NOfMLinear.from_weight(sparse(3, 16), bias, 4, 16),  # fewer values than there is room for
        BlockSparseLinear.from_weight(weight, bias),
        BlockSparseLinear.from_weight(sparse(1, 4).repeat_interleave(4, 1)[:, :16], None, 4),
        BlockSparseLinear.from_weight(torch.zeros(6, 16), bias, 8),
    ]


@pytest.mark.parametrize("place", range(6))
def test_layer_is_the_dense_one(place: int) -> None:
    layer = layers()[place]
    dense, x = layer.dense().detach(), torch.randn(2, 3, 16)
    assert torch.equal(layer(x), torch.nn.functional.linear(x, dense, layer.bias))
    again = type(layer)(**layer.args)
    again.load_state_dict(layer.state_dict(), assign=True)
    assert torch.equal(again(x), layer(x))
    # gradients: those of the dense layer, where there is a weight
    layer(x).square().sum().backward()
    free = dense.clone().requires_grad_()
    torch.nn.functional.linear(x, free, layer.bias).square().sum().backward()
    if layer.values.numel():
        before = layer.dense().detach().clone()
        with torch.no_grad():
            layer.values -= layer.values.grad
        torch.testing.assert_close(layer.dense(), torch.where(layer.dense() != 0, before - free.grad, 0.0))
    assert layer.bfloat16()(x.bfloat16()).dtype == torch.bfloat16


def test_sizes_are_what_is_promised() -> None:
    half = NOfMLinear.from_weight(sparse(2, 4, (64, 64)), None, 2, 4)
    assert stored_bytes(half) == 64 * 32 * 4 + 64 * 32 // 4  # values, and two bits each
    block = torch.zeros(64, 64)
    block[:, :4] = 1.0
    assert stored_bytes(BlockSparseLinear.from_weight(block, None, 4)) == 64 * 4 * 4 + 64 * 16 // 8
    assert [place_bits(m) for m in (2, 3, 4, 8, 16, 17)] == [1, 2, 2, 4, 4, 8]


def test_the_smallest_form_is_taken() -> None:
    assert isinstance(packed(sparse(2, 4, (32, 32)), None), NOfMLinear)
    block = torch.zeros(32, 32)
    block[::4, 8:16] = 1.0
    found = packed(block, torch.zeros(32))
    assert isinstance(found, BlockSparseLinear) and found.block == 8
    scattered = torch.randn(32, 32) * (torch.rand(32, 32) > 0.8)
    assert packed(scattered, None).block == 1  # type: ignore[union-attr]
    assert packed(torch.randn(32, 32), None) is None


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama", "t5", "vit"])
@pytest.mark.parametrize("step", [EssentialSparsity(n_of_m=(2, 4)), GradualMagnitude(0.8, block=4)])
def test_packed_models_give_the_same_and_reload(family: str, step: lf.Step, tmp_path: Path) -> None:
    original = world.bundle(family)
    plain = Recipe([step]).apply(original)
    small = Recipe([step, PackSparse()]).apply(original)
    assert torch.equal(world.outputs(small), world.outputs(plain))
    assert small.parameters < original.parameters
    # on disk, and back
    manifest.write_manifest(small, tmp_path)
    size = (tmp_path / manifest.WEIGHTS).stat().st_size
    rebuilt = small.copy()
    rebuilt.model = manifest.build_from_manifest(tmp_path, small.model.config)
    assert torch.equal(world.outputs(rebuilt), world.outputs(small))
    manifest.write_manifest(plain, tmp_path / "plain")
    saved = sum(anatomy.linear(plain.model, p)[0].numel() for p in linears(anatomy.of(plain.model))) * 4
    share = 0.5 + 1 / 32 if isinstance(step, EssentialSparsity) else 0.2 + 1 / 128
    assert (tmp_path / "plain" / manifest.WEIGHTS).stat().st_size - size == pytest.approx(
        (1 - share) * saved, rel=0.1
    )


def test_packed_zeros_stay_through_training() -> None:
    small = Recipe([EssentialSparsity(0.6), PackSparse(("ffn",))]).apply(world.bundle())
    paths = linears(anatomy.of(small.model), ["ffn"])
    zero = {p: anatomy.get(small.model, p).dense() == 0 for p in paths}
    updater = torch.optim.AdamW(small.model.parameters(), lr=0.05)
    for _ in range(2):
        updater.zero_grad()
        world.outputs(small).square().mean().backward()
        updater.step()
    for p in paths:
        dense = anatomy.get(small.model, p).dense()
        assert not dense[zero[p]].any() and (dense[~zero[p]] != 0).float().mean() > 0.99
    assert shares(Recipe([EssentialSparsity(0.6)]).apply(world.bundle()).model)["prunable"] > 0.59


def test_bad_input_is_refused() -> None:
    with pytest.raises(ModelError, match="sparse enough"):
        PackSparse().apply(world.bundle(), None, Run())
    with pytest.raises(ValueError, match="more than 2 of 4"):
        NOfMLinear.from_weight(torch.ones(4, 8), None, 2, 4)
    with pytest.raises(ValueError, match="do not divide"):
        BlockSparseLinear.from_weight(torch.ones(4, 10), None, 4)
