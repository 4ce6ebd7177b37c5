"""Whisper's generation config names (layer, head) pairs for word timestamps; cuts renumber them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn


def remap_alignment(
    owner: nn.Module, layers: Mapping[int, int], heads: Mapping[int, Mapping[int, int]]
) -> None:
    """Renumber `generation_config.alignment_heads`; pairs that were cut away are dropped.

    layers: old -> new decoder layer (empty: unchanged). heads: per layer, old -> new head.
    """
    config: Any = getattr(owner, "generation_config", None)
    pairs = getattr(config, "alignment_heads", None)
    if not pairs:
        return
    kept = []
    for layer, head in pairs:
        if (layers and layer not in layers) or (layer in heads and head not in heads[layer]):
            continue
        kept.append([layers.get(layer, layer), heads[layer][head] if layer in heads else head])
    config.alignment_heads = kept or None
