"""One explicit attention for every family, whose softmax and operands can be changed, watched and replaced.

`use(model, ...)` switches a transformers model to it through the library's attention interface and notes the settings
in the config, so copies keep them; a manifest stores them. Products and softmax are plain torch: it is about as fast
as the library's "eager" attention.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightformers.errors import ModelError, UserError
from lightformers.parts.activation_quantizer import ActivationQuantizer
from lightformers.parts.blocks import straight_through

NAME = "lf_attention"
#: Where the settings stand in a config.
ATTRIBUTE = "lightformers_attention"
#: The child of an attention module that attends in its place (`swapped`).
CORE = "lightformers_core"
#: Additive masks reach at least this far below zero where a key must not be seen.
HIDDEN = -1e4
#: The exponential's table: 256 entries over [-16, 0].
_REACH, _ENTRIES = 16.0, 255
#: What an attention may be given besides q, k, v that this one cannot honour.
_FOREIGN = ("softcap", "s_aux", "cache")


@dataclass(frozen=True)
class AttentionSettings:
    """What differs from plain attention.

    low, high: the softmax is stretched to [low, high] and clipped to [0, 1] (`clipped_softmax`); 0 and 1: it is not.
    table: the exponential is looked up in 256 entries over [-16, 0].
    operands, weights: `args` of an `ActivationQuantizer` for queries, keys and values, and for the probabilities.
    """

    low: float = 0.0
    high: float = 1.0
    table: bool = False
    operands: Mapping[str, Any] | None = None
    weights: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if not (self.low <= 0 and self.high >= 1):
            raise UserError(
                f"a stretched softmax needs low <= 0 and high >= 1 (low > 0 would leak to masked positions), got "
                f"{self.low} and {self.high}"
            )
        for args in (self.operands, self.weights):
            if args is not None:
                ActivationQuantizer(**args)


@dataclass
class Tap:
    """What passes through one attention while it is watched, and what is put in its place.

    scores (B, H, L, S) before softmax, mask included; hidden: bool, where a key must not be seen, or None;
    probabilities (B, H, L, S) before dropout; context (B, H, L, d), as the model made them itself.
    put_probabilities, put_context: what enters the next operation instead.
    """

    scores: Tensor | None = None
    hidden: Tensor | None = None
    probabilities: Tensor | None = None
    context: Tensor | None = None
    put_probabilities: Tensor | None = None
    put_context: Tensor | None = None


_taps: ContextVar[Mapping[int, Tap] | None] = ContextVar("lightformers_attention_taps", default=None)


def clipped_softmax(scores: Tensor, low: float = 0.0, high: float = 1.0) -> Tensor:
    """`clip((high - low) * softmax(scores) + low, 0, 1)` over the last dimension.

    Small probabilities become exactly 0, large ones exactly 1, both without gradient; rows no longer sum to 1
    (Quantizable Transformers, Bondarenko et al., 2023, arXiv 2306.12929, equation 4).
    """
    out = scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32))
    if low or high != 1:
        out = ((high - low) * out + low).clamp(0, 1)
    return out.to(scores.dtype)


def table_softmax(scores: Tensor, hidden: Tensor | None = None) -> Tensor:
    """Softmax whose exponential is looked up in 256 entries over [-16, 0]; gradients are those of the exact one.

    scores (..., keys); hidden: bool, positions whose probability is exactly 0. A row that is hidden whole is all 0.
    """
    exact = scores.softmax(-1, dtype=torch.float32)
    with torch.no_grad():
        finite = scores.float() if hidden is None else scores.float().masked_fill(hidden, -torch.inf)
        top = finite.amax(-1, keepdim=True)
        gap = finite - torch.where(torch.isfinite(top), top, torch.zeros_like(top))
        place = (gap * (_ENTRIES / _REACH)).round().clamp(-_ENTRIES, 0)
        found = torch.exp(place * (_REACH / _ENTRIES))
        if hidden is not None:
            found = found.masked_fill(hidden, 0)
        found = found / found.sum(-1, keepdim=True).clamp(min=1e-12)
    return straight_through(exact, found).to(scores.dtype)


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    position_bias: Tensor | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor]:
    """query (B, H, L, d); key, value (B, K, S, d) with K dividing H; mask additive or bool -> (B, L, H, d), weights."""
    if foreign := [name for name in _FOREIGN if options.get(name) is not None]:
        raise ModelError(f"this attention cannot honour {', '.join(foreign)} of {type(module).__name__}")
    settings = settings_of(module)
    if (groups := query.shape[1] // key.shape[1]) > 1:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    if settings.operands is not None:
        reader = ActivationQuantizer(**settings.operands)
        query, key, value = reader(query), reader(key), reader(value)
    scores = query @ key.transpose(-1, -2) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if position_bias is not None:
        scores = scores + position_bias
    hidden = None
    if attention_mask is not None:
        mask = attention_mask[..., : key.shape[2]]
        hidden = ~mask if mask.dtype == torch.bool else mask < HIDDEN
        scores = scores.masked_fill(hidden, torch.finfo(scores.dtype).min)
        if mask.dtype != torch.bool:
            scores = scores + mask.masked_fill(hidden, 0).to(scores.dtype)
    if settings.table:
        weights = table_softmax(scores, hidden)
    else:
        weights = clipped_softmax(scores, settings.low, settings.high)
    tap = (_taps.get() or {}).get(id(module))
    if tap is not None:
        tap.scores, tap.hidden, tap.probabilities = scores, hidden, weights
        weights = weights if tap.put_probabilities is None else tap.put_probabilities.to(weights.dtype)
    weights = nn.functional.dropout(weights, dropout, module.training)
    if settings.weights is not None:
        weights = ActivationQuantizer(**settings.weights)(weights)
    out = weights @ value
    if tap is not None:
        tap.context = out
        out = out if tap.put_context is None else tap.put_context.to(out.dtype)
    return out.transpose(1, 2).contiguous(), weights


def settings_of(module: nn.Module) -> AttentionSettings:
    """The settings in a module's config; plain attention where there are none."""
    held = getattr(getattr(module, "config", None), ATTRIBUTE, None)
    return AttentionSettings(**held) if held else AttentionSettings()


@contextmanager
def watched(*modules: nn.Module) -> Iterator[list[Tap]]:
    """While the block runs, each of these attention modules leaves its tensors in a `Tap`, and takes what is put there."""
    taps = [Tap() for _ in modules]
    token = _taps.set({**(_taps.get() or {}), **{id(m): t for m, t in zip(modules, taps)}})
    try:
        yield taps
    finally:
        _taps.reset(token)


def check_plain(model: nn.Module, doing: str) -> None:
    """Raises ModelError where attention was swapped (`swapped.SwappedAttention`), which another one would pass by."""
    if path := next((path for path, module in model.named_modules() if hasattr(module, CORE)), None):
        raise ModelError(f"{path} holds a swapped attention, not the model's own: it cannot {doing}")


def check(model: nn.Module, attentions: Mapping[str, nn.Module]) -> None:
    """Raises ModelError unless all these attention modules (by path) go through transformers' interface."""
    check_plain(model, "be exchanged once more")
    if not hasattr(model, "set_attn_implementation"):
        raise ModelError(
            f"{type(model).__name__} is no transformers model: its attention cannot be exchanged"
        )
    for path, module in attentions.items():
        home = sys.modules.get(type(module).__module__)
        if not hasattr(home, "ALL_ATTENTION_FUNCTIONS") or getattr(module, "config", None) is None:
            raise ModelError(
                f"{path} is a {type(module).__name__}, which bypasses transformers' attention interface: its "
                "attention cannot be exchanged"
            )


def use(model: nn.Module, settings: AttentionSettings | None = None) -> None:
    """Switch a transformers model to `attend`, in place. settings None: plain attention, noted nowhere."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import eager_mask

    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, eager_mask)
    model.set_attn_implementation(NAME)  # type: ignore[operator]
    if settings is not None:
        for module in model.modules():  # stacks of t5 hold copies of the config
            if (config := getattr(module, "config", None)) is not None:
                setattr(config, ATTRIBUTE, asdict(settings))
