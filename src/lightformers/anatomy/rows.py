"""What a row of the table of families says. Data only; `families` and `series` hold the rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from lightformers.anatomy.records import Fused

Names = tuple[str, ...]
CUTS = ("blocks", "heads", "channels", "width", "vocabulary")


@dataclass(frozen=True)
class StackRow:
    """One stack of blocks. The last group of fields are names of config fields ("" where there is none)."""

    name: str
    blocks: Names
    q: Names = ()
    k: Names = ()
    v: Names = ()
    o: Names = ()
    qkv: Names = ()
    fused: Fused = ""
    q_norm: Names = ()
    k_norm: Names = ()
    cross: tuple[Names, Names, Names, Names] = ((), (), (), ())  # q, k, v, o of the cross-attention
    cross_qkv: Names = ()
    up: Names = ()
    gate: Names = ()
    down: Names = ()
    packed: Names = ()  # gate and up in one linear
    norms: Names = ()
    words: Names = ()
    positions: Names = ()
    embedding_norm: Names = ()
    final_norm: Names = ()
    head_bias: Names = ()  # a position bias with one column per head, shared by all blocks of the stack
    first_block_bias: str = ""  # the same, living in the first block's attention (t5)
    shared: bool = False
    head_count: int = 0  # only where neither module nor config tells
    plain: Mapping[str, Names] = field(
        default_factory=dict
    )  # child of a block -> the classes of it that are read
    rows: str = ""  # a config list with a mapping per layer that says its sizes: unequal layers reload
    config: str = ""
    depth: str = "num_hidden_layers"
    heads: str = "num_attention_heads"
    kv_heads: str = ""
    head_dim: str = ""  # empty: the head size is width / heads
    ffn: str = "intermediate_size"
    width: str = "hidden_size"


@dataclass(frozen=True)
class Family:
    """A row. native: cuts that reload in plain transformers; reasons: per other cut, why not.

    refused: cuts that surgery does not do at all, with the reason; custom: those of them that it does where the result
    need not be plain (a width with all heads kept). follows: config fields that are the hidden
    size too, if they equal it. pad_counts: positions are counted from the pad id, which must keep its number.
    channels_multiple: "width" if only multiples of the hidden size reload.
    """

    name: str
    model_types: Names
    stacks: tuple[StackRow, ...]
    native: frozenset[str] = frozenset(CUTS)
    reasons: Mapping[str, str] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)
    custom: frozenset[str] = frozenset()
    follows: Names = ()
    pad_counts: bool = False
    channels_multiple: str = ""
