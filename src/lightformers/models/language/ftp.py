"""Future token prediction (Walker, 2024, arXiv 2410.18160): one state vector from which the next tokens must be told.

A causal encoder gives one vector per position. A small decoder gets nothing of the past but that vector, spread over a few
slots, and the last token; from it it must say the next N tokens. So the vector has to hold what is coming, not the next word.

Known of the paper is what its abstract and summaries say, there is no code: slots, N, the discount and the decoder's depth
are options, not facts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn

from lightformers.errors import UserError
from lightformers.models.language.layers import build
from lightformers.parts.attention.reading import CrossAttention
from lightformers.parts.attention.softmax import documents
from lightformers.parts.ffn.plain import MLP
from lightformers.parts.initial import linear
from lightformers.parts.mixers import State
from lightformers.parts.mixers.attention import Attention

#: What stands in targets where nothing is to be told.
IGNORED = -100


@dataclass(frozen=True)
class FTPConfig:
    """vocab_size; encoder and decoder: (width, layers, heads) of each. slots: pieces that a state vector is spread over.

    ahead: N, tokens that are told from each vector. discount: the loss of the n-th counts discount^(n - 1). share: of the
    positions, drawn at random, the decoder is trained on (it costs ahead x vocabulary scores at each). hidden: of the
    feed-forwards as a multiple of the width. The table of words is one if the widths are equal, and also the head.
    Raises UserError where this does not fit together.
    """

    vocab_size: int = 50257
    encoder: tuple[int, int, int] = (768, 12, 12)
    decoder: tuple[int, int, int] = (768, 3, 12)
    slots: int = 12
    ahead: int = 8
    discount: float = 0.8
    share: float = 1.0
    hidden: int = 4

    def __post_init__(self) -> None:
        for name in ("encoder", "decoder"):
            sizes = tuple(getattr(self, name))
            if len(sizes) != 3 or min(sizes) < 1:
                raise UserError(f"{name} is (width, layers, heads), each at least 1, not {sizes}")
            object.__setattr__(self, name, sizes)
        if min(self.vocab_size, self.slots, self.ahead, self.hidden) < 1:
            raise UserError("vocab_size, slots, ahead and hidden must be at least 1")
        if not 0 < self.discount <= 1 or not 0 < self.share <= 1:
            raise UserError(f"discount and share lie in (0, 1], not {self.discount} and {self.share}")


class Teller(nn.Module):
    """A layer of the decoder: causal attention to what is told so far, cross-attention to the slots, feed-forward."""

    def __init__(self, width: int, heads: int, hidden: int, layers: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.attention = Attention(width, heads, bias=True, layers=layers)
        self.read = CrossAttention(width, heads, bias=True, empty=False, layers=layers)
        self.feed_forward = MLP(width, hidden, "gelu", bias=True, layers=layers)

    def forward(self, x: Tensor, slots: Tensor) -> Tensor:
        return self._rest(x + self.attention(self.norms[0](x)), slots)

    def step(self, x: Tensor, slots: Tensor, state: State) -> tuple[Tensor, State]:
        """One more token, (batch, width)."""
        y, state = self.attention.step(self.norms[0](x), state)
        return self._rest((x + y)[:, None], slots)[:, 0], state

    def _rest(self, x: Tensor, slots: Tensor) -> Tensor:
        x = x + self.read(self.norms[1](x), slots)
        return x + self.feed_forward(self.norms[2](x))


class FutureTokenPrediction(nn.Module, PyTorchModelHubMixin):
    """(batch, n) tokens -> {"logits": (batch, n, vocabulary) of the next token, "states": (batch, n, width)}.

    attention_mask: (batch, n), 0 at padding, runs of one number are documents. config: an `FTPConfig` or its fields. The
    states, after the final norm, also serve as vectors of the text.
    """

    def __init__(self, config: FTPConfig) -> None:
        super().__init__()
        if isinstance(config, Mapping):
            config = FTPConfig(**config)
        self.config = config
        width, layers, heads = config.encoder
        small, depth, small_heads = config.decoder
        self.embedding = nn.Embedding(config.vocab_size, width)
        row = {
            "mixer": {"kind": "attention", "heads": heads, "bias": True},
            "ffn": {"kind": "mlp", "hidden": config.hidden * width, "bias": True},
        }
        self.layers = build([row] * layers, width, "layer", 1e-5, 0.0)
        self.norm = nn.LayerNorm(width)
        self.spread = linear(width, config.slots * small, True, width**-0.5)
        self.places = nn.Parameter(torch.randn(config.slots, small) * 0.02)
        self.words = nn.Embedding(config.vocab_size, small) if small != width else None
        self.tellers = nn.ModuleList(
            Teller(small, small_heads, config.hidden * small, depth) for _ in range(depth)
        )
        self.tell_norm = nn.LayerNorm(small)
        for table in (self.embedding, self.words):
            if table is not None:
                nn.init.normal_(table.weight, std=0.02)

    @property
    def table(self) -> nn.Embedding:
        """The decoder's words, which is also its head."""
        return self.embedding if self.words is None else self.words

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> dict[str, Tensor]:
        states = self.encode(input_ids, attention_mask)
        logits = self.tell(states.flatten(0, 1), input_ids.flatten()[:, None])
        return {"logits": logits.view(*input_ids.shape, -1), "states": states}

    def encode(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """(batch, n) -> state vectors (batch, n, width)."""
        x = self.embedding(input_ids)
        for layer in self.layers:
            x = layer(x, attention_mask)
        return self.norm(x)

    def slots(self, states: Tensor) -> Tensor:
        """(rows, width) -> (rows, slots, width of the decoder)."""
        return self.spread(states).unflatten(-1, (self.config.slots, -1)) + self.places

    def tell(self, states: Tensor, tokens: Tensor) -> Tensor:
        """states (rows, width), tokens (rows, m): the last known one and what is told after it -> logits (rows, m,
        vocabulary) of what follows each."""
        slots, x = self.slots(states), self.table(tokens)
        for layer in self.tellers:
            x = layer(x, slots)
        return nn.functional.linear(self.tell_norm(x), self.table.weight)

    def loss(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Discounted cross-entropy of the tokens ahead, weights summing to 1 at each position that has any. In training
        mode at a random share of the positions."""
        states = self.encode(input_ids, attention_mask)
        given, wanted = ahead(input_ids, self.config.ahead, attention_mask)
        rows = (wanted != IGNORED).any(-1).flatten().nonzero()[:, 0]
        if self.training and self.config.share < 1 and len(rows):
            keep = max(round(self.config.share * len(rows)), 1)
            rows = rows[torch.randperm(len(rows), generator=generator)[:keep].to(rows.device)]
        logits = self.tell(states.flatten(0, 1)[rows], given.flatten(0, 1)[rows])
        return discounted(logits, wanted.flatten(0, 1)[rows], self.config.discount)

    @torch.no_grad()
    def generate(
        self, input_ids: Tensor, max_new_tokens: int = 20, stride: int = 1, temperature: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> Tensor:  # fmt: skip
        """(batch, n) prompts without padding -> (batch, n + max_new_tokens).

        stride: tokens told from one state before the encoder reads them, at most `ahead`: more is faster and worse.
        temperature 0: the likeliest token. The encoder goes on from its states.
        """
        if input_ids.shape[1] < 1 or temperature < 0 or not 1 <= stride <= self.config.ahead:
            raise UserError(
                f"give a prompt of at least one token, a temperature of at least 0 and a stride of 1 to {self.config.ahead}"
            )
        weight = self.embedding.weight
        kept = [layer.begin(len(input_ids), weight.device, weight.dtype) for layer in self.layers]  # type: ignore[operator]
        state, kept = self._extend(input_ids, kept)
        end = input_ids.shape[1] + max_new_tokens
        while input_ids.shape[1] < end:
            count = min(stride, end - input_ids.shape[1])
            told = self._told(state, input_ids[:, -1], count, temperature, generator)
            input_ids = torch.cat([input_ids, told], 1)
            state, kept = self._extend(told, kept)
        return input_ids

    def _extend(self, tokens: Tensor, kept: list[State]) -> tuple[Tensor, list[State]]:
        """More tokens -> the last state vector, (batch, width)."""
        x, new = self.embedding(tokens), []
        for layer, state in zip(self.layers, kept):
            x, state = layer.extend(x, state)  # type: ignore[operator]
            new.append(state)
        return self.norm(x[:, -1]), new

    def _told(
        self, state: Tensor, token: Tensor, count: int, temperature: float, generator: torch.Generator | None
    ) -> Tensor:
        slots, told = self.slots(state), []
        kept = [layer.attention.begin(len(token), state.device, state.dtype) for layer in self.tellers]  # type: ignore[union-attr, operator]
        for _ in range(count):
            x = self.table(token)
            for i, layer in enumerate(self.tellers):
                x, kept[i] = layer.step(x, slots, kept[i])  # type: ignore[operator]
            logits = nn.functional.linear(self.tell_norm(x), self.table.weight)
            if temperature:
                token = torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator)[:, 0]
            else:
                token = logits.argmax(-1)
            told.append(token)
        return torch.stack(told, 1)


def ahead(input_ids: Tensor, count: int, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """(batch, n) -> what the decoder is given and what it is to tell at every position, (batch, n, count) each.

    given: x_t, x_{t+1}, ...; wanted: x_{t+1}, x_{t+2}, ..., `IGNORED` beyond the end, in padding and in another document.
    """
    owner = torch.ones_like(input_ids) if mask is None else documents(mask)
    longer = nn.functional.pad(input_ids, (0, count)).unfold(1, count + 1, 1)
    owners = nn.functional.pad(owner, (0, count)).unfold(1, count + 1, 1)
    there = (owners[..., 1:] == owner[..., None]) & (owner[..., None] != 0)
    return longer[..., :-1], torch.where(there, longer[..., 1:], IGNORED)


def discounted(logits: Tensor, wanted: Tensor, discount: float) -> Tensor:
    """(rows, count, vocabulary), (rows, count) -> the mean over rows of sum discount^n * cross-entropy / sum discount^n,
    over what is wanted in a row; rows without any do not count."""
    exact = logits.to(torch.promote_types(logits.dtype, torch.float32))
    each = nn.functional.cross_entropy(
        exact.flatten(0, 1), wanted.flatten(), ignore_index=IGNORED, reduction="none"
    )
    weight = discount ** torch.arange(wanted.shape[1], device=wanted.device, dtype=each.dtype)
    weight = weight * (wanted != IGNORED)
    total = weight.sum(1)
    rows = (each.view(wanted.shape) * weight).sum(1) / total.clamp(min=1e-9)
    return rows.sum() / (total > 0).sum().clamp(min=1)
