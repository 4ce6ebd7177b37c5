"""Attention to the few keys that match best, in the layers that can do with it.

AxFormer's hard attention (Nagarajan et al., 2020, arXiv 2010.03688). No time is saved by itself: the products are dense here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightformers import anatomy
from lightformers.anatomy.find import host
from lightformers.errors import ModelError, UserError
from lightformers.parts.attention.interface import check_plain

NAME = "lightformers_hard"
#: Families whose attention goes through transformers' interface with nothing but scale, mask and dropout.
FAMILIES = frozenset(("bert", "roberta", "electra", "distilbert", "gpt2", "opt", "gpt_neox", "llama", "mistral", "qwen2", "qwen3", "gemma", "phi", "vit", "deit", "dinov2"))  # fmt: skip
#: Where an attention module keeps its settings. Underscored: a manifest does not save it.
_PLACE = "_lightformers_hard"
Weights = Literal["soft", "uniform"]
Match = Literal["score", "sign"]


def sign_matches(query: Tensor, key: Tensor) -> Tensor:
    """(..., L, d), (..., S, d) -> (..., L, S): in how many of the d places the signs are equal; 0 counts as positive."""
    q, k = (torch.where(x >= 0, 1.0, -1.0) for x in (query, key))
    return (q @ k.transpose(-1, -2) + query.shape[-1]) / 2


def top_keys(match: Tensor, valid: Tensor, keys: int) -> Tensor:
    """Bool (..., L, S): the `keys` best valid keys of each query, all where there are fewer; ties go to the earlier key."""
    order = match.masked_fill(~valid, -torch.inf).argsort(dim=-1, descending=True, stable=True)
    chosen = torch.zeros_like(valid).scatter(-1, order[..., :keys], True)
    return chosen & valid


def hard_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, keys: int, weights: Weights = "soft",
    match: Match = "score", scaling: float | None = None,
) -> Tensor:  # fmt: skip
    """(B, H, L, d), (B, H, S, d), (B, H, S, d), additive mask (B or 1, 1 or H, L, S) -> (B, H, L, d).

    Each query sees only its `keys` best keys: by exact score, or by the number of equal signs (what a cheap selector
    can tell). weights: softmax over those, or their plain mean (then no gradient reaches queries and keys).
    """
    scores = query @ key.transpose(-1, -2) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    valid = torch.ones_like(scores, dtype=torch.bool)
    if mask is not None:
        mask = mask[..., : key.shape[-2]]
        valid = (mask > torch.finfo(mask.dtype).min / 2).expand(scores.shape)
        valid = valid | ~valid.any(-1, keepdim=True)  # rows of padding that may see nothing: as good as any
        scores = scores + torch.where(valid, mask.to(scores.dtype).clamp(min=-1e4), 0.0)
    ranked = scores if match == "score" else sign_matches(query, key)
    chosen = top_keys(ranked.detach(), valid, keys)
    if weights == "uniform":
        shares = chosen.to(value.dtype)
        return shares / shares.sum(-1, keepdim=True) @ value
    return scores.masked_fill(~chosen, -torch.inf).softmax(-1).to(value.dtype) @ value


def _interface(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
    scaling: float | None = None, dropout: float = 0.0, **unused: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    if (groups := query.shape[1] // key.shape[1]) > 1:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    settings: tuple[int, Any, Any] = getattr(module, _PLACE, (key.shape[2], "soft", "score"))
    keys, weights, match = settings
    out = hard_attention(query, key, value, attention_mask, keys, weights, match, scaling)
    return out.transpose(1, 2).contiguous(), None


def install(
    model: nn.Module, keys: Mapping[int, int], weights: Weights = "soft", match: Match = "score"
) -> Callable[[], None]:
    """Switch blocks (place -> number of keys) to hard attention; the others stay soft. Returns what undoes it.

    How a model is run, not what it holds: it is not saved. Raises UserError for fewer than one key, ModelError for
    families whose attention bypasses transformers' interface.
    """
    if min(keys.values(), default=1) < 1:
        raise UserError(f"hard attention needs at least one key, got {min(keys.values())}")
    owner: Any = host(model)[1]
    family = getattr(getattr(owner, "config", None), "model_type", type(owner).__name__)
    if family not in FAMILIES:
        raise ModelError(
            f"the attention of a {family} cannot be made hard: it bypasses transformers' interface"
        )
    check_plain(owner, "be made hard")
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import eager_mask

    AttentionInterface.register(NAME, _interface)
    AttentionMaskInterface.register(NAME, eager_mask)
    blocks = anatomy.of(model).blocks
    before, modules = owner.config._attn_implementation, []
    for place, count in keys.items():
        attention = blocks[place].attention
        if attention is None:
            raise ModelError(f"{blocks[place].path} has no attention")
        for module in anatomy.get(model, attention.path).modules():
            object.__setattr__(module, _PLACE, (count, weights, match))
            modules.append(module)
    owner.set_attn_implementation(NAME)

    def undo() -> None:
        for module in modules:
            module.__dict__.pop(_PLACE, None)
        owner.set_attn_implementation(before)

    return undo
