"""What reloads in plain transformers, and why the rest does not.

The table gives the reason in words; a rehearsal of the cut on a twin without weights gives the proof, so a release
of transformers, or a setting of this very model, that behaves otherwise is noticed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

from torch import nn

from lightformers.anatomy.families import CUTS
from lightformers.anatomy.find import DESCRIPTION, host, of, row_of
from lightformers.anatomy.records import Anatomy, Attention
from lightformers.anatomy.settings import attentions
from lightformers.anatomy.twin import shapes, twin
from lightformers.errors import ModelError

_SHOWN = 3  # reasons of one kind that are spelled out
_FREE = ("training", "gradient_checkpointing", "name_or_path")
_TRIED = 64  # rows of the vocabulary that a rehearsal tries to spare


def native(subject: nn.Module | Anatomy, cut: str) -> str | None:
    """None if the model, cut so, reloads in plain transformers; else the reason why not.

    cut: "blocks", "heads", "channels", "width" or "vocabulary". For an `Anatomy` the table answers; for a model
    the cut is also rehearsed on the meta device.
    """
    if cut not in CUTS:
        raise ModelError(f"There is no cut {cut!r}; there are {', '.join(CUTS)}.")
    if isinstance(subject, Anatomy):
        said: str | None = getattr(subject.native, cut)
        return said
    _, owner = host(subject)
    if not hasattr(owner, "save_pretrained"):
        return f"{type(owner).__name__} is not a transformers model."
    row = row_of(owner)
    if row is not None and row.model_types:  # a row of the table; others are only rehearsed
        reason: str | None = getattr(of(owner).native, cut)
        if reason is not None:
            return reason
    return _rehearse(owner, cut)


def _rehearse(owner: nn.Module, cut: str) -> str | None:
    try:
        model = twin(owner)
        if hasattr(owner, DESCRIPTION):
            setattr(model, DESCRIPTION, getattr(owner, DESCRIPTION))
        _REHEARSALS[cut](model)
        reasons = native_reasons(model)
    except ModelError as error:
        return str(error)
    return reasons[0] if reasons else None


def _blocks(model: nn.Module) -> None:
    from lightformers.anatomy.surgery import keep_blocks

    for stack in of(model).stacks:
        depth = len(of(model).stack(stack.name))
        if depth > 1:
            keep_blocks(model, range(1, depth), stack.name)


def _heads(model: nn.Module) -> None:
    from lightformers.anatomy.surgery import keep_heads

    anatomy = of(model)

    def half(attention: Attention | None) -> range:
        if attention is None:
            return range(0)
        if attention.kv_heads > 1:
            return range(attention.heads // attention.kv_heads * (attention.kv_heads // 2))
        return range(max(1, attention.heads // 2))

    keep_heads(
        model,
        {i: half(b.attention) for i, b in enumerate(anatomy.blocks) if b.attention},
        {i: half(b.cross_attention) for i, b in enumerate(anatomy.blocks) if b.cross_attention},
    )


def _channels(model: nn.Module) -> None:
    from lightformers.anatomy.surgery import keep_channels

    anatomy = of(model)
    multiple = anatomy.native.channels_multiple
    keep_channels(
        model,
        {
            i: range(max(multiple, b.feed_forward.width // 2 // multiple * multiple))
            for i, b in enumerate(anatomy.blocks)
            if b.feed_forward
        },
    )


def _width(model: nn.Module) -> None:
    from lightformers.anatomy.surgery import keep_width

    anatomy = of(model)
    attention = anatomy.blocks[0].attention
    size = attention.head_dim if attention else 1
    keep_width(model, range(max(size, anatomy.width // 2 // size * size)))


def _vocabulary(model: nn.Module) -> None:
    from lightformers.anatomy.surgery import keep_vocabulary

    config: Any = model.config
    size = getattr(config, "vocab_size", None) or getattr(
        getattr(config, "text_config", None), "vocab_size", 0
    )
    if not size:
        raise ModelError(f"{type(model).__name__} has no vocabulary.")
    for gone in range(size - 1, max(size - 1 - _TRIED, 0), -1):  # special tokens often come last
        try:
            return keep_vocabulary(model, [i for i in range(size) if i != gone])
        except ModelError:
            if gone == max(size - _TRIED, 1):
                raise


_REHEARSALS: dict[str, Callable[[nn.Module], None]] = {
    "blocks": _blocks,
    "heads": _heads,
    "channels": _channels,
    "width": _width,
    "vocabulary": _vocabulary,
}


def native_reasons(model: nn.Module) -> list[str]:
    """Why plain transformers would not rebuild this very model from its config; empty if it would."""
    _, owner = host(model)
    if not hasattr(owner, "save_pretrained"):
        return [f"{type(owner).__name__} is not a transformers model."]
    try:
        other = twin(owner)
    except ModelError as error:
        return [str(error)]
    reasons = _kinds(owner, other)
    if not reasons:
        row = row_of(owner)
        try:
            reasons = _sizes(of(owner, row), of(other, row))
        except ModelError:
            reasons = []  # not understood, but the shapes below still tell
    reasons = reasons or _numbers(owner, other)
    mine, built = shapes(owner), shapes(other)
    if not reasons and mine != built:
        odd = sorted(name for name in set(mine) | set(built) if mine.get(name) != built.get(name))
        for name in odd[:_SHOWN]:
            reasons.append(
                f"{name} is {mine.get(name, 'absent')}, transformers builds {built.get(name, 'none')}."
            )
        if len(odd) > _SHOWN:
            reasons.append(f"... and {len(odd) - _SHOWN} more tensors.")
    return reasons


def _kinds(owner: nn.Module, other: nn.Module) -> list[str]:
    """Modules that transformers would not build where they stand."""
    built = {name: type(module).__name__ for name, module in other.named_modules()}
    mine = {name: type(module).__name__ for name, module in owner.named_modules()}
    reasons: list[str] = []
    seen: list[str] = []
    for name in sorted(set(built) | set(mine)):
        if built.get(name) == mine.get(name) or any(name.startswith(done + ".") for done in seen):
            continue
        seen.append(name)
        reasons.append(
            f"{name} is {mine.get(name, 'absent')} where transformers builds {built.get(name, 'nothing')}."
        )
    return reasons[:_SHOWN] + ([f"... and {len(reasons) - _SHOWN} more."] if len(reasons) > _SHOWN else [])


def _numbers(owner: nn.Module, other: nn.Module) -> list[str]:
    """Numbers that layers keep (a window, a scale, which layer they are) and that would come back otherwise."""
    built = dict(other.named_modules())
    for path, module in owner.named_modules():
        if "dropout" in type(module).__name__.lower() or not re.search(r"\.\d+(\.|$)", path):
            continue
        theirs = vars(built[path])
        for name, value in vars(module).items():
            plain = isinstance(value, (int, float, str)) and not name.startswith("_")
            if not plain or name in _FREE or "dropout" in name or theirs.get(name, value) == value:
                continue
            if not isinstance(value, float) or not math.isclose(value, theirs[name], rel_tol=1e-9):
                return [f"{path}.{name} is {value}, transformers sets {theirs[name]}."]
    return []


def _sizes(mine: Anatomy, built: Anatomy) -> list[str]:
    reasons = []
    widths = [b.feed_forward.width for b in mine.blocks if b.feed_forward]
    if widths != [b.feed_forward.width for b in built.blocks if b.feed_forward]:
        if len(set(widths)) > 1:
            reasons.append(
                f"The feed-forwards are {_span(widths)} channels wide; the config has one number for all."
            )
        else:
            multiple = mine.native.channels_multiple
            hint = f"; only multiples of {multiple} can be said" if multiple > 1 else ""
            reasons.append(
                f"The feed-forwards are {widths[0]} channels wide, which this config can't say{hint}."
            )
    heads = [a.heads for b in mine.blocks for a in attentions(b)]
    sizes = [a.head_dim for b in mine.blocks for a in attentions(b)]
    theirs = [a for b in built.blocks for a in attentions(b)]
    if heads != [a.heads for a in theirs] or sizes != [a.head_dim for a in theirs]:
        if len(set(heads)) > 1:
            reasons.append(f"The attentions have {_span(heads)} heads; the config has one number for all.")
        else:
            reasons.append(
                f"{heads[0]} heads of size {sizes[0]} do not fit a hidden size of {mine.width}: "
                f"a {mine.family} config can't name the head size."
            )
    return reasons


def _span(values: list[int]) -> str:
    return f"{min(values)} to {max(values)}" if len(set(values)) > 1 else str(values[0])
