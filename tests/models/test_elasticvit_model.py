"""The ElasticViT super-network: what a sub-network computes, what it costs, and that it can be taken out."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import lightformers as lf
from lightformers.errors import ModelError, UserError
from lightformers.models.vision import elasticvit
from lightformers.models.vision.elasticvit import ElasticViTModel
from lightformers.models.vision.elasticvit_blocks import ElasticAttention, InvertedBottleneck
from lightformers.models.vision.elasticvit_cost import even, flops
from lightformers.models.vision.elasticvit_space import Architecture, ElasticViTSpace, Stage
from lightformers.parts.elastic import ElasticConv, divisible, take

sys.path.insert(0, str(Path(__file__).parent))
import elasticvit_world as world

RNG = np.random.default_rng(0)
SOME = [world.SPACE.smallest, world.SPACE.largest, *(world.SPACE.sample(RNG) for _ in range(4))]


def test_taking_a_part_keeps_leading_channels_and_the_middle_of_kernels() -> None:
    kernel = torch.arange(2 * 3 * 25).view(2, 3, 5, 5)
    assert torch.equal(take(kernel, (1, 2, 3, 3)), kernel[:1, :2, 1:4, 1:4])
    table = torch.arange(2 * 49).view(2, 7, 7)  # distances -3 to 3
    assert torch.equal(take(table, (1, 5, 3)), table[:1, 1:6, 2:5])
    assert take(kernel, kernel.shape) is kernel
    with pytest.raises(ValueError, match="holds no layer"):
        take(kernel, (2, 4, 5, 5))
    assert [divisible(v) for v in (3, 10, 18, 60, 100)] == [8, 16, 24, 64, 104]


def test_a_bottleneck_is_its_literal_equation() -> None:
    torch.manual_seed(0)
    block = InvertedBottleneck(6, 8, 3, 5, 2, squeeze=True, residual=False).eval()
    x = torch.randn(2, 4, 7, 7)  # four of six channels, a ratio of 2 of 3, a kernel of 3 of 5
    y = F.hardswish(norm(F.conv2d(x, block.expand.weight[:8, :4]), block.expand_norm))
    y = F.conv2d(y, block.depthwise.weight[:8, :, 1:4, 1:4], stride=2, padding=1, groups=8)
    y = F.hardswish(norm(y, block.depthwise_norm))
    gate = F.relu(
        F.conv2d(
            y.mean((2, 3), keepdim=True), block.squeeze.reduce.weight[:8, :8], block.squeeze.reduce.bias[:8]
        )
    )
    gate = F.conv2d(gate, block.squeeze.expand.weight[:8, :8], block.squeeze.expand.bias[:8])
    y = norm(F.conv2d(y * F.hardsigmoid(gate), block.project.weight[:5, :8]), block.project_norm)
    torch.testing.assert_close(block(x, 5, 2, 3), y)


def norm(x: torch.Tensor, layer: nn.Module) -> torch.Tensor:
    n = x.shape[1]
    mean, variance = layer.running_mean[:n, None, None], layer.running_var[:n, None, None]
    return (x - mean) / (variance + layer.eps).sqrt() * layer.weight[:n, None, None] + layer.bias[
        :n, None, None
    ]


def test_attention_is_its_literal_equation() -> None:
    """Two of three heads, values twice as wide, on a 2 x 3 map of an attention made for 4 x 4."""
    torch.manual_seed(0)
    attention = ElasticAttention(12, 3, head=4, side=4)
    nn.init.normal_(attention.table)
    for layer in (attention.q, attention.k, attention.v):
        nn.init.normal_(layer.weight, std=0.5)
    x = torch.randn(1, 6, 8)
    q, k = (x[0] @ layer.weight[:8, :8].T + layer.bias[:8] for layer in (attention.q, attention.k))
    v = x[0] @ attention.v.weight[:16, :8].T + attention.v.bias[:16]
    v = F.conv2d(v.T.reshape(1, 16, 2, 3), attention.local.weight[:16], padding=1, groups=16)[0].flatten(1).T
    out = torch.zeros(6, 16)
    for h in range(2):
        for i in range(6):
            logits = torch.stack(
                [
                    q[i, 4 * h : 4 * h + 4] @ k[j, 4 * h : 4 * h + 4] / 2
                    + attention.table[h, 3 + i // 3 - j // 3, 3 + i % 3 - j % 3]
                    for j in range(6)
                ]
            )
            out[i, 8 * h : 8 * h + 8] = logits.softmax(0) @ v[:, 8 * h : 8 * h + 8]
    expected = F.hardswish(out) @ attention.out.weight[:8, :16].T + attention.out.bias[:8]
    torch.testing.assert_close(attention(x, (2, 3), 2)[0], expected)


@pytest.mark.parametrize("arch", SOME, ids=range(len(SOME)))
def test_a_sub_network_taken_out_is_the_one_inside(arch: Architecture) -> None:
    """Equal logits and, for the weights that it uses, equal gradients; the weights it leaves get none."""
    large, x = world.network().train(), world.images()
    small = large.subnet(arch)
    inside, outside = large(x, arch)["logits"], small(x)["logits"]
    torch.testing.assert_close(outside, inside)
    inside.square().sum().backward()
    outside.square().sum().backward()
    grads = dict(large.named_parameters())
    for name, parameter in small.named_parameters():
        gradient = grads[name].grad
        torch.testing.assert_close(parameter.grad, take(gradient, parameter.shape), rtol=1e-3, atol=1e-5)
        assert parameter.grad is not None
        assert gradient.count_nonzero() == take(gradient, parameter.shape).count_nonzero()
    assert sum(p.numel() for p in small.parameters()) <= sum(p.numel() for p in large.parameters())


def test_every_weight_takes_part() -> None:
    large = world.network().train()
    large(world.images())["logits"].square().sum().backward()
    assert not [n for n, p in large.named_parameters() if p.grad is None or not p.grad.any()]


def test_a_sub_network_of_a_sub_network() -> None:
    space = world.SPACE
    middle = world.network().train().subnet(space.even(0.6))
    small, x = space.smallest, world.images()
    torch.testing.assert_close(middle.subnet(small)(x)["logits"], middle(x, small)["logits"])
    with pytest.raises(ModelError, match="larger than this network"):
        world.network().subnet(small)(x, space.largest)


def test_saved_and_loaded(tmp_path: Path) -> None:
    made = world.network().subnet(SOME[2]).eval()
    made.save_pretrained(tmp_path)
    assert sorted(p.name for p in tmp_path.glob("*.safetensors")) == ["model.safetensors"]
    back = ElasticViTModel.from_pretrained(tmp_path).eval()
    assert (back.whole, back.space) == (made.whole, made.space)
    x = world.images()
    assert torch.equal(back(x)["logits"], made(x)["logits"])


def test_a_folder_is_opened_by_its_class_name(tmp_path: Path) -> None:
    made = world.network().subnet(SOME[2]).eval()
    made.save_pretrained(tmp_path)
    bundle = lf.load(tmp_path)
    assert type(bundle.model) is ElasticViTModel and bundle.task == "image-classification"
    assert bundle.model.whole == made.whole and bundle.pooling is None
    assert torch.equal(bundle.model(world.images())["logits"], made(world.images())["logits"])
    with pytest.raises(ModelError, match="no trained head for embedding"):
        lf.load(tmp_path, "embedding")


def test_networks_by_name() -> None:
    with torch.device("meta"):
        made = lf.create_model("elasticvit-s1", classes=10)
    assert made.whole == elasticvit.ARCHITECTURES["elasticvit_s1"] and made.space.classes == 10
    with pytest.raises(UserError, match="unknown network 'vit'"):
        lf.create_model("elasticvit", network="vit")


def test_images_of_another_side_are_resized() -> None:
    made, x = world.network().eval(), world.images(2, 20)
    resized = F.interpolate(x, (16, 16), mode="bilinear", antialias=True)
    assert torch.equal(made(x)["logits"], made(resized)["logits"])


def test_multiply_adds_are_those_of_the_network() -> None:
    """Counted by hooks on the layers, and attention's two products by its shapes."""
    for arch in SOME:
        made, counted = world.network().subnet(arch).eval(), [0]

        def count(layer: nn.Module, given: tuple, out: torch.Tensor, counted: list[int] = counted) -> None:
            if isinstance(layer, ElasticConv):
                counted[0] += out[0].numel() * layer.weight[0].numel()
            elif isinstance(layer, ElasticAttention):
                _, size, values = given
                counted[0] += (size[0] * size[1]) ** 2 * given[0].shape[-1] * (1 + values)
            else:
                counted[0] += out[0].numel() * layer.weight.shape[1]

        kinds = (ElasticConv, ElasticAttention, elasticvit.ElasticLinear)
        for layer in made.modules():
            if isinstance(layer, kinds):
                layer.register_forward_hook(count)
        made(world.images(1, arch.resolution))
        assert counted[0] == flops(world.SPACE, arch) == made.flops()


def test_sizes_of_the_paper() -> None:
    """The paper's own figures as far as its description fixes the network; see the module's docstring."""
    with torch.device("meta"):
        large = ElasticViTModel(elasticvit.PAPER)
    count = sum(p.numel() for p in large.parameters())
    assert count == 37_435_406 and count == pytest.approx(40_488_174, rel=0.08)
    s1 = elasticvit.ARCHITECTURES["elasticvit_s1"]
    assert flops(elasticvit.PAPER, s1) == pytest.approx(217.64e6, rel=5e-4)
    assert flops(elasticvit.PAPER, elasticvit.PAPER.smallest) == pytest.approx(37e6, rel=0.02)
    assert flops(elasticvit.PAPER, elasticvit.PAPER.largest) == pytest.approx(3.2e9, rel=1e-3)
    assert elasticvit.create("elasticvit_s1", classes=10).whole == s1


def test_genomes_and_architectures() -> None:
    space, rng = world.SPACE, np.random.default_rng(1)
    for _ in range(50):
        arch = space.sample(rng)
        space.check(arch)
        assert space.decode(space.encode(arch)) == arch
        assert Architecture.from_dict(arch.to_dict()) == arch
    assert ElasticViTSpace.from_dict(space.to_dict()) == space
    costs = [flops(space, space.even(i / 10)) for i in range(11)]
    assert costs == sorted(costs)
    assert flops(space, even(space, costs[5])) == costs[5]


def test_what_is_not_in_the_space_is_refused() -> None:
    space = world.SPACE
    small = space.smallest
    wrong = {
        "resolution 13": {"resolution": 13},
        "4 stages": {"channels": (8, 8, 16)},
        "blocks and 2 ratios": {"ratios": ((1, 1), *small.ratios[1:])},
        "channels 12 of stage 0": {"channels": (12, *small.channels[1:])},
        "kernels or values 7 of stage 1": {"second": (small.second[0], (7,), *small.second[2:])},
    }
    made = world.network()
    for said, change in wrong.items():
        with pytest.raises(ModelError, match=said):
            made(world.images(), dataclasses.replace(small, **change))
    with pytest.raises(UserError, match="multiples of a head"):
        dataclasses.replace(space, head=12)
    with pytest.raises(UserError, match="ascending"):
        Stage("conv", (2, 1), (8,), (2,))
    with pytest.raises(UserError, match="unknown network"):
        elasticvit.create("elasticvit_s9")
