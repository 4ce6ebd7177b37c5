"""Writes the sizes of the live model back into its config(s), as far as a config can say them."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn

from lightformers.anatomy.access import get
from lightformers.anatomy.families import Family, StackRow
from lightformers.anatomy.find import host, of, row_of
from lightformers.anatomy.records import Anatomy, Attention, Block
from lightformers.errors import ModelError

LISTS_PER_LAYER = (
    "layer_types",
    "mlp_layer_types",
    "layers_block_type",
    "no_rope_layers",
    "attention_layers",
)


def section(owner: nn.Module, row: StackRow) -> Any:
    """The (sub-)config that a stack's fields live in, or None for a model without config."""
    config: Any = getattr(owner, "config", None)
    return getattr(config, row.config, config) if row.config else config


def copies(owner: nn.Module, target: Any) -> list[Any]:
    """`target` and every other config object of its kind that modules hold (t5's stacks keep their own)."""
    found = [target]
    for module in owner.modules():
        config = module.__dict__.get("config")
        if (
            config is not None
            and type(config) is type(target)
            and all(config is not other for other in found)
        ):
            found.append(config)
    return found


def attentions(block: Block) -> list[Attention]:
    return [a for a in (block.attention, block.cross_attention) if a is not None]


def sync(owner: nn.Module, row: Family) -> Anatomy:
    """Make the config say what the model is, where one number can. Returns the anatomy as it now is.

    Heads of unequal number, or of a size the config can't name, leave the config as it was, so that the
    model can still be built from it (and then be cut).
    """
    anatomy = of(owner, row)
    wanted: dict[tuple[int, str], tuple[Any, set[Any]]] = {}

    def want(target: Any, name: str, values: set[Any]) -> None:
        if name and values:
            wanted.setdefault((id(target), name), (target, set()))[1].update(values)

    bound = set()
    for stack in anatomy.stacks:
        names = next(r for r in row.stacks if r.name == stack.name)
        target = section(owner, names)
        if target is None or stack.shared:
            continue
        blocks = anatomy.stack(stack.name)
        found = [a for block in blocks for a in attentions(block)]
        if names.rows:
            _write_rows(owner, names.rows, blocks, target)
        want(target, names.depth, {len(blocks)})
        want(target, names.ffn, {b.feed_forward.width for b in blocks if b.feed_forward})
        if row.channels_multiple == "width":
            want(target, "mlp_ratio", {b.feed_forward.width / stack.width for b in blocks if b.feed_forward})
        want(target, names.heads, {a.heads for a in found})
        want(target, names.kv_heads, {a.kv_heads for a in found})
        proportional = all(a.out_features == stack.width for a in found)
        if names.head_dim and (getattr(target, names.head_dim, None) is not None or not proportional):
            want(target, names.head_dim, {a.head_dim for a in found})
        if not names.head_dim and not proportional:
            bound |= {(id(target), names.heads), (id(target), names.kv_heads)}
    for key, (target, values) in wanted.items():
        name = key[1]
        if len(values) != 1 or key in bound:
            continue
        value = values.pop()
        if isinstance(value, float):
            if not value.is_integer():
                continue
            value = int(value)
        for config in copies(owner, target):
            if getattr(config, name, None) != value and (hasattr(config, name) or name == "head_dim"):
                setattr(config, name, value)
    _own_depth(owner)
    return anatomy


def _write_rows(owner: nn.Module, name: str, blocks: tuple[Block, ...], target: Any) -> None:
    """The sizes of every block into its row of the config; a block that keeps its row, number or depth follows."""
    rows = copy.deepcopy(list(getattr(target, name)))
    for row, block in zip(rows, blocks):
        if (a := block.attention) is not None:
            mixer: dict[str, Any] = row["mixer"]
            now = {"heads": a.heads, "kv_heads": a.kv_heads, "head_size": a.head_dim}
            known = {"kv_heads": mixer["heads"], "head_size": target.hidden_size // mixer["heads"]}
            before = {k: mixer.get(k) if mixer.get(k) is not None else known.get(k) for k in now}
            if now != before:
                mixer.update(now)
        if block.feed_forward is not None:
            row["ffn"]["hidden"] = block.feed_forward.width
    for config in copies(owner, target):
        setattr(config, name, rows)
    for index, (row, block) in enumerate(zip(rows, blocks)):
        kept = get(owner, block.path).__dict__
        kept.update({k: v for k, v in {"row": row, "index": index, "layers": len(rows)}.items() if k in kept})


def _own_depth(owner: nn.Module) -> None:
    """A t5 decoder keeps a config of its own in which `num_layers` is the decoder's."""
    root: Any = getattr(owner, "config", None)
    for config in copies(owner, root) if root is not None else ():
        if (
            config is not root
            and getattr(config, "is_decoder", False)
            and hasattr(config, "num_decoder_layers")
        ):
            config.num_layers = config.num_decoder_layers


def trim_lists(owner: nn.Module, row: StackRow, kept: list[int], depth: int) -> None:
    """Keep the entries of the kept blocks in lists with one entry per layer, and in a backbone's stages."""
    target = section(owner, row)
    if target is None:
        return
    for config in copies(owner, target):
        for name in (*LISTS_PER_LAYER, row.rows):
            values = getattr(config, name, None)
            if isinstance(values, (list, tuple)) and len(values) == depth:
                setattr(config, name, [values[i] for i in kept])
        if isinstance(getattr(config, "stage_names", None), list) and len(config.stage_names) == depth + 1:
            _stages(config, kept)
    module: Any
    for module in owner.modules():
        names = module.__dict__.get("stage_names")
        if isinstance(names, list) and len(names) == depth + 1:
            module.stage_names = list(target.stage_names)
            for name in ("_out_features", "_out_indices"):
                if name in module.__dict__:
                    setattr(module, name, getattr(target, name))


def _stages(config: Any, kept: list[int]) -> None:
    """Stage 0 is the stem, stage i the output of block i - 1; a removed stage becomes the last one before it."""
    old = list(getattr(config, "out_indices", None) or [])
    length = len(config.stage_names)
    new = sorted({sum(1 for block in kept if block < (index % length)) for index in old})
    config.stage_names = ["stem", *(f"stage{i + 1}" for i in range(len(kept)))]
    if old:
        config._out_indices = new
        config._out_features = [config.stage_names[i] for i in new]


def open_up(model: nn.Module, cut: str, custom: bool = False) -> tuple[nn.Module, Family, Anatomy]:
    """The module that is cut, its row and anatomy. Raises ModelError if this family refuses the cut.

    custom: the cut may leave a form that the config can't say.
    """
    _, owner = host(model)
    row = row_of(model)
    if row is None:
        from lightformers.anatomy.structure import inspect

        row = inspect(owner)
    if cut in row.refused and not (custom and cut in row.custom):
        raise ModelError(f"{type(owner).__name__} ({row.name}): {row.refused[cut]}.")
    return owner, row, of(owner, row)
