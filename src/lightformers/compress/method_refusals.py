"""Why a method can do nothing with a model, asked before anything is changed: each function raises ModelError or passes.

They call what the steps themselves ask first, or rehearse a cut on a copy without weights, so reasons are the steps'.
"""

from __future__ import annotations

import json

from lightformers import anatomy
from lightformers.anatomy.find import host
from lightformers.bundle import Bundle
from lightformers.compress import tokenizer_json
from lightformers.compress.fold import fusegpt
from lightformers.compress.fold import stream as residual
from lightformers.compress.prune import gates as vib
from lightformers.compress.quantize.intervention import Watch
from lightformers.compress.weights import weights_of
from lightformers.errors import ModelError
from lightformers.parts.attention.interface import check


def plain(bundle: Bundle) -> None:
    """All projections are plain linear layers."""
    weights_of(bundle.model)


def blocks(bundle: Bundle) -> None:
    """There are blocks to spare in every stack, and they are not one shared block."""
    for stack in anatomy.of(bundle.model).stacks:
        if stack.shared:
            raise ModelError(f"the {stack.name} runs one shared block {stack.depth} times")
        if stack.depth < 2:
            raise ModelError(f"the {stack.name} has a single block: none can be spared")


def channels(bundle: Bundle) -> None:
    """There are feed-forwards, all of one width."""
    plain(bundle)
    found = anatomy.of(bundle.model)
    widths = {b.feed_forward.width for b in found.blocks if b.feed_forward}
    if not widths:
        raise ModelError(f"this {found.family} model has no feed-forward layers to prune")
    if len(widths) > 1:
        raise ModelError(f"the feed-forward widths differ already ({min(widths)} to {max(widths)})")


def heads(bundle: Bundle) -> None:
    """There are heads whose projections can be told apart."""
    plain(bundle)
    found = anatomy.of(bundle.model)
    attentions = [a for b in found.blocks for a in (b.attention, b.cross_attention) if a]
    if not attentions:
        raise ModelError(f"this {found.family} model has no attention heads to prune")
    for attention in attentions:
        anatomy.rows(attention, "q")
    if max(a.kv_heads for a in attentions) < 2:
        raise ModelError(
            "there is one head (or one group of keys and values) in each attention: it must stay"
        )


def width(bundle: Bundle) -> None:
    """The family's hidden size can be cut, shown on a copy without weights."""
    plain(bundle)
    if reasons := anatomy.native_reasons(host(bundle.model)[1]):
        raise ModelError(f"the hidden size is cut first of all; this model is changed already: {reasons[0]}")
    reason = anatomy.native(host(bundle.model)[1], "width")
    if reason is not None:
        raise ModelError(reason)


def gates(bundle: Bundle) -> None:
    """There are heads or channels that can be gated."""
    plain(bundle)
    vib.sites(bundle.model, False)


def fusing(bundle: Bundle) -> None:
    """One stack of blocks that are all alike."""
    blocks(bundle)
    fusegpt._check(bundle.model, anatomy.of(bundle.model))


def stream(bundle: Bundle) -> None:
    """Only LayerNorms read the residual stream."""
    residual.find(bundle.model, bundle.module())


def attention(bundle: Bundle) -> None:
    """Every attention goes through transformers' interface."""
    plain(bundle)
    found = anatomy.of(bundle.model)
    paths = [a.path for b in found.blocks for a in (b.attention, b.cross_attention) if a]
    check(host(bundle.model)[1], {p: anatomy.get(bundle.model, p) for p in paths})


def watched(bundle: Bundle) -> None:
    """A teacher can intervene: queries, keys and values apart, in blocks of one attention and one feed-forward."""
    plain(bundle)
    Watch(bundle.model, bundle.module())


def vocabulary(bundle: Bundle) -> None:
    """There is a word embedding and a fast tokenizer whose model is known."""
    tokenizer = bundle.processor
    if not getattr(tokenizer, "is_fast", False):
        kind = type(tokenizer).__name__ if tokenizer is not None else "no tokenizer"
        raise ModelError(
            f"the vocabulary is cut through a fast tokenizer (tokenizer.json); the bundle has {kind}"
        )
    if anatomy.of(bundle.model).embeddings is None:
        raise ModelError("this model has no word embedding: there is no vocabulary to trim")
    tokenizer_json.check(json.loads(tokenizer.backend_tokenizer.to_str()))
