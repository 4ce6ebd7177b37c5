"""Small decoders of equal size for studies: attention, any mixer by its name, or an LSTM."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from lightformers.models.language.decoder import Decoder, DecoderConfig

LSTM = "lstm"
Mixer = Mapping[str, Any]


class Recurrent(nn.Module):
    """An LSTM over embeddings, `layers` deep: (batch, n) tokens -> .logits (batch, n, vocabulary), as a `Decoder` gives.

    Every call starts from a state of zeros. The weights of the embedding are those of the head.
    """

    def __init__(self, vocabulary: int, width: int, layers: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.memory = nn.LSTM(width, width, layers, batch_first=True)
        self.norm = nn.LayerNorm(width)

    def forward(self, input_ids: Tensor | None = None, inputs_embeds: Tensor | None = None) -> Any:
        x = self.embedding(input_ids) if inputs_embeds is None else inputs_embeds
        return SimpleNamespace(logits=self.norm(self.memory(x)[0]) @ self.embedding.weight.T)


def decoder(
    vocabulary: int, mixer: Mixer, seed: int, layers: int = 2, width: int = 128, hidden: int | None = None,
    length: int | None = None,
) -> nn.Module:  # fmt: skip
    """A `Decoder` with random weights: `layers` times the mixer and a feed-forward of `hidden` (None: 4 widths), LayerNorm.

    mixer: {"kind": a row of `parts.mixers.table`, options}; {"kind": "lstm"} gives a `Recurrent`, which has no
    feed-forward. length: of a table of learned positions; None: no table.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if mixer["kind"] == LSTM:
            return Recurrent(vocabulary, width, layers).eval()
        forward = {"kind": "mlp", "hidden": hidden or 4 * width, "activation": "gelu_tanh"}
        config = DecoderConfig(
            vocab_size=vocabulary, hidden_size=width, layers=[{"mixer": dict(mixer), "ffn": forward}] * layers,
            norm="layer", positions="learned" if length else None, max_position_embeddings=length,
        )  # fmt: skip
        return Decoder(config).eval()


def count(model: nn.Module) -> int:
    """Parameters, shared ones once."""
    return sum(p.numel() for p in model.parameters())


def fitted(parameters: int, make: Callable[[int], nn.Module], step: int = 8, most: int = 4096) -> int:
    """The size, a multiple of `step`, with which `make(size)` comes nearest to so many parameters.

    make: such as `lambda hidden: decoder(..., hidden=hidden)`; more of it must be more parameters.
    """
    low, high = 1, most // step
    while low < high:
        middle = (low + high) // 2
        if _count(make, middle * step) < parameters:
            low = middle + 1
        else:
            high = middle
    sizes = [s for s in (low - 1, low) if s >= 1]
    return step * min(sizes, key=lambda s: abs(_count(make, s * step) - parameters))


def _count(make: Callable[[int], nn.Module], size: int) -> int:
    with torch.device("meta"):
        return count(make(size))
