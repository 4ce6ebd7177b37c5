"""The twin of a model: what plain transformers builds from its config, on the meta device (no memory, no weights).

It answers questions that a table can't: whether the model reloads as it stands, and which dimensions depend on
which field of the config.
"""

from __future__ import annotations

import copy
import inspect
import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from lightformers.errors import ModelError, reason


def twin(owner: nn.Module, fields: Mapping[str, Any] | None = None, section: str = "") -> nn.Module:
    """Build `type(owner)` from its config on the meta device, with some fields of the config changed.

    section: name of the sub-config that the fields belong to ("" is the config itself).
    Raises ModelError if transformers can't build such a config.
    """
    config = copy.deepcopy(owner.config)
    try:
        target: Any = getattr(config, section) if section else config
        for name, value in (fields or {}).items():
            setattr(target, name, value)
        return build(type(owner), config, owner)
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(
            f"transformers does not build a {type(owner).__name__} from this config: {reason(error)}"
        ) from error


def build(kind: Any, config: Any, like: nn.Module | None = None) -> nn.Module:
    """`kind(config)` on the meta device, quietly."""
    arguments: dict[str, Any] = {}
    if like is not None and getattr(like, "pooler", True) is None:
        arguments = {
            name: False
            for name in ("add_pooling_layer", "add_pooler")
            if name in inspect.signature(kind.__init__).parameters
        }
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with torch.device("meta"):
            model: nn.Module = kind(config, **arguments)
        tie: Any = model.tie_weights  # early releases leave it out on the meta device
        tie()
        return model
    finally:
        logger.setLevel(level)


def shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Shape of every stored tensor by its name (a tied tensor under each of its names)."""
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """The live parameters and buffers by name (a tied tensor under each of its names)."""
    found: dict[str, torch.Tensor] = dict(model.named_parameters(remove_duplicate=False))
    found.update(model.named_buffers(remove_duplicate=False))
    return found


def changed(before: nn.Module, after: nn.Module) -> dict[str, list[int]]:
    """Names of the tensors whose shape differs, with the dimensions that do. Raises ModelError if names differ."""
    old, new = shapes(before), shapes(after)
    if set(old) != set(new):
        odd = ", ".join(sorted(set(old) ^ set(new))[:3])
        raise ModelError(f"The change of size would add or remove layers ({odd}).")
    found = {}
    for name, shape in old.items():
        dims = [d for d, (a, b) in enumerate(zip(shape, new[name])) if a != b]
        if dims:
            found[name] = dims
    return found
