"""Transformer Programs (Friedman et al., NeurIPS 2023, arXiv 2306.01128): networks that are programs.

The stream is a list of named discrete variables; heads and tables read single ones and append one, and nothing is ever
added to another. Trained with Gumbel-softmax at a falling temperature (`lightformers.train.programs`); in evaluation the
choices are hard, and `transformer_programs_code.write` gives the same function as Python source without dependencies.

What differs from the released code: ties are broken by the lowest index in the network as in the program, hard logits are
added up in float64 in the order of the program, and only right padding is taken. Not here: score attention, learned
position biases and GloVe vectors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn

from lightformers.errors import UserError
from lightformers.parts.discrete import (
    CategoricalHeads,
    NumericalHeads,
    Tables,
    first_max,
    matches,
    nearest,
    nearness,
    relax,
)

PAD, UNKNOWN = "<pad>", "<unk>"


@dataclass(frozen=True)
class ProgramConfig:
    """words: the vocabulary, `<pad>` first; `<unk>` stands for words that are not in it, if it is there.

    labels: what is said of each position, or of the text if `pooled`; `<pad>` and `<unk>` are never said.
    length: most positions, at most `size`. size: values of a variable. variables: learned ones per word; None: the word
    itself is the one variable (words at most `size`). heads, number_heads, tables, number_tables: per layer; inputs:
    what a table reads. causal: positions see only what is before them. Raises UserError where this does not fit together.
    """

    words: tuple[str, ...]
    labels: tuple[str, ...]
    length: int
    size: int
    variables: int | None = None
    layers: int = 3
    heads: int = 4
    number_heads: int = 4
    tables: int = 2
    number_tables: int = 2
    inputs: int = 2
    inner: int = 64
    causal: bool = False
    pooled: bool = False

    def __post_init__(self) -> None:
        for field in ("words", "labels"):
            found = tuple(getattr(self, field))
            object.__setattr__(self, field, found)
            if len(set(found)) < max(len(found), 2):
                raise UserError(f"{field} must be two or more that differ, got {found}")
        if self.words[0] != PAD:
            raise UserError(
                f"the first word must be {PAD}, which stands where a text has ended, not {self.words[0]!r}"
            )
        if not self.said:
            raise UserError("there is no label besides padding and unknown")
        if min(self.length, self.size, self.layers) < 1 or (
            self.variables is not None and self.variables < 1
        ):
            raise UserError("length, size, layers and variables must be at least 1")
        if min(self.heads, self.number_heads, self.tables, self.number_tables) < 0:
            raise UserError("there cannot be fewer than 0 heads or tables")
        if self.length > self.size:
            raise UserError(
                f"positions are a variable: a length of {self.length} needs a size of as much, not {self.size}"
            )
        if self.variables is None and len(self.words) > self.size:
            raise UserError(
                f"{len(self.words)} words do not fit a variable of {self.size} values: take a larger size, or learned variables"
            )

    @property
    def said(self) -> tuple[int, ...]:
        """The labels that may be said, as indices."""
        return tuple(i for i, label in enumerate(self.labels) if label not in (PAD, UNKNOWN))


class Layer(nn.Module):
    """Heads, then tables, that read all variables and numbers so far and append theirs."""

    def __init__(self, config: ProgramConfig, variables: int, numbers: int) -> None:
        super().__init__()
        size, c = config.size, config
        self.heads = CategoricalHeads(c.heads, variables, size) if c.heads else None
        self.number_heads = (
            NumericalHeads(c.number_heads, variables, numbers, size) if c.number_heads else None
        )
        variables, numbers = variables + c.heads, numbers + c.number_heads
        self.tables = Tables(c.tables, variables, size, size, c.inputs, c.inner) if c.tables else None
        self.number_tables = (
            Tables(c.number_tables, numbers, 1, size, c.inputs, c.inner) if c.number_tables else None
        )

    def forward(
        self, stream: Tensor, numbers: Tensor, allowed: Tensor, near: Tensor, tau: float | None
    ) -> tuple[Tensor, Tensor]:
        before, counted = stream, numbers
        if self.heads is not None:
            stream = torch.cat([stream, self.heads(before, allowed, near, tau)], 2)
        if self.number_heads is not None:
            numbers = torch.cat([numbers, self.number_heads(before, counted, allowed, tau)], 2)
        made = [self.tables(stream, tau)] if self.tables is not None else []
        if self.number_tables is not None:
            made.append(self.number_tables(numbers[..., None], tau))
        return torch.cat([stream, *made], 2), numbers

    @torch.no_grad()
    def execute(self, values: list[Tensor], numbers: list[Tensor], allowed: Tensor) -> None:
        """The hard form: appends to both lists, (batch, n) whole numbers each."""
        seen, counted = list(values), list(numbers)
        for rule in self.heads.rules() if self.heads is not None else ():
            values.append(seen[rule.value].gather(1, nearest(matches(rule, seen, allowed))))
        for rule in self.number_heads.rules() if self.number_heads is not None else ():
            found = matches(rule, seen, allowed).double()
            numbers.append((found @ counted[rule.value][..., None])[..., 0])
        made = []
        for which, read in enumerate(self.tables.reads() if self.tables is not None else ()):
            made.append(self.tables.lookup(which)[tuple(values[i] for i in read)])  # type: ignore[union-attr]
        for which, read in enumerate(self.number_tables.reads() if self.number_tables is not None else ()):
            made.append(self.number_tables.decide(which, [numbers[i] for i in read]))  # type: ignore[union-attr]
        values.extend(made)


class TransformerProgram(nn.Module, PyTorchModelHubMixin):
    """(batch, n) words -> {"logits": (batch, n, labels)}, or (batch, labels) if pooled.

    config: a `ProgramConfig`, or its fields. In training mode logits are those of a relaxed sample at `temperature`; in
    evaluation those of the program, in float64. attention_mask: (batch, n), 0 at padding, which stands on the right
    (default: where the word is `<pad>`). Labels that are never said have -inf.
    """

    def __init__(self, config: ProgramConfig) -> None:
        super().__init__()
        if isinstance(config, Mapping):
            config = ProgramConfig(**config)
        self.config = config
        self.temperature = 1.0
        learned = config.variables
        self.embedding = None
        if learned is not None:
            words = torch.randn(len(config.words), learned, config.size)
            self.embedding = nn.Parameter(words * (learned * config.size) ** -0.5)
        variables, numbers = (learned or 1) + 1, 1
        self.layers = nn.ModuleList()
        for _ in range(config.layers):
            self.layers.append(Layer(config, variables, numbers))
            variables += config.heads + config.tables + config.number_tables
            numbers += config.number_heads
        self.said = nn.Parameter(
            torch.randn(variables, config.size, len(config.labels)) * len(config.labels) ** -0.5
        )
        self.counted = nn.Parameter(torch.randn(numbers, len(config.labels)) * len(config.labels) ** -0.5)
        self.register_buffer("near", nearness(config.length), persistent=False)

    def ids(self, texts: Sequence[Sequence[str]]) -> Tensor:
        """Texts as lists of words -> (batch, longest) ids, padded on the right. Raises UserError for unknown words."""
        number = {word: i for i, word in enumerate(self.config.words) if i}
        unknown = number.get(UNKNOWN)
        rows = [[number.get(w, None if w == PAD else unknown) for w in text] for text in texts]
        if any(i is None for row in rows for i in row):
            missing = next(w for text in texts for w in text if w not in number)
            raise UserError(f"the word {missing!r} is {PAD}, or not in a vocabulary without {UNKNOWN}")
        width = max(map(len, rows), default=0)
        return torch.tensor([row + [0] * (width - len(row)) for row in rows], dtype=torch.long).view(
            len(rows), width
        )

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> dict[str, Tensor]:
        real = self._real(input_ids, attention_mask)
        allowed = real[:, :, None] & real[:, None, :]
        if self.config.causal:
            allowed = allowed.tril()
        logits = self._sample(input_ids, allowed) if self.training else self._execute(input_ids, allowed)
        if self.config.pooled:
            logits = _mean(logits, real)
        shut = torch.ones(logits.shape[-1], dtype=torch.bool, device=logits.device)
        shut[list(self.config.said)] = False
        return {"logits": logits.masked_fill(shut, -math.inf)}

    @torch.no_grad()
    def run(self, texts: Sequence[Sequence[str]]) -> list[list[str]] | list[str]:
        """The labels that the program gives, by the network: one per word, or one per text if pooled."""
        ids = self.ids(texts).to(self.said.device)
        was = self.training
        best = first_max(self.eval()(ids)["logits"]).tolist()
        self.train(was)
        labels = self.config.labels
        if self.config.pooled:
            return [labels[i] for i in best]
        return [[labels[i] for i in row[: len(text)]] for row, text in zip(best, texts)]

    def _real(self, ids: Tensor, mask: Tensor | None) -> Tensor:
        if ids.shape[1] > self.config.length:
            raise UserError(
                f"{ids.shape[1]} words are more than the {self.config.length} that this program was made for"
            )
        real = ids != 0 if mask is None else mask != 0
        if bool((real[:, 1:] & ~real[:, :-1]).any()):
            raise UserError(
                "padding must stand on the right: the first word is what heads take without a match"
            )
        return real

    def _start(self, ids: Tensor, tau: float | None) -> Tensor:
        """(batch, n, variables, size): the words' variables and the position."""
        size = self.config.size
        if self.embedding is None:
            words = nn.functional.one_hot(ids, size).to(self.said.dtype)[:, :, None]
        else:
            words = relax(self.embedding, tau)[ids]
        place = nn.functional.one_hot(torch.arange(ids.shape[1], device=ids.device), size).to(words.dtype)
        return torch.cat([words, place[None, :, None].expand(len(ids), -1, -1, -1)], 2)

    def _sample(self, ids: Tensor, allowed: Tensor) -> Tensor:
        tau = self.temperature if self.training else None
        stream = self._start(ids, tau)
        numbers = stream.new_ones(*ids.shape, 1)
        near = self.near[: ids.shape[1], : ids.shape[1]]  # type: ignore[index]
        for layer in self.layers:
            stream, numbers = layer(stream, numbers, allowed, near, tau)
        return torch.einsum("bnvk,vkl->bnl", stream, self.said) + numbers @ self.counted

    @torch.no_grad()
    def _execute(self, ids: Tensor, allowed: Tensor) -> Tensor:
        said, counted = self.said.double(), self.counted.double()
        logits = said.new_zeros(*ids.shape, said.shape[-1])
        if not ids.shape[1]:
            return logits
        values, numbers = self.trace(ids, allowed)
        for table, value in zip(said, values):
            logits = logits + table[value]
        for weight, number in zip(counted, numbers):
            logits = logits + number[..., None] * weight
        return logits

    @torch.no_grad()
    def trace(self, ids: Tensor, allowed: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Every variable and every number of the program's run, (batch, n) each, in the order of the stream."""
        hard = [] if self.embedding is None else list(first_max(self.embedding)[ids].unbind(-1))
        place = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        values = [*(hard or [ids]), place]
        numbers = [torch.ones(ids.shape, dtype=torch.float64, device=ids.device)]
        for layer in self.layers:
            layer.execute(values, numbers, allowed)  # type: ignore[operator]
        return values, numbers


def _mean(logits: Tensor, real: Tensor) -> Tensor:
    """(batch, n, labels) -> (batch, labels) over real positions, added one after the other as a program does."""
    total = logits.new_zeros(logits.shape[0], logits.shape[2])
    for t in range(logits.shape[1]):
        total = total + torch.where(real[:, t, None], logits[:, t], 0.0)
    return total / real.sum(1, keepdim=True).clamp(min=1)
