"""A small world for steps: tiny random models of several families, tokenizers trained on the spot, a task."""

from __future__ import annotations

import inspect
import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tokenizers
import torch
import transformers as T
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor, nn

from lightformers.bundle import Bundle, Pooling
from lightformers.telemetry import silence

silence()
# docstrings of the standard library: real text that every machine has
TEXTS = [
    line.strip()
    for line in "\n".join(filter(None, (inspect.getdoc(m) for m in (json, inspect.getdoc, np.sum, str, dict)))).split("\n")
    if len(line.strip()) > 12
][:120]  # fmt: skip
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
WIDTH, HEADS, FFN, DEPTH, CLASSES = 32, 4, 64, 4, 3


def tokenizer(kind: str = "wordpiece", size: int = 300) -> T.PreTrainedTokenizerFast:
    """A tokenizer of about `size` tokens, trained on TEXTS: "wordpiece", "bpe" (byte level) or "unigram"."""
    if kind == "wordpiece":
        raw = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
        raw.normalizer = normalizers.Lowercase()
        raw.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        raw.train_from_iterator(
            TEXTS, trainers.WordPieceTrainer(show_progress=False, vocab_size=size, special_tokens=SPECIAL)
        )
        raw.decoder = decoders.WordPiece()
    elif kind == "bpe":
        raw = tokenizers.Tokenizer(models.BPE())
        raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        raw.train_from_iterator(
            TEXTS,
            trainers.BpeTrainer(
                show_progress=False, vocab_size=size + 256, special_tokens=SPECIAL, initial_alphabet=alphabet
            ),
        )
        raw.decoder = decoders.ByteLevel()
    else:
        raw = tokenizers.Tokenizer(models.Unigram())
        raw.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer = trainers.UnigramTrainer(
            show_progress=False, vocab_size=size, special_tokens=SPECIAL, unk_token="[UNK]"
        )
        raw.train_from_iterator(TEXTS, trainer)
        raw.decoder = decoders.Metaspace()
    cls, sep = raw.token_to_id("[CLS]"), raw.token_to_id("[SEP]")
    raw.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B [SEP]",
        special_tokens=[("[CLS]", cls), ("[SEP]", sep)],
    )
    return T.PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )


def pixels(images: list[np.ndarray], return_tensors: str = "np") -> dict[str, np.ndarray]:
    """The image processor of this world: HWC bytes to CHW floats."""
    return {"pixel_values": np.stack([i.transpose(2, 0, 1).astype(np.float32) / 255 - 0.5 for i in images])}


_TEXT: dict[str, Any] = {
    "hidden_size": WIDTH,
    "num_hidden_layers": DEPTH,
    "num_attention_heads": HEADS,
    "intermediate_size": FFN,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 3,
}


def model(family: str, vocabulary: int = 300, seed: int = 0) -> nn.Module:
    """A random model in evaluation mode; weights are large enough for differences to show."""
    torch.manual_seed(seed)
    text = _TEXT | {"vocab_size": vocabulary}
    if family == "bert":
        made = T.BertModel(T.BertConfig(**text), add_pooling_layer=False)
    elif family == "bert-classifier":
        made = T.BertForSequenceClassification(T.BertConfig(**text, num_labels=CLASSES))
    elif family == "roberta":
        made = T.RobertaModel(T.RobertaConfig(**text | {"pad_token_id": 1}), add_pooling_layer=False)
    elif family == "gpt2":
        names = {"n_embd": WIDTH, "n_layer": DEPTH, "n_head": HEADS, "n_inner": FFN, "vocab_size": vocabulary}
        made = T.GPT2LMHeadModel(T.GPT2Config(**names, pad_token_id=0, bos_token_id=2, eos_token_id=3))
    elif family == "llama":
        made = T.LlamaForCausalLM(T.LlamaConfig(**text, num_key_value_heads=2))
    elif family == "t5":
        names = {"d_model": WIDTH, "num_layers": DEPTH, "num_heads": HEADS, "d_kv": 8, "d_ff": FFN}
        made = T.T5EncoderModel(T.T5Config(**names, vocab_size=vocabulary, feed_forward_proj="gated-gelu"))
    else:
        names = {k: v for k, v in _TEXT.items() if not k.endswith("_id") and k != "max_position_embeddings"}
        made = T.ViTForImageClassification(
            T.ViTConfig(**names, image_size=16, patch_size=4, num_labels=CLASSES)
        )
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if parameter.dim() > 1 or name.endswith("bias"):
                parameter.normal_(0, 0.15)
    return made.eval()


def bundle(family: str = "bert", kind: str = "wordpiece", seed: int = 0) -> Bundle:
    """A bundle around a tiny model."""
    if family == "vit":
        return Bundle(model("vit", seed=seed), pixels, "image-classification")
    words = tokenizer(kind)
    made = model(family, len(words), seed)
    if family in ("bert", "roberta", "t5"):
        return Bundle(made, words, "embedding", Pooling(), max_length=48)
    name = "text-classification" if family == "bert-classifier" else "causal-lm"
    return Bundle(made, words, name, max_length=48)


FAMILIES = ("bert", "bert-classifier", "gpt2", "llama", "vit", "t5")


@dataclass
class World:
    """As much of a task as steps look at."""

    images: bool = False
    fingerprint: str = "world"
    splits: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    asked: int = 0

    def __post_init__(self) -> None:
        if not self.splits:
            random = np.random.default_rng(0)
            pictures = [{"image": random.integers(0, 255, (16, 16, 3), dtype=np.uint8)} for _ in range(24)]
            rows: list[dict[str, Any]] = pictures if self.images else [{"text": t} for t in TEXTS]
            self.splits = {"train": rows[: len(rows) // 2], "verify": rows[len(rows) // 2 :]}

    def calibration(self, n: int, seed: int = 0) -> list[dict[str, Any]]:
        self.asked += 1
        return self.splits["train"][:n]


def task(family: str = "bert") -> World:
    return World(images=family == "vit", fingerprint=f"world-{family == 'vit'}")


def outputs(made: Bundle, rows: list[dict[str, Any]] | None = None) -> Tensor:
    """What the model gives for a few examples: embeddings, logits or states, padding set to zero."""
    rows = rows or task("vit" if made.task == "image-classification" else "bert").splits["verify"][:5]
    batch = made.collate(rows)
    found = made.module()(**batch.inputs)
    value = found["embedding"] if "embedding" in found else found["logits"]
    mask = batch.inputs.get("attention_mask")
    return value * mask[..., None] if value.dim() == 3 and mask is not None else value
