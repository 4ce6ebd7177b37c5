"""FT-Transformer: every cell of a row is a token, and a class token gathers what they say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput

from lightformers.errors import UserError
from lightformers.models.language.layers import NORMS, build, checked, completed, drawn, norm
from lightformers.models.registry import register

TASKS = ("tabular-classification", "tabular-regression")


class RowTransformerConfig(PretrainedConfig):
    """What a `RowTransformer` is made of.

    numbers: columns of numbers. categories: how many values each other column has, the missing and the unknown one among
        them. hidden_size: of a token. layers, norm, norm_eps, dropout: as in `EncoderConfig`; see `layers` below.
    task: "tabular-classification" or "tabular-regression". target_units: mean and deviation that a prediction is
        standardised by. initializer_range: deviation of all tables and linear layers at the start.
    Raises UserError for a table without columns, unknown tasks, kinds, options and settings.
    """

    model_type = "lightformers-rows"

    def __init__(
        self,
        numbers: int = 1,
        categories: Sequence[int] = (),
        hidden_size: int = 64,
        layers: Sequence[Mapping[str, Any]] = (),
        task: str = "tabular-classification",
        target_units: Sequence[float] = (0.0, 1.0),
        norm: str = "layer",
        norm_eps: float = 1e-5,
        dropout: float = 0.0,
        initializer_range: float = 0.02,
        **options: Any,
    ) -> None:
        if numbers < 0 or numbers + len(categories) == 0:
            raise UserError("a table has at least one column")
        if any(count < 1 for count in categories):
            raise UserError(f"every column of categories has values, not {list(categories)}")
        if task not in TASKS:
            raise UserError(f"task is one of {', '.join(TASKS)}, not {task!r}")
        if norm not in NORMS:
            raise UserError(f"norm is one of {', '.join(NORMS)}, not {norm!r}")
        self.numbers, self.categories, self.hidden_size = numbers, list(categories), hidden_size
        self.layers = checked(layers, causal=False)
        self.task, self.target_units = task, [float(u) for u in target_units]
        self.norm, self.norm_eps, self.dropout = norm, norm_eps, dropout
        self.initializer_range = initializer_range
        super().__init__(**options)

    @property
    def num_hidden_layers(self) -> int:
        return len(self.layers)


def layers(width: int = 64, depth: int = 3, heads: int = 8, dropout: float = 0.2) -> list[dict[str, Any]]:
    """The layers of the paper: attention of all tokens to all, then ReGLU of 4/3 of the width. dropout: of attention.

    Linear layers start with the deviation width ** -0.5. Raises UserError where the heads do not divide the width.
    """
    if depth < 1 or heads < 1 or width % heads:
        raise UserError(f"{depth} layers of {heads} heads do not fit a width of {width}")
    start = {"bias": True, "std": round(width**-0.5, 4), "scaled": False}
    mixer = {
        "kind": "attention",
        "heads": heads,
        "rotary": False,
        "causal": False,
        "dropout": dropout,
        **start,
    }
    ffn = {"kind": "swiglu", "hidden": max(1, round(width * 4 / 3)), "activation": "relu", **start}
    return [{"mixer": mixer, "ffn": ffn} for _ in range(depth)]


class Cells(nn.Module):
    """A token per cell: (batch, numbers), (batch, numbers), (batch, others) -> (batch, numbers + others, width).

    A number x of column j is w_j x + b_j, a missing one a vector of its own; a category is a row of a table that all
    columns share, from `first` on, plus b_j.
    """

    first: Tensor

    def __init__(self, numbers: int, categories: Sequence[int], width: int, std: float) -> None:
        super().__init__()
        self.weight, self.absent = (nn.Parameter(torch.randn(numbers, width) * std) for _ in range(2))
        self.bias = nn.Parameter(torch.randn(numbers + len(categories), width) * std)
        self.table = nn.Embedding(max(sum(categories), 1), width) if categories else None
        if self.table is not None:
            nn.init.normal_(self.table.weight, std=std)
        starts = [sum(categories[:i]) for i in range(len(categories))]
        self.register_buffer("first", torch.tensor(starts, dtype=torch.long))

    def forward(self, numbers: Tensor | None, seen: Tensor | None, categories: Tensor | None) -> Tensor:
        tokens = []
        if numbers is not None and seen is not None:
            there = seen[..., None].to(self.weight.dtype)
            value = numbers[..., None].to(self.weight.dtype) * self.weight
            tokens.append(there * value + (1 - there) * self.absent)
        if categories is not None and self.table is not None:
            tokens.append(self.table(categories + self.first))
        return torch.cat(tokens, 1) + self.bias


class RowTransformer(PreTrainedModel):
    """FT-Transformer (Gorishniy et al., 2021, arXiv 2106.11959), for classes or a number.

    numbers, seen (batch, columns of numbers): the values, and 1 where there is one; categories (batch, other columns): see
    `TableProcessor`. -> logits (batch, classes), or prediction (batch,) in the units of `config.target_units`.

    What differs from the paper: a missing number has a vector of its own, and all layers keep their first norm (a cut may
    make any layer the first). The class token comes first.
    """

    config_class = RowTransformerConfig
    base_model_prefix = ""
    main_input_name = "numbers"
    supports_gradient_checkpointing = True
    _no_split_modules = ["Layer"]
    _supports_sdpa = True
    _init_weights = drawn
    initialize_weights = completed

    def __init__(self, config: RowTransformerConfig) -> None:
        super().__init__(config)
        width, std = config.hidden_size, config.initializer_range
        self.cells = Cells(config.numbers, config.categories, width, std)
        self.gathering = nn.Parameter(torch.randn(width) * std)
        self.layers = build(config.layers, width, config.norm, config.norm_eps, config.dropout)
        self.norm = norm(config.norm, width, config.norm_eps)
        self.regression = config.task == "tabular-regression"
        self.out = nn.Linear(width, 1 if self.regression else int(config.num_labels or 2))
        nn.init.normal_(self.out.weight, std=std)
        nn.init.zeros_(self.out.bias)
        self._without_values = self.out.weight.is_meta
        self.post_init()

    def forward(
        self, numbers: Tensor | None = None, seen: Tensor | None = None, categories: Tensor | None = None
    ) -> ModelOutput:
        config = self.config
        for name, given, columns in (
            ("numbers", numbers, config.numbers), ("seen", seen, config.numbers),
            ("categories", categories, len(config.categories)),
        ):  # fmt: skip
            if (given is None and columns) or (given is not None and given.shape[1:] != (columns,)):
                shape = None if given is None else tuple(given.shape)
                raise UserError(f"{name} is (batch, {columns}) for this table, not {shape}")
        x = self.cells(numbers, seen, categories)
        x = torch.cat([self.gathering.to(x.dtype).expand(x.shape[0], 1, -1), x], 1)
        for layer in self.layers:
            x = layer(x)
        found = self.out(torch.relu(self.norm(x[:, 0])))
        return ModelOutput(prediction=found[:, 0]) if self.regression else ModelOutput(logits=found)


register()
