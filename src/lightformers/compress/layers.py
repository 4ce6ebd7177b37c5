"""Which linear layers of a model a step is about, by the words that steps use for them."""

from __future__ import annotations

from collections.abc import Sequence

from lightformers.anatomy import Anatomy
from lightformers.errors import ModelError, UserError

WHERE = ("attention", "ffn")


def linears(anatomy: Anatomy, where: Sequence[str] = WHERE) -> tuple[str, ...]:
    """Paths of the projections of all blocks, in order. where: any of "attention" (cross-attention too), "ffn".

    Raises UserError for other words, ModelError where the model has none.
    """
    if not where or set(where) - set(WHERE):
        raise UserError(f"where must be some of {', '.join(WHERE)}, got {', '.join(where) or 'nothing'}")
    found: list[str] = []
    for block in anatomy.blocks:
        if "attention" in where:
            for attention in (block.attention, block.cross_attention):
                found += attention.projections if attention else ()
        if "ffn" in where and block.feed_forward:
            found += block.feed_forward.projections
    if not found:
        raise ModelError(f"this {anatomy.family} model has no layers of kind {' or '.join(where)}")
    return tuple(dict.fromkeys(found))


def input_of(anatomy: Anatomy) -> dict[str, str]:
    """Path of a projection -> path of the first one that reads the very same input (q for k and v, gate for up)."""
    same: dict[str, str] = {}

    def together(*paths: str | None) -> None:
        present = [p for p in paths if p]
        same.update(dict.fromkeys(present, present[0]))

    for block in anatomy.blocks:
        if block.attention:
            together(block.attention.q, block.attention.k, block.attention.v, block.attention.qkv)
            together(block.attention.o)
        if block.cross_attention:
            together(block.cross_attention.q)
            together(block.cross_attention.k, block.cross_attention.v, block.cross_attention.qkv)
            together(block.cross_attention.o)
        if block.feed_forward:
            together(block.feed_forward.gate, block.feed_forward.up)
            together(block.feed_forward.down)
    return same
