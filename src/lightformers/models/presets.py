"""Models by name: what they are made of, and how many parameters their papers count."""

from __future__ import annotations

import importlib
from typing import Any

from lightformers.errors import UserError
from lightformers.models import forecasting, tabular
from lightformers.models.language import patterns
from lightformers.models.patterns import stack
from lightformers.models.preset import Preset

_FLEXIBERT = "lightformers.models.language.flexibert"
_VIT = tuple(f"lightformers.models.vision.elasticvit:{name}" for name in ("of_config", "ElasticViTConfig"))
CLASSIFIER = "lightformers.models.language.encoder:EncoderForSequenceClassification"


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


def _masformer(width: int, heads: int, block: int, length: int, pattern: str) -> dict[str, Any]:
    """The shape of GPT-Neo; F: full attention, L: own block and the one before."""
    given = {"heads": heads, "rotary": False, "out_bias": True}
    forward = {"kind": "mlp", "hidden": 4 * width, "activation": "gelu_tanh", "bias": True}
    legend = {
        "F": {"mixer": {"kind": "attention", **given}, "ffn": forward},
        "L": {"mixer": {"kind": "block-attention", "block": block, **given}, "ffn": forward},
    }
    return {
        "vocab_size": 50257, "hidden_size": width, "layers": stack(pattern, legend), "norm": "layer", "norm_eps": 1e-5,
        "positions": "learned", "max_position_embeddings": length, "tie_word_embeddings": True,
    }  # fmt: skip


def _wide(depth: int) -> dict[str, Any]:
    """Long Range Arena's encoder for ListOps, its 32 heads of 64 in so many layers (arXiv 2210.00640)."""
    mixer = {"kind": "attention", "heads": 32 // depth, "head_size": 64, "rotary": False}
    layer = {"mixer": mixer, "ffn": {"kind": "mlp", "hidden": 1024, "bias": True}}
    return {
        "vocab_size": 16, "hidden_size": 512, "num_labels": 10, "classifier_hidden": 1024, "max_position_embeddings": 2000,
        "layers": stack("A" * depth, {"A": layer}),
    }  # fmt: skip


def _deltanet(width: int, depth: int, hidden: int) -> dict[str, Any]:
    layer = {
        "mixer": {"kind": "deltanet", "heads": width // 128},
        "ffn": {"kind": "swiglu", "hidden": hidden},
    }
    return {
        "vocab_size": 32000, "hidden_size": width, "layers": stack("D" * depth, {"D": layer}),
        "norm": "rms", "norm_eps": 1e-6, "tie_word_embeddings": False,
    }  # fmt: skip


def _matmul_free(width: int, depth: int) -> dict[str, Any]:
    layer = {"mixer": {"kind": "mlgru"}, "ffn": {"kind": "bit-swiglu"}}
    return {
        "vocab_size": 32000, "hidden_size": width, "layers": stack("G" * depth, {"G": layer}),
        "norm": "rms", "norm_eps": 1e-6, "tie_word_embeddings": False, "head": "bit",
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


def _tokenformer(width: int, depth: int, heads: int) -> dict[str, Any]:
    layer = {"mixer": {"kind": "tokenformer", "heads": heads}, "ffn": {"kind": "pattention"}}
    return {
        "vocab_size": 50304, "hidden_size": width, "layers": stack("A" * depth, {"A": layer}), "norm": "layer",
        "max_position_embeddings": 2048,
    }  # fmt: skip


def _memoryformer(width: int, depth: int, heads: int) -> dict[str, Any]:
    layer = {"mixer": {"kind": "memory", "heads": heads}, "ffn": {"kind": "memory"}}
    return {
        "vocab_size": 50304, "hidden_size": width, "layers": stack("A" * depth, {"A": layer}),
        "tie_word_embeddings": False, "max_position_embeddings": 2048,
    }  # fmt: skip


def _ours(module: str, model: str, config: str = "") -> tuple[str, str]:
    """The model and the configuration of a file in `models/language`."""
    path = f"lightformers.models.language.{module}"
    return f"{path}:{model}", f"{path}:{config or model}Config"


PRESETS: dict[str, Preset] = {
    "masformer-1.3b": Preset(
        _masformer(2048, 16, 1024, 8192, "F" * 8 + "L" * 16), 1_328_158_720, source="arXiv 2310.12442"
    ),
    "deltanet-340m": Preset(
        _deltanet(1024, 24, 2816),
        374_362_112,
        source="the authors' configuration of the 340M model, arXiv 2406.06484; counted",
    ),
    "deltanet-1.3b": Preset(_deltanet(2048, 24, 5632), 1_365_677_056, source="arXiv 2406.06484"),
    "matmul-free-1.3b": Preset(_matmul_free(2048, 24), 1_364_779_008, source="arXiv 2406.02528"),
    "mamba-130m": Preset(_mamba(768, 24), 129_135_360, source="arXiv 2312.00752"),
    "mamba2-hybrid-8b": Preset(
        _mamba2_hybrid(4096, 56, 32, 8, 8, 256000), 8_654_517_248, source="arXiv 2406.07887"
    ),
    "mamba2-hybrid-small": Preset(
        _mamba2_hybrid(512, 24, 8, 4, 1, 32000),
        76_715_488,
        source="the pattern of arXiv 2406.07887 at 24 layers",
    ),
    "memoryformer-tiny": Preset(_memoryformer(512, 6, 8), 466_777_856, source="arXiv 2411.12992"),
    "tokenformer-150m": Preset(
        _tokenformer(768, 12, 12),
        151_918_080,
        source="arXiv 2410.23168: 151,881,216, and the weights of 24 norms that have none there",
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
    "elasticvit": Preset({}, 37_435_406, *_VIT, "arXiv 2303.09730; the released one has 40,488,174"),
    "elasticvit-s1": Preset(
        {"network": "elasticvit_s1"}, 10_763_006, *_VIT, "arXiv 2303.09730, counted from its sizes"
    ),
    "wide-listops-4x8": Preset(
        _wide(4), 8_947_722, CLASSIFIER, source="arXiv 2210.00640, counted by its formula"
    ),
    "wide-listops-2x16": Preset(
        _wide(2), 6_843_402, CLASSIFIER, source="arXiv 2210.00640, counted by its formula"
    ),
    "wide-listops-1x32": Preset(
        _wide(1), 5_791_242, CLASSIFIER, source="arXiv 2210.00640, counted by its formula"
    ),
    "algoformer-256": Preset(
        {}, 2_396_417, *_ours("algoformer", "AlgoFormer"), source="arXiv 2402.13572, counted from its sizes"
    ),
    "ebt-xxs": Preset(
        {},
        49_234_945,
        *_ours("ebwm", "EnergyBasedTransformer", "EBWM"),
        source="arXiv 2406.08862, counted from its sizes",
    ),
    "ftp-small": Preset(
        {},
        159_106_560,
        *_ours("ftp", "FutureTokenPrediction", "FTP"),
        source="arXiv 2410.18160, sizes suggested here",
    ),
    "hierarchical-tiny": Preset(
        {},
        1_052_928,
        *_ours("hierarchical_autoregressive", "HierarchicalAutoregressive", "Hierarchical"),
        source="arXiv 2501.10322, sizes suggested here",
    ),
    "retro-medium": Preset(
        {}, 408_384_512, *_ours("retro", "Retro"), source="arXiv 2304.06762, counted from its sizes"
    ),
    "transformer-program-sort": Preset(
        {
            "words": (*["<pad>", "<s>", "</s>"], *"01234"),
            "labels": ("<pad>", *"01234"),
            "length": 8,
            "size": 8,
        },
        17_718,
        *_ours("transformer_programs", "TransformerProgram", "Program"),
        source="arXiv 2306.01128, counted from its sizes",
    ),
}


PRESETS |= forecasting.PRESETS | tabular.PRESETS


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
