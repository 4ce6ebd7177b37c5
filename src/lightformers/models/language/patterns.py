"""Which layer does what in a hybrid of state spaces, attention and MLPs (Waleffe et al., 2024, arXiv 2406.07887).

A pattern is a string with one sign for each layer: M a Mamba-2 layer, * attention, - an MLP.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightformers.errors import UserError
from lightformers.models.patterns import stack

MIXER, ATTENTION, MLP = "M", "*", "-"


def allocate(layers: int, attention: float, mlp: float) -> str:
    """The pattern of so many layers with these shares of attention and MLPs, spread evenly, by the paper's rule.

    attention, mlp: shares of all layers, each in [0, 1], together at most 1. Attention stands neither first nor last
    where it need not. `allocate(56, 0.08, 0.5)` is the paper's 8B hybrid.
    """
    if layers < 1 or min(attention, mlp) < 0 or attention + mlp > 1:
        raise UserError(
            f"{layers} layers with shares {attention} and {mlp}: shares are in [0, 1] and at most 1 together"
        )
    attending = round(layers * attention)
    signs = [MIXER] * layers
    _spread(signs, ATTENTION, (layers - attending) / (attending + 1), attending)
    dense = min(round(layers * mlp), layers - attending)
    if dense:
        _spread(signs, MLP, (layers - attending - dense) / dense, dense)
    return "".join(signs)


def _spread(signs: list[str], sign: str, gap: float, count: int) -> None:
    """Put `count` of `sign` in place of mixers, `gap` of them apart."""
    left = gap
    for at, now in enumerate(signs):
        if now != MIXER:
            continue
        if left < 0.5 and count:
            signs[at], left, count = sign, left + gap, count - 1
        else:
            left -= 1


def check(pattern: str, layers: int | None = None) -> str:
    """The pattern itself. Raises UserError for other signs, an empty one, or another length than `layers`."""
    if unknown := sorted(set(pattern) - {MIXER, ATTENTION, MLP}):
        raise UserError(
            f"{''.join(unknown)!r} in a pattern: M is Mamba-2, * attention, - an MLP, one for each layer"
        )
    if not pattern or (layers is not None and len(pattern) != layers):
        raise UserError(f"a pattern of {len(pattern)} layers for a model of {layers or 'some'}")
    return pattern


def layers(
    pattern: str, mixer: Mapping[str, Any], attention: Mapping[str, Any], mlp: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """The layer list of a decoder's configuration: each layer has one sublayer, of these kinds and options."""
    return stack(
        check(pattern), {MIXER: {"mixer": mixer}, ATTENTION: {"mixer": attention}, MLP: {"ffn": mlp}}
    )
