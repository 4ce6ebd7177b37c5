"""Full attention in a few layers, local attention in the others: MASFormer (Zhang et al., 2023, arXiv 2310.12442).

Which layers are full, the layer list of a decoder, and what it saves. Local attention is the block form of the paper, a
token's own block and the one before it (mixer "block-attention"), or a sliding window (mixer "attention" with `window`).
Names and shapes of weights are those of full attention, so the weights of a trained decoder fit (`load_state_dict`).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from lightformers.errors import UserError

Place = Literal["bottom", "top", "spread"]


def bottom(count: int, layers: int) -> tuple[int, ...]:
    """The first layers."""
    return tuple(range(count))


def top(count: int, layers: int) -> tuple[int, ...]:
    """The last layers."""
    return tuple(range(layers - count, layers))


def spread(count: int, layers: int) -> tuple[int, ...]:
    """Layers in the middle of `count` equal parts."""
    return tuple(int((i + 0.5) * layers / count) for i in range(count))


PLACES: dict[str, Callable[[int, int], tuple[int, ...]]] = {"bottom": bottom, "top": top, "spread": spread}


def full_layers(full: int | Sequence[int], layers: int, place: Place = "bottom") -> tuple[int, ...]:
    """Which of `layers` layers are full: so many at a place, or those that are given, ascending.

    None and all are extremes that are allowed. Raises UserError for numbers that do not fit, or twice the same.
    """
    if place not in PLACES:
        raise UserError(f"full layers stand at one of {', '.join(PLACES)}, not {place!r}")
    if isinstance(full, int):
        if not 0 <= full <= layers:
            raise UserError(f"there are {layers} layers: {full} of them cannot be full")
        return PLACES[place](full, layers) if full else ()
    chosen = tuple(sorted(full))
    if len(set(chosen)) < len(chosen) or any(not 0 <= i < layers for i in chosen):
        raise UserError(f"full layers are named once each, from 0 to {layers - 1}, not {list(full)}")
    return chosen


def mixed_spans(
    layers: int,
    full: int | Sequence[int],
    local: Mapping[str, Any],
    ffn: Mapping[str, Any],
    attention: Mapping[str, Any],
    place: Place = "bottom",
) -> list[dict[str, Any]]:
    """The `layers` of a `DecoderConfig`. attention, local: the mixer of full and of local layers; ffn: of all.

    mixed_spans(24, 8, {"kind": "block-attention", "heads": 16, "block": 1024}, ffn, {"kind": "attention", "heads": 16})
    """
    chosen = set(full_layers(full, layers, place))
    return [
        {"mixer": copy.deepcopy(dict(attention if i in chosen else local)), "ffn": copy.deepcopy(dict(ffn))}
        for i in range(layers)
    ]


def pairs(n: int, block: int | None = None, window: int | None = None) -> int:
    """How many (query, key) pairs a causal layer scores over n tokens: in blocks, in a window (itself included), or all."""
    if block is not None:
        whole, rest = divmod(n, block)
        own = whole * block * (block + 1) // 2 + rest * (rest + 1) // 2
        return own + max(whole - 1, 0) * block * block + (rest * block if whole else 0)
    reach = n if window is None else min(window, n)
    return reach * (reach + 1) // 2 + (n - reach) * reach


def relative_cost(
    layers: int, full: int, n: int, block: int | None = None, window: int | None = None
) -> float:
    """Scores of all layers over those of full attention everywhere; `full` of the layers are full."""
    return (full + (layers - full) * pairs(n, block, window) / pairs(n)) / layers


def relative_cache(
    layers: int, full: int, n: int, block: int | None = None, window: int | None = None
) -> float:
    """Keys that decoding keeps at n tokens over those of full attention everywhere."""
    kept = min(n, 2 * block if block is not None else window if window is not None else n)
    return (full + (layers - full) * kept / n) / layers


def block_causal(q: Tensor, k: Tensor, v: Tensor, block: int, dropout: float = 0.0) -> Tensor:
    """Causal attention to one's own block of `block` tokens and the block before. (batch, heads, n, size) each.

    Padding may stand on the right. Time and memory grow with n * block.
    """
    batch, n = q.shape[0], q.shape[2]
    if n <= 2 * block:  # everything before is in reach
        return scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=n > 1)
    count = -(-n // block)
    short = count * block - n

    def rows(
        x: Tensor,
    ) -> Tensor:  # (batch, heads, blocks * block, size) -> (batch * blocks, heads, block, size)
        return x.unflatten(2, (count, block)).transpose(1, 2).flatten(0, 1)

    def both(x: Tensor) -> Tensor:
        wide = pad(x, (0, 0, block, short))
        return torch.cat([rows(wide[:, :, : count * block]), rows(wide[:, :, block:])], 2)

    near = torch.ones(block, block, dtype=torch.bool, device=q.device)
    seen = torch.cat([near, near.tril()], 1).expand(count, -1, -1).clone()
    seen[0, :, :block] = False
    seen = seen.expand(batch, -1, -1, -1).flatten(0, 1)[:, None]
    out = scaled_dot_product_attention(rows(pad(q, (0, 0, 0, short))), both(k), both(v), seen, dropout)
    return out.unflatten(0, (batch, count)).transpose(1, 2).flatten(2, 3)[:, :, :n]
