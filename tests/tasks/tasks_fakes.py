"""Stand-ins for runners: no model, so that a test's numbers can be worked out by hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from lightformers.bundle import Batch, Bundle, Pooling


@dataclass
class FakeRunner:
    """Answers every example with `answer(example) -> {"embedding" or "logits": array}`, `batch` at a time."""

    answer: Callable[[Mapping[str, Any]], Mapping[str, Any]]
    batch: int = 3
    calls: int = 0
    seen: list[Mapping[str, Any]] = field(default_factory=list)

    def encode(self, examples: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        return [dict(e) for e in examples]

    def run(self, encoded: Sequence[Mapping[str, Any]], reduce: Callable[..., Sequence[Any]]) -> list[Any]:
        self.calls += 1
        self.seen.extend(encoded)
        out: list[Any] = []
        for i in range(0, len(encoded), self.batch):
            part = list(encoded[i : i + self.batch])
            answers = [self.answer(e) for e in part]
            outputs = {k: torch.tensor(np.stack([a[k] for a in answers])) for k in answers[0]}
            out.extend(reduce(outputs, Batch({}, {"examples": part})))
        return out

    def __call__(
        self, examples: Sequence[Mapping[str, Any]], reduce: Callable[..., Sequence[Any]]
    ) -> list[Any]:
        return self.run(self.encode(examples), reduce)


class WordTokenizer:
    """Every word is a token: enough of a tokenizer for `Bundle.encode`."""

    padding_side = "right"
    pad_token_id = 0

    def __call__(self, first: Any, second: Any = None, truncation: bool = False, max_length: int | None = None,
                 is_split_into_words: bool = False, **_: Any) -> dict[str, list[list[int]]]:  # fmt: skip
        rows = [list(t) if is_split_into_words else t.split() for t in first]
        if second is not None:
            rows = [a + b.split() for a, b in zip(rows, second)]
        ids = [[1 + sum(w.encode()) % 997 for w in row] for row in rows]
        return {"input_ids": [i[:max_length] if truncation else i for i in ids]}


def bundle(task: str, labels: Sequence[str] = (), max_length: int | None = None) -> Bundle:
    """A bundle without weights: what `check` and `collate` look at."""
    model = torch.nn.Identity()
    model.config = SimpleNamespace(id2label=dict(enumerate(labels)))  # type: ignore[assignment]
    pooling = Pooling() if task == "embedding" else None
    return Bundle(model, WordTokenizer(), task, pooling, max_length)


@dataclass
class TinyRunner:
    """A real bundle, two examples at a time: the smallest honest runner."""

    bundle: Bundle

    def encode(self, examples: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        return self.bundle.encode(examples)

    @torch.no_grad()
    def run(self, encoded: Sequence[Mapping[str, Any]], reduce: Callable[..., Sequence[Any]]) -> list[Any]:
        out: list[Any] = []
        for i in range(0, len(encoded), 2):
            batch = self.bundle.pad(encoded[i : i + 2])
            out.extend(reduce(self.bundle.module()(**batch.inputs), batch))
        return out

    def __call__(
        self, examples: Sequence[Mapping[str, Any]], reduce: Callable[..., Sequence[Any]]
    ) -> list[Any]:
        return self.run(self.encode(examples), reduce)


def tokenizer(side: str = "right", extra: Sequence[str] = ()) -> Any:
    """A real fast tokenizer that takes lower-case words apart into letters."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    letters = "abcdefghijklmnopqrstuvwxyz0123456789.,"
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{c}" for c in letters), *extra]
    inner = Tokenizer(models.WordPiece({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.decoder = decoders.WordPiece()
    inner.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        mask_token="[MASK]", padding_side=side, model_input_names=["input_ids", "attention_mask"],
    )  # fmt: skip


def tiny(
    task: str, labels: Sequence[str] = ("a", "b"), side: str = "right", max_length: int | None = 40
) -> Bundle:
    """A random transformer with two narrow blocks, with the head that `task` needs."""
    import transformers

    torch.manual_seed(0)
    text = tokenizer(side)
    sizes = {"vocab_size": len(text), "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes |= {"intermediate_size": 32}
    names = {"id2label": dict(enumerate(labels)), "label2id": {n: i for i, n in enumerate(labels)}}
    if task == "causal-lm":
        config = transformers.LlamaConfig(**sizes, num_key_value_heads=2, pad_token_id=0)
        model: Any = transformers.LlamaForCausalLM(config)
    else:
        kind = {"embedding": "BertModel", "masked-lm": "BertForMaskedLM", "token-classification": "BertForTokenClassification",
                "text-classification": "BertForSequenceClassification"}[task]  # fmt: skip
        model = getattr(transformers, kind)(transformers.BertConfig(**sizes, **names))
    return Bundle(model.eval(), text, task, Pooling() if task == "embedding" else None, max_length)
