"""Which sub-networks an elastic model holds, and how one is drawn."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from torch import nn

from lightformers.compress.elastic.size import Nesting, Size, check, size_of
from lightformers.errors import ModelError, UserError


@dataclass(frozen=True)
class Space:
    """Choices per dimension, ascending; a single choice means that the dimension is not elastic.

    blocks, width: numbers of blocks, channels of the hidden size. heads: query heads of a block.
    channels: inner feed-forward channels of a block; or ratios: the same as multiples of the sub-network's width.
    alike: all blocks of a sub-network have the same heads and channels.
    """

    blocks: tuple[int, ...]
    heads: tuple[int, ...]
    width: tuple[int, ...]
    channels: tuple[int, ...] = ()
    ratios: tuple[float, ...] = ()
    alike: bool = False
    nesting: Nesting = field(default_factory=Nesting)

    def __post_init__(self) -> None:
        if bool(self.channels) == bool(self.ratios):
            raise UserError("a space needs inner channels or ratios, and not both")
        for name in ("blocks", "heads", "width", "channels", "ratios"):
            values = getattr(self, name)
            if any(a >= b for a, b in itertools.pairwise(values)) or any(v <= 0 for v in values):
                raise UserError(f"{name} must be positive and ascending, got {values}")
            if not values and name in ("blocks", "heads", "width"):
                raise UserError(f"a space needs at least one choice of {name}")
        for width, ratio in itertools.product(self.width, self.ratios):
            if not float(width * ratio).is_integer():
                raise UserError(f"{ratio} times a width of {width} is no whole number of channels")

    def inner(self, width: int) -> tuple[int, ...]:
        """Choices of inner channels for a sub-network of this width."""
        return self.channels or tuple(round(width * ratio) for ratio in self.ratios)

    @property
    def largest(self) -> Size:
        return self._even(self.blocks[-1], self.heads[-1], self.width[-1], -1)

    @property
    def smallest(self) -> Size:
        return self._even(self.blocks[0], self.heads[0], self.width[0], 0)

    def _even(self, blocks: int, heads: int, width: int, choice: int) -> Size:
        return Size(blocks, (heads,) * blocks, (self.inner(width)[choice],) * blocks, width)

    @property
    def count(self) -> int:
        """How many sizes there are."""
        block = len(self.heads) * len(self.channels or self.ratios)
        return len(self.width) * sum(block if self.alike else block**n for n in self.blocks)

    def sample(self, rng: np.random.Generator) -> Size:
        """A size with every dimension (and, unless alike, every block) drawn uniformly and independently."""
        blocks, width = int(rng.choice(self.blocks)), int(rng.choice(self.width))
        drawn = 1 if self.alike else blocks
        heads = tuple(int(h) for h in rng.choice(self.heads, drawn))
        channels = tuple(int(c) for c in rng.choice(self.inner(width), drawn))
        return Size(blocks, heads * (blocks // drawn), channels * (blocks // drawn), width)

    def __iter__(self) -> Iterator[Size]:
        """Every size, smaller choices first. There may be very many: see `count`."""
        for blocks, width in itertools.product(self.blocks, self.width):
            kinds = list(itertools.product(self.heads, self.inner(width)))
            drawn = (
                ((kind,) * blocks for kind in kinds)
                if self.alike
                else itertools.product(kinds, repeat=blocks)
            )
            for each in drawn:
                yield Size(blocks, tuple(h for h, _ in each), tuple(c for _, c in each), width)

    def __contains__(self, size: Size) -> bool:
        return (
            size.blocks in self.blocks
            and size.width in self.width
            and set(size.heads) <= set(self.heads)
            and set(size.channels) <= set(self.inner(size.width))
            and (not self.alike or len(set(size.heads)) == len(set(size.channels)) == 1)
        )

    def some(self, number: int, rng: np.random.Generator) -> list[Size]:
        """The smallest, the largest and others between: all of them if there are no more than `number`."""
        if self.count <= number:
            return list(self)
        sizes = dict.fromkeys((self.smallest, self.largest))
        for _ in range(50 * number):  # a small space repeats itself
            if len(sizes) >= number:
                break
            sizes[self.sample(rng)] = None
        return list(sizes)

    def check(self, model: nn.Module) -> None:
        """Raises ModelError where the model does not hold the largest size of this space."""
        whole = size_of(model)
        for size in (self.largest, self.smallest):
            try:
                check(size, whole, self.nesting)
            except ModelError as error:
                raise ModelError(f"this space does not fit the model: {error}") from error

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Space:
        fields: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in value.items() if k != "nesting"
        }
        return cls(**fields, nesting=Nesting(**value["nesting"]))


def whole(model: nn.Module) -> Space:
    """The space with one size only: the whole model. Blocks must be alike; `dataclasses.replace` opens dimensions."""
    size = size_of(model)
    if len(set(size.heads)) > 1 or len(set(size.channels)) > 1:
        raise ModelError(f"the blocks of this model differ ({size}): start from one whose blocks are alike")
    return Space((size.blocks,), (size.heads[0],), (size.width,), (size.channels[0],))
