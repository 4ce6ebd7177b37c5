"""How large a sub-network is, and how it is cut out of the whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from torch import nn

from lightformers import anatomy
from lightformers.anatomy.heads import key_value_groups
from lightformers.errors import ModelError

Depth = Literal["first", "spread"]
Channels = Literal["first", "by_width"]


@dataclass(frozen=True)
class Size:
    """blocks: how many stay. heads, channels: query heads and inner feed-forward channels of each block that stays, in
    order. width: channels of the hidden size.

    Heads are independent of the width. Where a config can't say so (bert, gpt2, ...), a narrow sub-network reloads in
    plain transformers only if its heads are in proportion.
    """

    blocks: int
    heads: tuple[int, ...]
    channels: tuple[int, ...]
    width: int

    def __post_init__(self) -> None:
        if len(self.heads) != self.blocks or len(self.channels) != self.blocks:
            raise ModelError(
                f"a size names heads and channels for each of its blocks: it has {self.blocks} blocks, "
                f"{len(self.heads)} numbers of heads and {len(self.channels)} numbers of channels"
            )
        if min(self.blocks, self.width, *self.heads, *self.channels) < 1:
            raise ModelError(f"every part of a size is at least 1, got {self}")

    def __str__(self) -> str:
        def said(values: tuple[int, ...]) -> str:
            return str(values[0]) if len(set(values)) == 1 else "/".join(map(str, values))

        return f"{self.blocks} blocks, {said(self.heads)} heads, {said(self.channels)} channels, width {self.width}"

    def to_dict(self) -> dict[str, Any]:
        """As plain data for JSON."""
        return asdict(self) | {"heads": list(self.heads), "channels": list(self.channels)}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Size:
        return cls(value["blocks"], tuple(value["heads"]), tuple(value["channels"]), value["width"])


@dataclass(frozen=True)
class Nesting:
    """Which pieces a smaller size keeps: of heads and hidden channels always the first ones.

    depth: "first" keeps the first blocks; "spread" keeps block floor(i * all / kept) for i = 0, 1, ...
    channels: "first" keeps the first inner channels. "by_width" takes them for groups as wide as the whole model's
        hidden size and keeps the first ones of each group, as many as the sub-network is wide, until there are enough.
    """

    depth: Depth = "first"
    channels: Channels = "first"

    def blocks(self, kept: int, of: int) -> list[int]:
        return [i * of // kept for i in range(kept)] if self.depth == "spread" else list(range(kept))

    def inner(self, kept: int, of: int, width: int, full: int) -> list[int]:
        """Indices of the inner channels: `kept` of `of`, in a sub-network `width` wide of a model `full` wide."""
        if self.channels == "first":
            return list(range(kept))
        index = [group + i for group in range(0, of, full) for i in range(min(width, of - group))]
        if len(index) < kept:
            raise ModelError(
                f"a sub-network {width} wide has {len(index)} inner channels at most, not {kept}: "
                "a group holds no more channels than the sub-network is wide"
            )
        return index[:kept]


def size_of(model: nn.Module) -> Size:
    """The size of a whole model."""
    found = anatomy.of(model)
    for block in found.blocks:
        if block.attention is None or block.feed_forward is None:
            raise ModelError(
                f"block {block.path} has no attention or no feed-forward: no sizes can be nested in it"
            )
    return Size(
        len(found.blocks),
        tuple(b.attention.heads for b in found.blocks if b.attention),
        tuple(b.feed_forward.width for b in found.blocks if b.feed_forward),
        found.width,
    )


def cut(model: nn.Module, size: Size, nesting: Nesting) -> None:
    """Cut `model` to `size`, in place. Raises ModelError, before anything is changed, where it does not fit in.

    Heads are independent of the width: where the config can't say so, the result needs `lightformers.json`.
    """
    whole = size_of(model)
    check(size, whole, nesting)
    kept = nesting.blocks(size.blocks, whole.blocks)
    found = anatomy.of(model).blocks
    for place, source in enumerate(kept):
        attention = found[source].attention
        if attention is not None:
            key_value_groups(attention, range(size.heads[place]))
    if size.width < whole.width:
        _narrow(model, size)
    if size.blocks < whole.blocks:
        anatomy.surgery.keep_blocks(model, kept)
    now = size_of(model)
    heads = {i: range(size.heads[i]) for i in range(size.blocks) if size.heads[i] < now.heads[i]}
    if heads:
        anatomy.surgery.keep_heads(model, heads)
    channels = {
        i: nesting.inner(size.channels[i], now.channels[i], size.width, whole.width)
        for i in range(size.blocks)
        if size.channels[i] < now.channels[i]
    }
    if channels:
        anatomy.surgery.keep_channels(model, channels)


def _narrow(model: nn.Module, size: Size) -> None:
    """Keep the first channels of the hidden size; heads go in proportion where the size asks for no more of them.

    In proportion a bert reloads in plain transformers. The first heads are named: left to itself, the surgery would
    choose by the norms of their weights, another choice for every weight.
    """
    blocks = anatomy.of(model).blocks
    heads = {i: size.width // b.attention.head_dim for i, b in enumerate(blocks) if b.attention is not None}
    if max(size.heads) <= min(heads.values()):
        try:
            return anatomy.surgery.keep_width(
                model, range(size.width), {i: range(n) for i, n in heads.items()}
            )
        except ModelError:
            pass  # heads do not depend on the width here, or it is no multiple of theirs
    anatomy.surgery.keep_width(model, range(size.width), heads="keep")


def check(size: Size, whole: Size, nesting: Nesting) -> None:
    """Raises ModelError where `size` is not inside `whole`."""
    if size.blocks > whole.blocks or size.width > whole.width:
        raise ModelError(f"{size} is larger than the whole model ({whole})")
    for place, source in enumerate(nesting.blocks(size.blocks, whole.blocks)):
        if size.heads[place] > whole.heads[source] or size.channels[place] > whole.channels[source]:
            raise ModelError(
                f"block {place} of {size} is larger than block {source} of the whole model ({whole})"
            )
        nesting.inner(size.channels[place], whole.channels[source], size.width, whole.width)
