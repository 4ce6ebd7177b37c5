"""Models of equal size."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lightformers.errors import UserError
from lightformers.models.matching import counted, match, parameters


def two(width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(7, width), nn.Linear(width, 3))


@pytest.mark.parametrize("target", [1, 100, 1000, 1003, 1004, 5_000, 123_456])
@pytest.mark.parametrize(("least", "step"), [(1, 1), (8, 4), (6, 8)])
def test_nothing_is_nearer(target: int, least: int, step: int) -> None:
    found = match(two, target, least, step)
    assert found.width % step == 0 and found.width >= least
    assert found.parameters == parameters(two(found.width)) == 11 * found.width + 3
    assert found.ratio == found.parameters / target
    for other in (found.width - step, found.width + step):
        if other >= least:
            assert abs(11 * other + 3 - target) >= abs(found.parameters - target)


def test_the_widest_is_not_built_for_a_small_target() -> None:
    seen = []

    def build(width: int) -> nn.Module:
        seen.append(width)
        return two(width)

    match(build, 500)
    assert max(seen) < 200


def test_bounds_hold() -> None:
    assert match(two, 10**6, most=64).width == 64
    assert match(two, 1, least=16).width == 16
    with pytest.raises(UserError, match="no width between 9 and 15"):
        match(two, 100, least=9, most=15)
    with pytest.raises(UserError):
        match(two, 0)


def test_counting_leaves_the_random_numbers_alone_and_tied_weights_count_once() -> None:
    tied = nn.Linear(4, 4)
    before = torch.random.get_rng_state()

    def build() -> nn.Module:
        torch.rand(3)
        other = nn.Linear(4, 4)
        other.weight = tied.weight
        other.bias.requires_grad_(False)
        return nn.ModuleList([tied, other])

    assert counted(build) == 20
    assert torch.equal(before, torch.random.get_rng_state())
