"""RETRO (Wang et al., EMNLP 2023, arXiv 2304.06762; Borgeaud et al., 2021): a decoder that reads what a database says.

The text is cut into chunks. Each chunk's neighbours in a database (`retro_index`) are read by a small encoder, which also
looks at the chunk, and some layers of the decoder cross-attend to them: from the last token of the chunk to the last but
one of the next, so that no token knows what a later one retrieved.

As Megatron's code, but: the first chunk may be shorter (`first`), and its places that do not exist are masked, not zero;
missing neighbours are masked, and a chunk without any reads a learnt key. RETRO++ is a way to ask (`plus`), not a model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn

from lightformers.errors import UserError
from lightformers.models.language.retro_index import PAD
from lightformers.parts.attention.reading import CrossAttention
from lightformers.parts.ffn.plain import MLP
from lightformers.parts.mixers import State
from lightformers.parts.mixers.attention import Attention

#: (count, chunk) tokens -> (count, neighbours, retrieved) tokens, filled with `PAD`.
Retriever = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class RetroConfig:
    """vocab_size, width, layers, heads. hidden: of the feed-forwards, by default 4 * width.

    chunk: tokens of a chunk. encoder_layers: of the neighbours' encoder, the first of which looks at the chunk. cross:
    decoder layers that read neighbours, counted from 1; by default every third from the 6th on, from the 9th in decoders
    of more than 15 layers. rotary: share of each head that is turned. Raises UserError where this does not fit together.
    """

    vocab_size: int = 50257
    width: int = 1024
    layers: int = 24
    heads: int = 16
    hidden: int | None = None
    chunk: int = 64
    encoder_layers: int = 2
    cross: tuple[int, ...] | None = None
    rotary: float = 0.5

    def __post_init__(self) -> None:
        if min(self.vocab_size, self.width, self.layers, self.heads, self.encoder_layers) < 1:
            raise UserError("vocab_size, width, layers, heads and encoder_layers must be at least 1")
        if self.chunk < 2:
            raise UserError(f"a chunk holds at least 2 tokens, not {self.chunk}")
        cross = self.cross
        if cross is None:
            cross = tuple(range(6 if self.layers <= 15 else 9, self.layers + 1, 3)) or (self.layers,)
        object.__setattr__(self, "cross", tuple(sorted(cross)))
        if (
            not self.cross
            or not 1 <= self.cross[0] <= self.cross[-1] <= self.layers
            or len(set(cross)) < len(cross)
        ):
            raise UserError(
                f"layers that read neighbours are some of 1 to {self.layers}, each once, not {cross}"
            )


class RetroLayer(nn.Module):
    """Self-attention, cross-attention in some, feed-forward, each x + f(norm(x))."""

    def __init__(self, config: RetroConfig, causal: bool, cross: bool, layers: int) -> None:
        super().__init__()
        width = config.width
        self.attention_norm, self.forward_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(
            width, config.heads, rotary=config.rotary, bias=True, causal=causal, layers=layers
        )
        self.cross_norm = nn.LayerNorm(width) if cross else None
        self.cross = (
            CrossAttention(width, config.heads, bias=True, empty=causal, layers=layers) if cross else None
        )
        self.feed_forward = MLP(width, config.hidden or 4 * width, "gelu", bias=True, layers=layers)

    def feed(self, x: Tensor) -> Tensor:
        return x + self.feed_forward(self.forward_norm(x))


@dataclass
class Going:
    """What generation keeps: states of self-attention, the chunk so far (tokens, and states of the first layer that reads
    neighbours), its size, and what was read for the last whole chunk: (batch, m, width) with a mask, or None."""

    states: list[State]
    size: int
    tokens: list[Tensor] = field(default_factory=list)
    hidden: list[Tensor] = field(default_factory=list)
    memory: tuple[Tensor, Tensor] | None = None


class Retro(nn.Module, PyTorchModelHubMixin):
    """(batch, n) tokens, neighbours (batch, chunks, k, r) -> {"logits": (batch, n, vocabulary)}.

    neighbours: tokens of k neighbours per chunk, `PAD` where there are fewer or they are shorter; None: the decoder alone.
    There are `chunks(n, first)` of them; a last chunk that is not whole has none. first: tokens of the first chunk, by
    default as many as of the others; `aligned(n)` lets the text end with a chunk, as in Megatron's code. Padding of a
    text stands on its right, and no mask is needed for it. config: a `RetroConfig` or its fields.
    """

    def __init__(self, config: RetroConfig) -> None:
        super().__init__()
        if isinstance(config, Mapping):
            config = RetroConfig(**config)
        self.config = config
        cross = config.cross or ()
        self.embedding = nn.Embedding(config.vocab_size, config.width)
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.layers = nn.ModuleList(
            RetroLayer(config, True, i in cross, config.layers) for i in range(1, config.layers + 1)
        )
        encoder = (
            RetroLayer(config, False, i == 0, config.encoder_layers) for i in range(config.encoder_layers)
        )
        self.encoder = nn.ModuleList(encoder)
        self.encoder_norm = nn.LayerNorm(config.width)
        self.norm = nn.LayerNorm(config.width)

    def chunks(self, n: int, first: int | None = None) -> int:
        """How many whole chunks n tokens have."""
        first = self._first(first)
        return 0 if n < first else 1 + (n - first) // self.config.chunk

    def aligned(self, n: int) -> int:
        """The size of the first chunk with which n tokens end at the end of a chunk."""
        return (n - 1) % self.config.chunk + 1

    def forward(
        self, input_ids: Tensor, neighbours: Tensor | None = None, first: int | None = None
    ) -> dict[str, Tensor]:
        x, first = self.embedding(input_ids), self._first(first)
        count = self.chunks(input_ids.shape[1], first)
        if neighbours is not None:
            self._check(neighbours, len(input_ids), count)
        memory = None
        for layer in self.layers:
            x = x + layer.attention(layer.attention_norm(x))  # type: ignore[operator, union-attr]
            if layer.cross is not None and neighbours is not None and count:
                h = layer.cross_norm(x)  # type: ignore[operator]
                if memory is None:
                    memory = self._encoded(h, neighbours, first)
                x = x + self._crossed(layer.cross, h, memory, first)  # type: ignore[arg-type]
            x = layer.feed(x)  # type: ignore[operator]
        return {"logits": nn.functional.linear(self.norm(x), self.embedding.weight)}

    def encode(self, neighbours: Tensor, chunk: Tensor, there: Tensor) -> tuple[Tensor, Tensor]:
        """Neighbours (rows, k, r) of chunks with hidden states (rows, chunk, width), real where `there` (rows, chunk) ->
        (rows, k * r, width) and a mask of the same places."""
        rows, k, _ = neighbours.shape
        ids = neighbours.flatten(0, 1)
        real = ids != PAD
        x = self.embedding(ids.clamp(min=0))
        asked, answers = chunk.repeat_interleave(k, 0), there.repeat_interleave(k, 0)
        for layer in self.encoder:
            x = x + layer.attention(layer.attention_norm(x), real.long())  # type: ignore[operator, union-attr]
            if layer.cross is not None:
                x = x + layer.cross(layer.cross_norm(x), asked, answers)  # type: ignore[operator]
            x = layer.feed(x)  # type: ignore[operator]
        return self.encoder_norm(x).view(rows, -1, x.shape[-1]), real.view(rows, -1)

    @torch.no_grad()
    def generate(
        self, input_ids: Tensor, retrieve: Retriever | None = None, max_new_tokens: int = 20, temperature: float = 0.0,
        first: int | None = None, generator: torch.Generator | None = None,
    ) -> Tensor:  # fmt: skip
        """(batch, n) prompts -> (batch, n + max_new_tokens). `retrieve` is asked once for every chunk that is whole.

        temperature 0: the likeliest token. first: `aligned(n)` lets the prompt end with a chunk, so that what it retrieves
        serves the first new token.
        """
        if input_ids.shape[1] < 1 or temperature < 0:
            raise UserError("give a prompt of at least one token and a temperature of at least 0")
        going, logits = self.begin(len(input_ids), first), None
        for token in input_ids.unbind(1):
            logits = self.step(token, going, retrieve)
        for _ in range(max_new_tokens):
            assert logits is not None
            if temperature:
                token = torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator)[:, 0]
            else:
                token = logits.argmax(-1)
            input_ids = torch.cat([input_ids, token[:, None]], 1)
            logits = self.step(token, going, retrieve)
        return input_ids

    def begin(self, batch: int, first: int | None = None) -> Going:
        """What generation keeps before the first token."""
        weight = self.embedding.weight
        states = [layer.attention.begin(batch, weight.device, weight.dtype) for layer in self.layers]  # type: ignore[union-attr, operator]
        return Going(states, self._first(first))

    def step(self, token: Tensor, going: Going, retrieve: Retriever | None) -> Tensor:
        """One more token, (batch) -> logits (batch, vocabulary). `going` is changed."""
        x, encoded = self.embedding(token), False
        going.tokens.append(token)
        for i, layer in enumerate(self.layers):
            y, going.states[i] = layer.attention.step(layer.attention_norm(x), going.states[i])  # type: ignore[union-attr, operator]
            x = x + y
            if layer.cross is not None and retrieve is not None:
                h = layer.cross_norm(x)  # type: ignore[operator]
                if not encoded:
                    self._remember(h, going, retrieve)
                    encoded = True
                if going.memory is not None:
                    x = x + layer.cross(h[:, None], *going.memory)[:, 0]  # type: ignore[operator]
            x = layer.feed(x)  # type: ignore[operator]
        return nn.functional.linear(self.norm(x), self.embedding.weight)

    def _remember(self, h: Tensor, going: Going, retrieve: Retriever) -> None:
        going.hidden.append(h)
        if len(going.hidden) < going.size:
            return
        chunk, ids = torch.stack(going.hidden, 1), torch.stack(going.tokens, 1)
        neighbours = retrieve(ids).to(h.device)
        self._check(neighbours[:, None], len(h), 1)
        going.memory = self.encode(neighbours, chunk, torch.ones_like(ids, dtype=torch.bool))
        going.tokens, going.hidden, going.size = [], [], self.config.chunk

    def _encoded(self, h: Tensor, neighbours: Tensor, first: int) -> tuple[Tensor, Tensor]:
        """Everything that is read, (batch * chunks, k * r, width), with its mask."""
        size, count = self.config.chunk, neighbours.shape[1]
        short = size - first  # places that the first chunk lacks stand before the text
        whole = nn.functional.pad(h[:, : first + (count - 1) * size], (0, 0, short, 0))
        there = torch.ones(len(h), count * size, dtype=torch.bool, device=h.device)
        there[:, :short] = False
        return self.encode(
            neighbours.flatten(0, 1), whole.reshape(-1, size, h.shape[-1]), there.view(-1, size)
        )

    def _crossed(self, cross: CrossAttention, h: Tensor, memory: tuple[Tensor, Tensor], first: int) -> Tensor:
        """Chunked cross-attention: rows first - 1 to the end in chunks, the tokens before them get nothing."""
        size, (batch, n, width) = self.config.chunk, h.shape
        count = len(memory[0]) // batch
        late = h[:, first - 1 :]
        late = nn.functional.pad(late, (0, 0, 0, count * size - late.shape[1]))
        read = cross(late.reshape(-1, size, width), *memory).view(batch, -1, width)
        return nn.functional.pad(read, (0, 0, first - 1, 0))[:, :n]

    def _first(self, first: int | None) -> int:
        first = self.config.chunk if first is None else first
        if not 1 <= first <= self.config.chunk:
            raise UserError(f"the first chunk has 1 to {self.config.chunk} tokens, not {first}")
        return first

    def _check(self, neighbours: Tensor, batch: int, count: int) -> None:
        if neighbours.ndim != 4 or neighbours.shape[:2] != (batch, count) or min(neighbours.shape[2:]) < 1:
            raise UserError(
                f"neighbours are (batch, chunks, k, tokens), here ({batch}, {count}, ...), not {tuple(neighbours.shape)}"
            )
        if (
            neighbours.numel()
            and not PAD <= int(neighbours.min()) <= int(neighbours.max()) < self.config.vocab_size
        ):
            raise UserError(
                f"neighbours hold tokens outside of 0 to {self.config.vocab_size - 1} ({PAD} is padding)"
            )


def plus(question: Tensor, passages: Tensor, chunks: Callable[[int], int]) -> tuple[Tensor, Tensor]:
    """How RETRO++ asks: the best passage stands before the question, the encoder reads the others.

    question (n); passages (k, r), the best first, `PAD` behind; chunks: length -> number of whole chunks, such as `lambda
    n: model.chunks(n, model.aligned(n))`. -> tokens (1, length) and neighbours (1, chunks, k - 1, r), the same for all.
    Raises UserError for fewer than two passages.
    """
    if passages.ndim != 2 or len(passages) < 2:
        raise UserError("RETRO++ needs two passages or more: one for the decoder, the rest for the encoder")
    best = passages[0][passages[0] != PAD]
    ids = torch.cat([best, question])[None]
    return ids, passages[None, None, 1:].expand(1, chunks(ids.shape[1]), -1, -1)
