"""The only place that cuts. Every function works in place, checks everything before it changes anything, and
leaves config, tied weights, caches and shapes consistent: forward, backward, save and load work afterwards.

What plain transformers can't express (blocks of unequal width, fewer heads in a bert) is cut all the same;
`anatomy.native_reasons(model)` then says why the result does not reload there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from lightformers.anatomy.access import get, replace, replace_linear
from lightformers.anatomy.alignment import remap_alignment
from lightformers.anatomy.cutting import Plan, chosen
from lightformers.anatomy.heads import (
    attention_at,
    check_nothing_else,
    key_value_groups,
    plan_heads,
    plan_shared_bias,
    resize_attention,
    resize_bias_owner,
)
from lightformers.anatomy.settings import open_up, sync, trim_lists
from lightformers.anatomy.vocabulary import keep_vocabulary
from lightformers.anatomy.width import keep_width
from lightformers.errors import ModelError

__all__ = [
    "keep_blocks",
    "keep_channels",
    "keep_heads",
    "keep_vocabulary",
    "keep_width",
    "replace",
    "replace_linear",
]

_CHANNELS = ("intermediate_size", "hidden_features", "ffn_dim", "d_ff", "hidden_dim")
_DEPTHS = ("n_layers", "num_layers", "num_hidden_layers", "depth")


def keep_blocks(model: nn.Module, keep: Sequence[int], stack: str | None = None) -> None:
    """Keep these blocks of a stack, in their order; the others are removed.

    keep: indices within the stack, ascending. stack: its name, needed where the model has several.
    """
    owner, row, anatomy = open_up(model, "blocks")
    names = [s.name for s in anatomy.stacks]
    if stack is None and len(names) > 1:
        raise ModelError(
            f"{type(owner).__name__} has several stacks of blocks; say which: {', '.join(names)}."
        )
    stack = stack or names[0]
    if stack not in names:
        raise ModelError(f"{type(owner).__name__} has no stack {stack!r}; it has {', '.join(names)}.")
    where = anatomy.stacks[names.index(stack)]
    blocks = anatomy.stack(stack)
    kept = chosen(keep, len(blocks), f"blocks of the {stack}")
    names_of = next(r for r in row.stacks if r.name == stack)

    old = get(owner, where.path)
    members = list(old.children())
    if not row.model_types:
        _check_alike(members, kept, where.path)
    first, heir = blocks[0].attention, blocks[kept[0]].attention
    if names_of.first_block_bias and kept[0] != 0 and first and heir:  # t5: it serves the whole stack
        bias = get(owner, f"{first.path}.{names_of.first_block_bias}")
        setattr(get(owner, heir.path), names_of.first_block_bias, bias)
        get(owner, heir.path).has_relative_attention_bias = True  # type: ignore[assignment]
    replace(owner, where.path, type(old)(*_packed(old, [members[i] for i in kept])))
    for new, i in enumerate(kept):
        for module in members[i].modules():
            if type(getattr(module, "layer_idx", None)) is int:
                _renumber(module, new)
    parent = get(owner, where.path.rpartition(".")[0])
    for name in _DEPTHS:
        if parent.__dict__.get(name) == len(blocks):
            setattr(parent, name, len(kept))
    trim_lists(owner, names_of, kept, len(blocks))
    if stack == "decoder":
        remap_alignment(owner, {old: new for new, old in enumerate(kept)}, {})
    sync(owner, row)


def _check_alike(members: list[nn.Module], kept: list[int], path: str) -> None:
    """In a model that no row knows: a block may hold what serves all of them (as t5's position bias does)."""
    left = {name for i in kept for name, _ in members[i].named_parameters()}
    for i, member in enumerate(members):
        alone = {name for name, _ in member.named_parameters()} - left
        if i not in kept and alone:
            raise ModelError(
                f"{path}.{i} holds {min(alone)}, which no block that stays has: it may serve them all."
            )


def _packed(old: nn.Module, members: list[nn.Module]) -> list[Any]:
    return members if isinstance(old, nn.Sequential) else [members]


def _renumber(module: Any, index: int) -> None:
    """A new layer_idx. gpt2 may scale scores by 1 / (layer_idx + 1): then the queries make up for the change."""
    old = module.layer_idx
    module.layer_idx = index
    if not getattr(module, "scale_attn_by_inverse_layer_idx", False) or old == index:
        return
    factor = (index + 1) / (old + 1)
    if isinstance(getattr(module, "scaling", None), float):
        module.scaling = module.scaling / factor
    elif getattr(module.config, "_attn_implementation", "eager") != "eager":
        return  # early releases heed the setting in eager attention only
    fused = getattr(module, "q_attn", None) or module.c_attn
    width = module.num_heads * module.head_dim
    with torch.no_grad():
        fused.weight[:, :width] *= factor
        fused.bias[:width] *= factor


def keep_heads(
    model: nn.Module, keep: Mapping[int, Sequence[int]], cross: Mapping[int, Sequence[int]] | None = None
) -> None:
    """Keep these attention heads; blocks that are not named keep all of theirs.

    keep: place in `anatomy.blocks` -> query heads of the self-attention, ascending. With grouped queries the
    same number must be kept of each key/value group that stays (whole groups do). cross: the same for
    cross-attention.
    """
    owner, row, anatomy = open_up(model, "heads")
    plan, cuts = Plan(), []
    for wanted, own in ((keep, True), (cross or {}, False)):
        for place, heads in wanted.items():
            attention = attention_at(anatomy, place, own)
            kept = chosen(heads, attention.heads, f"heads of {attention.path}")
            groups = key_value_groups(attention, kept)
            plan_heads(plan, owner, attention, kept, groups)
            if not row.model_types:
                check_nothing_else(owner, attention)
            cuts.append((attention, len(kept), len(groups)))
    plan_shared_bias(plan, owner, row, anatomy, keep, cross or {})
    plan.apply(owner)
    for attention, count, kv_count in cuts:
        resize_attention(get(owner, attention.path), count, kv_count, attention.head_dim)
    resize_bias_owner(owner, row)
    for place, heads in (cross or {}).items():
        block = anatomy.blocks[place]
        if block.stack == "decoder":
            remap_alignment(owner, {}, {block.index: {old: new for new, old in enumerate(heads)}})
    sync(owner, row)


def keep_channels(model: nn.Module, keep: Mapping[int, Sequence[int]]) -> None:
    """Keep these inner channels of the feed-forwards; blocks that are not named keep all.

    keep: place in `anatomy.blocks` -> channels, ascending.
    """
    owner, row, anatomy = open_up(model, "channels")
    plan, cuts = Plan(), []
    for place, channels in keep.items():
        if not 0 <= place < len(anatomy.blocks):
            raise ModelError(f"There is no block {place}; blocks run from 0 to {len(anatomy.blocks) - 1}.")
        forward = anatomy.blocks[place].feed_forward
        if forward is None:
            raise ModelError(f"Block {place} ({anatomy.blocks[place].path}) has no feed-forward.")
        index = torch.as_tensor(chosen(channels, forward.width, f"channels of {forward.path}"))
        plan.linear(
            owner, forward.up, out=torch.cat([index, index + forward.width]) if forward.packed else index
        )
        if forward.gate is not None:
            plan.linear(owner, forward.gate, out=index)
        plan.linear(owner, forward.down, into=index)
        cuts.append((forward, len(index)))
    plan.apply(owner)
    for forward, width in cuts:
        module = get(owner, forward.path)
        for name in _CHANNELS:
            if module.__dict__.get(name) == forward.width:
                setattr(module, name, width)
    sync(owner, row)
