"""Wide attention: one layer with all heads instead of a deep stack (Brown et al., 2022, arXiv 2210.00640).

The total of heads over all layers, their size, the width of the model and of its feed-forward stay as they are; layers are
traded for heads in a layer. Attention's 4 * width * head_size * heads weights do not change, feed-forwards come once per
layer, so one layer has the fewest. Heads times their size may then be more than the width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightformers.errors import UserError
from lightformers.parts.mixers.relative import join, split


@dataclass(frozen=True)
class Aspect:
    """layers of `heads` heads each. str: "4x8"."""

    layers: int
    heads: int

    def __str__(self) -> str:
        return f"{self.layers}x{self.heads}"


def aspect(total: int, layers: int) -> Aspect:
    """So many heads in all, in so many layers. Raises UserError where they cannot be shared equally."""
    if total < 1 or layers < 1 or total % layers:
        raise UserError(f"{total} heads cannot be shared equally by {layers} layers")
    return Aspect(layers, total // layers)


def aspects(total: int) -> list[Aspect]:
    """All there are, the deepest first: of 6 heads 6x1, 3x2, 2x3, 1x6."""
    return [aspect(total, layers) for layers in range(total, 0, -1) if total % layers == 0]


def layers(
    shape: Aspect, head_size: int, hidden: int, kind: str = "attention", **options: Any
) -> list[dict[str, Any]]:
    """The layers of an `EncoderConfig`. head_size: given by itself, never width / heads. hidden: of the feed-forward.
    kind, options: the mixer; one that takes `heads` and `head_size`."""
    mixer = {"kind": kind, "heads": shape.heads, "head_size": head_size, **options}
    ffn = {"kind": "mlp", "hidden": hidden, "bias": True}
    return [{"mixer": dict(mixer), "ffn": dict(ffn)} for _ in range(shape.layers)]


def weights(shape: Aspect, width: int, head_size: int, hidden: int) -> tuple[int, int]:
    """Numbers in the matrices of attention (the same for every aspect of one total) and of the feed-forwards."""
    return 4 * width * head_size * shape.heads * shape.layers, 2 * width * hidden * shape.layers


@torch.no_grad()
def contributions(mixer: nn.Module, x: Tensor, mask: Tensor | None = None) -> Tensor:
    """What every token adds to the mean output of attention over a text: with one layer, a reading of the model.

    mixer: `parts.mixers.attention.Attention` that looks both ways, without rotary positions. x: (batch, n, width), its
    input; mask: (batch, n), 0 at padding. Returns (batch, n, width): sum_h a_hj W_o,h W_v,h x_j, where a_hj is the mean
    over queries of the probability of token j in head h. Their sum over j is the mean of mixer(x) without out's bias.
    Raises UserError for other mixers.
    """
    if getattr(mixer, "causal", True) or getattr(mixer, "turned", 1) or getattr(mixer, "window", None):
        raise UserError(
            "contributions are read from attention that looks both ways, without rotary positions or window"
        )
    parts: Any = mixer
    q, k = split(parts.query(x), parts.heads), split(parts.key(x), parts.kv_heads)
    v = split(parts.value(x), parts.kv_heads)
    if parts.query_norm is not None:
        q, k = parts.query_norm(q), parts.key_norm(k)
    k, v = (t.repeat_interleave(parts.heads // parts.kv_heads, 1) for t in (k, v))
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    there = torch.ones(x.shape[:2], device=x.device) if mask is None else mask != 0
    scores = scores.masked_fill(~there.bool()[:, None, None], torch.finfo(scores.dtype).min)
    of = there.to(scores.dtype)[:, None, :, None]
    share = (scores.softmax(-1) * of).sum(2) / of.sum(2).clamp(min=1)  # (batch, heads, n)
    return join(share[..., None] * v) @ parts.out.weight.T
