"""TabDPT (Ma et al., 2024, arXiv 2410.18164): rows of a table answered in context, by labelled rows beside them.

A row is one token: Linear(x) divided by its root mean square; rows of the context add Linear(label). In every layer all
rows ask, and only rows of the context are asked, so queries never see each other. No positions: the order of the context
says nothing. The head gives a logit for each of ten classes and one number. Nothing is trained on a new table.

Columns are clipped at four deviations, standardised and clipped again by the statistics of the context alone, in training
as in use (the authors' training code takes those of all rows). The last layer computes the queries alone: what it would make
of the context nobody reads.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PretrainedConfig, PreTrainedModel

from lightformers.errors import UserError
from lightformers.models.registry import register
from lightformers.parts.recording import eager

#: Deviations beyond which a value counts as this many.
CLIP = 4.0
TASKS = ("tabular-classification", "tabular-regression")
#: Rows of one pass outside of a graph: what runs side by side then fits into the caches.
_ROWS = 8192


class TabDPTConfig(PretrainedConfig):
    """Sizes, and what the table at hand asks for; the defaults are the paper's model.

    features: columns a row has after padding. head_dim: size of a head of attention,
        None: hidden_size / heads. head_hidden: between the last state and the outputs, None: intermediate_size. max_classes: outputs for classes; also the base in which greater classes are
        written. task: what `forward` gives. classes: of the table at hand; None: max_classes.
    softmax_temperature: what averaged logits are divided by. permutations: orders of the columns over which `forward` averages,
        each of all `features`; None: as they come.
    target_mean, target_deviation: of the regression target: context_y is standardised by them, `prediction` is not.
    Raises UserError for sizes that do not fit together.
    """

    model_type = "lightformers-tabdpt"

    def __init__(
        self,
        features: int = 100,
        hidden_size: int = 512,
        intermediate_size: int = 1024,
        num_attention_heads: int = 8,
        num_hidden_layers: int = 12,
        head_dim: int | None = None,
        head_hidden: int | None = None,
        max_classes: int = 10,
        task: str = "tabular-classification",
        classes: int | None = None,
        softmax_temperature: float = 0.8,
        permutations: Sequence[Sequence[int]] | None = None,
        target_mean: float = 0.0,
        target_deviation: float = 1.0,
        **options: Any,
    ) -> None:
        if min(features, hidden_size, intermediate_size, num_attention_heads, num_hidden_layers) < 1:
            raise UserError("features, widths, heads and layers are at least 1")
        if head_dim is None and hidden_size % num_attention_heads:
            raise UserError(
                f"{num_attention_heads} heads do not divide a width of {hidden_size}: give head_dim"
            )
        if max_classes < 2 or (classes is not None and classes < 2) or softmax_temperature <= 0:
            raise UserError("there are two classes at least, and the temperature is more than 0")
        if task not in TASKS:
            raise UserError(f"task is one of {', '.join(TASKS)}, not {task!r}")
        whole = list(range(features))
        orders = None if permutations is None else [list(map(int, p)) for p in permutations]
        if orders is not None and (not orders or any(sorted(p) != whole for p in orders)):
            raise UserError(f"a permutation names each of {features} columns once")
        self.features, self.hidden_size, self.intermediate_size = features, hidden_size, intermediate_size
        self.num_attention_heads, self.num_hidden_layers = num_attention_heads, num_hidden_layers
        self.head_dim = hidden_size // num_attention_heads if head_dim is None else head_dim
        self.head_hidden = intermediate_size if head_hidden is None else head_hidden
        self.max_classes, self.task, self.softmax_temperature = max_classes, task, softmax_temperature
        self.permutations = orders
        self.target_mean, self.target_deviation = target_mean, target_deviation
        self.classes = max_classes if classes is None else classes
        # transformers keeps no number of labels in its files, and names may be those of another table's classes.
        options.pop("num_labels", None)
        if len(options.get("id2label") or ()) != self.classes:
            options = {k: v for k, v in options.items() if k not in ("id2label", "label2id")}
            options["num_labels"] = self.classes
        super().__init__(**options)


def moments(x: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and sample deviation over rows, of what was seen: (..., rows, columns) -> twice (..., 1, columns)."""
    count = seen.sum(-2, keepdim=True)
    mean = torch.where(seen, x, 0.0).sum(-2, keepdim=True) / count.clamp(min=1)
    square = torch.where(seen, (x - mean).square(), 0.0).sum(-2, keepdim=True)
    return mean, (square / (count - 1).clamp(min=1)).sqrt()


def _varies(mean: Tensor, deviation: Tensor) -> Tensor:
    """Whether a column varies by more than rounding: of one that does not, nothing may be magnified."""
    return deviation > 1e-5 * (1 + mean.abs())


def limits(x: Tensor) -> tuple[Tensor, Tensor]:
    """Where columns are clipped: four deviations from the mean, both once more without what lies farther out.

    Where nothing varies without that (a mark that few rows have), the first estimate stays: else it would be lost.
    """
    seen = ~x.isnan()
    whole = moments(x, seen)
    inner = moments(x, seen & ((x - whole[0]).abs() <= CLIP * whole[1]))
    mean, deviation = (torch.where(_varies(*inner), a, b) for a, b in zip(inner, whole))
    return mean - CLIP * deviation, mean + CLIP * deviation


def standardise(context: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
    """(..., rows, columns) each -> the same clipped, z-scored and clipped again by the context; NaN becomes 0."""
    bounds = limits(context)
    every = [x.clamp(*bounds) for x in (context, *others)]
    mean, deviation = moments(every[0], ~context.isnan())
    scale = torch.where(_varies(mean, deviation), 1 / (deviation + 1e-6), 0.0)
    every = [(x - mean) * scale for x in every]
    bounds = limits(every[0])
    return tuple(torch.where(x.isnan(), 0.0, x.clamp(*bounds)) for x in every)


def row_scale(x: Tensor, eps: float = 1e-8) -> Tensor:
    """Every token divided by its root mean square, without a learned gain."""
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)


class ContextAttention(nn.Module):
    """All rows ask, rows of the context answer. No biases; queries and keys are normalised head by head."""

    def __init__(self, width: int, heads: int, size: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(width, heads * size, bias=False) for _ in "qkv")
        self.o_proj = nn.Linear(heads * size, width, bias=False)
        self.q_norm, self.k_norm = nn.LayerNorm(size), nn.LayerNorm(size)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """(batch, rows, width), (batch, labelled rows, width) -> as x."""

        def split(y: Tensor) -> Tensor:
            return y.unflatten(-1, (self.heads, -1)).transpose(1, 2)

        q, k, v = split(self.q_proj(x)), split(self.k_proj(context)), split(self.v_proj(context))
        q, k = self.q_norm(q), self.k_norm(k)
        if q.dtype == torch.bfloat16 and torch.is_grad_enabled() and eager(q):
            # torch's fused kernel takes five times as long for these gradients on a CPU.
            out = torch.softmax((q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2), -1) @ v
        else:
            out = F.scaled_dot_product_attention(q, k, v)
        return self.o_proj(out.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """Linear, GELU, Linear."""

    def __init__(self, width: int, hidden: int, out: int) -> None:
        super().__init__()
        self.up_proj, self.down_proj = nn.Linear(width, hidden), nn.Linear(hidden, out)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.gelu(self.up_proj(x)))


class Layer(nn.Module):
    """Pre-norm: x + attention(norm x), then x + mlp(norm x)."""

    def __init__(self, width: int, heads: int, size: int, hidden: int) -> None:
        super().__init__()
        self.attention_norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention, self.mlp = ContextAttention(width, heads, size), MLP(width, hidden, width)

    def forward(self, x: Tensor, labelled: int, first: int = 0) -> Tensor:
        """(batch, rows, width), the first `labelled` of them the context -> the rows from `first` on."""
        y = self.attention_norm(x)
        x = x[:, first:] + self.attention(y[:, first:], y[:, :labelled])
        return x + self.mlp(self.mlp_norm(x))


class TabDPT(PreTrainedModel):
    """See the module. `answers` is the network; `forward` puts a table's permutations, digits and units around it."""

    config: TabDPTConfig
    config_class = TabDPTConfig
    main_input_name = "x"
    _no_split_modules = ["Layer"]
    _supports_sdpa = True

    def __init__(self, config: TabDPTConfig) -> None:
        super().__init__(config)
        width, hidden = config.hidden_size, config.intermediate_size
        self.row_embedding = nn.Linear(config.features, width)
        self.label_embedding = nn.Linear(1, width)
        self.layers = nn.ModuleList(
            Layer(width, config.num_attention_heads, config.head_dim, hidden)
            for _ in range(config.num_hidden_layers)
        )
        self.head = MLP(width, config.head_hidden, config.max_classes + 1)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, (nn.Linear, nn.LayerNorm)):
            module.reset_parameters()

    def answers(self, context_x: Tensor, context_y: Tensor, x: Tensor) -> Tensor:
        """(tables, context, features), (tables, context), (tables, queries, features) -> (tables, queries, classes + 1).

        x is standardised; context_y holds classes as numbers, or standardised targets. The last output is the number.
        """
        labelled, last = context_x.shape[1], len(self.layers) - 1
        wanted = self.row_embedding.weight.dtype
        rows = row_scale(self.row_embedding(torch.cat([context_x, x], 1).to(wanted)))
        labels = self.label_embedding(context_y.to(wanted)[..., None])
        rows = torch.cat([rows[:, :labelled] + labels, rows[:, labelled:]], 1)
        for place, layer in enumerate(self.layers):
            rows = layer(rows, labelled, labelled if place == last else 0)
        return self.head(rows)

    def forward(self, context_x: Tensor, context_y: Tensor, x: Tensor) -> dict[str, Tensor]:
        """Answers for x (batch, features), -> {"logits": (batch, classes)} or {"prediction": (batch)}.

        context_x, context_y: one context for all, (rows, features) and (rows), or for each its own, (batch, rows, features)
        and (batch, rows): columns in common units, padded with zeros; classes by number, or standardised targets.
        Raises UserError for an empty context and shapes that do not fit.
        """
        if not torch.jit.is_tracing():
            _check(context_x, context_y, x, self.config)
        if context_x.dim() == 2:
            context_x, context_y, x = context_x[None], context_y[None], x[None]
        else:
            x = x[:, None]
        context_x, x = standardise(context_x.float(), x.float())
        if self.config.task == TASKS[1]:
            values = context_y.float()[..., None]
            mean, deviation = moments(
                values.clamp(*limits(values)), torch.ones_like(values, dtype=torch.bool)
            )
            labels = standardise(values)[0][None, ..., 0]
            out = self._averaged(context_x, labels, x)[0, ..., -1] * (deviation[..., 0] + 1e-6) + mean[..., 0]
            return {"prediction": out.flatten() * self.config.target_deviation + self.config.target_mean}
        classes, base = self.config.classes, self.config.max_classes
        digits = math.ceil(math.log(max(classes, base), base) - 1e-9)
        number = torch.arange(digits, device=x.device).view(-1, *[1] * context_y.dim())
        labels = (context_y.float() / float(base) ** number + 1e-4).floor() % base
        scores = self._averaged(context_x, labels, x)[..., :base]
        every = torch.arange(classes, device=x.device)
        digit = [scores[place][..., every // base**place % base] for place in range(digits)]
        return {"logits": torch.stack(digit).sum(0).flatten(0, 1) / self.config.softmax_temperature}

    def _averaged(self, context_x: Tensor, labels: Tensor, x: Tensor) -> Tensor:
        """(tables, ...) and (passes, tables, context) -> (passes, tables, queries, outputs), mean of all permutations."""
        passes, (tables, queries, _) = len(labels), x.shape
        orders = 1
        if self.config.permutations is not None:
            order = torch.tensor(self.config.permutations, device=x.device)
            orders = len(order)
            context_x, x = (t[..., order].movedim(2, 0).flatten(0, 1) for t in (context_x, x))
        shape = (passes, orders, tables)
        context_x, x = (t.expand(passes, *t.shape).flatten(0, 1) for t in (context_x, x))
        labels = labels[:, None].expand(*shape, -1).flatten(0, 2)
        if eager(x):
            step = max(1, _ROWS // (context_x.shape[1] + queries))
            parts = zip(context_x.split(step), labels.split(step), x.split(step))
            out = torch.cat([self.answers(*part) for part in parts])
        else:
            out = self.answers(context_x, labels, x)
        return out.float().unflatten(0, shape).mean(1)


def _check(context_x: Tensor, context_y: Tensor, x: Tensor, config: TabDPTConfig) -> None:
    if x.dim() != 2 or x.shape[1] != config.features:
        raise UserError(f"x is (batch, {config.features}), not {tuple(x.shape)}")
    own = context_x.dim() == 3
    shape = (*((len(x),) if own else ()), context_y.shape[-1] if context_y.dim() else 0, config.features)
    if tuple(context_x.shape) != shape or context_y.shape != context_x.shape[:-1]:
        raise UserError(
            f"context_x is (rows, {config.features}) or (batch, rows, {config.features}) and context_y the same without the "
            f"last axis, not {tuple(context_x.shape)} and {tuple(context_y.shape)}"
        )
    if not context_x.shape[-2]:
        raise UserError("the context is empty: without labelled rows there is nothing to answer from")


register()
