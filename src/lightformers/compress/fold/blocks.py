"""Blocks run one by one, on the states and arguments that a forward of the whole model gave them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from lightformers import anatomy
from lightformers.bundle import Batch
from lightformers.compress import calibration
from lightformers.runners.named import plain_arguments


@dataclass
class Trace:
    """One batch on its way through a stack. inputs: what entered each block, (batch, length, width). rest: the other
    arguments of each block. output: of the last one. mask: (batch, length), or None where nothing is padding."""

    inputs: list[Tensor] = field(default_factory=list)
    rest: list[tuple[tuple[Any, ...], dict[str, Any]]] = field(default_factory=list)
    output: Tensor | None = None
    mask: Tensor | None = None


def state(output: Any) -> Tensor:
    """The hidden states of what a block gives."""
    found: Tensor = output if isinstance(output, Tensor) else output[0]
    return found


def trace(model: nn.Module, module: nn.Module, blocks: Sequence[nn.Module], batch: Batch) -> Trace:
    """Run `module` on a batch, without dropout and gradients, and keep what its blocks (those of `model`) met."""
    found = Trace(mask=batch.inputs.get("attention_mask"))

    def enter(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found.inputs.append(anatomy.entering(args, kwargs).detach())
        found.rest.append((args[1:], {k: v for k, v in kwargs.items() if k not in anatomy.STATES}))

    def leave(block: nn.Module, args: Any, output: Any) -> None:
        found.output = state(output).detach()

    with ExitStack() as stack, calibration.evaluating(model):
        for block in blocks:
            stack.callback(block.register_forward_pre_hook(enter, with_kwargs=True).remove)
        stack.callback(blocks[-1].register_forward_hook(leave).remove)
        module(**batch.inputs, **plain_arguments(module))
    return found


def play(
    blocks: Sequence[nn.Module], rest: Sequence[tuple[tuple[Any, ...], dict[str, Any]]], states: Tensor
) -> Tensor:
    """Run blocks in turn: states (batch, length, width) -> states."""
    for block, (args, kwargs) in zip(blocks, rest):
        states = state(block(states, *args, **kwargs))
    return states
