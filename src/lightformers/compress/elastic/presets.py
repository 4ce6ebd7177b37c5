"""Search spaces that papers give for one model, carried over to any other in proportion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import lcm

from torch import nn

from lightformers import anatomy
from lightformers.anatomy.convolution import grouped
from lightformers.bundle import Bundle
from lightformers.compress.elastic.size import Nesting, cut, size_of
from lightformers.compress.elastic.space import Space, whole
from lightformers.errors import ModelError


@dataclass(frozen=True)
class Preset:
    """Choices as a paper gives them for a model of `of` = (blocks, heads, width) with inner channels of 4 x width."""

    blocks: tuple[int, ...]
    heads: tuple[int, ...]
    width: tuple[int, ...]
    ratios: tuple[float, ...]
    of: tuple[int, int, int] = (12, 12, 768)


def space_of(
    model: nn.Module, preset: Preset, own: Preset, alike: bool, nesting: Nesting, multiple: int = 8
) -> Space:
    """The preset's space in proportion to the model; what `own` names is taken as it is.

    Heads are rounded to whole key/value groups, widths to `multiple` (and to the groups of a convolution on the hidden
    size), ratios down to eighths. Raises ModelError for a model whose blocks differ or whose sizes are not inside.
    """
    full = size_of(model)
    whole(model)  # refuses unequal blocks
    attention = anatomy.of(model).blocks[0].attention
    assert attention is not None
    blocks, heads, width = preset.of
    ratio = full.channels[0] / full.width / 4
    step = lcm(multiple, *grouped(model))
    if full.width < step:
        raise ModelError(f"a hidden size of {full.width} is too small for sizes that are multiples of {step}")
    space = Space(
        own.blocks or scaled(preset.blocks, full.blocks, blocks),
        own.heads or scaled(preset.heads, full.heads[0], heads, attention.heads // attention.kv_heads),
        own.width or scaled(preset.width, full.width, width, step),
        ratios=own.ratios or tuple(sorted({max(int(r * ratio * 8), 1) / 8 for r in preset.ratios})),
        alike=alike,
        nesting=nesting,
    )
    space.check(model)
    return space


def scaled(values: Sequence[int], full: int, of: int, multiple: int = 1) -> tuple[int, ...]:
    """`values` of a size `of`, in the same proportion of a size `full`: multiples of `multiple` up to `full`, each once."""
    most = full // multiple
    return tuple(sorted({multiple * min(max(round(v * full / of / multiple), 1), most) for v in values}))


def cut_to_largest(bundle: Bundle, space: Space) -> None:
    """Cut a bundle, in place, to the largest size of a space: the super-network, sliced out of what was trained."""
    largest, stacks = space.largest, anatomy.of(bundle.model).stacks
    kept = space.nesting.blocks(largest.blocks, size_of(bundle.model).blocks)
    cut(bundle.model, largest, space.nesting)
    source = bundle.origin.blocks.get(stacks[0].name) or range(stacks[0].depth)
    blocks = {**bundle.origin.blocks, stacks[0].name: tuple(source[i] for i in kept)}
    bundle.origin = replace(bundle.origin, blocks=blocks)
