"""Another attention in an encoder that is there: local, longformer, linformer, performer and the others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import nn

from lightformers import anatomy
from lightformers.anatomy.access import features
from lightformers.anatomy.find import host
from lightformers.anatomy.records import Attention
from lightformers.bundle import Bundle
from lightformers.errors import ModelError, UserError
from lightformers.parts.attention import swapped
from lightformers.parts.attention.interface import ATTRIBUTE, CORE, check
from lightformers.parts.attention.table import options_of
from lightformers.steps import Run, Stage

#: Models whose texts are read from left to right, which their attention modules do not say of themselves.
_CAUSAL = ("clip", "clip_text_model")
#: What a core starts with here, so that it can express the attention that it replaces.
_STARTS: dict[str, dict[str, Any]] = {"linformer": {"start": "pool"}, "longformer": {"separate": False}}


@dataclass(frozen=True)
class SwapAttention:
    """Swap the softmax attention of an encoder for one whose cost does not grow with the square of the length.

    The attentions of the Long Range Arena (Tay et al., 2020, arXiv 2011.04006); the model's own projections stay. Where
    the new attention can express the old (local and sparse with a block, longformer with half a window over all
    positions, bigbird with up to 5 + random blocks, linformer of full rank on images, synthesizer "random+dot" of std 0),
    outputs stay equal; else the record's note says that the model must be recovered by training. Looks at no data.

    to: a name of `parts.attention.table.CORES`. options: what that core takes, e.g. {"features": 128}; `length` is by
    default what the model has positions for. blocks: which ones, by their place; None: all.

    Linformer starts as means of neighbours, longformer's global tokens share the window's projections. Projections that
    the new attention does not read (reformer's keys; a synthesizer's queries and keys) go. Attention dropout goes too.
    It saves no bytes, so it is no row of `compress.methods`, whose methods are steered by size: it pays at lengths that
    are long against the block, window, rank or features. Needs lightformers to load; graphs for other runtimes can be
    made with linear and performer.
    """

    to: str = "performer"
    options: Mapping[str, Any] = field(default_factory=dict)
    blocks: tuple[int, ...] | None = None
    stage: ClassVar[Stage] = Stage.FACTORIZE

    def __post_init__(self) -> None:
        object.__setattr__(self, "options", dict(self.options))
        if self.blocks is not None:
            object.__setattr__(self, "blocks", tuple(self.blocks))
        if unknown := sorted(self.options.keys() - options_of(self.to).keys()):
            raise UserError(
                f"{self.to} attention has no option {', '.join(unknown)}; it takes {', '.join(options_of(self.to)) or 'none'}"
            )
        if self.options.get("causal"):
            raise UserError("encoders look both ways: a causal attention is not swapped in")
        if self.to == "longformer" and self.options.get("separate"):
            raise UserError(
                "inside a model longformer's global tokens share the window's projections: leave separate out"
            )

    def apply(self, bundle: Bundle, task: Any, run: Run) -> Bundle:
        """Raises ModelError for decoders, attention to other sequences, biases of relative positions, models that
        bypass transformers' interface, and attention that was exchanged already; UserError for blocks that are not there.
        """
        model, owner = bundle.model, host(bundle.model)[1]
        found = anatomy.of(model)
        chosen = range(len(found.blocks)) if self.blocks is None else self.blocks
        if not chosen or set(chosen) - set(range(len(found.blocks))):
            raise UserError(f"blocks are counted from 0 to {len(found.blocks) - 1}; got {tuple(chosen)}")
        places = {i: a for i in chosen if (a := found.blocks[i].attention) is not None}
        if not places:
            raise ModelError(f"these blocks of a {found.family} have no attention to swap")
        _check(model, found)
        check(owner, {a.path: anatomy.get(model, a.path) for a in places.values()})
        parts = {a.path: self._made(bundle, found, a, i, run.seed) for i, a in places.items()}
        gone = [(a, piece) for a in places.values() for piece in _unread(parts[a.path], a)]
        for path, part in parts.items():
            anatomy.get(model, path).add_module(CORE, part)
        for attention, piece in gone:
            name = getattr(attention, piece)
            anatomy.surgery.replace(model, name, swapped.Unread(*features(anatomy.get(model, name))))
        swapped.use(owner)
        return bundle

    def note(self, bundle: Bundle) -> str:
        """Whether the result does what the model did."""
        lengths = _lengths(bundle)
        cores = swapped.cores(bundle.model).values()
        if all(core.core.equals_softmax(n) for core in cores for n in lengths):
            return f"The new attention gives what the old one gave, up to {lengths[-1]} positions"
        return (
            "The new attention does not give what the old one gave: the model must be recovered by training"
        )

    def _made(
        self, bundle: Bundle, found: anatomy.Anatomy, attention: Attention, place: int, seed: int
    ) -> swapped.SwappedAttention:
        known = options_of(self.to)
        options = {**_STARTS.get(self.to, {}), **self.options}
        if "length" in known:
            options.setdefault("length", _positions(bundle, found))
        if "seed" in known:  # every block draws its own
            options["seed"] = options.get("seed", 0) + place
        anchor = next(anatomy.get(bundle.model, attention.o).parameters(), None)
        with torch.random.fork_rng():
            torch.manual_seed(seed + place)
            made = swapped.SwappedAttention(self.to, attention.heads, attention.head_dim, options)
        if anchor is not None:
            made.to(anchor.device, anchor.dtype if anchor.is_floating_point() else None)
        return made.train(bundle.model.training)


def _check(model: nn.Module, found: anatomy.Anatomy) -> None:
    """Refuses models whose attention is more than softmax over one sequence, both ways."""
    owner = host(model)[1]
    family, config = found.family, getattr(owner, "config", None)
    if getattr(config, "is_encoder_decoder", False) or any(b.cross_attention for b in found.blocks):
        raise ModelError(
            f"a {family} with a decoder attends to another sequence: only encoders can be swapped"
        )
    for block in found.blocks:
        if block.attention is None:
            continue
        module: Any = anatomy.get(model, block.attention.path)
        told = getattr(config, "is_decoder", False) or getattr(config, "model_type", "") in _CAUSAL
        if told or getattr(module, "is_causal", False):
            raise ModelError(
                f"no token of this {family} may see later ones, as in a decoder: only encoders can be swapped"
            )
        if getattr(module, "sliding_window", None):
            raise ModelError(f"{block.attention.path} has a sliding window already: it cannot be swapped")
    if path := next(_relative(owner), None):
        raise ModelError(
            f"a {family} adds a bias for the distance of two positions to its scores ({path}), for which a swapped "
            "attention has no place"
        )
    if getattr(config, ATTRIBUTE, None):
        raise ModelError("the attention of this model was changed already: it cannot be swapped")


def _relative(owner: nn.Module) -> Iterator[str]:
    words = (
        "relative_attention_bias",
        "relative_position",
        "rel_embeddings",
        "distance_embedding",
        "rel_attn_embed",
    )
    for name, _ in owner.named_parameters():
        if any(word in name for word in words):
            yield name


def _unread(part: swapped.SwappedAttention, attention: Attention) -> list[str]:
    """Which projections the part does not read. Raises ModelError where they cannot go because they are fused."""
    gone = [piece for piece in "qk" if piece not in part.core.reads]
    if gone and attention.qkv is not None:
        raise ModelError(
            f"{attention.qkv} makes queries, keys and values at once, and {part.kind} attention does not read them all"
        )
    return gone


def _positions(bundle: Bundle, found: anatomy.Anatomy) -> int:
    """The most positions there can be: rows of the table of positions, else the config's number, else the bundle's."""
    if found.positions is not None:
        at: Any = anatomy.get(bundle.model, found.positions)
        table = at if isinstance(at, torch.Tensor) else getattr(at, "weight", None)
        if table is not None:
            return int(table.shape[-2])
    config = getattr(host(bundle.model)[1], "config", None)
    most = getattr(config, "max_position_embeddings", None) or bundle.max_length
    if not most:
        raise UserError("how many positions there can be is not to be seen: give options={'length': ...}")
    return int(most)


def _lengths(bundle: Bundle) -> range:
    """The numbers of positions that a bundle's examples can have; images have one."""
    found = anatomy.of(bundle.model)
    most = _positions(bundle, found)
    images = getattr(host(bundle.model)[1], "main_input_name", "") == "pixel_values"
    return range(most if images else 1, (most if images else bundle.max_length or most) + 1)
