"""Models by name: what they are made of, and how many parameters their papers count."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lightformers.errors import UserError
from lightformers.models.language import patterns
from lightformers.models.patterns import stack

DECODER = "lightformers.models.language.decoder:Decoder"
_FLEXIBERT = "lightformers.models.language.flexibert"


@dataclass(frozen=True)
class Preset:
    """A row: the model ("module:Class"), the fields of its configuration, and the published number of parameters.

    fields: also "module:TABLE:key", a configuration that stands elsewhere. config: "module:Class" of the configuration;
    "": the model's `config_class`. source: paper or release.
    """

    fields: Mapping[str, Any] | str
    parameters: int
    model: str = DECODER
    config: str = ""
    source: str = ""


def _gpt2(width: int, depth: int, heads: int) -> dict[str, Any]:
    attention = {"kind": "attention", "heads": heads, "rotary": False, "bias": True}
    forward = {"kind": "mlp", "hidden": 4 * width, "activation": "gelu_tanh", "bias": True}
    return {
        "vocab_size": 50257, "hidden_size": width, "layers": stack("A" * depth, {"A": {"mixer": attention, "ffn": forward}}),
        "norm": "layer", "norm_eps": 1e-5, "positions": "learned", "max_position_embeddings": 1024,
        "tie_word_embeddings": True,
    }  # fmt: skip


def _llama(width: int, depth: int, heads: int, kv_heads: int, hidden: int, words: int, length: int, tied: bool, theta: float = 10000.0) -> dict[str, Any]:  # fmt: skip
    attention = {"kind": "attention", "heads": heads, "kv_heads": kv_heads, "theta": theta}
    layer = {"mixer": attention, "ffn": {"kind": "swiglu", "hidden": hidden}}
    return {
        "vocab_size": words, "hidden_size": width, "layers": stack("A" * depth, {"A": layer}),
        "norm": "rms", "norm_eps": 1e-5, "max_position_embeddings": length, "tie_word_embeddings": tied,
    }  # fmt: skip


def _mamba(width: int, depth: int, words: int = 50280) -> dict[str, Any]:
    return {
        "vocab_size": words, "hidden_size": width, "layers": stack("M" * depth, {"M": {"mixer": {"kind": "mamba"}}}),
        "norm": "rms", "norm_eps": 1e-5, "tie_word_embeddings": True, "residual_fp32": True,
    }  # fmt: skip


def _mamba2_hybrid(
    width: int, depth: int, heads: int, kv_heads: int, groups: int, words: int
) -> dict[str, Any]:
    return {
        "vocab_size": words, "hidden_size": width, "layers": patterns.layers(
            patterns.allocate(depth, 0.08, 0.5),
            {"kind": "mamba2", "groups": groups},
            {"kind": "attention", "heads": heads, "kv_heads": kv_heads, "rotary": False},
            {"kind": "mlp", "hidden": 4 * width},
        ),
        "norm": "rms", "norm_eps": 1e-5, "tie_word_embeddings": False,
    }  # fmt: skip


PRESETS: dict[str, Preset] = {
    "mamba-130m": Preset(_mamba(768, 24), 129_135_360, source="arXiv 2312.00752"),
    "mamba2-hybrid-8b": Preset(
        _mamba2_hybrid(4096, 56, 32, 8, 8, 256000), 8_654_517_248, source="arXiv 2406.07887"
    ),
    "mamba2-hybrid-small": Preset(
        _mamba2_hybrid(512, 24, 8, 4, 1, 32000),
        76_715_488,
        source="the pattern of arXiv 2406.07887 at 24 layers",
    ),
    "transformer-gpt2-124m": Preset(_gpt2(768, 12, 12), 124_439_808, source="GPT-2 small"),
    "transformer-gpt2-355m": Preset(_gpt2(1024, 24, 16), 354_823_168, source="GPT-2 medium"),
    "transformer-llama-135m": Preset(
        _llama(576, 30, 9, 3, 1536, 49152, 2048, True), 134_515_008, source="SmolLM-135M, a Llama"
    ),
    "transformer-3m": Preset(
        _llama(192, 5, 3, 3, 512, 4096, 2048, True), 3_000_384, source="ours, for a laptop"
    ),
    "transformer-10m": Preset(
        _llama(320, 7, 5, 5, 896, 4096, 2048, True), 10_203_840, source="ours, for a laptop"
    ),
    "transformer-25m": Preset(
        _llama(512, 7, 8, 8, 1408, 4096, 2048, True), 24_583_680, source="ours, for a laptop"
    ),
    "transformer-llama-1.1b": Preset(
        _llama(2048, 22, 32, 4, 5632, 32000, 2048, False), 1_100_048_384, source="TinyLlama, arXiv 2401.02385"
    ),
    "flexibert-mini": Preset(
        f"{_FLEXIBERT}:PRESETS:flexibert_mini",
        10_922_944,
        f"{_FLEXIBERT}:FlexiBERT",
        f"{_FLEXIBERT}:FlexiBERTConfig",
        "arXiv 2205.11656; its code counts 11,119,808, with tables that nothing reads",
    ),
}


def create_model(name: str, **overrides: Any) -> Any:
    """A model with random weights by its name in `list_models()`.

    overrides: fields of its configuration, such as vocab_size=65 or layers=[...]. Raises UserError for unknown names
    and fields.
    """
    if name not in PRESETS:
        near = [n for n in PRESETS if n.split("-")[0] == name.split("-")[0]]
        raise UserError(f"there is no model {name!r}; " + (f"near it: {', '.join(near)}" if near else f"there are {', '.join(list_models())}"))  # fmt: skip
    row = PRESETS[name]
    model = _named(row.model)
    config = _named(row.config) if row.config else model.config_class
    known = _fields(config)
    if unknown := sorted(set(overrides) - known):
        raise UserError(f"{name} has no field {', '.join(unknown)}; it has {', '.join(sorted(known))}")
    fields = row.fields
    if isinstance(fields, str):
        table, _, key = fields.rpartition(":")
        fields = vars(_named(table)[key])
    return model(config(**{**fields, **overrides}))


def list_models(start: str = "") -> list[str]:
    """Names that `create_model` knows, those that begin with `start`."""
    return sorted(name for name in PRESETS if name.startswith(start))


def _named(path: str) -> Any:
    module, name = path.split(":")
    return getattr(importlib.import_module(module), name)


def _fields(config: Any) -> set[str]:
    import inspect

    return {k for k, p in inspect.signature(config.__init__).parameters.items() if p.kind != p.VAR_KEYWORD and k != "self"}  # fmt: skip
