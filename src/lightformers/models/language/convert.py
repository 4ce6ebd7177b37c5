"""Models of transformers as our `Decoder`: the same weights, the same logits, in a form whose layers can be exchanged."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightformers.errors import ModelError, UserError
from lightformers.models.language.decoder import Decoder, DecoderConfig

#: transformers' name of an activation -> ours.
_ACTIVATIONS = {
    "gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "relu": "relu", "silu": "silu",
    "swish": "silu", "relu2": "squared_relu",
}  # fmt: skip
_QK_EPS = 1e-6  # of the norms over heads (`parts.mixers.attention`)
_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
Weights = dict[str, Tensor]


@dataclass(frozen=True)
class _Form:
    """Where a family keeps its weights, and what its layers are here.

    stack: path of the list of layers. outer, inner: modules outside of the layers and within one, by their names -> ours.
    refusal: config -> what cannot be said here, "" where all can. fields: config -> fields of `DecoderConfig`.
    layer: (config, number, live layer, its weights by our names) -> a row of `DecoderConfig.layers`.
    apart: takes fused weights of a layer apart.
    """

    stack: str
    outer: Mapping[str, str]
    inner: Mapping[str, str]
    refusal: Callable[[Any], str]
    fields: Callable[[Any], dict[str, Any]]
    layer: Callable[[Any, int, Any, Weights], dict[str, Any]]
    apart: Callable[[Weights], Weights] = dict


@torch.no_grad()
def from_transformers(model: nn.Module) -> Decoder:
    """A `Decoder` with copies of a model's weights and equal logits; of its dtype, on its device and in its mode.

    model: a language model of transformers with its head: gpt2, llama, mistral, qwen2, qwen3, mamba or mamba2, also
    after cuts that its own config cannot say (unequal heads and channels). Learned positions are counted without
    padding, as `generate` of transformers does. Dropout of embeddings becomes that of the layers.
    Raises ModelError for others, saying what a Decoder cannot express.
    """
    config: Any = getattr(model, "config", None)
    kind = str(getattr(config, "model_type", type(model).__name__))
    if kind not in FORMS:
        raise ModelError(f"a {kind} cannot be made a Decoder; {', '.join(FORMS)} can")
    form, said = FORMS[kind], f"this {type(model).__name__} cannot be made a Decoder"
    head = getattr(model, "get_output_embeddings", lambda: None)()
    if not isinstance(head, nn.Linear) or head.bias is not None:
        raise ModelError(f"{said}: it has no plain language model head; open it with AutoModelForCausalLM")
    if why := form.refusal(config):
        raise ModelError(f"{said}: {why}")
    outer, layers = _sorted(model, form, said)
    words = outer["embedding.weight"]
    live: Any = model.get_submodule(form.stack)
    fields = {
        "vocab_size": len(words), "hidden_size": words.shape[1], "tie_word_embeddings": "head.weight" not in outer,
        "layers": [form.layer(config, i, layer, w) for i, (layer, w) in enumerate(zip(live, layers))],
        "initializer_range": config.initializer_range, **{name: getattr(config, name, None) for name in _IDS},
        **form.fields(config),
    }  # fmt: skip
    every = {**outer, **{f"layers.{i}.{k}": v for i, own in enumerate(layers) for k, v in own.items()}}
    try:
        with torch.device("meta"):
            made = Decoder(DecoderConfig(**fields))
        if fields["tie_word_embeddings"]:
            every["head.weight"] = words
        made.load_state_dict({k: v.detach().clone() for k, v in every.items()}, assign=True)
    except (UserError, RuntimeError) as error:
        raise ModelError(f"{said}: {error}") from error
    made.tie_weights()
    made.config.dtype = words.dtype
    if getattr(model, "generation_config", None) is not None:
        for name in _IDS:
            setattr(made.generation_config, name, getattr(model.generation_config, name))
    return made.train(model.training)


def _sorted(model: nn.Module, form: _Form, said: str) -> tuple[Weights, list[Weights]]:
    """Weights by our names, outside of the layers and of each one. Raises ModelError for what has no place here."""
    outer: Weights = {}
    layers: list[Weights] = [{} for _ in model.get_submodule(form.stack).children()]
    for path, weight in model.named_parameters():
        module, _, last = path.rpartition(".")
        if path.startswith(form.stack + "."):
            number, _, module = module.removeprefix(form.stack + ".").partition(".")
            names, into = form.inner, layers[int(number)]
        else:
            names, into = form.outer, outer
        theirs = next((n for n in names if f"{module}.".startswith(f"{n}.")), None)
        if theirs is None:
            raise ModelError(f"{said}: there is no place for {path}")
        into[f"{names[theirs]}{module.removeprefix(theirs)}.{last}".lstrip(".")] = weight
    return outer, [form.apart(own) for own in layers]


def _attention(config: Any, layer: Any, weights: Weights, **options: Any) -> dict[str, Any]:
    """Heads as the live layer has them."""
    size = layer.head_dim
    rows = {n: len(weights[f"mixer.{n}.weight"]) // size for n in ("query", "key")}
    biases = {n: f"mixer.{n}.bias" in weights for n in ("query", "out")}
    return {
        "kind": "attention", "heads": rows["query"], "kv_heads": rows["key"], "head_size": size,
        "bias": biases["query"], "out_bias": biases["out"], **options,
    }  # fmt: skip


def _refuse_activation(name: str) -> str:
    return "" if name in _ACTIVATIONS else f"the activation {name} is none of {', '.join(_ACTIVATIONS)}"


def _gpt2_refusal(config: Any) -> str:
    if config.scale_attn_by_inverse_layer_idx or not config.scale_attn_weights:
        return "its attention scales scores otherwise than by the root of the head size"
    if config.add_cross_attention:
        return "it has cross-attention"
    return _refuse_activation(config.activation_function)


def _gpt2_fields(config: Any) -> dict[str, Any]:
    return {
        "norm": "layer", "norm_eps": config.layer_norm_epsilon, "positions": "learned", "dropout": config.resid_pdrop,
        "max_position_embeddings": config.n_positions,
    }  # fmt: skip


def _gpt2_layer(config: Any, number: int, layer: Any, weights: Weights) -> dict[str, Any]:
    mixer = _attention(config, layer.attn, weights, rotary=False, dropout=config.attn_pdrop)
    hidden = len(weights["ffn.up.weight"])
    ffn = {
        "kind": "mlp",
        "hidden": hidden,
        "activation": _ACTIVATIONS[config.activation_function],
        "bias": True,
    }
    return {"mixer": mixer, "ffn": ffn}


def _gpt2_apart(weights: Weights) -> Weights:
    """transformers keeps these matrices as (in, out), and those of queries, keys and values in one."""
    found = {k: v.T if v.ndim == 2 else v for k, v in weights.items()}
    for last in ("weight", "bias"):
        thirds = found.pop(f"mixer.fused.{last}").chunk(3)
        found.update(zip((f"mixer.{n}.{last}" for n in ("query", "key", "value")), thirds))
    return found


def _llama_refusal(config: Any) -> str:
    rope = getattr(config, "rope_parameters", None) or {}
    if (kind := rope.get("rope_type", "default")) != "default":
        return f"its rotary positions are scaled ({kind})"
    if "rope_theta" not in rope:
        return "its rotary positions are not described by one base (rope_parameters['rope_theta'])"
    if other := set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}:
        return f"it has layers of {', '.join(sorted(other))}"
    if config.model_type == "qwen3" and config.rms_norm_eps != _QK_EPS:
        return f"its norms over heads have an epsilon of {config.rms_norm_eps:g}, here it is {_QK_EPS:g}"
    return _refuse_activation(config.hidden_act)


def _llama_fields(config: Any) -> dict[str, Any]:
    return {
        "norm": "rms", "norm_eps": config.rms_norm_eps, "max_position_embeddings": config.max_position_embeddings,
    }  # fmt: skip


def _llama_layer(config: Any, number: int, layer: Any, weights: Weights) -> dict[str, Any]:
    types = getattr(config, "layer_types", None)
    slides = types is None or types[number] == "sliding_attention"
    rope = config.rope_parameters
    mixer = _attention(
        config, layer.self_attn, weights, rotary=rope.get("partial_rotary_factor", True), theta=rope["rope_theta"],
        window=getattr(config, "sliding_window", None) if slides else None, qk_norm="mixer.query_norm.weight" in weights,
        dropout=config.attention_dropout,
    )  # fmt: skip
    ffn = {
        "kind": "swiglu", "hidden": len(weights["ffn.up.weight"]), "activation": _ACTIVATIONS[config.hidden_act],
        "bias": "ffn.up.bias" in weights,
    }  # fmt: skip
    return {"mixer": mixer, "ffn": ffn}


def _mamba_refusal(config: Any) -> str:
    if config.use_bias or not config.use_conv_bias:
        return "its projections have biases, or its convolution none"
    if config.hidden_act not in ("silu", "swish"):
        return f"its activation is {config.hidden_act}, not silu"
    if tuple(getattr(config, "time_step_limit", None) or (0.0, float("inf"))) != (0.0, float("inf")):
        return "its step sizes have limits (time_step_limit)"
    return ""


def _mamba_fields(config: Any) -> dict[str, Any]:
    return {"norm": "rms", "norm_eps": config.layer_norm_epsilon, "residual_fp32": config.residual_in_fp32}


def _mamba_layer(config: Any, number: int, layer: Any, weights: Weights) -> dict[str, Any]:
    inner, state = weights["mixer.A_log"].shape
    return {
        "mixer": {
            "kind": "mamba", "state": state, "expand": inner / config.hidden_size, "kernel": config.conv_kernel,
            "rank": weights["mixer.dt_proj.weight"].shape[1],
        }
    }  # fmt: skip


def _mamba2_layer(config: Any, number: int, layer: Any, weights: Weights) -> dict[str, Any]:
    inner = config.num_heads * config.head_dim
    return {
        "mixer": {
            "kind": "mamba2", "state": config.state_size, "head": config.head_dim, "groups": config.n_groups,
            "expand": inner / config.hidden_size, "kernel": config.conv_kernel, "eps": config.layer_norm_epsilon,
        }
    }  # fmt: skip


_GPT2 = _Form(
    "transformer.h",
    {"transformer.wte": "embedding", "transformer.wpe": "positions", "transformer.ln_f": "norm", "lm_head": "head"},
    {
        "ln_1": "mixer_norm", "attn.c_attn": "mixer.fused", "attn.c_proj": "mixer.out", "ln_2": "ffn_norm",
        "mlp.c_fc": "ffn.up", "mlp.c_proj": "ffn.down",
    },
    _gpt2_refusal, _gpt2_fields, _gpt2_layer, _gpt2_apart,
)  # fmt: skip
_LLAMA = _Form(
    "model.layers",
    {"model.embed_tokens": "embedding", "model.norm": "norm", "lm_head": "head"},
    {
        "input_layernorm": "mixer_norm", "self_attn.q_proj": "mixer.query", "self_attn.k_proj": "mixer.key",
        "self_attn.v_proj": "mixer.value", "self_attn.o_proj": "mixer.out", "self_attn.q_norm": "mixer.query_norm",
        "self_attn.k_norm": "mixer.key_norm", "post_attention_layernorm": "ffn_norm", "mlp.gate_proj": "ffn.gate",
        "mlp.up_proj": "ffn.up", "mlp.down_proj": "ffn.down",
    },
    _llama_refusal, _llama_fields, _llama_layer,
)  # fmt: skip
_OUTER = {"backbone.embeddings": "embedding", "backbone.norm_f": "norm", "lm_head": "head"}
_INNER = {"norm": "mixer_norm", "mixer": "mixer"}
_MAMBA = _Form("backbone.layers", _OUTER, _INNER, _mamba_refusal, _mamba_fields, _mamba_layer)
_MAMBA2 = _Form("backbone.layers", _OUTER, _INNER, _mamba_refusal, _mamba_fields, _mamba2_layer)

#: model_type -> how it is read.
FORMS: dict[str, _Form] = {
    "gpt2": _GPT2, "llama": _LLAMA, "mistral": _LLAMA, "qwen2": _LLAMA, "qwen3": _LLAMA, "mamba": _MAMBA, "mamba2": _MAMBA2,
}  # fmt: skip
