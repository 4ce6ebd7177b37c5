"""What `anatomy.of` finds: the right linears, and head i really is head i."""

from __future__ import annotations

import pytest
import torch
import zoo

from lightformers import anatomy
from lightformers.anatomy.settings import attentions

EVERY = (*zoo.MODELS, *zoo.OTHERS)


@pytest.mark.parametrize("name", EVERY)
def test_shapes(name: str) -> None:
    """Projections have the shapes that heads and widths say, every block is whole, and nothing is left over."""
    model = zoo.make(name)
    found = anatomy.of(model)
    assert found.family == name.split(":")[0].split("-")[0]
    assert found.native == anatomy.of(model).native
    for block in found.blocks:
        assert block.attention is not None and block.feed_forward is not None
        for attention in attentions(block):
            assert (attention.heads, attention.kv_heads) in ((4, 4), (4, 2))
            weight, _ = anatomy.linear(model, attention.o)
            assert weight.shape == (found.width, attention.out_features)
            for piece, heads in (
                ("q", attention.heads),
                ("k", attention.kv_heads),
                ("v", attention.kv_heads),
            ):
                weight, bias = anatomy.projection(model, attention, piece)
                assert weight.shape == (heads * attention.head_dim, found.width)
                assert bias is None or bias.shape == weight.shape[:1]
        forward = block.feed_forward
        assert anatomy.linear(model, forward.down)[0].shape == (found.width, forward.width)
        assert anatomy.linear(model, forward.up)[0].shape[0] == forward.width * (2 if forward.packed else 1)
        if forward.gate:
            assert anatomy.linear(model, forward.gate)[0].shape == (forward.width, found.width)
        assert forward.activation or forward.packed  # a packed feed-forward calls its function by name
        known = {p for a in attentions(block) for p in (*a.projections, a.q_norm, a.k_norm)} | {
            *forward.projections
        }
        inside = {
            f"{block.path}.{n}"
            for n, m in anatomy.get(model, block.path).named_modules()
            if hasattr(m, "weight")
        }
        left = {p for p in inside - known - set(block.norms) if "relative_attention_bias" not in p}
        assert not left, left
    decoder = any(b.stack == "decoder" and b.cross_attention for b in found.blocks)
    assert decoder == (
        found.family in ("t5", "bart", "whisper") and {s.name for s in found.stacks} != {"encoder"}
    )


@pytest.mark.parametrize("name", EVERY)
def test_matches_its_config(name: str) -> None:
    assert anatomy.native_reasons(zoo.make(name)) == []


@pytest.mark.parametrize("name", [n for n in zoo.MODELS if n != "albert"])
def test_heads_and_channels_are_what_they_are_called(name: str) -> None:
    """Zeroing the columns of `o` that belong to a head, and of `down` that belong to channels, equals removing them.

    A wrong head layout (which rows of a fused projection are whose) can't pass: removal slices q, k and v.
    """
    model, cut = zoo.make(name), zoo.make(name)
    found = anatomy.of(model)
    given = zoo.inputs(model)
    before = zoo.outputs(model, given)
    heads, cross, channels = {}, {}, {}
    shared_bias = found.family in ("t5", "mpnet")
    for place, block in enumerate(found.blocks):
        for attention, keep in ((block.attention, heads), (block.cross_attention, cross)):
            if attention is None:
                continue
            group = attention.heads // attention.kv_heads
            gone = (0 if shared_bias else place) % attention.kv_heads
            keep[place] = [h for h in range(attention.heads) if h // group != gone]
            weight, _ = anatomy.linear(model, attention.o)
            with torch.no_grad():
                for head in set(range(attention.heads)) - set(keep[place]):
                    weight[:, head * attention.head_dim : (head + 1) * attention.head_dim] = 0
        forward = block.feed_forward
        assert forward is not None
        dropped = [c for c in range(forward.width) if (c + place) % 3 == 0]
        channels[place] = [c for c in range(forward.width) if c not in dropped]
        with torch.no_grad():
            anatomy.linear(model, forward.down)[0][:, dropped] = 0
    zeroed = zoo.outputs(model, given)
    assert zoo.difference(before, zeroed) > 1e-3
    anatomy.surgery.keep_heads(cut, heads, cross)
    anatomy.surgery.keep_channels(cut, channels)
    assert zoo.difference(zeroed, zoo.outputs(cut, given)) < 2e-5
    after = anatomy.of(cut)
    assert [b.feed_forward.width for b in after.blocks if b.feed_forward] == [
        len(c) for c in channels.values()
    ]
    assert [b.attention.heads for b in after.blocks if b.attention] == [len(h) for h in heads.values()]
    assert after.blocks[0].path == found.blocks[0].path
    assert not zoo.without_gradient(cut) - zoo.without_gradient(zoo.make(name))
