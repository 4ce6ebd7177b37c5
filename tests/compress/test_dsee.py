"""DSEE: the layer, the support of its free entries, tuning, pruning, heads."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import steps_world as world
import torch

sys.path.insert(0, str(Path(__file__).parent / "distill"))
import distill_models as small

from lightformers import anatomy, manifest
from lightformers.compress import DSEE, LLMInt8
from lightformers.compress.layers import linears
from lightformers.compress.prune import dsee, masks
from lightformers.errors import DataError, ModelError, UserError
from lightformers.parts.sparse_low_rank import SparseLowRankLinear
from lightformers.steps import Recipe, Run

LABELS = Run(dtype="fp32", use_labels=True, tokens=2_000)


def layer(bias: bool = True, entries: int = 5) -> SparseLowRankLinear:
    torch.manual_seed(0)
    weight, offset = torch.randn(6, 8), torch.randn(6) if bias else None
    made = SparseLowRankLinear.from_weight(
        weight, offset, 2, torch.randperm(48)[:entries].sort().values, 16.0
    )
    with torch.no_grad():
        made.second.normal_()
        made.values.normal_()
    return made


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("entries", [0, 5, 48])
def test_layer_is_the_dense_form_with_its_gradients(bias: bool, entries: int) -> None:
    made, x = layer(bias, entries), torch.randn(2, 3, 8)
    dense = torch.nn.functional.linear(x, made.base + made.update(), made.offset)
    torch.testing.assert_close(made(x), dense)
    made(x).square().sum().backward()
    own = [p.grad.clone() for p in made.parameters()]
    made.zero_grad()
    torch.nn.functional.linear(x, made.base + made.update(), made.offset).square().sum().backward()
    for a, p in zip(own, made.parameters()):
        torch.testing.assert_close(a, p.grad, rtol=1e-4, atol=1e-4)
    again = SparseLowRankLinear(**made.args)
    again.load_state_dict(made.state_dict(), assign=True)
    assert torch.equal(again(x), made(x))


def test_what_is_trained_is_what_is_counted() -> None:
    fresh = SparseLowRankLinear.from_weight(torch.randn(768, 768), torch.zeros(768), 16, torch.arange(16))
    # 12 layers, query and value: 590,208 numbers in all
    assert 24 * sum(p.numel() for p in fresh.parameters()) == 590_208
    x = torch.randn(4, 768)
    assert torch.equal(fresh(x), torch.nn.functional.linear(x, fresh.base, fresh.offset))  # no update yet
    assert fresh.bfloat16()(x.bfloat16()).dtype == torch.bfloat16


def test_support_finds_planted_spikes() -> None:
    torch.manual_seed(0)
    smooth = torch.randn(64, 3) @ torch.randn(3, 48) * 0.02
    spikes = torch.randperm(64 * 48)[:12].sort().values
    weight = smooth.clone()
    weight.view(-1)[spikes] += 0.08 * torch.randn(12).sign()  # no larger than what is smooth
    sparse = dsee.sparse_part(weight, torch.Generator().manual_seed(0), rounds=2).abs().flatten()
    hit = set(sparse.topk(12).indices.tolist()) & set(spikes.tolist())
    naive = set(weight.abs().flatten().topk(12).indices.tolist()) & set(spikes.tolist())
    assert len(hit) >= 10 and len(naive) <= 4
    assert bool(((sparse == 0) | (sparse >= 0.01)).all())
    found = dsee.support(weight, 12, "decompose", 0)
    dsee._known.clear()
    same = dsee.support(weight, 12, "decompose", 0)
    assert torch.equal(found, same)
    for how in ("magnitude", "random", "decompose"):
        chosen = dsee.support(torch.zeros(4, 4), 7, how, 0)  # all equal: exactly seven
        assert len(set(chosen.tolist())) == 7
    with pytest.raises(UserError, match="free entries"):
        dsee.support(weight, 64 * 48 + 1, "random", 0)


@pytest.mark.parametrize("score", ["update", "low-rank", "weight", "sum", "random"])
def test_tuning_learns_the_update_and_prunes_the_frozen_matrices(score: str, tmp_path: Path) -> None:
    original, task = small.bundle("text-classification"), small.World("text-classification")
    step = DSEE(rank=2, entries=8, sparsity=0.4, score=score, lr=1e-3, max_tokens=256)
    made = Recipe([step]).apply(original, task, LABELS)
    found, layers = anatomy.of(original.model), dict(dsee.updated(made.model))
    assert set(layers) == {p for b in found.blocks for p in (b.attention.q, b.attention.v)}  # type: ignore[union-attr]
    for path, held in layers.items():
        old = anatomy.linear(original.model, path)[0]
        assert torch.equal(held.base[held.base != 0], old[held.base != 0])
        assert held.second.abs().sum() > 0 and held.values.abs().sum() > 0
    gone = sum(int((h.base == 0).sum()) for h in layers.values()) / sum(
        h.base.numel() for h in layers.values()
    )
    assert gone == pytest.approx(0.4, abs=1e-3)
    others = [p for p in linears(found) if p not in layers]
    assert masks.sparsity(masks.zeros(made.model, others)) == pytest.approx(0.4, abs=1e-3)
    old, new = dict(original.model.named_parameters()), dict(made.model.named_parameters())
    moved = {n for n in old if n in new and old[n].shape == new[n].shape and not torch.equal(old[n], new[n])}
    assert {n for n in moved if "classifier" in n}  # the head learns; of the rest only zeros are new
    for name in moved - {n for n in moved if "classifier" in n or "pooler" in n}:
        assert torch.equal(new[name][new[name] != 0], old[name][new[name] != 0])
    manifest.write_manifest(made, tmp_path)
    again = made.copy()
    again.model = manifest.build_from_manifest(tmp_path, made.model.config)
    batch = made.collate(task.training_examples(False)[:5])
    assert torch.equal(again.model(**batch.inputs).logits, made.model(**batch.inputs).logits)
    # the update would be lost by steps that look at one matrix: they refuse
    with pytest.raises(ModelError, match="plain linear"):
        LLMInt8().apply(made, None, Run())


def test_heads_go_with_their_rows_of_the_update() -> None:
    original, task = small.bundle("text-classification"), small.World("text-classification")
    made = Recipe([DSEE(rank=2, entries=20, heads=1, after=0.0, lr=1e-2, max_tokens=256)]).apply(
        original, task, LABELS
    )
    found = anatomy.of(made.model)
    assert all(b.attention.heads == 3 and b.attention.out_features == 24 for b in found.blocks)  # type: ignore[union-attr]
    assert all(h.out_features == 24 and h.entries <= 20 for h in dict(dsee.updated(made.model)).values())
    assert all(int(h.rows.max()) < 24 for h in dict(dsee.updated(made.model)).values() if h.entries)


def test_removed_heads_are_those_that_the_update_leaves_alone() -> None:
    bundle = small.bundle("text-classification")
    found = anatomy.of(bundle.model)
    torch.manual_seed(0)
    for block in found.blocks:
        for path in (block.attention.q, block.attention.v):  # type: ignore[union-attr]
            weight, bias = anatomy.linear(bundle.model, path)
            made = SparseLowRankLinear.from_weight(weight.detach(), bias, 2, torch.tensor([0, 40, 1000]))
            with torch.no_grad():
                made.second[:8].normal_()
                made.second[16:].normal_()
                made.values.fill_(0.01)  # rows 0, 1 and 31
            anatomy.surgery.replace(bundle.model, path, made)
    before = dict(dsee.updated(bundle.model))
    rows = [*range(8), *range(16, 32)]
    wanted = {p: (h.base + h.update()).detach()[rows] for p, h in before.items()}
    dsee.remove_heads(bundle, 1)
    for path, held in dsee.updated(bundle.model):
        torch.testing.assert_close((held.base + held.update()).detach(), wanted[path])
        assert held.entries == 3


def test_the_update_says_more_than_chance_where_it_is_planted() -> None:
    """Weights that tuning changes are those that count: removing the others first hurts less."""
    torch.manual_seed(0)
    made = SparseLowRankLinear.from_weight(torch.randn(16, 16) * 0.1, None, 4, torch.arange(4))
    with torch.no_grad():
        made.second[:4] = 10.0 * torch.randn(4, 4)
        made.base[:4] *= 20  # what is tuned is what is large in effect
    x = torch.randn(64, 16)

    def error(score: str) -> float:
        generator = torch.Generator().manual_seed(0)
        kept = masks.smallest({"": DSEE(score=score).scored(made, generator)}, 128)[""]
        return float((x @ (made.base * kept - made.base).T).norm())

    assert error("update") < 0.5 * error("random")


@pytest.mark.parametrize("family", ["gpt2"])
def test_a_fused_projection_is_updated_whole(family: str) -> None:
    bundle = small.bundle("causal-lm")
    places = DSEE(rank=2, entries=4)._check(bundle)
    assert places == [b.attention.qkv for b in anatomy.of(bundle.model).blocks]  # type: ignore[union-attr]
    with pytest.raises(ModelError, match="unfused"):
        DSEE(heads=1)._check(bundle)
    with pytest.raises(ModelError, match="unfused"):
        DSEE(rank=2, heads=1)._check(world.bundle("llama"))


def test_bad_input_is_refused_before_anything_changes() -> None:
    bundle, task = small.bundle("text-classification"), small.World("text-classification")
    before = {k: v.clone() for k, v in bundle.model.state_dict().items()}
    for fields, word in (
        ({"sparsity": 1.0}, "sparsity"),
        ({"rank": 0}, "rank"),
        ({"support": "best"}, "support"),
    ):
        with pytest.raises(UserError, match=word):
            DSEE(**fields)
    with pytest.raises(DataError, match="labels"):
        DSEE().apply(bundle, task, Run())
    with pytest.raises(UserError, match="task"):
        DSEE().apply(bundle, None, LABELS)
    with pytest.raises(UserError, match="do not fit"):
        DSEE(rank=40).apply(bundle, task, LABELS)
    with pytest.raises(UserError, match="do not fit"):
        DSEE(rank=2, entries=2000).apply(bundle, task, LABELS)
    with pytest.raises(ModelError, match="cannot be removed"):
        DSEE(rank=2, heads=4).apply(bundle, task, LABELS)
    after = bundle.model.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(v, before[k]) for k, v in after.items())
