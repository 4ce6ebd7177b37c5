"""What keeping some attention heads means for the tensors and the bookkeeping of a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from lightformers.anatomy.access import find, get, rows
from lightformers.anatomy.cutting import Plan
from lightformers.anatomy.families import Family
from lightformers.anatomy.find import HEAD_COUNTS, suffix
from lightformers.anatomy.records import Anatomy, Attention
from lightformers.errors import ModelError

_KV_COUNTS = ("num_key_value_heads", "num_kv_heads", "n_kv_heads", "n_kv_head", "kv_heads")
_GROUPS = ("num_key_value_groups", "n_rep")
_INNER = ("all_head_size", "inner_dim", "split_size")


def attention_at(anatomy: Anatomy, place: int, own: bool) -> Attention:
    if not 0 <= place < len(anatomy.blocks):
        raise ModelError(f"There is no block {place}; blocks run from 0 to {len(anatomy.blocks) - 1}.")
    block = anatomy.blocks[place]
    attention = block.attention if own else block.cross_attention
    if attention is None:
        raise ModelError(f"Block {place} ({block.path}) has no {'' if own else 'cross-'}attention.")
    return attention


def key_value_groups(attention: Attention, kept: Sequence[int]) -> list[int]:
    """The key/value heads that the kept query heads need. Raises ModelError if they are needed unevenly."""
    size = attention.heads // attention.kv_heads
    count: dict[int, int] = {}
    for head in kept:
        count[head // size] = count.get(head // size, 0) + 1
    if len(set(count.values())) > 1:
        raise ModelError(
            f"{attention.path}: {size} query heads share a key/value head (heads 0 to {size - 1} the first). "
            f"Keep whole groups, or the same number of each; got {list(kept)}."
        )
    return sorted(count)


def plan_heads(
    plan: Plan, owner: nn.Module, attention: Attention, kept: list[int], groups: list[int]
) -> None:
    """Write down what keeping these heads means for q, k, v, o and norms that run over all heads."""
    keeps: dict[str, list[torch.Tensor]] = {}
    for piece, heads in (("q", kept), ("k", groups), ("v", groups)):
        path, index = rows(attention, piece, heads)
        keeps.setdefault(path, []).append(index)
    for path, pieces in keeps.items():
        joined = torch.cat(pieces)
        # Per-head layouts interleave q, k and v: in their stored order again. Others are in order already.
        plan.linear(owner, path, out=joined.sort().values if attention.fused == "per_head" else joined)
    columns = torch.as_tensor(kept)[:, None] * attention.head_dim + torch.arange(attention.head_dim)
    plan.linear(owner, attention.o, into=columns.reshape(-1))
    for norm, heads, count in (
        (attention.q_norm, kept, attention.heads),
        (attention.k_norm, groups, attention.kv_heads),
    ):
        weight = getattr(find(owner, norm), "weight", None) if norm else None
        if weight is not None and count > 1 and weight.shape[0] == count * attention.head_dim:
            over = (
                torch.as_tensor(heads)[:, None] * attention.head_dim + torch.arange(attention.head_dim)
            ).reshape(-1)
            for tensor in get(owner, norm or "").parameters():
                plan.keep(tensor, 0, over)


def check_nothing_else(owner: nn.Module, attention: Attention) -> None:
    """In a model that no row knows: refuse if the attention holds weights whose relation to heads is not known."""
    norms = tuple(path for path in (attention.q_norm, attention.k_norm) if path)
    known = {id(p) for path in (*attention.projections, *norms) for p in get(owner, path).parameters()}
    sizes = {n * attention.head_dim for n in (attention.heads, attention.kv_heads)} | {attention.heads}
    for name, parameter in get(owner, attention.path).named_parameters():
        if id(parameter) not in known and sizes & set(parameter.shape):
            raise ModelError(
                f"{attention.path}.{name} may depend on the number of heads; no row tells how to cut it."
            )


def plan_shared_bias(
    plan: Plan,
    owner: nn.Module,
    row: Family,
    anatomy: Anatomy,
    keep: Mapping[int, Sequence[int]],
    cross: Mapping[int, Sequence[int]],
) -> None:
    """A position bias with one column per head serves all blocks of a stack: they must keep the same heads."""
    for stack in anatomy.stacks:
        names = next(r for r in row.stacks if r.name == stack.name)
        places = [i for i, b in enumerate(anatomy.blocks) if b.stack == stack.name and b.attention]
        if not (names.head_bias or names.first_block_bias) or not any(
            i in keep or i in cross for i in places
        ):
            continue
        kept = {tuple(keep.get(i, range(attention_at(anatomy, i, True).heads))) for i in places}
        counts = {
            len(cross.get(i, range(a.heads)))
            for i in places
            if (a := anatomy.blocks[i].cross_attention) is not None
        }
        if len(kept) > 1 or len(counts) > 1:
            raise ModelError(
                f"All blocks of the {stack.name} share one position bias with a column per head: keep the same "
                "heads in every block (and the same number in every cross-attention)."
            )
        path = suffix(owner, names.head_bias) if names.head_bias else None
        if path is None and names.first_block_bias:
            path = f"{attention_at(anatomy, places[0], True).path}.{names.first_block_bias}"
        bias = find(owner, path) if path else None
        if bias is not None:
            plan.keep(bias.weight, 1, list(kept.pop()))  # type: ignore[arg-type]


def resize_bias_owner(owner: nn.Module, row: Family) -> None:
    for names in row.stacks:
        path = suffix(owner, names.head_bias) if names.head_bias else None
        if path is not None:
            heads = get(owner, path).weight.shape[1]  # type: ignore[index]
            for name in HEAD_COUNTS:
                if name in get(owner, path.rpartition(".")[0]).__dict__:
                    setattr(get(owner, path.rpartition(".")[0]), name, heads)


def resize_attention(module: nn.Module, heads: int, kv_heads: int, head_dim: int) -> None:
    """Let an attention module know how many heads it has now."""
    for names, value in (
        (HEAD_COUNTS, heads), (_KV_COUNTS, kv_heads), (_GROUPS, heads // kv_heads), (_INNER, heads * head_dim),
    ):  # fmt: skip
        for name in names:
            if name in module.__dict__:
                setattr(module, name, value)
