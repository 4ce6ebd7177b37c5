"""ElasticViT's training programme: its samplings, losses and search, and that small networks come out that work."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from lightformers.compress.elastic.batch_norm import recalibrate
from lightformers.compress.elastic.divergence import adaptive_alpha
from lightformers.compress.elastic.elasticvit import (
    ElasticViT,
    accuracy,
    extract,
    feed,
    score,
    search,
    update_loss,
)
from lightformers.compress.elastic.elasticvit_banks import (
    Bank,
    exploitation,
    matched,
    preference,
    walk,
    within,
)
from lightformers.compress.elastic.elasticvit_sampling import ConflictAware, Draw, Uniform
from lightformers.compress.elastic.elasticvit_search import Evolution, crossed, evolve, mutated
from lightformers.errors import DataError, ModelError, UserError
from lightformers.models.vision.elasticvit_cost import even, flops
from lightformers.steps import Run

sys.path.insert(0, str(Path(__file__).parents[2] / "models"))
import elasticvit_world as world

SPACE = world.SPACE
LEAST, MOST = flops(SPACE, SPACE.smallest), flops(SPACE, SPACE.largest)
TARGETS = tuple(round(LEAST * (MOST / LEAST) ** share) for share in (0.2, 0.4, 0.6, 0.8))
TINY = ElasticViT(
    targets=TARGETS, window=0.05 * MOST, smallest=(), capacity=4, rescore=5, lr=3e-3, warmup=0.1, batch=16
)


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_an_update_is_the_sum_of_four_losses() -> None:
    torch.manual_seed(0)
    bundle, draws = world.bundle(), [SPACE.sample(rng()) for _ in range(3)]
    batch = feed(bundle, world.task(), 8, 0).batch(0)
    bundle.model.train()
    goal = torch.rand(8, 2).softmax(-1)
    loss, logits = update_loss(bundle.model, batch, Draw(tuple(draws), SPACE.smallest), goal)
    alone = [bundle.model(**batch.inputs, arch=a)["logits"].detach() for a in (*draws, SPACE.smallest)]
    expected = sum(-(goal * one.log_softmax(-1)).sum(-1).mean() for one in alone[:3])
    mean = sum(one.softmax(-1) for one in alone[:3]) / 3
    torch.testing.assert_close(loss, expected + adaptive_alpha(alone[3], mean))
    assert score(logits[0], batch) == pytest.approx(
        -float(nn.functional.cross_entropy(alone[0], batch.targets["label"])), abs=1e-5
    )


# sampling


def test_the_walk_goes_to_neighbours() -> None:
    random, seen = rng(), []
    for _ in range(900):
        seen.append(walk(0, 3, random))
    assert set(seen) == {0, 1} and 0.6 < seen.count(0) / 900 < 0.73
    assert {walk(1, 3, random) for _ in range(50)} == {0, 1, 2}
    assert {walk(2, 3, random) for _ in range(50)} == {1, 2} and walk(0, 1, random) == 0


def test_windows_are_kept_and_bounded() -> None:
    random = rng()
    for target in TARGETS:
        drawn = {within(SPACE, target, 1.05 * target, random) for _ in range(8)}
        assert all(target <= flops(SPACE, arch) <= 1.05 * target for arch in drawn) and len(drawn) > 3
    with pytest.raises(UserError, match="reaches from"):
        within(SPACE, 2 * MOST, 3 * MOST, random)
    with pytest.raises(UserError, match="300 tries found no"):
        within(SPACE, LEAST + 1, LEAST + 2, random, tries=300)


def test_a_bank_keeps_the_best() -> None:
    random = rng()
    archs = [SPACE.sample(random) for _ in range(4)]
    bank = Bank(TARGETS[0], 3)
    for arch, value in zip(archs, (-3.0, -1.0, -2.0, -1.5)):
        bank = bank.insert(arch, value)
    assert [e.arch for e in bank.entries] == [archs[1], archs[3], archs[2]] and bank.half_full
    assert bank.insert(archs[0], -9).entries == bank.entries
    assert bank.insert(archs[1], -9).entries[-1].score == -9  # scored anew, not twice
    assert [e.score for e in bank.rescored([-5, -4, -6]).entries] == [-4, -5, -6]
    counts = [bank.draw(random) for _ in range(600)].count(archs[1]) / 600
    assert counts == pytest.approx(1 / (1 + np.exp(-0.5) + np.exp(-1)), abs=0.07)


def test_wide_and_shallow_is_preferred() -> None:
    anchor = even(SPACE, TARGETS[1])
    small = SPACE.smallest
    wide = dataclasses.replace(small, channels=(8, 8, 32, 24))
    deep = dataclasses.replace(
        small, depths=(1, 1, 2, 2), ratios=((1,), (2,), (1, 1), (1, 1)), second=((3,), (3,), (1, 1), (1, 1))
    )
    assert preference(SPACE, wide, anchor) < preference(SPACE, deep, anchor)


def test_the_small_network_matches_the_bank() -> None:
    small = [SPACE.smallest, within(SPACE, TARGETS[1], TARGETS[2], rng()), SPACE.largest]
    assert matched(SPACE, small, LEAST) == small[0]
    assert matched(SPACE, small, LEAST + 1) == small[1]
    assert matched(SPACE, small, 2 * MOST) == small[2]


def test_exploitation_rises() -> None:
    assert [round(exploitation(f), 2) for f in (0, 0.16, 0.17, 0.5, 0.99, 1.0)] == [
        0.2,
        0.2,
        0.35,
        0.65,
        0.95,
        0.95,
    ]
    assert exploitation(0.9, 0.0, 0.0) == 0


def test_networks_of_an_update_cost_alike() -> None:
    """The paper's point: uniform updates join networks of very different cost, complexity-aware ones do not."""
    uniform, aware = Uniform(SPACE, 3), dataclasses.replace(TINY, smallest=TARGETS).sampler(SPACE)

    def spread(draw: Draw) -> float:
        return float(np.std([np.log(flops(SPACE, arch)) for arch in (*draw.uniform, draw.smallest)]))

    assert uniform.draw(0).smallest == SPACE.smallest
    draws = [aware.draw(0) for _ in range(30)]
    for draw in draws:
        low = TARGETS[draw.bank]
        assert all(low <= flops(SPACE, arch) <= low + TINY.window for arch in draw.uniform)
    assert np.abs(np.diff([draw.bank for draw in draws])).max() == 1
    assert np.mean([spread(d) for d in draws]) < 0.6 * np.mean([spread(uniform.draw(0)) for _ in range(30)])


def test_banks_are_used_once_half_full() -> None:
    sampler = ConflictAware(SPACE, [Bank(TARGETS[1], 4)], TINY.window, [SPACE.smallest], exploit=1.0, rise=0)
    draw = sampler.draw(0.0)
    assert draw.bank == 0
    known = [within(SPACE, TARGETS[1], TARGETS[1] + TINY.window, rng()) for _ in range(1)]
    sampler.note(Draw(tuple(known), SPACE.smallest, 0), [-1.0])
    assert not sampler.banks[0].half_full
    sampler.note(draw, [-2.0, -3.0, -4.0])
    held = {e.arch for e in sampler.banks[0].entries}
    assert sampler.banks[0].half_full and set(sampler.draw(0.0).uniform) <= held


# training, statistics, search


def test_recalibrated_inside_and_outside_are_equal() -> None:
    bundle, task = world.bundle(), world.task()
    batches = [feed(bundle, task, 16, 0).batch(i) for i in range(3)]
    large, arch = bundle.model.eval(), SPACE.even(0.5)
    small = extract(bundle, arch, batches).model
    wrong = large(**batches[0].inputs, arch=arch)["logits"]
    assert not torch.allclose(wrong, small(**batches[0].inputs)["logits"], atol=1e-3)
    count = recalibrate(large, batches, lambda module, batch: module(**batch.inputs, arch=arch))
    assert count > 10 and not large.training and large.stem_norm.momentum == 0.1
    right = large(**batches[0].inputs, arch=arch)["logits"]
    torch.testing.assert_close(right, small(**batches[0].inputs)["logits"])
    with pytest.raises(UserError, match="no batches"):
        recalibrate(large, [])


def test_recalibration_is_the_mean_over_batches() -> None:
    norm, data = nn.Sequential(nn.BatchNorm1d(2)), torch.randn(3, 8, 2)
    recalibrate(norm, data, lambda module, batch: module(batch))
    torch.testing.assert_close(norm[0].running_mean, data.mean((0, 1)))
    torch.testing.assert_close(norm[0].running_var, data.var(1).mean(0))


def test_trained_sub_networks_work_without_training(tmp_path: Path) -> None:
    """Stripes are told apart by sub-networks of every cost, also after saving."""
    bundle, task = world.bundle(), world.task()
    before = {n: p.clone() for n, p in bundle.model.named_parameters()}
    programme = dataclasses.replace(TINY, uniform=2, lr=6e-3)
    trained = programme.train(bundle, task, Run(dtype="fp32", tokens=16 * 16))
    assert trained.result.steps == 16 and not bundle.model.training
    assert any(bank.entries for bank in trained.banks)
    for bank in trained.banks:
        assert all(bank.target <= flops(SPACE, e.arch) <= bank.target + TINY.window for e in bank.entries)
    assert all(not torch.equal(p, before[n]) for n, p in bundle.model.named_parameters() if "stem" in n)
    train = [feed(bundle, task, 16, 0).batch(i) for i in range(3)]
    test = [bundle.collate(task.splits["verify"])]
    for target in (TARGETS[0], TARGETS[-1]):
        small = extract(bundle, within(SPACE, target, target + TINY.window, rng()), train)
        assert accuracy(small.model, test) > 0.8
    small.model.save_pretrained(tmp_path)
    back = type(small.model).from_pretrained(tmp_path).eval()
    assert torch.equal(back(**test[0].inputs)["logits"], small.model(**test[0].inputs)["logits"])
    found = search(
        bundle, train[:1], test, TARGETS[1], TARGETS[2], Evolution(2, 1, 1, generations=1), banks=trained.banks[:1]
    )  # fmt: skip
    assert len(found) == 2 and found[0].score >= found[-1].score
    assert accuracy(extract(bundle, found[0].arch, train[:1]).model, test) == found[0].score


def test_teachers_take_the_place_of_labels() -> None:
    """A teacher that calls every image class 1 is believed, whatever the labels say."""

    class Stubborn(nn.Module):
        def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
            return torch.tensor([-1.0, 1.0]).expand(len(pixel_values), 2)

    bundle, task = world.bundle(), world.task()
    TINY.train(bundle, task, Run(dtype="fp32", tokens=10 * 16), [Stubborn()], sampler=Uniform(SPACE, 2))
    batch = feed(bundle, task, 16, 0).batch(0)
    predicted = bundle.model.train()(**batch.inputs, arch=SPACE.even(0.5))["logits"].argmax(-1)
    assert predicted.float().mean() > 0.9


def test_evolution_finds_what_is_planted() -> None:
    """Only the resolution and the first stage's kernels count; random drawing alone rarely gets both."""
    calls = []

    def worth(arch):
        calls.append(arch)
        return arch.resolution + 10 * sum(arch.second[0]) - sum(arch.channels) / 100

    low, high = TARGETS[0], TARGETS[2]
    found = evolve(SPACE, worth, low, high, Evolution(8, 16, 16, generations=4), start=[SPACE.smallest])
    assert all(low <= flops(SPACE, e.arch) <= high for e in found) and len(found) == 8
    assert found[0].arch.resolution == 16 and found[0].arch.second[0] == (5, 5)
    assert len(calls) == len(set(calls)) and SPACE.smallest not in calls
    with pytest.raises(UserError, match="reaches from"):
        evolve(SPACE, worth, 2 * MOST, 3 * MOST)
    with pytest.raises(UserError, match="rate"):
        Evolution(rate=0.0)
    genome = SPACE.encode(SPACE.smallest)
    assert mutated(SPACE, genome, 1e-12, rng()) == genome == crossed(genome, genome, rng())


def test_bad_input_is_refused_before_training() -> None:
    bundle, task, run = world.bundle(), world.task(), Run(dtype="fp32", tokens=16)
    before = bundle.model.stem.weight.clone()
    with pytest.raises(UserError, match="choose other targets"):
        ElasticViT().train(bundle, task, run)  # the paper's targets are not of this space
    with pytest.raises(UserError, match="needs a task"):
        TINY.train(bundle, None, run)
    with pytest.raises(ModelError, match="super-network of its own"):
        TINY.train(dataclasses.replace(bundle, model=nn.Linear(2, 2)), task, run)
    bare = dataclasses.replace(task, splits={**task.splits, "train": [{"image": 0}]})
    with pytest.raises(DataError, match="labelled images"):
        TINY.train(bundle, bare, run)
    for wrong in ({"targets": (2.0, 1.0)}, {"uniform": 0}, {"temperature": 0}, {"exploit": 1.5}):
        with pytest.raises(UserError):
            ElasticViT(**wrong)
    assert torch.equal(bundle.model.stem.weight, before)
