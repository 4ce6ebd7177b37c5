"""A tiny classifier that has learnt something, its data, and a report made up by hand."""

from __future__ import annotations

import random
from typing import Any

import torch
import transformers as T
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from lightformers import tasks
from lightformers.bundle import Bundle

WORDS = [f"word{i}" for i in range(60)]
LENGTH = 20


def examples(n: int, seed: int) -> list[dict[str, Any]]:
    """Texts whose label is which of two kinds of word prevails: a model can learn it at once."""
    rng = random.Random(seed)
    out = []
    for i in range(n):
        words = rng.choices(WORDS[:20] if i % 2 else WORDS[20:40], k=4) + rng.choices(
            WORDS[40:], k=rng.randint(2, 10)
        )
        rng.shuffle(words)
        out.append({"text": " ".join(words), "label": f"LABEL_{i % 2}"})
    return out


def tokenizer() -> T.PreTrainedTokenizerFast:
    vocabulary = {t: i for i, t in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    raw = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    raw.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return T.PreTrainedTokenizerFast(
        tokenizer_object=raw, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]"
    )


def bundle(steps: int = 40) -> Bundle:
    torch.manual_seed(0)
    config = T.BertConfig(
        hidden_size=32, num_hidden_layers=4, num_attention_heads=4, intermediate_size=96, vocab_size=64,
        max_position_embeddings=LENGTH, num_labels=2, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    made = Bundle(
        T.BertForSequenceClassification(config), tokenizer(), "text-classification", max_length=LENGTH
    )
    optimizer = torch.optim.Adam(made.model.parameters(), lr=2e-3)
    rows = examples(32 * steps, 7)
    for step in range(steps):
        part = rows[32 * step : 32 * (step + 1)]
        batch = made.collate([{"text": e["text"]} for e in part])
        labels = torch.tensor([int(e["label"][-1]) for e in part])
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(made.model(**batch.inputs).logits, labels).backward()
        optimizer.step()
    made.model.eval()
    return made


def task(made: Bundle | None = None) -> Any:
    return tasks.from_data("text-classification", examples(400, 1), bundle=made)


def row(name: str, ratio: float, size: float, speed: float, **more: Any) -> dict[str, Any]:
    """A finished row of a made-up report."""
    around = {"estimate": ratio, "low": ratio - 0.01, "high": ratio + 0.01, "bound": ratio - 0.008}
    quality = {"estimate": 0.9 * ratio, "low": 0.88 * ratio, "high": 0.92 * ratio}
    paired = {
        "throughput": 100 * speed,
        "speedup": {"estimate": speed, "low": speed - 0.1, "high": speed + 0.1},
    }
    known = {
        "name": name, "kind": "prune", "sized": True, "note": "Faster everywhere.", "state": "done", "asked": 0.5,
        "labels": False, "apply_seconds": 3.0, "blocks": 0.5, "parameters": 1000, "bytes": size, "native": True,
        "native_reason": None, "quality": quality, "ratio": around, "torch": paired, "openvino": None, "seconds": 9.0,
    }  # fmt: skip
    return known | more


def report(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """A report around some rows, without its advice."""
    quality = {"estimate": 0.9, "low": 0.88, "high": 0.92}
    return {
        "version": "0", "created": "2030-01-01T00:00:00Z", "machine": {"cpu": "a <processor>"},
        "model": {"name": "<b>tiny</b>"}, "command": "lightformers compare tiny",
        "task": {"name": "text-classification", "metric": "accuracy", "higher_is_better": True, "splits": {"search": 60}},
        "settings": {"ratio": 0.5, "speedup": None, "seconds": 20.0, "use_labels": False},
        "deploys": {"torch": "torch fp32", "openvino": None},
        "original": {"parameters": 2000, "bytes": 8000, "quality": quality, "examples": 60,
                     "torch": {"throughput": 100.0}, "openvino": None},
        "rows": rows, "warnings": [], "seconds": 60.0,
    }  # fmt: skip
