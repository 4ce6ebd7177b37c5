"""Modules by path, and one view of linear layers that hides gpt2's Conv1D (in, out) and fused projections."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightformers.anatomy.records import Attention
from lightformers.errors import ModelError


def get(model: nn.Module, path: str) -> nn.Module:
    """The submodule at a dotted path ("" is the model itself). Raises ModelError if there is none."""
    found: object = model
    for name in path.split(".") if path else ():
        found = getattr(found, name, None)
        if found is None:
            raise ModelError(
                f"{type(model).__name__} has no module at {path!r} (nothing named {name!r} there)."
            )
    return found  # type: ignore[return-value]


def find(model: nn.Module, path: str) -> nn.Module | None:
    """Like `get`, but None where there is nothing."""
    found: object = model
    for name in path.split(".") if path else ():
        found = getattr(found, name, None)
        if found is None:
            return None
    return found  # type: ignore[return-value]


def is_conv1d(module: nn.Module) -> bool:
    """Whether this is transformers' Conv1D, whose weight is (in, out)."""
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")


#: What blocks call the states that they are given.
STATES = ("hidden_states", "hidden_state")


def entering(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    """The states that a block is called with: its first argument, or the one of a name in `STATES`."""
    states: Tensor = args[0] if args else next(kwargs[name] for name in STATES if name in kwargs)
    return states


def features(module: nn.Module) -> tuple[int, int]:
    """(in, out) of a linear layer or of what stands in for one (anything that has the two attributes)."""
    if is_conv1d(module):
        rows, columns = module.weight.shape  # type: ignore[misc]
        return int(rows), int(columns)
    if hasattr(module, "in_features") and hasattr(module, "out_features"):
        return int(module.in_features), int(module.out_features)  # type: ignore[arg-type]
    if isinstance(module, nn.Sequential) and len(module):
        return features(module[0])[0], features(module[-1])[1]
    raise ModelError(
        f"{type(module).__name__} stands where a linear layer is expected, and has no in_features and out_features."
    )


def linear(model: nn.Module, path: str) -> tuple[Tensor, Tensor | None]:
    """Weight as an (out, in) view of the stored tensor, and the bias (out,) or None.

    Raises ModelError if the module at `path` is not a plain linear layer (say, already factorized).
    """
    module = get(model, path)
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor) or weight.dim() != 2:
        raise ModelError(
            f"{path} is a {type(module).__name__}, not a plain linear layer with one weight matrix."
        )
    bias = getattr(module, "bias", None)
    return (weight.T if is_conv1d(module) else weight), (bias if isinstance(bias, Tensor) else None)


def replace(model: nn.Module, path: str, module: nn.Module) -> nn.Module:
    """Put `module` at `path`, in place; returns what stood there. Raises ModelError if nothing does."""
    if not path:
        raise ModelError("The model itself can't be replaced inside itself; name a submodule.")
    old = get(model, path)
    if not isinstance(old, nn.Module):
        raise ModelError(f"{path} is a {type(old).__name__}, not a module.")
    parent, _, name = path.rpartition(".")
    setattr(get(model, parent), name, module)
    return old


def replace_linear(model: nn.Module, path: str, module: nn.Module) -> nn.Module:
    """`replace` for a linear layer: the new one must take and give as many features as the old."""
    old, new = features(get(model, path)), features(module)
    if old != new:
        raise ModelError(f"{path} maps {old[0]} features to {old[1]}, the replacement {new[0]} to {new[1]}.")
    return replace(model, path, module)


def rows(attention: Attention, piece: str, heads: list[int] | None = None) -> tuple[str, Tensor]:
    """Where the outputs of some heads lie: (path of the linear, row indices of its (out, in) weight).

    piece: "q", "k" or "v". heads: query heads for "q", key/value heads for "k" and "v"; None: all.
    """
    count = attention.heads if piece == "q" else attention.kv_heads
    chosen = torch.arange(count) if heads is None else torch.as_tensor(heads, dtype=torch.long)
    size, stride, start = attention.head_dim, attention.head_dim, 0
    own = {"q": attention.q, "k": attention.k, "v": attention.v}[piece]
    if own is None:
        if attention.fused == "thirds":
            start = {"q": 0, "k": attention.heads, "v": attention.heads + attention.kv_heads}[piece] * size
        elif attention.fused == "per_head":
            start, stride = {"q": 0, "k": size, "v": 2 * size}[piece], 3 * size
        elif attention.fused == "kv":
            start = {"k": 0, "v": attention.kv_heads * size}[piece]
        elif attention.fused == "unknown":
            raise ModelError(
                f"How {attention.qkv} holds queries, keys and values is not known: describe the model with "
                "anatomy.describe(..., qkv=..., fused='thirds') or fused='per_head'."
            )
        else:
            raise ModelError(
                f"{attention.path} is torch's nn.MultiheadAttention: its projections are one bare parameter."
            )
    path = own or attention.qkv
    assert path is not None
    index = start + chosen[:, None] * stride + torch.arange(size)[None, :]
    return path, index.reshape(-1)


def projection(model: nn.Module, attention: Attention, piece: str) -> tuple[Tensor, Tensor | None]:
    """Weight (heads * head_dim, in) and bias of "q", "k" or "v", head after head, fused or not.

    A copy where the projection is fused (gradients flow through it), else a view.
    """
    path, index = rows(attention, piece)
    weight, bias = linear(model, path)
    if attention.qkv is None or path != attention.qkv:
        return weight, bias
    index = index.to(weight.device)
    return weight.index_select(0, index), None if bias is None else bias.index_select(0, index)
