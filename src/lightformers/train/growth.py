"""What training needs to go on after a model grew by parameter tokens (TokenFormer, arXiv 2410.23168)."""

from __future__ import annotations

import dataclasses

import torch
from torch import nn

from lightformers.errors import ModelError, UserError
from lightformers.models.language.decoder import Decoder
from lightformers.parts.ffn.pattention import Init, Pattention
from lightformers.train.state import TrainState


def grow(model: nn.Module, times: float = 2.0, init: Init = "zero", keep: bool = True) -> list[str]:
    """Grow every Pattention of `model` to `times` its tokens, in place; returns their paths. See `Pattention.grow`.

    The configuration of a `Decoder` is told, so that the grown one can be saved. Afterwards train with a fresh warm-up
    and schedule: either anew, with moments of zero, which is what the paper does, or from `grown_state`, which keeps what
    the old tokens have gathered. Raises ModelError where there is no Pattention, UserError for times below 1.
    """
    if not times >= 1:
        raise UserError(f"a model grows by a factor of at least 1, not {times}")
    found = [(name, m) for name, m in model.named_modules() if isinstance(m, Pattention)]
    if not found:
        raise ModelError("the model has no parameter tokens to add to")
    for _, layer in found:
        layer.grow(round(layer.tokens * times), init, keep)
    if isinstance(model, Decoder):
        _note(model)
    return [name for name, _ in found]


def _note(model: Decoder) -> None:
    for row, layer in zip(model.config.layers, model.layers):
        for name in ("mixer", "ffn"):
            part = getattr(layer, name)
            grown = [] if part is None else [m.tokens for m in part.modules() if isinstance(m, Pattention)]
            if grown:
                row[name] = layer.row[name] = {**row[name], "tokens": grown[0]}


def grown_state(state: TrainState, model: nn.Module) -> TrainState:
    """The state of a training of the small model, for the grown one: weights are the model's, moments of new tokens
    zero, the position at 0, so that a new schedule starts. Its warm-up is wanted: the first updates of a new token, whose
    second moment begins at zero without the correction for it, are up to (1 - beta_1) / sqrt(1 - beta_2) times the rate.

    Raises ModelError where the state belongs to another model.
    """
    shapes = dict(model.named_parameters())
    tensors = {}
    for key, value in state.tensors.items():
        kind, _, name = key.partition("/")
        if name not in shapes:
            raise ModelError(f"the training state has {name}, the model has not: it belongs to another one")
        p = shapes[name].detach()
        if kind == "weight":
            tensors[key] = p
            continue
        if kind == "step":
            tensors[key] = value
            continue
        tensors[key] = torch.cat([value, value.new_zeros(len(p) - len(value), *p.shape[1:])])
    return dataclasses.replace(state, tensors=tensors, step=0, batches=0, tokens=0, seconds=0.0)
