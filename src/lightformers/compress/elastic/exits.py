"""Early exits: what a model says after its first n blocks, for several n, from one forward of all blocks."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from torch import Tensor, nn

from lightformers import anatomy
from lightformers.bundle import Bundle
from lightformers.compress import calibration
from lightformers.compress.elastic.shared import Shared
from lightformers.compress.elastic.size import Size
from lightformers.errors import ModelError
from lightformers.runners.named import named, plain_arguments

_CLOSE = 1e-2  # relative; bf16 rounds to 4e-3


class Exits:
    """The outputs of a model cut after `depths` blocks, all on the whole model's weights.

    What follows the last block (final norm, head, pooling, whatever this model does) is not written down: it is the model
    itself with one block, which hands on what block n gave. `depths`: ascending, up to the number of blocks.
    Raises ModelError for models of several stacks of blocks. `check` finds out on a batch whether the last exit is the
    whole model; it is not where a model does something beside its blocks that this does not see.
    """

    def __init__(self, bundle: Bundle, depths: Sequence[int]) -> None:
        found = anatomy.of(bundle.model)
        if len(found.stacks) != 1 or found.stacks[0].shared:
            raise ModelError(
                f"a {found.family} model has several stacks of blocks, or one block for all: no exit is natural"
            )
        check_depths(depths, len(found.blocks))
        self.bundle, self.depths, self.whole = bundle, tuple(depths), len(found.blocks)
        self.arguments = plain_arguments(bundle.module())
        self._paths = [block.path for block in found.blocks]
        self._shared = Shared(bundle)
        full = self._shared.whole
        self._one = Size(1, full.heads[:1], full.channels[:1], full.width)
        skeleton: Any = self._shared.network(self._one).skeleton
        self._given: Any = None
        block = anatomy.get(skeleton.backbone if bundle.pooling else skeleton, self._paths[0])
        block.forward = lambda *args, **kwargs: self._given  # type: ignore[method-assign]

    def __call__(
        self, module: nn.Module, inputs: Mapping[str, Tensor]
    ) -> Iterator[tuple[int, dict[str, Tensor]]]:
        """(depth, named outputs), shallowest first. `module` is the bundle's own, perhaps wrapped by a trainer."""
        states: dict[int, Any] = {}
        with ExitStack() as stack:
            for depth in self.depths:
                block = anatomy.get(self.bundle.model, self._paths[depth - 1])
                stack.callback(block.register_forward_hook(_keep(states, depth)).remove)
            outputs = named(module(**inputs, **self.arguments))
        for depth in self.depths:
            yield depth, outputs if depth == self.whole else self._tail(inputs, states[depth])

    def _tail(self, inputs: Mapping[str, Tensor], state: Any) -> dict[str, Tensor]:
        self._given = state
        try:
            return named(self._shared(self._one, **inputs, **self.arguments))
        finally:
            self._given = None

    def check(self, inputs: Mapping[str, Tensor]) -> None:
        """Raises ModelError where the last exit, taken as the others are, does not give the model's own outputs."""
        inputs = {k: v.to(next(self.bundle.model.parameters()).device) for k, v in inputs.items()}
        states: dict[int, Any] = {}
        block = anatomy.get(self.bundle.model, self._paths[-1])
        handle = block.register_forward_hook(_keep(states, self.whole))
        with calibration.evaluating(self.bundle.model):  # with dropout no two forwards are alike
            try:
                outputs = named(self.bundle.module()(**inputs, **self.arguments))
            finally:
                handle.remove()
            for name, value in self._tail(inputs, states[self.whole]).items():
                gap = (value.float() - outputs[name].float()).abs().max()
                if not gap <= _CLOSE * outputs[name].abs().max().clamp(min=1e-3):
                    raise ModelError(
                        "this model does more after its blocks than its last block shows: it has no natural exits"
                    )


def _keep(states: dict[int, Any], depth: int) -> Any:
    def hook(module: nn.Module, args: Any, output: Any) -> None:
        states[depth] = output

    return hook


def check_depths(depths: Sequence[int], blocks: int) -> None:
    """Raises ModelError unless depths rise from 1 or more to the number of blocks."""
    rising = all(a < b for a, b in itertools.pairwise(depths))
    if not depths or not rising or depths[0] < 1 or depths[-1] != blocks:
        raise ModelError(f"exits must rise from 1 or more up to all {blocks} blocks, got {tuple(depths)}")


class Given(nn.Module):
    """A module that gives outputs that are there already, whatever it is asked."""

    def __init__(self, outputs: dict[str, Tensor]) -> None:
        super().__init__()
        self.outputs = outputs

    def forward(self, **inputs: Any) -> dict[str, Tensor]:
        return self.outputs
