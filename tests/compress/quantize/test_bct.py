"""BCT: block arithmetic is integer arithmetic, small blocks keep what large ones lose, everything is saved packed."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import pytest
import steps_world as world
import torch
from torch import nn
from transformers import AutoConfig

from lightformers import anatomy, manifest
from lightformers.compress import BlockwiseQuantize
from lightformers.compress.quantize import bct
from lightformers.compress.quantize.formats import relative_error
from lightformers.errors import ModelError, UserError
from lightformers.parts.activation_quantizer import ActivationQuantizer
from lightformers.parts.attention import interface
from lightformers.parts.attention.interface import AttentionSettings, clipped_softmax, table_softmax
from lightformers.parts.packed_layers import PackedEmbedding, PackedLinear
from lightformers.parts.quantized_norm import QuantizedNorm, from_norm
from lightformers.steps import Recipe, Run


def test_product_of_blocks_is_integer_arithmetic() -> None:
    """int32 sums inside every pair of blocks, shifted and added: what integer hardware does."""
    torch.manual_seed(0)
    x, weight, side = torch.randn(3, 20) * torch.logspace(-3, 2, 20), torch.randn(7, 20), 8
    reader = ActivationQuantizer("int8", "block", side, power_of_two=True)
    layer = PackedLinear.from_weight(weight, None, "int4", (1, side), True, reader)
    expected = torch.zeros(3, 7, dtype=torch.float64)

    def shift(block: torch.Tensor, top: int) -> int:
        return math.floor(math.log2(top / float(block.abs().max())))

    for i in range(3):
        for j in range(7):
            for start in range(0, 20, side):
                a, b = x[i, start : start + side], weight[j, start : start + side]
                ea, eb = shift(a, 127), shift(b, 7)
                qa, qb = (a * 2.0**ea).round().clamp(-127, 127), (b * 2.0**eb).round().clamp(-7, 7)
                whole = int((qa.to(torch.int32) * qb.to(torch.int32)).sum())
                expected[i, j] += whole * 2.0 ** -(ea + eb)
    torch.testing.assert_close(layer(x).double(), expected, rtol=1e-6, atol=1e-6)


def test_table_softmax() -> None:
    torch.manual_seed(0)
    scores = torch.randn(2, 5, 30) * 4
    hidden = torch.zeros_like(scores, dtype=torch.bool)
    hidden[0, :, 20:] = True
    hidden[1, 3] = True  # a row that sees nothing
    found = table_softmax(scores.masked_fill(hidden, torch.finfo(torch.float32).min), hidden)
    exact = scores.masked_fill(hidden, -torch.inf).softmax(-1).nan_to_num()
    assert float((found - exact).abs().max()) < 0.02
    assert bool((found[hidden] == 0).all()) and not bool((found[1, 3] != 0).any())
    torch.testing.assert_close(found[0].sum(-1), torch.ones(5))
    place = (scores[0, 0, :20] - scores[0, 0, :20].max()) * 255 / 16
    literal = torch.exp(place.round().clamp(min=-255) * 16 / 255)
    torch.testing.assert_close(found[0, 0, :20], literal / literal.sum())
    leaf = scores.clone().requires_grad_(True)
    upstream = torch.randn_like(scores)
    table_softmax(leaf).backward(upstream)
    other = scores.clone().requires_grad_(True)
    other.softmax(-1).backward(upstream)
    torch.testing.assert_close(leaf.grad, other.grad)


@pytest.mark.parametrize("family", world.FAMILIES)
def test_the_exchangeable_attention_is_the_plain_one(family: str) -> None:
    plain = world.bundle(family)
    changed = plain.copy()
    interface.use(changed.model, AttentionSettings())
    found = anatomy.of(changed.model)
    module = anatomy.get(changed.model, found.blocks[1].attention.path)
    with interface.watched(module) as (tap,):
        out = world.outputs(changed)
    torch.testing.assert_close(out, world.outputs(plain), rtol=1e-4, atol=1e-5)
    rows = tap.probabilities.sum(-1)
    torch.testing.assert_close(rows, torch.ones_like(rows))
    assert tap.context.shape[:3] == tap.scores.shape[:3]
    assert tap.hidden is None or bool(tap.hidden.any())


def test_clipped_softmax_identities() -> None:
    scores = torch.randn(3, 9)
    torch.testing.assert_close(clipped_softmax(scores), scores.softmax(-1))
    with pytest.raises(UserError, match="low"):
        AttentionSettings(low=0.1)


@pytest.mark.parametrize("norm", [nn.LayerNorm(12), nn.LayerNorm(12, bias=False), nn.RMSNorm(12, eps=1e-6)])
def test_norms_are_recognised_and_close_in_eight_bits(norm: nn.Module) -> None:
    torch.manual_seed(0)
    with torch.no_grad():
        norm.weight.normal_(1, 0.3)  # type: ignore[union-attr, operator]
    made = from_norm(norm)
    x = torch.randn(5, 12) * 3
    assert made is not None
    torch.testing.assert_close(made(x), norm(x), rtol=1e-4, atol=1e-5)
    flow = ActivationQuantizer("int8", "block", 4, power_of_two=True).args
    rounded = from_norm(norm, input=flow, output=flow, table=flow)
    assert rounded is not None
    assert 0 < relative_error(rounded(x), norm(x)) < 0.03
    again = QuantizedNorm(**rounded.args)
    again.load_state_dict(rounded.state_dict())
    assert torch.equal(again(x), rounded(x))
    assert from_norm(nn.BatchNorm1d(12).eval()) is None and from_norm(nn.Identity()) is None


def test_ratios_are_the_cards() -> None:
    for bits, ratio in ((8, 3.999), (4, 7.996)):
        found = 32 / bct.bits_per_weight((768, 3072), f"int{bits}", (64, 64))
        assert found == pytest.approx(32 / (bits + 8 / 4096)) and found == pytest.approx(ratio, abs=1e-3)
    assert (
        bct.bits_per_weight((3, 5), "int4", (64, 64)) == (8 * 9 + 8) / 15
    )  # a half-used byte a row, one ragged block
    small = Recipe([BlockwiseQuantize(bits=4)]).apply(world.bundle())
    matrices = [m.matrix for m in small.model.modules() if hasattr(m, "matrix")]
    bits = sum(m.bytes for m in matrices) * 8 / sum(m.rows * m.columns for m in matrices)
    assert 4 < bits < 4.3 and 5 < bct.compression(small.model) < 8
    assert bct.compression(world.bundle().model) == 1


def test_planted_blocks_of_unequal_size_need_steps_of_their_own() -> None:
    torch.manual_seed(0)
    weight = torch.randn(64, 64)
    weight[:16, :16] *= 100
    quiet = weight.clone()
    quiet[:16, :16] = 0

    def error(block: tuple[int, int]) -> float:
        found = PackedLinear.from_weight(weight, None, "int4", block, True).matrix.values()
        found[:16, :16] = 0
        return relative_error(found, quiet)

    assert error((0, 0)) == 1  # the quiet ones are rounded to nothing
    assert error((16, 16)) < 0.3 < error((1, 0))
    # a power of two costs at most one bit of the range
    real = PackedLinear.from_weight(weight, None, "int4", (16, 16), False).matrix.values()
    power = PackedLinear.from_weight(weight, None, "int4", (16, 16), True).matrix.values()
    assert relative_error(real, weight) <= relative_error(power, weight) <= 2.1 * relative_error(real, weight)


@pytest.mark.parametrize("family", world.FAMILIES)
def test_step_quantizes_everything_and_reloads_equal(family: str, tmp_path: Path) -> None:
    original = world.bundle(family)
    edited = Recipe([BlockwiseQuantize(block=(8, 8), activation_block=8)]).apply(original)
    kinds = [type(m) for m in edited.model.modules()]
    blocks = anatomy.of(original.model).blocks
    assert QuantizedNorm in kinds and kinds.count(PackedLinear) >= 6 * len(blocks) - (
        3 * len(blocks) if family == "gpt2" else 0
    )
    assert (PackedEmbedding in kinds) == (family not in ("vit", "t5"))
    out = world.outputs(edited).detach()
    assert 0 < relative_error(out, world.outputs(original).detach()) < 0.25
    # through files alone: plain attention would be another model
    manifest.write_manifest(edited, tmp_path)
    edited.model.config.save_pretrained(tmp_path)
    again = edited.copy()
    config = AutoConfig.from_pretrained(tmp_path)
    assert config._attn_implementation != interface.NAME
    again.model = manifest.build_from_manifest(tmp_path, config)
    assert torch.equal(world.outputs(again), out)


def test_every_operator_adds_its_own_error() -> None:
    bundle = world.bundle()
    before, found = world.outputs(bundle).detach(), []
    for count in range(1, len(bct.OPERATORS) + 1):
        step = BlockwiseQuantize(operators=bct.OPERATORS[:count], block=(16, 16), activation_block=16)
        found.append(world.outputs(Recipe([step]).apply(bundle)).detach())
    assert all(not torch.equal(a, b) for a, b in pairwise(found))
    assert relative_error(found[0], before) < relative_error(found[-1], before) < 0.2
    # gelu maps one rounded tensor to another: what `down` multiplies has few numbers in each block
    up = Recipe([BlockwiseQuantize(activation_block=16)]).apply(bundle)
    path, seen = anatomy.of(bundle.model).blocks[0].feed_forward, []
    module = anatomy.get(up.model, path.up)
    handle = module.register_forward_hook(lambda m, a, out: seen.append(out))
    world.outputs(up)
    handle.remove()
    values = seen[0].reshape(-1, 16)
    assert torch.equal(values, ActivationQuantizer("int8", "block", 16, power_of_two=True)(values))


def test_a_text_does_not_depend_on_its_batch() -> None:
    edited = Recipe([BlockwiseQuantize()]).apply(world.bundle())
    texts = world.task().splits["verify"][:5]
    together = world.outputs(edited, texts).detach()
    alone = torch.cat([world.outputs(edited, [t]) for t in texts]).detach()
    # sums in another order may round a number to its neighbour; padding must not
    assert relative_error(alone, together) < 0.03


def test_step_refuses() -> None:
    for fields in ({"operators": ("gelu",)}, {"operators": ()}, {"operators": ("activations",)}, {"bits": 1},
                   {"block": (-1, 64)}, {"activation_bits": 9}):  # fmt: skip
        with pytest.raises(UserError):
            BlockwiseQuantize(**fields)
    broken = world.bundle()
    with torch.no_grad():
        broken.model.encoder.layer[3].output.dense.weight[0, 0] = math.inf
    with pytest.raises(ModelError, match="infinity"):
        BlockwiseQuantize().apply(broken, None, Run())
    assert not [m for m in broken.model.modules() if isinstance(m, (PackedLinear, QuantizedNorm))]
    bare = nn.ModuleDict({"a": nn.Linear(2, 2)})
    with pytest.raises(ModelError, match="transformers"):
        interface.check(bare, {})
