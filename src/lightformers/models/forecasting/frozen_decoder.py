"""A language model that reads vectors other than words, and keeps what it knows of text: it is frozen but for a little."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightformers.errors import UserError
from lightformers.parts.lora import LoraLinear

#: Names of the layers that attention projects with: apart, and together.
PROJECTIONS = ("query", "key", "value", "c_attn")
_GPT2 = "gpt2"
_OURS = "lightformers-decoder"


def plain(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a configuration as they go into a JSON file, {"model_type": "gpt2"} or those of a `DecoderConfig`."""
    kind = fields.get("model_type", _OURS)
    if kind not in (_GPT2, _OURS):
        raise UserError(f"the language model is a {_GPT2} or a {_OURS}, not a {kind}")
    held: dict[str, Any] = json.loads(json.dumps({**fields, "model_type": kind}))
    return held


def build(fields: Mapping[str, Any]) -> Any:
    """The language model, with random weights and without a head."""
    own = {k: v for k, v in fields.items() if k != "model_type"}
    if fields["model_type"] == _GPT2:
        from transformers import GPT2Config, GPT2Model

        return GPT2Model(GPT2Config(**own))
    # here, because importing the decoder registers all models, and those that hold one are not defined yet then
    from lightformers.models.language.decoder import Decoder, DecoderConfig

    made = Decoder(DecoderConfig(**{**own, "tie_word_embeddings": False}))
    made.head = None
    return made


def width(model: Any) -> int:
    """Of its vectors."""
    return int(model.config.hidden_size)


def limit(model: Any) -> int | None:
    """The most positions that it reads; None: any number."""
    found = model.config.max_position_embeddings
    return None if found is None else int(found)


def words(model: Any) -> Tensor:
    """The table of its words, (vocabulary, width)."""
    table: Tensor = model.get_input_embeddings().weight
    return table


def read(model: Any, x: Tensor) -> Tensor:
    """(batch, n, width) vectors in the place of words -> (batch, n, width) after the last norm."""
    if model.config.model_type == _GPT2:
        states: Tensor = model(inputs_embeds=x, use_cache=False).last_hidden_state
        return states
    states = model.features(inputs_embeds=x)[0]
    return states


def freeze(model: nn.Module, norms: bool = True, positions: bool = True) -> None:
    """No gradients but for low-rank updates and, where wanted, norms and the table of positions."""
    model.requires_grad_(False)
    for name, module in model.named_modules():
        if isinstance(module, LoraLinear):
            module.first.requires_grad_(True)
            module.second.requires_grad_(True)
            continue
        table = positions and name in ("wpe", "positions") and isinstance(module, nn.Embedding)
        if table or (norms and isinstance(module, nn.LayerNorm | nn.RMSNorm)):
            module.requires_grad_(True)


def shortened(source: Any, layers: int | None) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The configuration and the weights of a pretrained model's first `layers` blocks (None: all), without its head.

    source: a `Decoder`, a GPT2Model or a GPT2LMHeadModel. Raises UserError for others, and for more layers than it has.
    """
    body = getattr(source, "transformer", source)
    kind = getattr(getattr(body, "config", None), "model_type", type(source).__name__)
    if kind not in (_GPT2, _OURS):
        raise UserError(f"a {kind} cannot be prompted; a {_GPT2} or a {_OURS} can")
    stack = "layers" if kind == _OURS else "h"
    count = len(getattr(body, stack))
    if layers is not None and not 1 <= layers <= count:
        raise UserError(f"the language model has {count} layers: {layers} of them cannot be taken")
    kept = count if layers is None else layers
    fields = {k: v for k, v in body.config.to_diff_dict().items() if k not in _WITHOUT}
    if kind == _OURS:
        fields["layers"] = body.config.layers[:kept]
    else:
        fields["n_layer"] = kept
    beyond = tuple(f"{stack}.{i}." for i in range(kept, count))
    weights = {
        name: value.detach()
        for name, value in body.state_dict().items()
        if not name.startswith(("head.", *beyond))
    }
    return plain({**fields, "model_type": kind}), weights


#: Facts of a saved configuration that say nothing about the model's form.
_WITHOUT = frozenset(
    {"architectures", "transformers_version", "dtype", "torch_dtype", "_name_or_path", "model_type", "tie_word_embeddings"}
)  # fmt: skip


@torch.no_grad()
def fill(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Copies weights into the model, in place, into the base of a layer that has a low-rank update.

    Raises UserError where the model has no place for one.
    """
    held = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for name, value in weights.items():
        owner, _, last = name.rpartition(".")
        place = held.get(name, held.get(f"{owner}.base.{last}"))
        if place is None:
            raise UserError(f"the language model has no place for {name}")
        place.copy_(value)
