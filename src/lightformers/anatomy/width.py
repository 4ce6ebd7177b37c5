"""Cut the hidden size (the residual stream) of a model: every tensor that has it, and heads in proportion.

Which dimensions are the hidden size is not listed anywhere: the model's own constructor tells, by what changes
between the twins of the old and the new config. So pooler, task head and whatever else there is come along.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import nn

from lightformers.anatomy.access import linear, rows
from lightformers.anatomy.cutting import Plan, chosen
from lightformers.anatomy.families import Family, StackRow
from lightformers.anatomy.find import of, suffix
from lightformers.anatomy.heads import plan_heads, plan_shared_bias
from lightformers.anatomy.narrow import narrow
from lightformers.anatomy.records import Anatomy, Attention
from lightformers.anatomy.settings import copies, open_up, section, sync
from lightformers.anatomy.twin import changed, shapes, tensors, twin
from lightformers.errors import ModelError


def keep_width(
    model: nn.Module, keep: Sequence[int], heads: Mapping[int, Sequence[int]] | Literal["keep"] | None = None
) -> None:
    """Keep these channels of the hidden size, ascending.

    Where the config has a head size of its own (llama, vit, ...), all heads stay; elsewhere the heads go in
    proportion, so the new width must be a multiple of the head size. heads: then, per block, the heads that stay
    (default: those with the largest product of the norms of their value and output weights). heads="keep": all heads
    stay in every family and any width goes; what the config can't say then needs lightformers.json.
    Raises ModelError for models that don't match their config any more: cut the width before anything unequal.
    """
    if heads == "keep":
        return narrow(model, keep)
    owner, row, anatomy = open_up(model, "width")
    kept = chosen(keep, anatomy.width, "hidden channels")
    if not row.model_types or len(row.stacks) != 1:
        raise ModelError(
            f"The hidden size is cut in one-stack families of the table; {row.name} is none of them."
        )
    from lightformers.anatomy.reload import native_reasons

    reasons = native_reasons(owner)
    if reasons:
        raise ModelError(f"Cut the width first: this model no longer matches its config ({reasons[0]}).")
    sync(owner, row)
    names = row.stacks[0]
    fields: dict[str, Any] = {names.width: len(kept)}
    target = section(owner, names)
    fields.update({name: len(kept) for name in row.follows if getattr(target, name, None) == anatomy.width})

    before = twin(owner)
    plan = Plan()
    after = _with_head_size(owner, row, anatomy, fields)
    if after is None:
        choice = _in_proportion(owner, row, anatomy, len(kept), heads)
        fields[names.heads] = len(choice[0])
        after = twin(owner, fields, names.config)
        for place, block in enumerate(anatomy.blocks):
            assert block.attention is not None
            plan_heads(plan, owner, block.attention, choice[place], choice[place])
        plan_shared_bias(plan, owner, row, anatomy, choice, {})
    elif heads is not None:
        raise ModelError(f"A {row.name} keeps all its heads when the width is cut; cut them with keep_heads.")
    else:
        for name in (names.head_dim, names.heads):
            fields[name] = getattr(target, name, None) or getattr(
                anatomy.blocks[0].attention, "head_dim", None
            )

    live = tensors(owner)
    for name, dims in changed(before, after).items():
        for dim in dims:
            if live[name].shape[dim] == anatomy.width and not plan.has(live[name], dim):
                plan.keep(live[name], dim, kept)
    wrong = [name for name, shape in shapes(after).items() if plan.shape(live[name]) != shape]
    if wrong:
        raise ModelError(f"How {wrong[0]} depends on the hidden size is not understood; nothing was changed.")
    plan.apply(owner)
    for config in copies(owner, target):
        for name, value in fields.items():
            setattr(config, name, value)
    _adopt(owner, before, after)
    sync(owner, row)


def _with_head_size(
    owner: nn.Module, row: Family, anatomy: Anatomy, fields: dict[str, Any]
) -> nn.Module | None:
    """The narrower twin that keeps all heads, if this config can name a head size and the model honours it."""
    names: StackRow = row.stacks[0]
    attention = anatomy.blocks[0].attention
    if not names.head_dim or attention is None:
        return None
    try:
        after = twin(owner, {**fields, names.head_dim: attention.head_dim}, names.config)
        found = of(after, row).blocks[0].attention
    except ModelError:
        return None
    same = found is not None and (found.heads, found.head_dim) == (attention.heads, attention.head_dim)
    norms = [p for p in (attention.q_norm, attention.k_norm) if p is not None]
    small = shapes(after)
    honoured = all(small[f"{p}.weight"][0] == tensors(owner)[f"{p}.weight"].shape[0] for p in norms)
    return after if same and honoured else None


def _in_proportion(
    owner: nn.Module, row: Family, anatomy: Anatomy, width: int, heads: Mapping[int, Sequence[int]] | None
) -> dict[int, list[int]]:
    attentions = [block.attention for block in anatomy.blocks]
    if any(a is None for a in attentions):
        raise ModelError("Every block needs an attention for its heads to be cut in proportion to the width.")
    found: list[Attention] = [a for a in attentions if a is not None]
    size, count = found[0].head_dim, width // found[0].head_dim
    if width % size or count == 0 or any(a.kv_heads != a.heads for a in found):
        raise ModelError(
            f"The head size of a {row.name} is hidden size / heads = {size}: keep a multiple of {size} channels, "
            f"not {width}."
        )
    if heads is not None:
        choice = {i: chosen(heads.get(i, ()), a.heads, f"heads of {a.path}") for i, a in enumerate(found)}
        if any(len(kept) != count for kept in choice.values()):
            raise ModelError(f"{width} channels go with {count} heads in every block.")
        return choice
    scores = [head_strength(owner, a) for a in found]
    if any(
        suffix(owner, stack.head_bias) for stack in row.stacks
    ):  # one position bias: the same heads everywhere
        scores = [torch.stack(scores).sum(0)] * len(scores)
    return {i: sorted(score.topk(count).indices.tolist()) for i, score in enumerate(scores)}


def head_strength(model: nn.Module, attention: Attention) -> torch.Tensor:
    """Per query head: norm of its value rows times norm of its output columns, (heads,). Zeros on meta."""
    weight, _ = linear(model, attention.o)
    if weight.is_meta:
        return torch.zeros(attention.heads)
    out = (
        weight.detach().float().reshape(weight.shape[0], attention.heads, attention.head_dim).norm(dim=(0, 2))
    )
    path, index = rows(attention, "v")
    value = linear(model, path)[0].detach().float()[index.to(weight.device)]
    norms = value.reshape(attention.kv_heads, attention.head_dim, -1).norm(dim=(1, 2))
    strength: torch.Tensor = (out * norms.repeat_interleave(attention.heads // attention.kv_heads)).cpu()
    return strength


def _adopt(owner: nn.Module, before: nn.Module, after: nn.Module) -> None:
    """Take over every number and shape that modules keep about themselves and that the narrower twin has changed."""
    new = dict(after.named_modules())
    old = dict(before.named_modules())
    for path, module in owner.named_modules():
        for name, value in vars(new[path]).items():
            plain = isinstance(value, (int, float, tuple)) and not isinstance(value, bool)
            if plain and vars(old[path]).get(name) != value:
                setattr(module, name, value)
