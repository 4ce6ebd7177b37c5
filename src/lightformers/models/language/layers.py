"""What decoder and encoder share: layers of a mixer and a feed-forward, named by plain mappings."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, initialization
from transformers.modeling_layers import GradientCheckpointingLayer

from lightformers.errors import UserError
from lightformers.parts.ffn.table import FEED_FORWARDS
from lightformers.parts.mixers import State
from lightformers.parts.mixers.table import MIXERS, check, make
from lightformers.parts.norms import RMSNorm

NORMS = ("rms", "layer")
#: "pre": x + f(norm(x)). "post-output": x + norm(f(x)).
PLACEMENTS = ("pre", "post-output")
TABLES = {"mixer": MIXERS, "ffn": FEED_FORWARDS}
#: The keys of a layer: two parts (a kind with its options, or None), and where the norm of each stands.
KEYS = ("mixer", "ffn", "mixer_norm", "ffn_norm")


def checked(layers: Sequence[Mapping[str, Any]], causal: bool) -> list[dict[str, Any]]:
    """The layers as plain lists and dictionaries. Raises UserError for unknown kinds, options and placements.

    causal: every mixer must be able to run on in time. Else `causal=False` is given to those that leave it open.
    """
    try:
        rows = json.loads(json.dumps([dict(layer) for layer in layers]))
    except (TypeError, ValueError) as error:
        raise UserError(f"layers are a list of plain mappings: {error}") from error
    for number, row in enumerate(rows):
        try:
            _check(row, causal)
        except UserError as error:
            raise UserError(f"layer {number}: {error}") from error
    return rows


def _check(row: dict[str, Any], causal: bool) -> None:
    if unknown := sorted(set(row) - set(KEYS)):
        raise UserError(f"a layer has {', '.join(KEYS)}, not {', '.join(unknown)}")
    if not row.get("mixer") and not row.get("ffn"):
        raise UserError("there is neither a mixer nor a feed-forward")
    for name, table in TABLES.items():
        if row.get(f"{name}_norm", "pre") not in PLACEMENTS:
            raise UserError(f"{name}_norm is one of {', '.join(PLACEMENTS)}, not {row[f'{name}_norm']!r}")
        if not (part := row.get(name)):
            continue
        if not isinstance(part, dict) or "kind" not in part:
            raise UserError(
                f"a {name} is a mapping with a kind, one of {', '.join(sorted(table))}, not {part!r}"
            )
        found = check(table, **part)
        if name == "ffn":
            continue
        if causal and (not hasattr(found, "begin") or part.get("causal") is False):
            raise UserError(
                f"{part['kind']} looks both ways, so it cannot stand in a decoder: use an Encoder"
            )
        if not causal and "causal" in inspect.signature(found).parameters:
            part.setdefault("causal", False)


def norm(kind: str, width: int, eps: float) -> nn.Module:
    """ "rms" or "layer", both with a weight, "layer" with a bias too. Raises UserError for others."""
    if kind not in NORMS:
        raise UserError(f"norm is one of {', '.join(NORMS)}, not {kind!r}")
    return RMSNorm(width, eps=eps) if kind == "rms" else nn.LayerNorm(width, eps=eps)


class Layer(GradientCheckpointingLayer):
    """x + mixer(norm(x)), then x + ffn(norm(x)); either may be absent. (batch, n, width) -> the same.

    row: a layer of `checked`. dropout: of what is added. The stream x may be wider than the weights (float32): parts
    take it in the dtype of the weights.
    """

    mixer: Any
    ffn: Any

    def __init__(
        self,
        row: Mapping[str, Any],
        width: int,
        index: int,
        layers: int,
        norm_kind: str,
        eps: float,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.row, self.width, self.index, self.layers = dict(row), width, index, layers
        self.dropout = dropout
        for name in TABLES:
            there = bool(row.get(name))
            self.add_module(f"{name}_norm", norm(norm_kind, width, eps) if there else None)
            self.add_module(name, self.part(name) if there else None)
        #: Paths of what weight decay passes over (`train.optim.exempt`): marks on parameters are lost in loading.
        self.no_decay = tuple(n for n, p in self.named_parameters() if getattr(p, "no_decay", False))

    def part(self, name: str) -> nn.Module:
        """A new mixer or feed-forward of this layer, initialised."""
        return make(TABLES[name], width=self.width, layer=self.index, layers=self.layers, **self.row[name])

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        if self.mixer is not None:
            x = self._add(x, "mixer", self.mixer(self._enter(x, "mixer"), mask))
        return self._feed(x)

    def extend(self, x: Tensor, state: State, mask: Tensor | None = None) -> tuple[Tensor, State]:
        """n more tokens, (batch, n, width); a layer without a mixer has an empty state."""
        if self.mixer is not None:
            y, state = self.mixer.extend(self._enter(x, "mixer"), state, mask)
            x = self._add(x, "mixer", y)
        return self._feed(x), state

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """One more token, (batch, width)."""
        if self.mixer is not None:
            y, state = self.mixer.step(self._enter(x, "mixer"), state)
            x = self._add(x, "mixer", y)
        return self._feed(x), state

    def begin(self, batch: int, device: torch.device | str, dtype: torch.dtype) -> State:
        return {} if self.mixer is None else self.mixer.begin(batch, device, dtype)

    def _feed(self, x: Tensor) -> Tensor:
        return x if self.ffn is None else self._add(x, "ffn", self.ffn(self._enter(x, "ffn")))

    def _enter(self, x: Tensor, name: str) -> Tensor:
        if self.row.get(f"{name}_norm", "pre") == "pre":
            return self._normed(x, name)
        return x.to(getattr(self, f"{name}_norm").weight.dtype)

    def _add(self, x: Tensor, name: str, y: Tensor) -> Tensor:
        if self.row.get(f"{name}_norm", "pre") != "pre":
            y = self._normed(y, name)
        return x + (nn.functional.dropout(y, self.dropout, self.training) if self.dropout else y)

    def _normed(self, x: Tensor, name: str) -> Tensor:
        made = getattr(self, f"{name}_norm")
        return made(x.to(made.weight.dtype))


def build(
    rows: Sequence[Mapping[str, Any]], width: int, norm_kind: str, eps: float, dropout: float
) -> nn.ModuleList:
    """The layers of a model. Raises UserError where there is none or a part refuses its options."""
    if not rows:
        raise UserError("the configuration names no layers")
    made = nn.ModuleList()
    for index, row in enumerate(rows):
        try:
            made.append(Layer(row, width, index, len(rows), norm_kind, eps, dropout))
        except UserError as error:
            raise UserError(f"layer {index}: {error}") from error
    mixers: list[Any] = [layer.mixer for layer in made]
    for mixer in mixers:
        if hasattr(mixer, "connect"):  # one that shares something with its fellows in other layers
            mixer.connect(mixers)
    return made


def draw(module: nn.Module, std: float) -> None:
    """Values for a table, linear layer or norm that a checkpoint does not hold: N(0, std), 0 for biases, 1 for norms.

    What was loaded bears transformers' mark and is left alone. For `_init_weights` of models that were built without
    memory for values.
    """
    if isinstance(module, nn.Linear | nn.Embedding):
        initialization.normal_(module.weight, std=std)
    elif isinstance(module, nn.RMSNorm | nn.LayerNorm):
        initialization.ones_(module.weight)
    if getattr(module, "bias", None) is not None and isinstance(module, nn.Linear | nn.LayerNorm):
        initialization.zeros_(module.bias)


@torch.no_grad()
def complete(model: nn.Module) -> None:
    """Gives parts the values that a checkpoint does not hold, buffers that are not saved among it.

    transformers builds a model without memory for values when it loads; whatever is absent then comes from a new part.
    """
    for layer in model.modules():
        if not isinstance(layer, Layer):
            continue
        for name in TABLES:
            part = getattr(layer, name)
            if part is None or not any(map(_absent, _values(part).values())):
                continue
            fresh = _values(layer.part(name))
            for key, value in _values(part).items():
                if _absent(value):
                    value.copy_(fresh[key])


@torch.no_grad()
def drawn(self: Any, module: nn.Module) -> None:
    """`_init_weights` of a model whose parts draw their own values, and of which a checkpoint may hold only some: `draw`
    where it was built without memory for values, which it notes as `_without_values` before `post_init`."""
    if self._without_values:
        draw(module, getattr(self.config, "initializer_range", 0.02))


def completed(self: Any) -> None:
    """`initialize_weights` of a model with `Layer`s: values for what a checkpoint did not hold; called by transformers."""
    PreTrainedModel.initialize_weights(self)
    if self._without_values:
        complete(self)


def _values(part: nn.Module) -> dict[str, Tensor]:
    return {**dict(part.named_parameters()), **dict(part.named_buffers())}


def _absent(value: Tensor) -> bool:
    return not getattr(value, "_is_hf_initialized", False)
