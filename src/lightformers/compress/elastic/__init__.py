"""Elastic models: one set of weights that holds many networks, each ready without training again.

`Size` says how large a sub-network is, `Space` which sizes there are, `Shared` runs and trains them on the whole
model's weights, `lightformers.elastic.Elastic` keeps the trained whole with its space, picks sizes for a budget and
extracts them. A paper is a training programme on these: which sizes nest, how they are sampled, what the loss is.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

from lightformers.errors import UserError

if TYPE_CHECKING:
    from lightformers.bundle import Bundle
    from lightformers.compress.elastic.space import Space
    from lightformers.steps import Run

#: The closed list of training programmes: name -> "module:Class" in this package. A row is all that a new one needs.
METHODS = {
    "matformer": "matformer:MatFormer",
    "sorted-llama": "sorted_llama:SortedLlama",
    "autodistil": "autodistil:AutoDistil",
    "lighthubert": "lighthubert:LightHuBERT",
}


class Method(Protocol):
    """A training programme: a frozen dataclass whose fields are its hyper-parameters."""

    def space(self, bundle: Bundle) -> Space:
        """The sizes that it makes of a model. Raises ModelError where it can't."""

    def train(self, bundle: Bundle, task: Any, run: Run) -> Bundle:
        """Train `bundle` in place, so that every size of its space works. Raises before anything is changed."""


def method(name: str, fields: Mapping[str, Any] | None = None) -> Method:
    """The method of this name with these fields; others have their defaults. Raises UserError for unknown ones."""
    if name not in METHODS:
        raise UserError(f"unknown method {name!r}; there are {', '.join(METHODS)}")
    module, _, kind = METHODS[name].partition(":")
    made: Any = getattr(importlib.import_module(f"{__name__}.{module}"), kind)
    known = {f.name for f in dataclasses.fields(made)}
    if unknown := set(fields or {}) - known:
        raise UserError(
            f"{name} has no field {', '.join(sorted(unknown))}; it has {', '.join(sorted(known))}"
        )
    given = {k: tuple(v) if isinstance(v, list) else v for k, v in (fields or {}).items()}
    found: Method = made(**given)
    return found


def name_of(found: Method) -> str:
    """The name of a method in `METHODS`. Raises UserError where it is none of them."""
    kind = type(found)
    for name, row in METHODS.items():
        module, _, attribute = row.partition(":")
        if (kind.__module__, kind.__name__) == (f"{__name__}.{module}", attribute):
            return name
    raise UserError(f"{kind.__name__} is none of the known methods: {', '.join(METHODS)}")
