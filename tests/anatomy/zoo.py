"""Tiny random models of every family, and inputs for them."""

from __future__ import annotations

import inspect
import tempfile
from typing import Any

import torch
import transformers as T
from torch import Tensor, nn

VOCABULARY, LENGTH = 64, 9
_IDS: dict[str, Any] = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_BASE: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
}
_TEXT = _BASE | {"vocab_size": VOCABULARY} | _IDS
_PAD1 = _TEXT | {"pad_token_id": 1, "bos_token_id": 0}
_GQA = _TEXT | {"num_key_value_heads": 2}
_IMAGE = _BASE | {"image_size": 16, "patch_size": 8}
_D = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 3, "encoder_attention_heads": 4,
      "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "vocab_size": VOCABULARY}  # fmt: skip
_SOUND = _BASE | {"vocab_size": VOCABULARY, "conv_dim": (16, 16), "conv_stride": (2, 2), "conv_kernel": (3, 3),
                  "num_feat_extract_layers": 2, "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2,
                  "layerdrop": 0.0, "mask_time_prob": 0.0} | _IDS  # fmt: skip

# name -> (class, config class, settings). The first of a family is what every cut is tried on.
MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "bert": ("BertForMaskedLM", "BertConfig", _TEXT),
    "roberta": ("RobertaForMaskedLM", "RobertaConfig", _PAD1),
    "distilbert": ("DistilBertForMaskedLM", "DistilBertConfig",
                   {"dim": 32, "n_layers": 3, "n_heads": 4, "hidden_dim": 48, "vocab_size": VOCABULARY} | _IDS),
    "electra": ("ElectraForMaskedLM", "ElectraConfig", _TEXT | {"embedding_size": 12}),
    "mpnet": ("MPNetForMaskedLM", "MPNetConfig", _PAD1),
    "albert": ("AlbertForMaskedLM", "AlbertConfig", _TEXT | {"embedding_size": 16}),
    "gpt2": ("GPT2LMHeadModel", "GPT2Config",
             {"n_embd": 32, "n_layer": 3, "n_head": 4, "vocab_size": VOCABULARY} | _IDS),
    "gpt_neox": ("GPTNeoXForCausalLM", "GPTNeoXConfig", _TEXT),
    "opt": ("OPTForCausalLM", "OPTConfig", {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4,
            "ffn_dim": 48, "vocab_size": VOCABULARY, "word_embed_proj_dim": 12} | _IDS),
    "llama": ("LlamaForCausalLM", "LlamaConfig", _GQA),
    "llama-tied": ("LlamaForCausalLM", "LlamaConfig", _GQA | {"tie_word_embeddings": True, "attention_bias": True}),
    "mistral": ("MistralForCausalLM", "MistralConfig", _GQA),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", _GQA | {"use_sliding_window": True, "max_window_layers": 1}),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", _GQA | {"head_dim": 16}),
    "gemma": ("GemmaForCausalLM", "GemmaConfig", _GQA | {"head_dim": 16}),
    "phi": ("PhiForCausalLM", "PhiConfig", _TEXT),
    "t5": ("T5ForConditionalGeneration", "T5Config", {"d_model": 32, "num_layers": 2, "num_decoder_layers": 3,
           "num_heads": 4, "d_kv": 8, "d_ff": 48, "vocab_size": VOCABULARY, "pad_token_id": 0, "eos_token_id": 1,
           "decoder_start_token_id": 0, "feed_forward_proj": "gated-gelu"}),
    "bart": ("BartForConditionalGeneration", "BartConfig", _D | _IDS | {"decoder_start_token_id": 2, "forced_eos_token_id": 2}),
    "vit": ("ViTForImageClassification", "ViTConfig", _IMAGE),
    "deit": ("DeiTForImageClassification", "DeiTConfig", _IMAGE),
    "dinov2": ("Dinov2ForImageClassification", "Dinov2Config", {k: v for k, v in _IMAGE.items() if k != "intermediate_size"} | {"mlp_ratio": 2}),
    "clip": ("CLIPModel", "CLIPConfig", {"text_config": _TEXT | {"eos_token_id": 5, "projection_dim": 32},
             "vision_config": _IMAGE | {"projection_dim": 32}, "projection_dim": 32}),
    "wav2vec2": ("Wav2Vec2ForCTC", "Wav2Vec2Config", _SOUND),
    "hubert": ("HubertForCTC", "HubertConfig", _SOUND),
    "whisper": ("WhisperForConditionalGeneration", "WhisperConfig", _D | _IDS | {"num_mel_bins": 8,
                "max_source_positions": 10, "max_target_positions": 12, "decoder_start_token_id": 1,
                "suppress_tokens": [40, 63], "begin_suppress_tokens": [2, 50]}),
}  # fmt: skip
FAMILIES = tuple(MODELS)

# Other heads, towers and variants that paths and cuts must serve as well.
OTHERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    f"{base}:{kind}{tag}": (kind, MODELS[base][1], MODELS[base][2] | extra)
    for base, tag, kinds, extra in (
        ("bert", "", "BertModel BertForSequenceClassification BertForTokenClassification BertForQuestionAnswering "
         "BertForPreTraining BertForMultipleChoice BertForNextSentencePrediction", {}),
        ("roberta", "", "RobertaModel RobertaForSequenceClassification RobertaForTokenClassification", {}),
        ("distilbert", "", "DistilBertModel DistilBertForSequenceClassification DistilBertForTokenClassification", {}),
        ("electra", "", "ElectraModel ElectraForPreTraining ElectraForSequenceClassification", {"embedding_size": 32}),
        ("mpnet", "", "MPNetModel MPNetForSequenceClassification", {}),
        ("gpt2", "", "GPT2Model GPT2ForSequenceClassification GPT2ForTokenClassification", {}),
        ("gpt2", "-inverse", "GPT2LMHeadModel", {"scale_attn_by_inverse_layer_idx": True}),
        ("gpt_neox", "", "GPTNeoXModel GPTNeoXForSequenceClassification", {}),
        ("opt", "", "OPTModel OPTForSequenceClassification", {"word_embed_proj_dim": 32}),
        ("llama", "", "LlamaModel LlamaForSequenceClassification LlamaForTokenClassification", {}),
        ("qwen3", "", "Qwen3Model Qwen3ForSequenceClassification", {}),
        ("phi", "", "PhiModel", {}),
        ("t5", "", "T5Model T5EncoderModel T5ForSequenceClassification", {}),
        ("bart", "", "BartModel BartForSequenceClassification", {}),
        ("bart", "", "BartForCausalLM", {"encoder_layers": 3}),  # transformers sizes its cache by the encoder
        ("vit", "", "ViTModel ViTForMaskedImageModeling", {"encoder_stride": 8}),
        ("deit", "", "DeiTModel DeiTForImageClassificationWithTeacher", {}),
        ("dinov2", "", "Dinov2Model", {}),
        ("dinov2", "-swiglu", "Dinov2Model", {"use_swiglu_ffn": True}),
        ("wav2vec2", "", "Wav2Vec2Model Wav2Vec2ForSequenceClassification", {}),
        ("hubert", "", "HubertModel HubertForSequenceClassification", {}),
        ("whisper", "", "WhisperModel WhisperForAudioClassification", {}),
        ("whisper", "", "WhisperForCausalLM", {"encoder_layers": 3}),
    )
    for kind in kinds.split()
} | {
    "clip:CLIPTextModel": ("CLIPTextModel", "CLIPTextConfig", _TEXT | {"eos_token_id": 5}),
    "clip:CLIPTextModelWithProjection": ("CLIPTextModelWithProjection", "CLIPTextConfig", _TEXT | {"eos_token_id": 5}),
    "clip:CLIPVisionModel": ("CLIPVisionModel", "CLIPVisionConfig", _IMAGE),
}  # fmt: skip


def make(name: str, seed: int = 0) -> nn.Module:
    """A tiny random model in evaluation mode, with weights large enough for differences to show."""
    kind, config, settings = (MODELS | OTHERS)[name]
    torch.manual_seed(seed)
    model = getattr(T, kind)(getattr(T, config)(**settings)).eval()
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            if parameter.dim() > 1 or path.endswith("bias"):
                parameter.normal_(0, 0.15)
    return model


def inputs(
    model: nn.Module, batch: int = 2, length: int = LENGTH, vocabulary: int | None = None
) -> dict[str, Tensor]:
    """Inputs for any of the models, by what its `forward` takes."""
    generator = torch.Generator().manual_seed(1)
    names = inspect.signature(type(model).forward).parameters
    config = model.config
    found: dict[str, Tensor] = {}
    size = vocabulary or getattr(getattr(config, "text_config", config), "vocab_size", None) or VOCABULARY
    ids = torch.randint(6, size, (batch, length), generator=generator)
    if config.model_type.startswith("clip"):
        ids[:, -1] = 5
    if "input_features" in names:
        found["input_features"] = torch.randn(batch, 8, 20, generator=generator)
    elif "input_values" in names:
        found["input_values"] = torch.randn(batch, 400, generator=generator)
    elif "pixel_values" in names:
        found["pixel_values"] = torch.randn(batch, 3, 16, 16, generator=generator)
    if "input_ids" in names:
        if "MultipleChoice" in type(model).__name__:
            ids = ids[:, None].repeat(1, 2, 1)
        if "BartForSequenceClassification" in type(model).__name__ or "T5ForSequence" in type(model).__name__:
            ids[:, -1] = config.eos_token_id
        found["input_ids"] = ids
        if "attention_mask" in names:
            found["attention_mask"] = torch.ones_like(ids)
            if config.model_type in ("bert", "mpnet", "roberta", "distilbert", "electra", "albert"):
                found["attention_mask"][-1, ..., -2:] = 0
    if "decoder_input_ids" in names and "SequenceClassification" not in type(model).__name__:
        found["decoder_input_ids"] = ids[:, :5]
    return found


def outputs(model: nn.Module, given: dict[str, Tensor]) -> list[Tensor]:
    """All floating point tensors that the model gives, in order (no caches)."""
    found: list[Tensor] = []

    def collect(value: Any) -> None:
        if isinstance(value, Tensor) and value.is_floating_point():
            found.append(value)
        elif isinstance(value, (tuple, list)):
            for item in value:
                collect(item)
        elif isinstance(value, dict):
            for key, item in value.items():
                if key != "past_key_values":
                    collect(item)

    collect(dict(model(**given)))
    return found


def difference(left: list[Tensor], right: list[Tensor]) -> float:
    assert len(left) == len(right)
    assert all(a.shape == b.shape for a, b in zip(left, right)), [
        (a.shape, b.shape) for a, b in zip(left, right)
    ]
    return max(float((a - b).detach().abs().max()) for a, b in zip(left, right))


def reloaded(model: nn.Module) -> nn.Module:
    """What plain transformers makes of the saved model; asserts that every tensor was found in the file."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        again, info = type(model).from_pretrained(folder, output_loading_info=True)
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        assert not info.get(kind), (kind, info[kind])
    return again.eval()


def backward(model: nn.Module) -> None:
    """Forward in training mode and backward; every parameter that had a gradient to get has one."""
    model.train()
    model.zero_grad()
    sum((o.float() ** 2).sum() + o.float().sum() for o in outputs(model, inputs(model))).backward()
    model.eval()


def without_gradient(model: nn.Module) -> set[str]:
    backward(model)
    return {
        name for name, p in model.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()
    }
