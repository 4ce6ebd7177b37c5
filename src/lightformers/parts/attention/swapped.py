"""Another attention inside a transformers model, through the library's attention interface.

A `SwappedAttention` stands as a child of the model's own attention module, whose projections stay; `use` switches the
model to the interface that asks for it. A manifest saves it with its weights and buffers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from lightformers.errors import ModelError
from lightformers.parts.attention.heads import run
from lightformers.parts.attention.interface import CORE
from lightformers.parts.attention.table import make_core
from lightformers.parts.recording import refuse

NAME = "lf_core"
#: What an attention may be given besides q, k, v that no core can honour.
_FOREIGN = ("softcap", "s_aux", "cache", "position_bias", "sliding_window")


class SwappedAttention(nn.Module):
    """A core with the arguments it was made with. core: of `table.CORES`; options: of that core."""

    def __init__(self, core: str, heads: int, size: int, options: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self.kind, self.heads, self.size, self.options = core, heads, size, dict(options or {})
        self.core = make_core(core, heads, size, **self.options)

    @property
    def args(self) -> dict[str, Any]:
        """What a manifest needs to rebuild this module."""
        return {"core": self.kind, "heads": self.heads, "size": self.size, "options": self.options}

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        if not getattr(self.core, "anywhere", False):
            refuse(f"{self.kind} attention", "swap for linear or performer")
        return run(self.core, q, k, v, mask)

    def extra_repr(self) -> str:
        return ", ".join(f"{key}={value}" for key, value in self.args.items())


class Unread(nn.Module):
    """Stands where a projection was that the new attention does not read: zeros without memory, (..., in) -> (..., out)."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features

    @property
    def args(self) -> dict[str, Any]:
        """What a manifest needs to rebuild this module."""
        return {"in_features": self.in_features, "out_features": self.out_features}

    def forward(self, x: Tensor) -> Tensor:
        return x.new_zeros(1).expand(*x.shape[:-1], self.out_features)


def attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None = None,
    scaling: float | None = None, dropout: float = 0.0, **options: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """query (B, H, L, d); key, value (B, K, L, d) with K dividing H; mask (B, L) bool -> (B, L, H, d), None.

    Probabilities are not dropped. Modules without a core of their own attend as ever. Raises ModelError for what a core
    has no place for: masks that are not of padding alone, biases, keys of other sequences.
    """
    if options.get("is_causal"):
        raise ModelError("swapped attention sees all tokens, and this model hides later ones")
    if foreign := [name for name in _FOREIGN if options.get(name) is not None]:
        raise ModelError(f"swapped attention cannot honour {', '.join(foreign)} of {type(module).__name__}")
    if attention_mask is not None and attention_mask.dim() != 2:
        raise ModelError(
            f"swapped attention knows masks of padding (batch, length), not {tuple(attention_mask.shape)}"
        )
    if (groups := query.shape[1] // key.shape[1]) > 1:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    if scaling is not None and (extra := scaling * query.shape[-1] ** 0.5) != 1:
        query = query * extra  # cores divide by the root of the size themselves
    core = getattr(module, CORE, None)
    if core is None:
        seen = None if attention_mask is None else attention_mask[:, None, None, :].bool()
        out = nn.functional.scaled_dot_product_attention(query, key, value, seen)
    else:
        out = core(query, key, value, attention_mask)
    return out.transpose(1, 2).contiguous(), None


def _padding(
    attention_mask: Tensor | None = None, kv_length: int = 0, mask_function: Any = None, **unused: Any
) -> Tensor | None:
    """What the model makes of its mask: (B, L) as it is, so that no L x L mask is ever made."""
    from transformers.masking_utils import bidirectional_mask_function

    if mask_function is not bidirectional_mask_function:
        raise ModelError("swapped attention sees all tokens, and this model hides some from others")
    return None if attention_mask is None else attention_mask[:, -kv_length:]


def use(model: nn.Module) -> None:
    """Switch a transformers model to the cores that its attention modules hold, in place."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, _padding)
    model.set_attn_implementation(NAME)  # type: ignore[operator]


def cores(model: nn.Module) -> dict[str, SwappedAttention]:
    """The swapped attentions of a model, by path."""
    return {path: m for path, m in model.named_modules() if isinstance(m, SwappedAttention)}
