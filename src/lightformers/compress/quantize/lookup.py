"""The layers outside the blocks that can be quantized: the head, and the tables that tokens are looked up in."""

from __future__ import annotations

from typing import Any

from torch import nn

from lightformers import anatomy
from lightformers.anatomy.find import host


def head(model: nn.Module) -> str | None:
    """Path of the output layer, if it is a plain linear layer that can be replaced."""
    found = anatomy.of(model)
    if found.head is None or type(anatomy.get(model, found.head)) is not nn.Linear:
        return None
    return None if found.tied and not _alone(model, found.embeddings) else found.head


def tables(model: nn.Module) -> tuple[str, ...]:
    """Paths of the word embedding and of the other plain embeddings beside it (positions, token types).

    A table that several modules hold (t5's, shared by both stacks) is left out: it cannot be replaced in one place.
    """
    words = anatomy.of(model).embeddings
    if words is None:
        return ()
    parent = words.rpartition(".")[0]
    near = [(f"{parent}.{n}" if parent else n, m) for n, m in anatomy.get(model, parent).named_children()]
    near.sort(key=lambda pair: pair[0] != words)
    return tuple(p for p, m in near if type(m) is nn.Embedding and _alone(model, p))


def untie(model: nn.Module) -> None:
    """Say in the config that head and word embedding are two things from now on, each with its own numbers."""
    config: Any = getattr(host(model)[1], "config", None)
    for part in (config, getattr(config, "text_config", None)):
        if part is not None and getattr(part, "tie_word_embeddings", False):
            part.tie_word_embeddings = False


def _alone(model: nn.Module, path: str | None) -> bool:
    """Whether nothing but this module, and perhaps the head, holds its weight."""
    if path is None:
        return True
    weight = anatomy.get(model, path).weight
    head_path = anatomy.of(model).head
    for name, module in model.named_modules(remove_duplicate=False):
        if name not in (path, head_path) and getattr(module, "weight", None) is weight:
            return False
    return True
