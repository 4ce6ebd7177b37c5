"""Linear maps over gaps, and the order of removal that they judge."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import steps_world as world
import torch
from torch import Tensor, nn

from lightformers import anatomy
from lightformers.compress import calibration
from lightformers.compress.prune import leave_out
from lightformers.compress.prune.bridges import Bridges, gaps
from lightformers.compress.prune.leave_out import removal_order
from lightformers.steps import Run

RUN = Run(dtype="fp32")


def blocks_of(bundle: Any) -> list[nn.Module]:
    return [anatomy.get(bundle.model, b.path) for b in anatomy.of(bundle.model).blocks]


def behave(block: nn.Module, what: Callable[[Tensor], Tensor]) -> None:
    """Let a block do `what` to the states it is given."""
    block.forward = lambda *args, **kwargs: what(anatomy.entering(args, kwargs))  # type: ignore[method-assign]


def turned(width: int) -> Callable[[Tensor], Tensor]:
    """A large linear change."""
    basis = torch.linalg.qr(torch.randn(width, width, generator=torch.Generator().manual_seed(1)))[0]
    return lambda x: x @ basis + 1.0


def test_gaps_are_runs_of_removed_blocks() -> None:
    assert gaps([]) == {} and gaps({3, 1, 2, 5}) == {1: 4, 5: 6} and gaps([0]) == {0: 1}


def test_a_bridge_makes_what_linear_blocks_made() -> None:
    bundle, task = world.bundle("bert"), world.task("bert")
    modules, width = blocks_of(bundle), anatomy.of(bundle.model).width
    behave(modules[1], turned(width))
    behave(modules[2], turned(width))
    data = calibration.batches(bundle, task.calibration(64))
    with torch.no_grad():
        bridges = Bridges(bundle.module().eval(), modules, data)
        assert bridges.enough
        given = bridges.states[1][0]
        wanted = turned(width)(turned(width)(given))
        error = (bridges(1, 3, given) - wanted).norm() / (wanted - given).norm()
    assert error < 0.1
    assert bridges(1, 3, given[:0]).shape == given[:0].shape


def test_too_few_rows_make_no_bridge() -> None:
    bundle, task = world.bundle("bert"), world.task("bert")
    data = calibration.batches(bundle, task.calibration(1))
    with torch.no_grad():
        bridges = Bridges(bundle.module().eval(), blocks_of(bundle), data)
    states = torch.ones(2, anatomy.of(bundle.model).width)
    assert not bridges.enough and bridges(0, 2, states) is states


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_the_order_is_that_of_models_with_bridges_in_them(family: str) -> None:
    """Every candidate really made: its gaps' first blocks are bridges, the others of a gap hand on."""
    bundle, task = world.bundle(family), world.task(family)
    modules = blocks_of(bundle)
    order = removal_order(bundle, task, anatomy.of(bundle.model).blocks, 3, 16, RUN, bridged=True)
    assert all("forward" not in vars(m) and not m._forward_hooks for m in bundle.model.modules())
    rows = calibration.batches(bundle, calibration.examples_of(task, 16 + leave_out.FITTED, 0)[16:])
    with torch.no_grad():
        bridges = Bridges(bundle.module().eval(), modules, rows)
    whole = leave_out.outputs(bundle, task, 16, RUN)

    def distance(gone: list[int]) -> float:
        for start, end in gaps(gone).items():
            behave(modules[start], partial(bridges, start, end))
            for other in modules[start + 1 : end]:
                behave(other, lambda x: x)
        made = leave_out.outputs(bundle, task, 16, RUN)
        for block in gone:
            del modules[block].forward
        return leave_out.distance(made, whole)

    for place in range(3):
        left = {i: distance([*order[:place], i]) for i in range(4) if i not in order[:place]}
        assert left[order[place]] <= 1.001 * min(left.values())
    assert bridges.enough and distance([1]) != distance([2])


@pytest.mark.parametrize("family", ["t5", "vit", "llama"])
def test_other_families_are_ordered_too(family: str) -> None:
    bundle, task = world.bundle(family), world.task(family)
    found = anatomy.of(bundle.model)
    for stack in found.stacks:
        blocks = found.stack(stack.name)
        order = removal_order(bundle, task, blocks, len(blocks) - 1, 8, RUN, bridged=True)
        assert len(set(order)) == len(blocks) - 1
