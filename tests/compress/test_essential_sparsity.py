"""Unstructured pruning: exact masks, zeros that last, and reading the curve."""

from __future__ import annotations

import math

import pytest
import steps_world as world
import torch

from lightformers import anatomy
from lightformers.compress import EssentialSparsity
from lightformers.compress.layers import linears
from lightformers.compress.prune import masks
from lightformers.compress.prune.essential_sparsity import essential, shares
from lightformers.errors import ModelError, UserError
from lightformers.steps import Recipe, Run


@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.37, 0.5, 0.9])
def test_counts_are_exact_even_among_equal_weights(sparsity: float) -> None:
    scores = {"a": torch.zeros(7, 5), "b": torch.cat([torch.zeros(3, 5), torch.ones(3, 5)])}
    total = 65
    found = masks.smallest(scores, round(sparsity * total))
    assert sum(int((~m).sum()) for m in found.values()) == round(sparsity * total)
    assert masks.sparsity(found) == pytest.approx(round(sparsity * total) / total)


def test_global_removes_the_smallest_wherever_they_are() -> None:
    torch.manual_seed(0)
    scores = {"small": torch.rand(6, 8) * 0.1, "large": 1 + torch.rand(6, 8)}
    found = masks.smallest(scores, 48)
    assert not found["small"].any() and found["large"].all()
    layered = masks.per_layer(scores, [24, 24])
    assert [int(m.sum()) for m in layered.values()] == [24, 24]
    assert scores["large"][layered["large"]].min() > scores["large"][~layered["large"]].max()


def test_n_of_m_keeps_the_largest_of_each_group() -> None:
    row = torch.tensor([[4.0, 1, 3, 2, 9, 9, 9, 9]])
    assert masks.n_of_m({"a": row}, 2, 4)["a"].tolist()[0][:4] == [True, False, True, False]
    for n, m in ((1, 2), (2, 4), (4, 8), (3, 8)):
        found = masks.n_of_m({"a": torch.rand(5, 16)}, n, m)["a"]
        assert (found.reshape(5, -1, m).sum(-1) == n).all()
    with pytest.raises(UserError, match="do not divide"):
        masks.n_of_m({"a": torch.rand(5, 10)}, 2, 4)
    with pytest.raises(UserError, match="n of m"):
        masks.n_of_m({"a": torch.rand(5, 8)}, 5, 4)


@pytest.mark.parametrize("sparsity", [0.05, 0.3, 0.6, 0.9])
def test_erdos_renyi_densities(sparsity: float) -> None:
    shapes = [(8, 8), (64, 64), (16, 256)]
    densities = masks.erdos_renyi(shapes, sparsity)
    sizes = [a * b for a, b in shapes]
    assert sum(d * s for d, s in zip(densities, sizes)) == pytest.approx((1 - sparsity) * sum(sizes))
    assert max(densities) <= 1 + 1e-9
    sparse = [(d, (a + b) / (a * b)) for d, (a, b) in zip(densities, shapes) if d < 1]
    assert max(d / r for d, r in sparse) == pytest.approx(min(d / r for d, r in sparse))


@pytest.mark.parametrize("method", ["global", "layer-wise", "random", "erdos-renyi"])
@pytest.mark.parametrize("family", ["bert-classifier", "gpt2"])
def test_step_touches_projections_only(family: str, method: str) -> None:
    original = world.bundle(family)
    edited = Recipe([EssentialSparsity(0.4, method)]).apply(original)
    assert shares(edited.model)["prunable"] == pytest.approx(
        0.4, abs=1e-2 if method == "erdos-renyi" else 2e-3
    )
    prunable = set(linears(anatomy.of(original.model)))
    new = dict(edited.model.named_parameters())
    for name, parameter in original.model.named_parameters():
        path, _, kind = name.rpartition(".")
        zeroed = int((new[name] == 0).sum() - (parameter == 0).sum())
        assert (zeroed > 0) == (path in prunable and kind == "weight") or (
            method == "erdos-renyi" and zeroed == 0
        )
        assert torch.equal(new[name][new[name] != 0], parameter[new[name] != 0])


def test_pruning_nothing_changes_nothing_and_2_of_4_halves() -> None:
    original = world.bundle("gpt2")
    same = Recipe([EssentialSparsity(0.0)]).apply(original)
    assert torch.equal(world.outputs(same), world.outputs(original))
    half = Recipe([EssentialSparsity(n_of_m=(2, 4))]).apply(original)
    assert shares(half.model)["prunable"] == pytest.approx(0.5)
    # groups run along the inputs of a row, also where the stored matrix is (in, out)
    weight = anatomy.linear(half.model, linears(anatomy.of(half.model))[0])[0]
    assert ((weight != 0).reshape(weight.shape[0], -1, 4).sum(-1) == 2).all()


@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, torch.optim.SGD])
@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_zeros_last_through_training(family: str, optimizer: type) -> None:
    edited = Recipe([EssentialSparsity(0.5)]).apply(world.bundle(family))
    before = {n: p.detach().clone() for n, p in edited.model.named_parameters()}
    shown = masks.zeros(edited.model, linears(anatomy.of(edited.model)))
    updater = optimizer(edited.model.parameters(), lr=0.05, weight_decay=0.1)
    for _ in range(3):
        updater.zero_grad()
        world.outputs(edited).square().mean().backward()
        updater.step()
    assert masks.overlap(masks.zeros(edited.model, shown), shown) == pytest.approx(1)
    moved = [n for n, p in edited.model.named_parameters() if not torch.equal(p, before[n])]
    assert len(moved) > len(before) / 2


def test_guard_restores_zeros_that_moments_would_undo() -> None:
    bert = world.bundle()
    updater = torch.optim.Adam(bert.model.parameters(), lr=0.05)
    world.outputs(bert).square().sum().backward()
    updater.step()  # moments of all weights are there now
    chosen = EssentialSparsity(0.5).masks(bert.model)
    handle = masks.guard(updater, bert.model, chosen)
    updater.step()
    assert masks.sparsity(masks.zeros(bert.model, chosen)) == pytest.approx(0.5, abs=1e-3)
    handle.remove()
    updater.step()
    assert masks.sparsity(masks.zeros(bert.model, chosen)) < 0.1


def test_release_and_overlap() -> None:
    bert = world.bundle()
    chosen = EssentialSparsity(0.5).masks(bert.model)
    release = masks.hold(bert.model, chosen)
    release()
    world.outputs(bert).square().sum().backward()
    path = next(iter(chosen))
    assert bool((anatomy.get(bert.model, path).weight.grad[~chosen[path]] != 0).any())
    assert masks.overlap(chosen, chosen) == pytest.approx(1)
    assert masks.overlap(chosen, EssentialSparsity(0.5, "random").masks(bert.model)) == pytest.approx(
        0.5, abs=0.1
    )
    same, other = (EssentialSparsity(0.5, "random").masks(bert.model, seed) for seed in (0, 1))
    assert masks.overlap(same, other) < 0.9


def test_magnitude_beats_random_where_large_weights_carry_the_function() -> None:
    """A planted world: few weights do the work, the rest is small noise."""
    original = world.bundle("bert")
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in masks.weights(original.model, linears(anatomy.of(original.model))).values():
            weight.mul_(torch.where(torch.rand_like(weight) < 0.5, 0.01, 1.0))
    old = world.outputs(original)

    def error(method: str) -> float:
        return float(
            (world.outputs(Recipe([EssentialSparsity(0.5, method)]).apply(original)) - old).detach().norm()
        )

    assert error("global") < 0.2 * error("random")


def test_reading_the_curve() -> None:
    curve = {0.0: 0.90, 0.1: 0.899, 0.2: 0.90, 0.3: 0.892, 0.4: 0.85, 0.5: 0.70, 0.6: 0.68}
    found = essential(curve, 0.01)
    assert (found.sparsity, found.broken, found.knee) == (0.3, 0.4, 0.4)
    # the first violation counts, whatever comes after; a score that is no number is one
    assert essential({0.0: 0.9, 0.1: 0.8, 0.2: 0.9}).sparsity == 0.0
    assert essential({0.0: 0.9, 0.1: math.nan, 0.2: 0.9}).broken == 0.1
    flat = essential({0.0: 0.9, 0.1: 0.9, 0.2: 0.9})
    assert (flat.sparsity, flat.broken, flat.knee) == (0.2, None, 0.2)
    assert essential({0.0: 0.9, 0.1: 0.89}, 0.01).sparsity == 0.1
    assert essential({0.0: 20.0, 0.1: 20.005, 0.2: 25.0}, higher_is_better=False).sparsity == 0.1
    with pytest.raises(UserError, match="sparsity 0"):
        essential({0.1: 0.9, 0.2: 0.9})


def test_bad_input_is_refused() -> None:
    for wrong in (1.0, -0.1, math.nan):
        with pytest.raises(UserError, match="sparsity"):
            EssentialSparsity(wrong)
    with pytest.raises(UserError, match="method"):
        EssentialSparsity(0.1, "best")
    broken = world.bundle()
    with torch.no_grad():
        anatomy.linear(broken.model, linears(anatomy.of(broken.model))[0])[0][0, 0] = math.nan
    with pytest.raises(ModelError, match="NaN"):
        EssentialSparsity(0.1).apply(broken, None, Run())
    with pytest.raises(ModelError, match="is"):
        masks.apply(
            world.bundle().model, {"encoder.layer.0.attention.self.query": torch.ones(2, 2, dtype=torch.bool)}
        )
