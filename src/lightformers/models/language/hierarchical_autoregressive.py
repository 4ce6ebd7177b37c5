"""Hierarchical autoregressive transformers (Neitemeier et al., ICLR 2025, arXiv 2501.10322): bytes to words to bytes.

A small encoder turns the bytes of a word into one vector, a large causal backbone runs over words, and a small causal
decoder spells the next word, byte by byte, from the backbone's output. There is no vocabulary, and the backbone sees some
five times fewer positions than a model of bytes.

This is the paper's first form: bidirectional inside a word, one vector each way, or (`connector`) the cross-attentions of
the model that was released later, which also encodes the whole text as one stream and decodes from the encoder's states:
that is not here. Words come from `words.words_of`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn

from lightformers.errors import UserError
from lightformers.models.language.hierarchical_connectors import connectors
from lightformers.models.language.layers import build
from lightformers.models.language.words import END, PAD, SYMBOLS, WORD, stack, unfinished, words_of
from lightformers.parts.mixers import State

#: Words are encoded and spelled in groups of similar length: a limit of each, the last one is for all others.
GROUPS = (4, 8, 16)


@dataclass(frozen=True)
class HierarchicalConfig:
    """encoder, backbone, decoder: (width, layers, heads) of each. longest: most bytes of a word.

    hidden: widths of the gated feed-forwards as a multiple of the width. connector: "vector" or "cross", see
    `hierarchical_connectors`. Raises UserError for sizes below 1 and unknown connectors.
    """

    encoder: tuple[int, int, int] = (64, 2, 2)
    backbone: tuple[int, int, int] = (128, 4, 4)
    decoder: tuple[int, int, int] = (64, 2, 2)
    longest: int = 32
    hidden: float = 8 / 3
    connector: str = "vector"

    def __post_init__(self) -> None:
        for name in ("encoder", "backbone", "decoder"):
            sizes = tuple(getattr(self, name))
            if len(sizes) != 3 or min(sizes) < 1:
                raise UserError(f"{name} is (width, layers, heads), each at least 1, not {sizes}")
            object.__setattr__(self, name, sizes)
        if self.longest < 1:
            raise UserError(f"a word holds at least one byte, not {self.longest}")
        connectors(self.connector)


class _Stack(nn.Module):
    """Llama blocks with a final norm."""

    def __init__(self, sizes: tuple[int, int, int], hidden: float, causal: bool) -> None:
        super().__init__()
        width, layers, heads = sizes
        row = {
            "mixer": {"kind": "attention", "heads": heads, "causal": causal},
            "ffn": {"kind": "swiglu", "hidden": 8 * max(round(hidden * width / 8), 1)},
        }
        self.layers = build([row] * layers, width, "rms", 1e-5, 0.0)
        self.norm = nn.RMSNorm(width, eps=1e-5)

    def forward(self, x: Tensor, mask: Tensor | None = None, added: Sequence[Tensor] | None = None) -> Tensor:
        """added: (batch, width) that every position gets before each layer."""
        for i, layer in enumerate(self.layers):
            x = layer(x if added is None else x + added[i][:, None], mask)
        return self.norm(x)

    def begin(self, batch: int, like: Tensor) -> list[State]:
        return [layer.begin(batch, like.device, like.dtype) for layer in self.layers]  # type: ignore[operator]

    def step(
        self, x: Tensor, states: list[State], added: Sequence[Tensor] | None = None
    ) -> tuple[Tensor, list[State]]:
        """One more position, (batch, width)."""
        new = []
        for i, (layer, state) in enumerate(zip(self.layers, states)):
            x, state = layer.step(x if added is None else x + added[i], state)  # type: ignore[operator]
            new.append(state)
        return self.norm(x), new


class HierarchicalAutoregressive(nn.Module, PyTorchModelHubMixin):
    """(batch, words, bytes) of `words.stack` -> {"logits": (batch, words, bytes + 1, 258)}.

    logits[:, i, j] are scores of byte j of word i, given the words before and the bytes of the word before j; at j = its
    length, of `WORD`, which ends it. `targets` are what they are to say. config: a `HierarchicalConfig` or its fields.
    """

    def __init__(self, config: HierarchicalConfig) -> None:
        super().__init__()
        if isinstance(config, Mapping):
            config = HierarchicalConfig(**config)
        self.config = config
        small, wide, spell = config.encoder[0], config.backbone[0], config.decoder[0]
        self.read = nn.Embedding(SYMBOLS, small)
        self.encoder = _Stack(config.encoder, config.hidden, causal=False)
        entry, leave = connectors(config.connector)
        self.enter = entry(small, wide, config.backbone[2])
        self.backbone = _Stack(config.backbone, config.hidden, causal=True)
        self.start = nn.Parameter(torch.randn(wide) * 0.02)
        self.leave = leave(wide, spell, config.decoder[1])
        self.letters = nn.Embedding(SYMBOLS, spell)
        self.decoder = _Stack(config.decoder, config.hidden, causal=True)
        self.say = nn.Linear(spell, SYMBOLS, bias=False)
        for module in (self.read, self.letters, self.say):
            nn.init.normal_(module.weight, std=0.02)

    def forward(self, words: Tensor) -> dict[str, Tensor]:
        """Raises UserError for words that are empty, longer than `longest`, or behind padding."""
        there = self._check(words)
        before = self.think(self.encode(words[there]), there)
        spelled = self.spell(before[there], words[there])
        logits = spelled.new_zeros(*there.shape, words.shape[2] + 1, SYMBOLS)
        return {"logits": logits.masked_scatter(there[:, :, None, None], spelled)}

    def loss(self, words: Tensor) -> Tensor:
        """Mean cross-entropy of bytes and of the ends of words, in nats."""
        there = self._check(words)
        before = self.think(self.encode(words[there]), there)
        spelled = self.spell(before[there], words[there])
        return nn.functional.cross_entropy(
            _exact(spelled).flatten(0, 1), targets(words[there]).flatten(), ignore_index=PAD
        )

    @torch.no_grad()
    def nats(self, words: Tensor) -> Tensor:
        """(batch) nats of each text, the ends of words included."""
        logits, wanted = _exact(self(words)["logits"]), targets(words)
        each = nn.functional.cross_entropy(
            logits.flatten(0, 2), wanted.flatten(), ignore_index=PAD, reduction="none"
        )
        return each.view(len(words), -1).sum(1)

    def encode(self, words: Tensor) -> Tensor:
        """(count, bytes) -> (count, width of the backbone): each word alone."""

        def one(group: Tensor) -> Tensor:
            x = self.read(torch.cat([group.new_full((len(group), 1), WORD), group.clamp(min=0)], 1))
            real = torch.cat([group.new_ones(len(group), 1), (group != PAD).long()], 1)
            return self.enter(self.encoder(x, real), real)[:, None]

        return _grouped(one, words, 1)[:, 0]

    def think(self, vectors: Tensor, there: Tensor) -> Tensor:
        """Vectors of the words where `there` (batch, words) is true -> (batch, words, width): for each word the output at
        the word before it, the start vector for the first."""
        x = vectors.new_zeros(*there.shape, vectors.shape[-1]).masked_scatter(there[..., None], vectors)
        out = self.backbone(x, there.long())
        start = self.start.to(out.dtype).expand(len(out), 1, -1)
        return torch.cat([start, out[:, :-1]], 1) if there.shape[1] else out

    def spell(self, before: Tensor, words: Tensor) -> Tensor:
        """(count, width) outputs of the words before, (count, bytes) words -> (count, bytes + 1, 258) logits."""

        def one(group: Tensor, before: Tensor) -> Tensor:
            first, added = self.leave(before)
            x = torch.cat([first[:, None], self.letters(group.clamp(min=0)).to(first.dtype)], 1)
            real = torch.cat([group.new_ones(len(group), 1), (group != PAD).long()], 1)
            return self.say(self.decoder(x, real, added))

        return _grouped(one, words, words.shape[1] + 1, before)

    @torch.no_grad()
    def generate(
        self,
        text: str = "",
        max_new_bytes: int = 64,
        temperature: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> bytes:
        """The bytes that follow a text, until `END` or so many of them. temperature 0: the likeliest byte each time.

        The text's last word is open and may go on. Finished words are encoded once; the backbone and, within a word, the
        decoder go on from their states. A word cannot end within a character, nor be longer than `longest`.
        """
        if max_new_bytes < 1 or temperature < 0:
            raise UserError(
                f"give at least one new byte and a temperature of at least 0, not {max_new_bytes}, {temperature}"
            )
        words = words_of(text, self.config.longest)
        states, before = self.backbone.begin(1, self.start), self.start[None]
        if len(words) > 1:
            for vector in self.encode(stack([words[:-1]])[0].to(self.start.device)):
                before, states = self.backbone.step(vector[None], states)
        word, made = words[-1] if words else b"", bytearray()
        spelling = self._open(before, word)
        while len(made) < max_new_bytes:
            symbol = self._choose(spelling[0], word, temperature, generator)
            if symbol == END:
                break
            if symbol == WORD:
                vector = self.encode(stack([[word]])[0].to(self.start.device))
                before, states = self.backbone.step(vector, states)
                word, spelling = b"", self._open(before, b"")
                continue
            word, made = word + bytes([symbol]), made + bytes([symbol])
            x = self.letters(torch.tensor([symbol], device=self.start.device))
            y, held = self.decoder.step(x, spelling[1], spelling[2])
            spelling = self.say(y)[0], held, spelling[2]
        return bytes(made)

    def _open(self, before: Tensor, word: bytes) -> tuple[Tensor, list[State], list[Tensor] | None]:
        """Scores of what follows `word`, (258), the decoder's states there, and what its layers get added."""
        first, added = self.leave(before)
        y, states = self.decoder.step(first, self.decoder.begin(1, self.start), added)
        for byte in word:
            x = self.letters(torch.tensor([byte], device=self.start.device))
            y, states = self.decoder.step(x, states, added)
        return self.say(y)[0], states, added

    def _choose(
        self, scores: Tensor, word: bytes, temperature: float, generator: torch.Generator | None
    ) -> int:
        scores = scores.float().clone()
        if len(word) >= self.config.longest:
            return WORD
        if not word or unfinished(word):
            scores[WORD] = -torch.inf
        if word:
            scores[END] = -torch.inf
        if temperature == 0:
            return int(scores.argmax())
        return int(torch.multinomial((scores / temperature).softmax(-1), 1, generator=generator))

    def _check(self, words: Tensor) -> Tensor:
        """(batch, words) where there is a word."""
        if words.ndim != 3 or words.shape[2] > self.config.longest:
            raise UserError(
                f"words are (batch, words, at most {self.config.longest} bytes), not {tuple(words.shape)}"
            )
        real = words != PAD
        there = real[..., 0]
        if bool((real[..., 1:] & ~real[..., :-1]).any()) or bool((there[:, 1:] & ~there[:, :-1]).any()):
            raise UserError("bytes and words fill their rows from the left: padding only behind them")
        return there


def _exact(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def targets(words: Tensor) -> Tensor:
    """(..., bytes) -> (..., bytes + 1): the bytes, then `WORD`; `PAD` behind it. `END` needs no further end."""
    longer = nn.functional.pad(words, (0, 1), value=PAD)
    real = longer != PAD
    after = torch.cat([real.new_zeros(*real.shape[:-1], 1), real[..., :-1]], -1) & ~real
    closing = after & (words[..., :1] != END)
    return torch.where(closing, WORD, longer)


def _grouped(function: Callable[..., Tensor], words: Tensor, length: int, *others: Tensor) -> Tensor:
    """`function` on words (count, bytes) in groups of similar length, each cut to its longest; results are filled up with
    zeros to `length` places and stand in the order of the words."""
    parts, rows = [], []
    for chosen, longest in _groups((words != PAD).sum(1)):
        y = function(words[chosen, :longest], *(other[chosen] for other in others))
        parts.append(nn.functional.pad(y, (0, 0, 0, length - y.shape[1])))
        rows.append(chosen)
    if not parts:
        y = function(words.new_zeros(1, 1), *(other.new_zeros(1, *other.shape[1:]) for other in others))
        return y.new_zeros(0, length, y.shape[-1])
    return torch.cat(parts)[torch.cat(rows).argsort()]


def _groups(lengths: Tensor) -> Iterator[tuple[Tensor, int]]:
    shorter = 0
    for limit in (*GROUPS, max(int(lengths.max()) if len(lengths) else 0, GROUPS[-1] + 1)):
        chosen = ((lengths > shorter) & (lengths <= limit)).nonzero()[:, 0]
        shorter = limit
        if len(chosen):
            yield chosen, int(lengths[chosen].max())
