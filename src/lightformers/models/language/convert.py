"""Models of transformers as decoders of ours: the same weights under other names, and equal logits.

    model = from_transformers(AutoModelForCausalLM.from_pretrained("state-spaces/mamba-130m-hf"))

A family is a row: how its configuration reads, and what its weights are called.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from lightformers.errors import UserError
from lightformers.models.language.decoder import Decoder, DecoderConfig
from lightformers.models.patterns import stack


@dataclass(frozen=True)
class Family:
    """fields: configuration of transformers -> fields of `DecoderConfig`; it raises UserError for what cannot be said.
    names: (pattern of a whole name, its name here), the first that fits is taken."""

    fields: Callable[[Any], dict[str, Any]]
    names: tuple[tuple[str, str], ...]

    def name(self, key: str) -> str:
        """The name of a weight here. Raises UserError where no pattern fits."""
        for pattern, here in self.names:
            if found := re.fullmatch(pattern, key):
                return found.expand(here)
        raise UserError(f"the model has weights of another kind than its family: {key}")


def from_transformers(model: nn.Module) -> Decoder:
    """A decoder with a copy of the model's weights, on its device and in its dtype.

    Raises UserError for families that are not in `FAMILIES` and for settings that a decoder does not have.
    """
    config: Any = getattr(model, "config", None)
    family = FAMILIES.get(getattr(config, "model_type", ""))
    if family is None or "ForCausalLM" not in type(model).__name__:
        raise UserError(
            f"{type(model).__name__} is not a causal language model of {', '.join(sorted(FAMILIES))}"
        )
    weights = {family.name(key): value for key, value in model.state_dict().items()}
    ids: dict[str, Any] = {
        name: getattr(config, name, None) for name in ("bos_token_id", "eos_token_id", "pad_token_id")
    }
    first = next(model.parameters())
    with torch.random.fork_rng():  # the values that it is built with are overwritten
        made: Any = Decoder(DecoderConfig(**family.fields(config), **ids))
    made = made.to(device=first.device, dtype=first.dtype)
    try:
        made.load_state_dict(weights)
    except RuntimeError as error:
        raise UserError(f"the weights of {type(model).__name__} do not fit: {error}") from error
    found: Decoder = made.train(model.training)
    return found


def _shared(config: Any, mixer: Mapping[str, Any], **wanted: Any) -> dict[str, Any]:
    """Fields of a stack of mixers. wanted: settings of the configuration that alone are known here."""
    for name, value in {"use_bias": False, "use_conv_bias": True, "hidden_act": "silu", **wanted}.items():
        if getattr(config, name, value) != value:
            raise UserError(
                f"{config.model_type} with {name} {getattr(config, name)}: a decoder has it {value} only"
            )
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "layers": stack("M" * config.num_hidden_layers, {"M": {"mixer": mixer}}),
        "norm": "rms",
        "norm_eps": config.layer_norm_epsilon,
        "tie_word_embeddings": config.tie_word_embeddings,
        "residual_fp32": config.residual_in_fp32,
    }


def _mamba(config: Any) -> dict[str, Any]:
    rank = int(config.time_step_rank)
    size = {"state": config.state_size, "expand": config.intermediate_size / config.hidden_size}
    return _shared(config, {"kind": "mamba", "kernel": config.conv_kernel, "rank": rank, **size})


def _mamba2(config: Any) -> dict[str, Any]:
    size = {
        "state": config.state_size,
        "head": config.head_dim,
        "groups": config.n_groups,
        "expand": config.expand,
    }
    mixer = {"kind": "mamba2", "kernel": config.conv_kernel, "eps": config.layer_norm_epsilon, **size}
    if tuple(config.time_step_limit) != (0.0, float("inf")):
        raise UserError(
            f"mamba2 with time_step_limit {config.time_step_limit}: a decoder has no limits of step sizes"
        )
    return _shared(config, mixer)


_STACK = (
    (r"backbone\.embeddings\.weight", "embedding.weight"),
    (r"backbone\.norm_f\.weight", "norm.weight"),
    (r"backbone\.layers\.(\d+)\.norm\.weight", r"layers.\1.mixer_norm.weight"),
    (r"backbone\.layers\.(\d+)\.mixer\.(.+)", r"layers.\1.mixer.\2"),
    (r"lm_head\.weight", "head.weight"),
)
FAMILIES: dict[str, Family] = {"mamba": Family(_mamba, _STACK), "mamba2": Family(_mamba2, _STACK)}
