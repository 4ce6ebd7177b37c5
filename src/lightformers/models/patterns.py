"""Layers written as a pattern of letters."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from lightformers.errors import UserError


def stack(pattern: str, legend: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One layer per letter: stack("M-A-" * 6, {"M": {"mixer": ...}, "A": {"mixer": ...}, "-": {"ffn": ...}}).

    Raises UserError for letters that the legend lacks.
    """
    if unknown := sorted(set(pattern) - set(legend)):
        raise UserError(f"the legend has no {', '.join(unknown)}; it has {', '.join(legend)}")
    return [copy.deepcopy(dict(legend[letter])) for letter in pattern]
