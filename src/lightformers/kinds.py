"""The closed table of modules that a saved structure may name: kind -> how to read and how to build it.

A file can pick a row of this table and give it plain arguments; it can never name a module or class itself.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True)
class Kind:
    """A module that a manifest may name.

    since: the first lightformers version that knows it. module, name: where its class is. beside: it stands beside what
        the config builds, not in the place of something.
    args: module -> plain arguments; build: class, arguments -> module. Parts are built from their `args`.
    """

    since: str
    module: str
    name: str
    args: Callable[[Any], dict[str, Any]] = lambda part: dict(part.args)
    build: Callable[..., nn.Module] = lambda cls, **args: cls(**args)
    beside: bool = False

    def matches(self, module: nn.Module) -> bool:
        return type(module).__module__ == self.module and type(module).__name__ == self.name

    def make(self, args: Mapping[str, Any]) -> nn.Module:
        return self.build(getattr(importlib.import_module(self.module), self.name), **args)


def _linear(module: Any) -> dict[str, Any]:
    return {"in": module.in_features, "out": module.out_features, "bias": module.bias is not None}


def _embedding(module: Any) -> dict[str, Any]:
    return {"rows": module.num_embeddings, "width": module.embedding_dim, "padding": module.padding_idx}


def _layer_norm(module: Any) -> dict[str, Any]:
    affine = module.weight is not None
    shape = list(module.normalized_shape)
    return {"shape": shape, "eps": module.eps, "affine": affine, "bias": module.bias is not None}


KINDS: dict[str, Kind] = {
    "linear": Kind(
        "0.1.0", "torch.nn.modules.linear", "Linear", _linear,
        lambda cls, **a: cls(a["in"], a["out"], bias=a["bias"]),
    ),
    "conv1d": Kind(
        "0.1.0", "transformers.pytorch_utils", "Conv1D", lambda m: {"in": m.nx, "out": m.nf},
        lambda cls, **a: cls(a["out"], a["in"]),
    ),
    "embedding": Kind(
        "0.1.0", "torch.nn.modules.sparse", "Embedding", _embedding,
        lambda cls, **a: cls(a["rows"], a["width"], padding_idx=a["padding"]),
    ),
    "layer_norm": Kind(
        "0.1.0", "torch.nn.modules.normalization", "LayerNorm", _layer_norm,
        lambda cls, **a: cls(a["shape"], eps=a["eps"], elementwise_affine=a["affine"], bias=a["bias"]),
    ),
    "identity": Kind("0.1.0", "torch.nn.modules.linear", "Identity", lambda m: {}, lambda cls: cls()),
    "low_rank": Kind("0.1.0", "lightformers.parts.low_rank", "LowRankLinear"),
    "int8_linear": Kind("0.1.0", "lightformers.parts.int8", "Int8Linear"),
    "packed_linear": Kind("0.1.0", "lightformers.parts.packed_layers", "PackedLinear"),
    "packed_embedding": Kind("0.1.0", "lightformers.parts.packed_layers", "PackedEmbedding"),
    "quantized_norm": Kind("0.1.0", "lightformers.parts.quantized_norm", "QuantizedNorm"),
    "block_sparse_linear": Kind("0.1.0", "lightformers.parts.sparse", "BlockSparseLinear"),
    "sparse_low_rank": Kind("0.1.0", "lightformers.parts.sparse_low_rank", "SparseLowRankLinear"),
    "n_of_m_linear": Kind("0.1.0", "lightformers.parts.sparse", "NOfMLinear"),
    "low_rank_conv": Kind("0.1.0", "lightformers.parts.low_rank_conv", "LowRankConv"),
    "dense_sparse": Kind("0.1.0", "lightformers.parts.dense_sparse", "DenseSparseLinear"),
    "rms_norm": Kind("0.1.0", "lightformers.parts.zero_mean", "RMSNorm"),
    "crms_norm": Kind("0.1.0", "lightformers.parts.zero_mean", "CRMSNorm"),
    "stream_entry": Kind("0.1.0", "lightformers.parts.zero_mean", "StreamEntry"),
    "adaptive_module": Kind("0.1.0", "lightformers.parts.adaptive", "AdaptiveModule"),
    "pass_through": Kind("0.1.0", "lightformers.parts.adaptive", "PassThrough"),
    "zero_mean_linear": Kind("0.1.0", "lightformers.parts.zero_mean", "ZeroMeanLinear"),
    "swapped_attention": Kind("0.1.0", "lightformers.parts.attention.swapped", "SwappedAttention", beside=True),
    "unread": Kind("0.1.0", "lightformers.parts.attention.swapped", "Unread"),
}  # fmt: skip
