"""The hypernetwork of ZeTT (Minixhofer et al., 2024, arXiv 2405.07883): embeddings of new tokens from old pieces."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Projector(nn.Module):
    """`LayerNorm(gelu(W2 gelu(W1 x)) + x)`; (..., width) -> (..., width)."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.up, self.down, self.norm = nn.Linear(width, inner), nn.Linear(inner, width), nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        gelu = nn.functional.gelu
        return self.norm(gelu(self.down(gelu(self.up(x)))) + x)


class TokenNetwork(nn.Module):
    """Rows of an embedding table for tokens that are given as pieces of another tokenizer.

    source: (vocabulary, columns) the table(s) of the model, input and output side by side where they are untied; it is
        held as a buffer and not trained. pieces: the most pieces of a token. hidden, layers, heads: of the encoder that
        runs over the pieces of one token, never across tokens.
    Inputs are rescaled per column to mean zero and `scale`; outputs so that on the source's own tokens they begin with
    the source's mean and deviation.
    """

    def __init__(
        self,
        source: Tensor,
        pieces: int = 7,
        hidden: int = 128,
        layers: int = 2,
        heads: int = 2,
        scale: float = 0.02,
    ) -> None:
        super().__init__()
        columns = source.shape[1]
        self.pieces, self.scale = pieces, scale
        self.source: Tensor
        self.mean: Tensor
        self.deviation: Tensor
        self.register_buffer("source", source.detach().float().clone(), persistent=False)
        self.register_buffer("mean", self.source.mean(0))
        self.register_buffer("deviation", self.source.std(0).clamp(min=1e-6))
        self.enter, self.before = nn.Linear(columns, hidden), Projector(hidden, 2 * hidden)
        self.positions = nn.Parameter(0.02 * torch.randn(pieces, hidden))
        layer = nn.TransformerEncoderLayer(
            hidden, heads, 2 * hidden, dropout=0.0, activation="gelu", batch_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.after, self.leave = Projector(hidden, 2 * hidden), nn.Linear(hidden, columns)
        self.factor, self.shift = nn.Parameter(torch.ones(columns)), nn.Parameter(torch.zeros(columns))
        self._calibrate()

    @torch.no_grad()
    def _calibrate(self) -> None:
        some = torch.arange(0, len(self.source), max(1, len(self.source) // 512), device=self.source.device)
        surface = torch.full((len(some), self.pieces), -1, dtype=torch.long, device=some.device)
        surface[:, 0] = some
        made = self(surface)
        self.factor.copy_(self.deviation / made.std(0).clamp(min=1e-6))
        self.shift.copy_(self.mean - made.mean(0) * self.factor)

    def forward(self, surface: Tensor) -> Tensor:
        """surface: (n, pieces) ids of the source's tokens, -1 behind the last -> (n, columns)."""
        absent = surface < 0
        x = (self.source[surface.clamp(min=0)] - self.mean) / self.deviation * self.scale
        x = self.before(self.enter(x)) + self.positions
        states = self.encoder(x, src_key_padding_mask=absent)
        return self.leave(self.after(states[:, 0])) * self.factor + self.shift
