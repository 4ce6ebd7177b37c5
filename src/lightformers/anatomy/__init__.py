"""Where the pieces of a model are (`of`), how to cut them (`surgery`), and what reloads where (`native`).

found = anatomy.of(model)
anatomy.surgery.keep_heads(model, {0: [0, 2, 3]})
anatomy.native_reasons(model)      # [] if plain transformers rebuilds the result
"""

from __future__ import annotations

from lightformers.anatomy import surgery
from lightformers.anatomy.access import (
    STATES,
    entering,
    features,
    get,
    linear,
    projection,
    replace,
    replace_linear,
    rows,
)
from lightformers.anatomy.cost import (
    Cost,
    attention_cost,
    block_cost,
    feed_forward_cost,
    head_cost,
    parameters_of,
    sequence_length,
    total,
)
from lightformers.anatomy.families import CUTS, FAMILIES, Family, StackRow
from lightformers.anatomy.find import of
from lightformers.anatomy.records import Anatomy, Attention, Block, FeedForward, Native, Stack
from lightformers.anatomy.reload import native, native_reasons
from lightformers.anatomy.structure import describe
from lightformers.anatomy.twin import build, twin
from lightformers.anatomy.width import head_strength

__all__ = [
    "CUTS",
    "FAMILIES",
    "STATES",
    "Anatomy",
    "Attention",
    "Block",
    "Cost",
    "Family",
    "FeedForward",
    "Native",
    "Stack",
    "StackRow",
    "attention_cost",
    "block_cost",
    "build",
    "describe",
    "entering",
    "features",
    "feed_forward_cost",
    "get",
    "head_cost",
    "head_strength",
    "linear",
    "native",
    "native_reasons",
    "of",
    "parameters_of",
    "projection",
    "replace",
    "replace_linear",
    "rows",
    "sequence_length",
    "surgery",
    "total",
    "twin",
]
