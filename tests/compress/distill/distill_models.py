"""Tiny teachers, cut students and a task for the tests of distillation."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
)

from lightformers.anatomy import surgery
from lightformers.bundle import Batch, Bundle, Origin, Pooling

WORDS = [f"w{i}" for i in range(60)]


def tokenizer(words: Sequence[str] = WORDS) -> PreTrainedTokenizerFast:
    vocabulary = {t: i for i, t in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        mask_token="[MASK]", model_max_length=64,
    )  # fmt: skip


def bundle(task: str, seed: int = 0, **changes: Any) -> Bundle:
    """A random model of four blocks whose outputs really depend on all of them."""
    torch.manual_seed(seed)
    fields = {
        "vocab_size": 65, "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 64,
        "max_position_embeddings": 64, "initializer_range": 0.15, "num_labels": 3,
    }  # fmt: skip
    config = BertConfig(**{**fields, **changes})
    if task == "causal-lm":
        gpt = GPT2Config(
            vocab_size=65, n_embd=32, n_layer=4, n_head=4, n_positions=64, initializer_range=0.15
        )
        return Bundle(GPT2LMHeadModel(gpt).eval(), tokenizer(), task, max_length=32)
    if task == "embedding":
        return Bundle(
            BertModel(config, add_pooling_layer=False).eval(), tokenizer(), task, Pooling(), max_length=32
        )
    kind = {
        "text-classification": BertForSequenceClassification,
        "token-classification": BertForTokenClassification,
        "masked-lm": BertForMaskedLM,
    }[task]
    return Bundle(kind(config).eval(), tokenizer(), task, max_length=32)


def cut(teacher: Bundle, keep: Sequence[int] = (0, 1, 3)) -> Bundle:
    """The teacher without some of its blocks."""
    student = teacher.copy()
    surgery.keep_blocks(student.model, list(keep))
    student.origin = Origin({next(iter(_stacks(teacher))): tuple(keep)})
    return student


def _stacks(teacher: Bundle) -> list[str]:
    from lightformers import anatomy

    return [s.name for s in anatomy.of(teacher.model).stacks]


@dataclass
class World:
    """A task over random sentences; its labels are no business of recovery unless the run uses them."""

    name: str
    n: int = 48
    seed: int = 0
    asked: list[bool] = field(default_factory=list)
    scored: int = 0

    @property
    def fingerprint(self) -> str:
        return f"{type(self).__name__} {self.name} {self.n} {self.seed}"

    def training_examples(self, use_labels: bool) -> list[dict[str, Any]]:
        self.asked.append(use_labels)
        rng = random.Random(self.seed)
        rows: list[dict[str, Any]] = []
        for _ in range(self.n):
            words = rng.choices(WORDS, k=rng.randint(2, 14))
            row: dict[str, Any] = (
                {"words": words} if self.name == "token-classification" else {"text": " ".join(words)}
            )
            if use_labels and self.name == "text-classification":
                row["label"] = rng.randrange(3)
            rows.append(row)
        return rows

    def collate(self, bundle: Bundle, examples: Sequence[Any], seed: int = 0) -> Batch:
        batch = bundle.collate(examples)
        if self.name == "masked-lm":
            rng = np.random.default_rng(seed)
            hidden = torch.from_numpy(rng.random(batch.inputs["input_ids"].shape) < 0.3)
            batch.inputs["input_ids"] = batch.inputs["input_ids"].masked_fill(
                hidden & batch.inputs["attention_mask"].bool(), 4
            )
        return batch

    def loss(self, outputs: Any, batch: Batch) -> torch.Tensor:
        self.scored += 1
        return torch.nn.functional.cross_entropy(outputs["logits"].float(), batch.targets["label"])
