"""Tiny models and bundles for the tests of training and distillation."""

from __future__ import annotations

import random

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertForSequenceClassification, BertModel, PreTrainedTokenizerFast

from lightformers.bundle import Bundle, Pooling

WORDS = [f"w{i}" for i in range(60)]


def tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {t: i for i, t in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        mask_token="[MASK]", model_max_length=64,
    )  # fmt: skip


def config(**changes: object) -> BertConfig:
    fields = {
        "vocab_size": 65, "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 64,
        "max_position_embeddings": 64, "initializer_range": 0.15,
    }  # fmt: skip
    return BertConfig(**{**fields, **changes})


def embedder(seed: int = 0, **changes: object) -> Bundle:
    torch.manual_seed(seed)
    model = BertModel(config(**changes), add_pooling_layer=False).eval()
    return Bundle(model, tokenizer(), "embedding", Pooling(), max_length=32)


def classifier(seed: int = 0, **changes: object) -> Bundle:
    torch.manual_seed(seed)
    model = BertForSequenceClassification(config(num_labels=3, **changes)).eval()
    return Bundle(model, tokenizer(), "text-classification", max_length=32)


def texts(n: int, seed: int = 0, longest: int = 14) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=rng.randint(1, longest))) for _ in range(n)]
