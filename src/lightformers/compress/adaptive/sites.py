"""Where a module can take over what a feed-forward or a projection does, whatever the family calls its pieces."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from lightformers import anatomy
from lightformers.anatomy import Anatomy, Attention, Block, FeedForward
from lightformers.compress.layers import WHERE
from lightformers.errors import ModelError, UserError
from lightformers.parts.adaptive import AdaptiveModule, PassThrough

#: What models call the activation between two linear layers.
_ACTIVATIONS = ("act_fn", "activation_fn", "intermediate_act_fn", "activation", "act")


@dataclass(frozen=True)
class Site:
    """A function `y = f(x)` inside a model. path: the module that gets x, and that is replaced; leave: the one that
    gives y. silent: an activation between the two ("" if none is outside of `path`). macs: multiply-adds on one token.
    inner: hidden size of an equally dear pair of matrices."""

    path: str
    leave: str
    silent: str
    in_features: int
    out_features: int
    macs: int
    inner: float
    residual: bool

    def width(self, learners: int) -> int:
        """The hidden size at which so many learners cost what `f` costs."""
        return round(self.inner / learners)


def sites(model: nn.Module, where: Sequence[str]) -> list[Site]:
    """The feed-forwards ("ffn") and single projections ("attention", of cross-attention too) of all blocks, in order.

    Raises UserError for other words; ModelError where there are none, where blocks are shared, where a piece is replaced
    already, or where a feed-forward is spread over the block in a way that no single module can take over.
    """
    if not where or set(where) - set(WHERE):
        raise UserError(f"where must be some of {', '.join(WHERE)}, got {', '.join(where) or 'nothing'}")
    found = anatomy.of(model)
    if any(stack.shared for stack in found.stacks):
        raise ModelError(f"{found.family}: one block serves all layers, so no layer has an input of its own")
    made: list[Site] = []
    for block in found.blocks:
        if "attention" in where:
            for attention in (block.attention, block.cross_attention):
                made += _projections(model, attention) if attention else []
        if "ffn" in where and block.feed_forward:
            made.append(_feed_forward(model, block, block.feed_forward))
    if not made:
        raise ModelError(_nothing(found, where))
    taken = [s.path for s in made if isinstance(anatomy.get(model, s.path), (AdaptiveModule, PassThrough))]
    if taken:
        raise ModelError(f"{taken[0]} is an adaptive module already")
    return made


def _nothing(found: Anatomy, where: Sequence[str]) -> str:
    return (
        f"this {found.family} model has no layers of kind {' or '.join(where)}, or they are replaced already"
    )


def _projections(model: nn.Module, attention: Attention) -> list[Site]:
    if attention.fused == "packed":
        raise ModelError(
            f"{attention.path} is torch's nn.MultiheadAttention: its projections are one bare parameter"
        )
    made = []
    for path in attention.projections:
        into, out = anatomy.features(anatomy.get(model, path))
        inner = (into * out + out) / (into + out + 1)
        made.append(Site(path, path, "", into, out, into * out, inner, False))
    return made


def _feed_forward(model: nn.Module, block: Block, forward: FeedForward) -> Site:
    into, _ = anatomy.features(anatomy.get(model, forward.up))
    out = anatomy.features(anatomy.get(model, forward.down))[1]
    matrices = [anatomy.features(anatomy.get(model, p)) for p in forward.projections]
    macs = sum(a * b for a, b in matrices)
    parents = {p.rpartition(".")[0] for p in forward.projections}
    size = macs / (into + out)  # of two matrices: the inner size, and half as much again for a gated one
    if parents == {forward.path} and forward.path != block.path:
        return Site(forward.path, forward.path, "", into, out, macs, size, True)
    owner = anatomy.get(model, forward.path)
    names = [n for n in _ACTIVATIONS if isinstance(owner._modules.get(n), nn.Module)]
    if forward.gate is not None or forward.packed or not names:
        raise ModelError(
            f"the feed-forward of {block.path} is no module of its own, and is not up, activation and down: no single "
            "module can take it over"
        )
    return Site(forward.up, forward.down, f"{forward.path}.{names[0]}", into, out, macs, size, True)


def install(model: nn.Module, site: Site, module: nn.Module) -> None:
    """Put a module (in_features -> out_features) in the place of a site's function."""
    anatomy.surgery.replace(model, site.path, module)
    if site.leave != site.path:
        anatomy.surgery.replace(model, site.silent, nn.Identity())
        anatomy.surgery.replace(model, site.leave, PassThrough(site.out_features))


def valid(states: Tensor, mask: Tensor | None) -> Tensor:
    """(B, S, d), or (B * S, d) as some blocks reshape it -> (tokens, d), without padding."""
    flat = states.reshape(-1, states.shape[-1])
    return flat if mask is None or mask.numel() != len(flat) else flat[mask.reshape(-1).bool()]


def by_sample(values: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """(B, S, c) or (B * S, c) -> (B, S, c) and the (B, S) mask; without a fitting mask every token counts."""
    if mask is not None and mask.numel() == values[..., 0].numel():
        return values.reshape(*mask.shape, values.shape[-1]), mask.to(values.dtype)
    shaped = values if values.dim() == 3 else values[None]
    return shaped, shaped.new_ones(shaped.shape[:2])
