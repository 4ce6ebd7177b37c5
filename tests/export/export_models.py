"""Tiny random models with real tokenizers and image processors, as a person would have them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from lightformers.bundle import Bundle, Pooling

WORDS = [
    "the",
    "a",
    "cat",
    "dog",
    "bird",
    "sits",
    "runs",
    "sings",
    "on",
    "under",
    "mat",
    "tree",
    "house",
    "fast",
    "slow",
    "red",
    "blue",
    "green",
    "not",
    "very",
]
TEXTS = [
    "the cat sits on the mat", "a dog runs", "the red bird sings not very fast under a blue tree", "slow",
    "the dog sits under the green house", "a very red cat runs fast on the mat",
]  # fmt: skip
EXAMPLES = [{"text": text} for text in TEXTS]
IMAGES = [
    {"image": np.random.default_rng(i).integers(0, 255, (16, 16, 3)).astype(np.uint8)} for i in range(4)
]
BERT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
        "max_position_embeddings": 64}  # fmt: skip


def tokenizer(kind: str) -> Any:
    from transformers import PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    raw = Tokenizer(models.WordLevel({w: i for i, w in enumerate(special + WORDS)}, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    if kind == "bert":
        raw.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]",
            pair="[CLS] $A [SEP] $B:1 [SEP]:1",
            special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
        )
        inputs = ["input_ids", "token_type_ids", "attention_mask"]
    else:
        inputs = ["input_ids", "attention_mask"]
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        mask_token="[MASK]", model_max_length=64, model_input_names=inputs,
    )  # fmt: skip


def _text_classifier() -> Bundle:
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(vocab_size=len(WORDS) + 5, num_labels=3, **BERT)
    return Bundle(
        BertForSequenceClassification(config).eval(), tokenizer("bert"), "text-classification", max_length=64
    )


def _embedder() -> Bundle:
    from transformers import BertConfig, BertModel

    model = BertModel(BertConfig(vocab_size=len(WORDS) + 5, **BERT)).eval()
    prompts = {"query": "the very ", "document": ""}
    return Bundle(model, tokenizer("bert"), "embedding", Pooling("mean"), max_length=12, prompts=prompts)


def _language_model() -> Bundle:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=len(WORDS) + 5, n_embd=32, n_layer=2, n_head=4, n_positions=64, n_inner=64,
                        bos_token_id=2, eos_token_id=3)  # fmt: skip
    return Bundle(GPT2LMHeadModel(config).eval(), tokenizer("gpt2"), "causal-lm", max_length=64)


def _image_classifier() -> Bundle:
    from transformers import ViTConfig, ViTForImageClassification
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    config = ViTConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, image_size=16,
                       patch_size=4, num_labels=3)  # fmt: skip
    processor = ViTImageProcessorPil(size={"height": 16, "width": 16})
    return Bundle(ViTForImageClassification(config).eval(), processor, "image-classification")


MAKERS: dict[str, Callable[[], Bundle]] = {
    "classifier": _text_classifier, "embedder": _embedder, "gpt2": _language_model, "vit": _image_classifier,
}  # fmt: skip


def examples_of(kind: str) -> list[dict[str, Any]]:
    return IMAGES if kind == "vit" else EXAMPLES


def outputs(bundle: Bundle, examples: list[dict[str, Any]]) -> torch.Tensor:
    """The output that counts, where there is no padding."""
    batch = bundle.collate(examples)
    with torch.no_grad():
        out = bundle.module()(**batch.inputs)
    if bundle.pooling:
        return out["embedding"]
    if bundle.task == "causal-lm":
        return out.logits[batch.inputs["attention_mask"].bool()]
    return out.logits


def make(kind: str, seed: int = 0) -> Bundle:
    """A fresh bundle with larger than usual weights, so that outputs differ between examples."""
    torch.manual_seed(seed)
    bundle = MAKERS[kind]()
    with torch.no_grad():
        for parameter in bundle.model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.2)
    return bundle
