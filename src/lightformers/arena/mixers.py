"""Mixers by name, as a task can hold them: which options they get, which tasks they can stand in."""

from __future__ import annotations

import importlib
import inspect
import json
from dataclasses import dataclass, field
from typing import Any

from lightformers.errors import UserError
from lightformers.parts.mixers.table import MIXERS

#: The mixer that the others are measured by.
BASELINE = "attention"


@dataclass(frozen=True)
class Contender:
    """A mixer with options of its own. name: as it was written, "performer:features=64"."""

    name: str
    kind: str
    options: dict[str, Any] = field(default_factory=dict)

    def __hash__(self) -> int:
        return hash(self.name)


def contender(text: str) -> Contender:
    """ "kind" or "kind:option=value:option=value", values in JSON. Raises UserError, naming the known kinds or options."""
    kind, *pairs = text.split(":")
    if kind not in MIXERS:
        raise UserError(f"{kind!r} is not one of {', '.join(sorted(MIXERS))}")
    options = {}
    for pair in pairs:
        key, sign, value = pair.partition("=")
        if not sign:
            raise UserError(f"{text!r}: an option is written as name=value, not {pair!r}")
        try:
            options[key] = json.loads(value)
        except json.JSONDecodeError:
            options[key] = value
    known = takes(kind)
    if unknown := [o for o in options if o not in known]:
        raise UserError(f"{kind} has no option {', '.join(unknown)}; it takes {', '.join(known) or 'none'}")
    return Contender(text, kind, options)


def takes(kind: str) -> list[str]:
    """Options of a mixer."""
    given = ("self", "width", "layer", "layers")
    return [n for n, p in inspect.signature(_found(kind)).parameters.items() if n not in given and p.kind != p.VAR_KEYWORD]  # fmt: skip


def runs_on(kind: str) -> bool:
    """Whether it can run on in time, as a decoder asks."""
    return hasattr(_found(kind), "begin")


def looks_back(kind: str) -> bool:
    """Whether it is causal whatever it is told: in an encoder it still reads from left to right."""
    return runs_on(kind) and "causal" not in takes(kind)


def options(who: Contender, heads: int, length: int, causal: bool) -> dict[str, Any]:
    """All options for a model with so many heads, on sequences of at most `length`.

    A mixer that takes heads or a length gets them; attention has no rotary positions in an encoder, whose input bears
    positions. The contender's own options come first.
    """
    known = takes(who.kind)
    found: dict[str, Any] = {"heads": heads, "length": length, "max_length": length}
    if not causal:
        found |= {"rotary": False, "causal": False}
    return {k: v for k, v in {**found, **who.options}.items() if k in known}


def _found(kind: str) -> Any:
    module, name = MIXERS[kind].split(":")
    return getattr(importlib.import_module(module), name)
