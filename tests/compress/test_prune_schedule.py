"""The common core of sparse pruning: schedules, exact choices that only tighten, masks in force."""

from __future__ import annotations

from itertools import pairwise

import pytest
import steps_world as world
import torch

from lightformers import anatomy
from lightformers.compress import GradualMagnitude
from lightformers.compress.layers import linears
from lightformers.compress.prune import masks, schedule
from lightformers.compress.prune.gradual import magnitude
from lightformers.errors import ModelError, UserError
from lightformers.steps import Recipe, Run


def test_cubic_schedule() -> None:
    assert schedule.targets(0.7, 0.97, 7)[0] == 0.7 and schedule.targets(0.7, 0.97, 7)[-1] == 0.97
    assert schedule.cubic(0.5, 0.0, 0.8) == pytest.approx(0.8 * (1 - 0.125))
    grown = schedule.targets(0.3, 0.9, 6)
    steps = [b - a for a, b in pairwise(grown)]
    assert all(s > 0 for s in steps) and steps == sorted(steps, reverse=True)
    assert schedule.targets(0.7, 0.9, 1) == [0.9]
    assert schedule.between(0.7, 0.9, 2) == pytest.approx([0.8, 0.9])
    with pytest.raises(UserError, match="cannot fall"):
        schedule.targets(0.9, 0.5, 3)
    with pytest.raises(UserError, match="at least one round"):
        schedule.targets(0.1, 0.5, 0)


@pytest.mark.parametrize("scope", ["global", "layer"])
@pytest.mark.parametrize("block", [1, 4])
def test_choices_are_exact_and_only_tighten(block: int, scope: str) -> None:
    torch.manual_seed(0)
    weights = {"a": torch.randn(6, 8), "b": torch.randn(4, 16)}
    scores = {p: magnitude(w, block) for p, w in weights.items()}
    first = schedule.choose(scores, 0.5, block, scope)
    assert masks.sparsity(first) == pytest.approx(0.5)
    for mask in first.values():
        whole = mask.reshape(mask.shape[0], -1, block)
        assert bool((whole.all(-1) | ~whole.any(-1)).all())
    # other scores, sparser: what is gone stays gone
    second = schedule.choose({p: torch.rand_like(s) for p, s in scores.items()}, 0.75, block, scope, first)
    assert masks.sparsity(second) == pytest.approx(0.75)
    assert all(bool((first[p] | ~second[p]).all()) for p in first)
    # less sparse than it is already: nothing comes back
    third = schedule.choose(scores, 0.1, block, scope, second)
    assert all(torch.equal(third[p], second[p]) for p in second)
    with pytest.raises(UserError, match="scope"):
        schedule.choose(scores, 0.5, block, "everywhere")


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_held_masks_can_be_replaced_and_released(family: str) -> None:
    bundle = world.bundle(family)
    found = masks.weights(bundle.model, linears(anatomy.of(bundle.model)))
    scores = {p: magnitude(w) for p, w in found.items()}
    held = schedule.Held(bundle.model, schedule.choose(scores, 0.3))
    held.set(schedule.choose(scores, 0.6, before=held.masks))
    assert held.sparsity == pytest.approx(0.6, abs=1e-3)
    updater = torch.optim.AdamW(bundle.model.parameters(), lr=0.05)

    def train() -> float:
        updater.zero_grad()
        world.outputs(bundle).square().mean().backward()
        updater.step()
        return masks.sparsity(masks.zeros(bundle.model, found))

    assert train() == train() == pytest.approx(0.6, abs=1e-3)
    with torch.no_grad():
        anatomy.linear(bundle.model, next(iter(found)))[0].add_(1.0)
    held.enforce()
    assert masks.sparsity(masks.zeros(bundle.model, found)) == pytest.approx(0.6, abs=1e-3)
    held.release()
    assert train() < 0.1


def test_rounds_prune_and_train_in_turn() -> None:
    bundle = world.bundle()
    found = masks.weights(bundle.model, linears(anatomy.of(bundle.model)))
    held, told = schedule.Held(bundle.model, masks.zeros(bundle.model, found)), []

    def prune(held: schedule.Held, sparsity: float) -> None:
        told.append(round(sparsity, 3))
        scores = {p: magnitude(w) for p, w in found.items()}
        held.set(schedule.choose(scores, sparsity, before=held.masks))

    def train(number: int) -> None:
        told.append(number)
        with torch.no_grad():  # training that revives what was gone is corrected
            for weight in found.values():
                weight.add_(0.01)

    schedule.gradually(held, [0.4, 0.6], prune, train, recompute=2)
    assert told == [0.2, 0.4, 0, 0.5, 0.6, 1]
    assert masks.sparsity(masks.zeros(bundle.model, found)) == pytest.approx(0.6, abs=1e-3)


def test_gradual_magnitude_one_shot_is_essential_sparsity() -> None:
    from lightformers.compress import EssentialSparsity

    original = world.bundle("gpt2")
    a, b = (Recipe([s]).apply(original) for s in (GradualMagnitude(0.5), EssentialSparsity(0.5)))
    assert torch.equal(world.outputs(a), world.outputs(b))
    same = Recipe([GradualMagnitude(0.0)]).apply(original)
    assert torch.equal(world.outputs(same), world.outputs(original))


def test_bad_input_is_refused() -> None:
    for wrong in (1.0, -0.1, float("nan")):
        with pytest.raises(UserError, match="sparsity"):
            GradualMagnitude(wrong)
    bundle = world.bundle()
    before = world.outputs(bundle)
    with pytest.raises(UserError, match="blocks of 5"):
        GradualMagnitude(0.5, block=5).apply(bundle, None, Run())
    with pytest.raises(ModelError, match="teacher"):
        GradualMagnitude(0.5, epochs=1.0).apply(bundle, world.task(), Run())
    assert torch.equal(world.outputs(bundle), before)


@pytest.mark.parametrize("kind", ["normal", "equal", "wide", "signs"])
def test_the_smallest_are_those_of_a_sort(kind: str) -> None:
    """Found bit by bit: numbers of all sizes, equal ones, zeros of both signs, infinities."""
    torch.manual_seed(0)
    flat = {
        "normal": torch.randn(200),
        "equal": torch.randint(3, (200,)).float(),
        "wide": torch.randn(200) * 10.0 ** torch.randint(-44, 38, (200,)),
        "signs": torch.tensor([0.0, -0.0, 1e-45, -1e-45, torch.inf, -torch.inf, 3.0, 3.0]).repeat(25),
    }[kind]
    scores = {"a": flat[:80].view(8, 10), "b": flat[80:].view(12, 10)}
    ordered = flat.sort().values
    for count in (0, 1, 57, 100, 199, 200):
        kept = torch.cat([m.flatten() for m in masks.smallest(scores, count).values()])
        assert int((~kept).sum()) == count
        assert torch.equal(flat[~kept].sort().values, ordered[:count])


def test_numbers_that_are_none_go_last() -> None:
    scores = {"a": torch.tensor([[torch.nan, 2.0, torch.inf, 1.0]])}
    assert masks.smallest(scores, 2)["a"].tolist() == [[True, False, True, False]]
    assert int(masks.smallest(scores, 4)["a"].sum()) == 0
