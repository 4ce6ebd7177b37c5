"""`of(model)`: reads a row of the table against the live model. Unknown models go to `structure`."""

from __future__ import annotations

from typing import Any

from torch import nn

from lightformers.anatomy.access import features, find, get
from lightformers.anatomy.families import CUTS, Family, Names, StackRow, family_of
from lightformers.anatomy.records import Anatomy, Attention, Block, FeedForward, Native, Stack
from lightformers.errors import ModelError

HEAD_COUNTS = ("num_heads", "num_attention_heads", "n_heads", "n_head", "heads", "nhead", "num_q_heads")
HEAD_SIZES = ("head_dim", "attention_head_size", "head_size", "key_value_proj_dim", "d_head", "dim_head")
DESCRIPTION = "_lightformers_description"  # where `describe` leaves a row on a model


def host(model: nn.Module) -> tuple[str, nn.Module]:
    """The outermost module that has a transformers config, and its path. A model without one is its own host."""
    if _has_config(model):
        return "", model
    found = [name for name, module in model.named_modules() if _has_config(module)]
    outer = [name for name in found if not any(name.startswith(other + ".") for other in found)]
    return (outer[0], get(model, outer[0])) if len(outer) == 1 else ("", model)


def _has_config(module: nn.Module) -> bool:
    return hasattr(module, "save_pretrained") and hasattr(getattr(module, "config", None), "model_type")


def row_of(model: nn.Module) -> Family | None:
    """The row that describes this model: what `describe` left on it, else the table's."""
    _, owner = host(model)
    described: Family | None = getattr(model, DESCRIPTION, None) or getattr(owner, DESCRIPTION, None)
    if described is not None:
        return described
    config = getattr(owner, "config", None)
    return family_of(str(getattr(config, "model_type", "")))


def of(model: nn.Module, family: Family | None = None) -> Anatomy:
    """The anatomy of a model: a transformers model, with or without a task head, or any `nn.Module`.

    family: a row that describes the model (else the table's row, else the structure is inspected).
    Raises ModelError if the model can't be understood, saying what was found and how to describe it.
    """
    row = family or row_of(model)
    if row is None:
        from lightformers.anatomy.structure import inspect

        row = inspect(model)
    prefix, owner = host(model)
    prefix = prefix + "." if prefix else ""
    stacks: list[Stack] = []
    blocks: list[Block] = []
    for stack_row in row.stacks:
        path = suffix(owner, stack_row.blocks, nn.Module)
        if path is None:
            continue
        found = _blocks(owner, stack_row, path, row)
        stacks.append(_stack(owner, stack_row, path, found))
        blocks.extend(found)
    if not blocks:
        wanted = ", ".join(name for stack_row in row.stacks for name in stack_row.blocks)
        raise ModelError(
            f"{type(model).__name__} is taken for a {row.name}, yet no list of blocks was found at {wanted}. "
            "Describe it with anatomy.describe(model, blocks=..., q=..., k=..., v=..., o=..., up=..., down=...)."
        )
    head = _head(owner)
    words = next((s.embeddings for s in stacks if s.embeddings), None)
    tied = bool(
        head and words and _weight(owner, head) is not None and _weight(owner, head) is _weight(owner, words)
    )

    result = Anatomy(
        family=row.name,
        blocks=tuple(blocks),
        stacks=tuple(stacks),
        embeddings=words,
        positions=stacks[0].positions,
        embedding_norm=stacks[0].embedding_norm,
        final_norm=stacks[0].final_norm,
        head=head,
        tied=tied,
        width=stacks[0].width,
        native=native_of(row, stacks[0].width),
    )
    return _prefixed(result, prefix) if prefix else result


def native_of(row: Family, width: int) -> Native:
    """What the table says about each cut of this family."""

    def why(cut: str) -> str | None:
        if cut in row.refused:
            return f"{row.name}: {row.refused[cut]}"
        if cut in row.native:
            return None
        return f"{row.name}: {row.reasons.get(cut, f'a cut of {cut} is not known to reload')}"

    reasons = {cut: why(cut) for cut in CUTS}
    return Native(**reasons, channels_multiple=width if row.channels_multiple == "width" else 1)


def suffix(model: nn.Module, names: Names, kind: type = nn.Module) -> str | None:
    """The shortest path that ends in one of the names; earlier names first."""
    for name in names:
        if find(model, name) is not None:
            return name
        hits = [
            path
            for path, module in model.named_modules()
            if path.endswith("." + name) and isinstance(module, kind)
        ]
        if not hits:
            hits = [path for path, _ in model.named_parameters() if path.endswith("." + name)]
        if hits:
            return str(min(hits, key=len))
    return None


def _stack(owner: nn.Module, row: StackRow, path: str, blocks: list[Block]) -> Stack:
    attention = next((b.attention for b in blocks if b.attention), None)
    forward = next((b.feed_forward for b in blocks if b.feed_forward), None)
    probe = attention.o if attention else forward.down if forward else None
    if probe is None and not row.plain:
        raise ModelError(f"The blocks at {path} hold neither attention nor feed-forward.")
    depth = len(blocks)
    if row.shared:
        depth = int(getattr(owner.config, "num_hidden_layers", depth))
    return Stack(
        name=row.name,
        path=path,
        depth=depth,
        width=features(get(owner, probe))[1] if probe else int(getattr(owner.config, row.width)),
        shared=row.shared,
        embeddings=suffix(owner, row.words),
        positions=suffix(owner, row.positions),
        embedding_norm=suffix(owner, row.embedding_norm),
        final_norm=suffix(owner, row.final_norm),
    )


def _blocks(owner: nn.Module, row: StackRow, path: str, family: Family) -> list[Block]:
    blocks = []
    for index, (name, block) in enumerate(get(owner, path).named_children()):
        at = f"{path}.{name}"
        parts = {part: find(block, part) for part in row.plain}
        strange = [p for p, m in parts.items() if m is not None and type(m).__name__ not in row.plain[p]]

        def first(names: Names, block: nn.Module = block, at: str = at, strange: Any = strange) -> str | None:
            names = tuple(n for n in names if n.partition(".")[0] not in strange)
            return next((f"{at}.{n}" for n in names if isinstance(find(block, n), nn.Module)), None)

        blocks.append(
            Block(
                path=at,
                index=index,
                stack=row.name,
                attention=_attention(
                    owner, row, first(row.q), first(row.k), first(row.v), first(row.o), first(row.qkv), row.fused,
                    first(row.q_norm), first(row.k_norm),
                ),
                cross_attention=_attention(
                    owner, row, first(row.cross[0]), first(row.cross[1]), first(row.cross[2]), first(row.cross[3]),
                    first(row.cross_qkv),
                    "kv" if row.cross_qkv else "", None, None,
                ),
                feed_forward=_feed_forward(owner, first(row.up), first(row.gate), first(row.down), first(row.packed), at),
                norms=tuple(f"{at}.{n}" for n in row.norms if isinstance(find(block, n), nn.Module)),
                others=tuple(f"{at}.{part}" for part in strange),
            )
        )  # fmt: skip
    if not any(b.attention or b.feed_forward or b.others for b in blocks):
        raise ModelError(
            f"No attention and no feed-forward of a {family.name} found in the blocks at {path}."
        )
    return blocks


def _attention(
    owner: nn.Module,
    row: StackRow,
    q: str | None,
    k: str | None,
    v: str | None,
    o: str | None,
    qkv: str | None,
    fused: Any,
    q_norm: str | None,
    k_norm: str | None,
) -> Attention | None:
    if o is None or (q is None and qkv is None and fused != "packed"):
        return None
    path = (q or qkv or o).rpartition(".")[0]
    inner = features(get(owner, o))[0]
    size = _attribute(owner, path, HEAD_SIZES)
    if size is None:
        heads = row.head_count or _attribute(owner, path, HEAD_COUNTS) or _config_heads(owner, row)
        if not heads or inner % heads:
            raise ModelError(
                f"How many heads the attention at {path} has is not to be seen: describe it with heads=..."
            )
        size = inner // heads
    heads = inner // size
    kv_heads = heads
    if k:
        kv_heads = features(get(owner, k))[1] // size
    elif qkv and fused in ("thirds", "unknown"):
        kv_heads = (features(get(owner, qkv))[1] // size - heads) // 2
    if heads * size != inner or kv_heads == 0 or heads % kv_heads:
        raise ModelError(
            f"The attention at {path} does not add up: {inner} inner features, head size {size}, "
            f"{kv_heads} key/value heads."
        )
    return Attention(path, q, k, v, o, qkv, fused, heads, kv_heads, size, q_norm, k_norm)


def _config_heads(owner: nn.Module, row: StackRow) -> int | None:
    config = getattr(owner, "config", None)
    count = getattr(config, row.heads, None) if row.heads else None
    return count if isinstance(count, int) else None


def _attribute(owner: nn.Module, path: str, names: Names) -> int | None:
    """An integer the attention module keeps about itself, by one of the usual names."""
    module = get(owner, path)
    for name in names:
        value = getattr(module, name, None)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return None


def _feed_forward(
    owner: nn.Module, up: str | None, gate: str | None, down: str | None, packed: str | None, block: str
) -> FeedForward | None:
    if down is None or (up is None and packed is None):
        return None
    entry = up or packed
    assert entry is not None
    path = entry.rpartition(".")[0] or block
    width = features(get(owner, down))[0]
    activation = _activation(get(owner, path)) or _activation(get(owner, block)) or ""
    return FeedForward(path, entry, gate, down, activation, width, packed=up is None)


def _activation(module: nn.Module) -> str | None:
    for name in ("act_fn", "activation_fn", "intermediate_act_fn", "activation", "act"):
        act = getattr(module, name, None)
        if callable(act):
            return getattr(act, "__name__", type(act).__name__)
    return None


def _weight(owner: nn.Module, path: str) -> Any:
    return getattr(get(owner, path), "weight", None)


def _head(owner: nn.Module) -> str | None:
    """The output layer: the language model's, else the last linear outside the backbone."""
    getter = getattr(owner, "get_output_embeddings", None)
    try:
        output = getter() if callable(getter) else None
    except (AttributeError, NotImplementedError):
        output = None
    if isinstance(output, nn.Module):
        return next((name for name, module in owner.named_modules() if module is output), None)
    base = getattr(owner, "base_model", owner)
    if base is owner:
        return None
    inside = {id(module) for module in base.modules()}
    linears = [
        name
        for name, module in owner.named_modules()
        if isinstance(module, nn.Linear) and id(module) not in inside
    ]
    return linears[-1] if linears else None


def _prefixed(value: Any, prefix: str) -> Any:
    """The same record with every path below `prefix`."""
    paths = {"path", "q", "k", "v", "o", "qkv", "q_norm", "k_norm", "up", "gate", "down", "norms", "others", "embeddings",
             "positions", "embedding_norm", "final_norm", "head"}  # fmt: skip
    if isinstance(value, tuple):
        return tuple(_prefixed(item, prefix) for item in value)
    if not hasattr(value, "__dataclass_fields__") or isinstance(value, Native):
        return value
    changed: dict[str, Any] = {}
    for name in value.__dataclass_fields__:
        item = getattr(value, name)
        if name in paths and isinstance(item, str):
            changed[name] = prefix + item
        elif name in paths and isinstance(item, tuple):
            changed[name] = tuple(prefix + path for path in item)
        else:
            changed[name] = _prefixed(item, prefix)
    return type(value)(**changed)
