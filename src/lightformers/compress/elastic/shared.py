"""Sub-networks that run on the whole model's own weights: what they learn, all of them learn.

How a cut maps the weights is not written down per family: the cut is made once on a twin whose weights are their own
numbers (0, 1, 2, ...), and what is left says where each weight of the sub-network comes from. So every family and
every cut of `anatomy.surgery` nests, and a sub-network that is trained is the one that will be extracted.
"""

from __future__ import annotations

import bisect
import copy
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from lightformers.anatomy.convolution import composed, live
from lightformers.bundle import Bundle
from lightformers.compress.elastic.size import Nesting, Size, cut, size_of
from lightformers.errors import ModelError

_KEPT = 64  # sub-networks whose skeletons are kept


@dataclass(frozen=True)
class _Piece:
    """One weight of a sub-network: weight `source` of the whole, and per dimension the range or the indices kept."""

    source: str
    index: tuple[tuple[int, int] | Tensor | None, ...]

    def __call__(self, weights: Mapping[str, Tensor]) -> Tensor:
        value = weights[self.source]
        for dim, kept in enumerate(self.index):
            if isinstance(kept, tuple):
                value = value.narrow(dim, *kept)
            elif kept is not None:
                value = value.index_select(dim, kept.to(value.device))
        return value


@dataclass(frozen=True)
class _Network:
    skeleton: nn.Module
    pieces: Mapping[str, _Piece]


class Shared:
    """The sub-networks of `bundle` on its live weights.

    `call(size, module, inputs)` runs one; `module` is the trained `bundle.module()`, perhaps wrapped by a trainer.
    Gradients land in the whole model's weights. Where a weight is not part of the sub-network, its gradient is zero.
    """

    def __init__(self, bundle: Bundle, nesting: Nesting | None = None) -> None:
        self.bundle, self.nesting = bundle, nesting or Nesting()
        self.whole = size_of(bundle.model)
        self._networks: OrderedDict[Size, _Network] = OrderedDict()

    def __call__(self, size: Size, **inputs: Any) -> Any:
        """Outputs of the sub-network of this size; keyword arguments as the whole model takes them."""
        network = self.network(size)
        module = self.bundle.module()
        network.skeleton.train(self.bundle.model.training)
        _attend_alike(network.skeleton, module)
        weights = live(module)
        device = next(iter(weights.values())).device
        held = {name: piece(weights) for name, piece in network.pieces.items()}
        held |= {name: buffer.to(device) for name, buffer in network.skeleton.named_buffers()}
        return functional_call(network.skeleton, held, (), inputs)

    def module(self, size: Size) -> nn.Module:
        """The sub-network as a module that a runner or a training loop takes; its parameters are the whole's."""
        return _SubNetwork(self, size)

    def outline(self, size: Size) -> Bundle:
        """The sub-network as a bundle of its own whose weights take no memory (they are on the meta device)."""
        return outline(self.bundle, size, self.nesting)

    def parameters_of(self, size: Size) -> int:
        """How many weights a sub-network has; tied ones count once."""
        return self.outline(size).parameters

    def network(self, size: Size) -> _Network:
        """Skeleton and pieces of a sub-network, from the last ones used if it is among them."""
        if size in self._networks:
            self._networks.move_to_end(size)
            return self._networks[size]
        made = self._build(size)
        self._networks[size] = made
        if len(self._networks) > _KEPT:
            self._networks.popitem(last=False)
        return made

    def _build(self, size: Size) -> _Network:
        numbered, starts = _numbered(self.bundle)
        cut(numbered.model, size, self.nesting)
        skeleton = numbered.module()
        shapes = {name: p.shape for name, p in live(self.bundle.module()).items()}
        pieces = {name: _piece(name, p.detach(), starts, shapes) for name, p in skeleton.named_parameters()}
        _hollow(skeleton)
        return _Network(skeleton, pieces)


class _SubNetwork(nn.Module):
    def __init__(self, shared: Shared, size: Size) -> None:
        super().__init__()
        self.shared, self.size = shared, size
        self.whole = shared.bundle.module()

    def forward(self, **inputs: Any) -> Any:
        return self.shared(self.size, **inputs)


def _numbered(bundle: Bundle) -> tuple[Bundle, dict[int, str]]:
    """A copy whose weights are their own numbers, and for each weight the number it starts with -> its name."""
    copied, starts, start = (
        outlined(bundle, lambda p: p.detach()),
        {},
        0,
    )  # the weights themselves are not copied
    composed(copied.model)
    for name, parameter in copied.module().named_parameters():
        numbers = torch.arange(start, start + parameter.numel(), dtype=torch.float64)  # exact up to 2^53
        parameter.data = numbers.view(parameter.shape)
        starts[start] = name
        start += parameter.numel()
    return copied, starts


def outline(bundle: Bundle, size: Size, nesting: Nesting) -> Bundle:
    """A bundle cut to a size on the meta device: what the cut gives, at no cost. Raises what the cut would raise."""
    empty = outlined(bundle, lambda p: torch.empty_like(p, device="meta"))
    cut(empty.model, size, nesting)
    return empty


def outlined(bundle: Bundle, weight: Callable[[nn.Parameter], Tensor]) -> Bundle:
    """A copy with other weights: `weight(p)` in place of each parameter. The old ones are not copied first."""
    memo: dict[int, Any] = {id(p): nn.Parameter(weight(p)) for p in bundle.model.parameters()}
    return replace(bundle, model=copy.deepcopy(bundle.model, memo), history=[])


def _piece(name: str, numbers: Tensor, starts: Mapping[int, str], shapes: Mapping[str, torch.Size]) -> _Piece:
    """Read off the numbers that are left which weight they are of, and what was kept in each of its dimensions."""
    flat = numbers.long()
    order = sorted(starts)
    start = order[bisect.bisect_right(order, int(flat.reshape(-1)[0])) - 1]
    shape = shapes[starts[start]]
    if len(shape) != flat.ndim or not torch.equal(flat.to(numbers.dtype), numbers):
        raise _scaled(name)
    index: list[tuple[int, int] | Tensor | None] = []
    found, stride = torch.full_like(flat, start), 1
    for dim in reversed(range(flat.ndim)):
        line = flat[tuple(slice(None) if d == dim else 0 for d in range(flat.ndim))]
        kept = (line - start) // stride % shape[dim]
        found = found + (kept * stride).view([-1 if d == dim else 1 for d in range(flat.ndim)])
        index.insert(0, _compact(kept, shape[dim]))
        stride *= shape[dim]
    if not torch.equal(found, flat):
        raise _scaled(name)
    return _Piece(starts[start], tuple(index))


def _compact(kept: Tensor, size: int) -> tuple[int, int] | Tensor | None:
    first, count = int(kept[0]), len(kept)
    if not torch.equal(kept, torch.arange(first, first + count)):
        return kept
    return None if count == size else (first, count)


def _scaled(name: str) -> ModelError:
    return ModelError(
        f"the cut changes the values of {name}, not only which are kept: this model's sub-networks can't share weights"
    )


def _attend_alike(skeleton: nn.Module, module: nn.Module) -> None:
    """Training switches the whole model to the attention that it learns fastest with: follow it."""
    for own, theirs in zip(*([m for m in made.modules() if _outer(m)] for made in (skeleton, module))):
        if own.config._attn_implementation != theirs.config._attn_implementation:  # type: ignore[union-attr]
            own.set_attn_implementation(theirs.config._attn_implementation)  # type: ignore[union-attr, operator]


def _outer(module: nn.Module) -> bool:
    return hasattr(module, "set_attn_implementation")


def _hollow(module: nn.Module) -> None:
    """Give the memory of the parameters back; tied ones stay tied."""
    made: dict[int, tuple[nn.Parameter, nn.Parameter]] = {}
    for part in module.modules():
        for name, old in part._parameters.items():
            if old is not None:
                if id(old) not in made:  # the old one is held: its id must not be given to another
                    made[id(old)] = (
                        old,
                        nn.Parameter(torch.empty_like(old, device="meta"), requires_grad=False),
                    )
                part._parameters[name] = made[id(old)][1]
