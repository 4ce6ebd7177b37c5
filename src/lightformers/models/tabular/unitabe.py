"""UniTabE: one model for tables of any columns; prompts say what is asked (arXiv 2307.09249)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput

from lightformers.errors import UserError
from lightformers.models.language.layers import drawn
from lightformers.models.registry import register
from lightformers.parts.encoder_layer import EncoderLayer
from lightformers.parts.numerals import read
from lightformers.parts.prompt_decoder import Memory, PromptDecoder
from lightformers.parts.recording import eager
from lightformers.parts.tab_unit import TabUnit

PRETRAINED = "tabular-pretraining"
CLASSES, NUMBERS = "tabular-classification", "tabular-regression"
HEADS = ("scalar", "digits")


class UniTabEConfig(PretrainedConfig):
    """What a `UniTabE` is made of; the sizes are those of the released code's defaults.

    vocab_size, embedding_size: the table of word pieces. hidden_size, num_hidden_layers, num_attention_heads, head_dim
        (None: hidden_size / heads), intermediate_size: of the encoder. type_aware: whether columns know their type.
    max_cell_tokens: of a name or a cell. pad_token_id, bos_token_id, eos_token_id: pad, begin and end of answers.
    task: what the forward answers: "tabular-pretraining" (nothing by itself), "tabular-classification" (logits over
        label_ids, one per class), "tabular-regression". prompt_ids: the question that then stands for all rows.
    head: of regression. "scalar": a linear layer on what the decoder says first; "digits": the number is written out, in at
        most answer_tokens tokens, as in the paper. numeral_ids: the tokens of 0 to 9, point and minus.
        otherwise: what is predicted where no digit was written.
    target_units: (mean, deviation) that the prediction is standardised by; (0, 1): it is in the units of the data.
    """

    model_type = "lightformers-unitabe"

    def __init__(
        self,
        vocab_size: int = 30522,
        embedding_size: int = 512,
        hidden_size: int = 512,
        num_hidden_layers: int = 6,
        num_attention_heads: int = 8,
        head_dim: int | None = None,
        intermediate_size: int = 1024,
        type_aware: bool = True,
        dropout: float = 0.1,
        max_cell_tokens: int = 50,
        pad_token_id: int = 0,
        bos_token_id: int = 1,
        eos_token_id: int = 2,
        task: str = PRETRAINED,
        prompt_ids: Sequence[int] = (),
        label_ids: Sequence[int] = (),
        head: Literal["scalar", "digits"] = "scalar",
        numeral_ids: Sequence[int] = (),
        answer_tokens: int = 16,
        otherwise: float = 0.0,
        target_units: Sequence[float] = (0.0, 1.0),
        **options: Any,
    ) -> None:
        if task not in (PRETRAINED, CLASSES, NUMBERS):
            raise UserError(f"task is {PRETRAINED}, {CLASSES} or {NUMBERS}, not {task!r}")
        if head not in HEADS:
            raise UserError(f"head is one of {', '.join(HEADS)}, not {head!r}")
        if task != PRETRAINED and not prompt_ids:
            raise UserError(f"a model for {task} needs prompt_ids, the question that it answers")
        if task == CLASSES and (len(label_ids) < 2 or len(set(label_ids)) < len(label_ids)):
            raise UserError("label_ids is one token for each of two classes or more, all different")
        if task == NUMBERS and head == "digits" and len(numeral_ids) != 12:
            raise UserError("numeral_ids are the tokens of 0 to 9, point and minus: twelve")
        if head_dim is None and hidden_size % num_attention_heads:
            raise UserError(
                f"{num_attention_heads} heads do not divide a width of {hidden_size}; give head_dim"
            )
        self.vocab_size, self.embedding_size, self.hidden_size = vocab_size, embedding_size, hidden_size
        self.num_hidden_layers, self.num_attention_heads = num_hidden_layers, num_attention_heads
        self.head_dim, self.intermediate_size = head_dim, intermediate_size
        self.type_aware, self.dropout, self.max_cell_tokens = type_aware, dropout, max_cell_tokens
        self.task, self.head, self.answer_tokens = task, head, answer_tokens
        self.prompt_ids, self.label_ids, self.numeral_ids = (
            list(prompt_ids),
            list(label_ids),
            list(numeral_ids),
        )
        self.otherwise, self.target_units = float(otherwise), list(map(float, target_units))
        if task == CLASSES and "id2label" not in options:
            options.setdefault("num_labels", len(self.label_ids))
        special: Any = {
            "pad_token_id": pad_token_id,
            "bos_token_id": bos_token_id,
            "eos_token_id": eos_token_id,
        }
        super().__init__(**special, **options)


@dataclass
class Answer(ModelOutput):
    """logits: (batch, classes). prediction: (batch,). answers: (batch, n, vocabulary), of every token of the answers that
    were given. row: (batch, width), the first state, which stands for the whole row."""

    logits: Tensor | None = None
    prediction: Tensor | None = None
    answers: Tensor | None = None
    row: Tensor | None = None


def _layer(config: UniTabEConfig) -> EncoderLayer:
    layer = EncoderLayer(
        config.hidden_size, config.num_attention_heads, config.intermediate_size, config.head_dim, "relu", config.dropout
    )  # fmt: skip
    limit = math.sqrt(1.5 / config.hidden_size)  # of q, k and v in one matrix, as in torch's own attention
    for linear in (layer.attention.query, layer.attention.key, layer.attention.value):
        nn.init.uniform_(linear.weight, -limit, limit)
    for linear in (layer.attention.query, layer.attention.key, layer.attention.value, layer.attention.out):
        nn.init.zeros_(linear.bias)
    return layer


class UniTabE(PreTrainedModel):
    """TabUnit, a plain encoder over [CLS], column vectors and value tokens, and a decoder that answers prompts.

    No position tells columns apart, so their order says nothing. Sizes, gates, norms, initialisation and the un-scaled
    attention of the prompt are those of the released code. What differs: q, k, v are layers of their own, started as the
    fused one is; without `type_aware` there is no table of types (there, one that nothing reads); for regression there is
    a scalar head besides writing digits.
    """

    config_class = UniTabEConfig
    main_input_name = "input_ids"
    _no_split_modules = ["EncoderLayer"]
    _supports_sdpa = True
    _init_weights = drawn

    def __init__(self, config: UniTabEConfig) -> None:
        super().__init__(config)
        words, width = config.embedding_size, config.hidden_size
        self.unit = TabUnit(
            config.vocab_size, words, width, 3, config.type_aware, config.max_cell_tokens, config.dropout, config.pad_token_id,
        )  # fmt: skip
        self.first = nn.Parameter(torch.empty(words).uniform_(-(words**-0.5), words**-0.5))
        self.enter = nn.Linear(words, width)
        self.layers = nn.ModuleList(_layer(config) for _ in range(config.num_hidden_layers))
        self.decoder = PromptDecoder(words, width, config.dropout)
        scalar = config.task == NUMBERS and config.head == "scalar"
        self.scalar = nn.Linear(words, 1) if scalar else None
        self._without_values = self.first.is_meta
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.unit.words

    def set_input_embeddings(self, value: Any) -> None:
        self.unit.words = value

    def encode(
        self, name_ids: Tensor, name_columns: Tensor, name_places: Tensor,
        input_ids: Tensor, value_columns: Tensor, value_places: Tensor, types: Tensor,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """-> states (batch, 1 + columns + value tokens, width), the first of the whole row, and where they are real."""
        names, values = (name_ids, name_columns, name_places), (input_ids, value_columns, value_places)
        self._check(names, values, types)
        columns, tokens = self.unit(*names, *values, types)
        first = self.first.expand(types.shape[0], 1, -1)  # not len(): a graph must hold for other batches
        x = self.enter(torch.cat([first, columns, tokens], 1))
        there = torch.cat([torch.ones_like(types[:, :1]), types, value_columns], 1) >= 0
        mask = there.long()
        for layer in self.layers:
            x = layer(x, mask)
        return x, there

    def ask(self, prompt_ids: Tensor, states: Tensor, seen: Tensor) -> Memory:
        """The decoder's memory after a prompt, (batch or 1, p) tokens."""
        asked = prompt_ids != self.config.pad_token_id
        h, c = self.decoder.begin(self.unit.words(prompt_ids), asked, states, seen)
        return h, c

    def say(self, memory: Memory, steps: int, allowed: Tensor | None = None) -> Tensor:
        """The likeliest tokens, one after the other: (batch, steps). allowed: the tokens that may be said."""
        table = self.unit.words.weight if allowed is None else self.unit.words(allowed)
        word, said = self._begin(memory), []
        for _ in range(steps):
            y, memory = self.decoder.step(word, memory)
            best = (y @ table.T).argmax(-1)
            said.append(best if allowed is None else allowed[best])
            word = self.unit.words(said[-1])
        return torch.stack(said, 1)

    def forward(
        self,
        name_ids: Tensor,
        name_columns: Tensor,
        name_places: Tensor,
        input_ids: Tensor,
        value_columns: Tensor,
        value_places: Tensor,
        types: Tensor,
        prompt_ids: Tensor | None = None,
        answer_ids: Tensor | None = None,
    ) -> Answer:
        """The answer to the configuration's prompt, or the logits of given answers to given prompts.

        See `processors.unitabe` for the inputs. prompt_ids: (batch, p). answer_ids: (batch, n), padded: what the decoder
        reads, the token of begin first.
        """
        states, seen = self.encode(
            name_ids, name_columns, name_places, input_ids, value_columns, value_places, types
        )
        if answer_ids is not None:
            prompt_ids = self._prompt(types) if prompt_ids is None else prompt_ids
            y = self.decoder(self.unit.words(answer_ids), self.ask(prompt_ids, states, seen))
            return Answer(answers=y @ self.unit.words.weight.T, row=states[:, 0])
        config = self.config
        if config.task == PRETRAINED:
            return Answer(row=states[:, 0])
        memory = self.ask(self._prompt(types), states, seen)
        if config.task == CLASSES:
            y, _ = self.decoder.step(self._begin(memory), memory)
            labels = self.unit.words(torch.tensor(config.label_ids, device=y.device))
            return Answer(logits=y @ labels.T, row=states[:, 0])
        if self.scalar is not None:
            y, _ = self.decoder.step(self._begin(memory), memory)
            return Answer(prediction=self.scalar(y)[:, 0], row=states[:, 0])
        allowed = torch.tensor([*config.numeral_ids, config.eos_token_id], device=types.device)
        said = self.say(memory, config.answer_tokens, allowed)
        return Answer(prediction=read(said, config.numeral_ids, config.otherwise), row=states[:, 0])

    def _prompt(self, like: Tensor) -> Tensor:
        if not self.config.prompt_ids:
            raise UserError("this model was not trained for a question of its own: give prompt_ids")
        return torch.tensor([self.config.prompt_ids], device=like.device)

    def _begin(self, memory: Memory) -> Tensor:
        """The embedding of the token that begins an answer, for every row."""
        return self.unit.words.weight[self.config.bos_token_id].expand(memory[0].shape[0], -1)

    def _check(self, names: Sequence[Tensor], values: Sequence[Tensor], types: Tensor) -> None:
        if not eager(types):
            return
        if len({x.shape for x in names}) > 1 or len({x.shape for x in values}) > 1:
            raise UserError(
                "tokens, columns and places are alike in shape: one column and place for each token"
            )
        if max(int(x[0].max()) for x in (names, values)) >= self.config.vocab_size:
            raise UserError(f"a token is beyond the {self.config.vocab_size} of this model's vocabulary")
        if max(int(x[1].max()) for x in (names, values)) >= types.shape[1] or int(types.max()) > 2:
            raise UserError(f"tokens belong to columns 0 to {types.shape[1] - 1}, whose types are 0, 1 or 2")


register()
