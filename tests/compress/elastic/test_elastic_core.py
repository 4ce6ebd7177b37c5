"""Sizes, spaces, and sub-networks on shared weights: what runs is what will be cut out."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import steps_world as world
import torch
import transformers as T
from torch import Tensor

from lightformers import anatomy
from lightformers.bundle import Bundle
from lightformers.compress.elastic.shared import Shared
from lightformers.compress.elastic.size import Nesting, Size, cut, size_of
from lightformers.compress.elastic.space import Space, whole
from lightformers.errors import ModelError, UserError

SPREAD = Nesting(depth="spread", channels="by_width")
CASES = {
    "bert": ("bert", Size(3, (4, 2, 3), (64, 8, 40), 32), Nesting()),
    "bert-narrow": ("bert-classifier", Size(2, (2, 1), (32, 20), 16), SPREAD),
    "gpt2": ("gpt2", Size(2, (3, 4), (48, 64), 32), Nesting(depth="spread")),
    "gpt2-narrow": ("gpt2", Size(4, (2,) * 4, (16,) * 4, 16), Nesting()),
    "llama": ("llama", Size(3, (2, 4, 4), (24, 64, 8), 32), Nesting()),
    "llama-narrow": ("llama", Size(2, (4, 2), (24, 20), 12), SPREAD),
    "vit": ("vit", Size(2, (4, 4), (64, 16), 32), Nesting(depth="spread")),
    "vit-fewer-heads": ("vit", Size(4, (2,) * 4, (64,) * 4, 32), Nesting()),
    "t5-encoder": ("t5", Size(3, (2, 2, 2), (64, 16, 8), 32), Nesting()),
}


def batch_of(bundle: Bundle) -> dict[str, Tensor]:
    kind = "vit" if bundle.task == "image-classification" else "bert"
    return bundle.collate(world.task(kind).splits["verify"][:3]).inputs


def field(outputs: Any) -> Tensor:
    return outputs["embedding"] if "embedding" in outputs else outputs["logits"]


def same_as_cut(bundle: Bundle, size: Size, nesting: Nesting, inputs: dict[str, Tensor]) -> Bundle:
    """Asserts that outputs and gradients are those of the cut model, which is returned."""
    shared, small = Shared(bundle, nesting), bundle.copy()
    cut(small.model, size, nesting)
    mine, theirs = field(shared(size, **inputs)), field(small.module()(**inputs))
    assert torch.allclose(mine, theirs, atol=1e-5)
    assert not torch.allclose(mine, field(bundle.module()(**inputs)), atol=1e-3)
    direction = torch.randn(mine.shape, generator=torch.Generator().manual_seed(0))
    (mine * direction).sum().backward()
    (theirs * direction).sum().backward()
    pieces = shared.network(size).pieces
    grads = {
        n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in bundle.module().named_parameters()
    }
    total = 0.0
    for name, parameter in small.module().named_parameters():
        wanted = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        assert torch.allclose(pieces[name](grads), wanted, rtol=1e-4, atol=1e-4), name
        total += float(wanted.abs().sum())
    assert total > 0
    assert sum(float(g.abs().sum()) for g in grads.values()) == pytest.approx(total, rel=1e-4)  # 0 elsewhere
    assert shared.parameters_of(size) == small.parameters < bundle.parameters
    return small


@pytest.mark.parametrize("case", CASES)
def test_a_sub_network_is_the_cut_model(case: str) -> None:
    family, size, nesting = CASES[case]
    bundle = world.bundle(family)
    small = same_as_cut(bundle, size, nesting, batch_of(bundle))
    assert size_of(small.model) == size


def test_encoder_decoders_nest_in_channels_and_refuse_the_rest() -> None:
    torch.manual_seed(0)
    sizes = {"d_model": 32, "num_layers": 2, "num_heads": 4, "d_kv": 8, "d_ff": 64, "vocab_size": 50}
    model = T.T5ForConditionalGeneration(
        T.T5Config(**sizes, decoder_start_token_id=0, dropout_rate=0.0)
    ).eval()
    bundle = Bundle(model, task="seq2seq")
    assert size_of(model) == Size(4, (4,) * 4, (64,) * 4, 32)
    ids = torch.arange(4, 16).view(2, 6)
    inputs = {"input_ids": ids, "decoder_input_ids": ids[:, :3]}
    same_as_cut(bundle, Size(4, (4,) * 4, (64, 16, 32, 8), 32), Nesting(), inputs)
    with pytest.raises(ModelError, match="stacks"):
        Shared(bundle).network(Size(3, (4,) * 3, (64,) * 3, 32))
    with pytest.raises(ModelError, match="one-stack"):
        Shared(bundle).network(Size(4, (4,) * 4, (64,) * 4, 16))


def test_the_whole_size_is_the_whole_model_and_weights_are_live() -> None:
    bundle = world.bundle("gpt2")
    shared, inputs = Shared(bundle), batch_of(bundle)
    size = Size(2, (4, 4), (16, 16), 32)
    assert torch.equal(field(shared(shared.whole, **inputs)), field(bundle.module()(**inputs)))
    before = field(shared(size, **inputs))
    with torch.no_grad():
        bundle.model.transformer.h[3].mlp.c_fc.weight.mul_(2)  # beyond this size
    assert torch.equal(field(shared(size, **inputs)), before)
    with torch.no_grad():
        bundle.model.transformer.h[1].mlp.c_fc.weight.mul_(2)
    assert not torch.allclose(field(shared(size, **inputs)), before)
    assert {p.device.type for p in shared.network(size).skeleton.parameters()} == {"meta"}
    module = shared.module(size)
    assert {id(p) for p in module.parameters()} == {id(p) for p in bundle.module().parameters()}
    assert torch.equal(field(module(**inputs)), field(shared(size, **inputs)))


def test_a_narrow_bert_keeps_its_first_heads_whatever_its_weights() -> None:
    bundle = world.bundle("bert")
    values = bundle.model.encoder.layer[0].attention.self.value.weight
    with torch.no_grad():
        values[-8:] *= 100  # the last head is by far the strongest
    small = bundle.copy()
    cut(
        small.model, Size(4, (2,) * 4, (64,) * 4, 16), Nesting()
    )  # heads in proportion: plain transformers loads it
    assert torch.equal(small.model.encoder.layer[0].attention.self.value.weight, values[:16, :16])
    assert size_of(small.model).heads == (2,) * 4 and not anatomy.native_reasons(small.model)
    free = bundle.copy()
    cut(free.model, Size(4, (4,) * 4, (64,) * 4, 16), Nesting())  # more heads than that: they all stay
    assert torch.equal(free.model.encoder.layer[0].attention.self.value.weight, values[:, :16])


def test_nesting_says_what_stays() -> None:
    assert Nesting().blocks(3, 5) == [0, 1, 2]
    assert Nesting(depth="spread").blocks(3, 7) == [0, 2, 4]
    assert Nesting().inner(3, 8, 4, 4) == [0, 1, 2]
    grouped = Nesting(channels="by_width")
    assert grouped.inner(6, 12, 2, 4) == [0, 1, 4, 5, 8, 9]
    assert grouped.inner(6, 12, 4, 4) == [0, 1, 2, 3, 4, 5]
    with pytest.raises(ModelError, match="6 inner channels at most"):
        grouped.inner(7, 12, 2, 4)


def test_what_does_not_fit_is_refused_before_anything_is_cut() -> None:
    bundle = world.bundle("llama")
    before = bundle.model.state_dict()
    for size, why in (
        (Size(5, (4,) * 5, (64,) * 5, 32), "larger than the whole"),
        (Size(2, (4, 4), (64, 65), 32), "block 1"),
        (Size(2, (4, 3), (64, 64), 16), "whole groups"),  # two query heads share keys
    ):
        with pytest.raises(ModelError, match=why):
            cut(bundle.model, size, Nesting())
    assert all(torch.equal(v, before[k]) for k, v in bundle.model.state_dict().items())
    with pytest.raises(ModelError, match="2 numbers of heads"):
        Size(3, (4, 4), (64,) * 3, 32)
    with pytest.raises(ModelError, match="at least 1"):
        Size(1, (0,), (64,), 32)


SPACES = {
    "alike": Space((2, 3, 4), (2, 4), (16, 32), ratios=(0.5, 1.0, 2.0), alike=True),
    "blocks": Space((1, 2), (2, 4), (32,), channels=(8, 16, 64), nesting=SPREAD),
}


@pytest.mark.parametrize("name", SPACES)
def test_spaces_count_list_sample_and_round_trip(name: str) -> None:
    space = SPACES[name]
    every = list(space)
    assert len(every) == len(set(every)) == space.count == {"alike": 36, "blocks": 6 + 36}[name]
    assert all(size in space for size in every)
    assert space.smallest in every and space.largest in every
    rng = np.random.default_rng(0)
    drawn = {space.sample(rng) for _ in range(600)}
    assert drawn == set(every)
    some = space.some(5, rng)
    assert len(set(some)) == 5 and space.smallest in some and space.largest in some
    assert space.some(100, rng) == every
    assert Space.from_dict(json.loads(json.dumps(space.to_dict()))) == space
    assert all(Size.from_dict(json.loads(json.dumps(s.to_dict()))) == s for s in every)


def test_sampling_is_uniform_per_block() -> None:
    space, rng = SPACES["blocks"], np.random.default_rng(1)
    sizes = [s for s in (space.sample(rng) for _ in range(3000)) if s.blocks == 2]
    assert len(sizes) == pytest.approx(1500, abs=120)
    for pair in itertools.product((8, 16, 64), repeat=2):
        assert sum(s.channels == pair for s in sizes) == pytest.approx(len(sizes) / 9, rel=0.3)


def test_what_is_not_in_a_space() -> None:
    alike = SPACES["alike"]
    assert Size(2, (2, 4), (16, 16), 16) not in alike
    assert Size(2, (2, 2), (64, 64), 16) not in alike  # four times this width
    assert Size(2, (2, 2), (32, 32), 16) in alike
    assert Size(3, (2,) * 3, (8,) * 3, 32) not in SPACES["blocks"]


def test_bad_spaces_are_refused() -> None:
    for change, why in (
        ({"channels": ()}, "and not both"),
        ({"ratios": (1.0,)}, "and not both"),
        ({"blocks": (2, 1)}, "ascending"),
        ({"heads": ()}, "at least one"),
        ({"channels": (), "ratios": (0.3,)}, "no whole number"),
    ):
        with pytest.raises(UserError, match=why):
            replace(SPACES["blocks"], **change)
    bundle = world.bundle("bert")
    SPACES["alike"].check(bundle.model)
    with pytest.raises(ModelError, match="does not fit the model"):
        replace(SPACES["blocks"], channels=(8, 128)).check(bundle.model)
    assert list(whole(bundle.model)) == [size_of(bundle.model)]
    cut(bundle.model, Size(2, (4, 4), (64, 8), 32), Nesting())
    with pytest.raises(ModelError, match="blocks of this model differ"):
        whole(bundle.model)
