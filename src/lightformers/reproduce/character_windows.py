"""Small character decoders on Tiny Shakespeare, for experiments on generative models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightformers.bundle import Batch, Bundle
from lightformers.reproduce import common
from lightformers.train import Settings, fit

LENGTH = 128
BATCH = 16


@dataclass(frozen=True)
class Characters:
    """Tiny Shakespeare as numbers: train and valid (n,) int64, and how many symbols there are."""

    train: Tensor
    valid: Tensor
    symbols: int


def characters(train: int | None = None, valid: int | None = None) -> Characters:
    """The text, or its first characters. Raises DataError where the data set is not there."""
    text = {part: common.text("tinyshakespeare", part) for part in ("train", "valid")}
    number = {symbol: i for i, symbol in enumerate(sorted(set(text["train"] + text["valid"])))}
    ids = {part: torch.tensor([number[c] for c in t]) for part, t in text.items()}
    return Characters(ids["train"][:train], ids["valid"][:valid], len(number))


def windows(ids: Tensor, size: int = BATCH, length: int = LENGTH) -> list[Batch]:
    """Consecutive windows in batches of (size, length)."""
    groups = ids[: len(ids) // (length * size) * length * size].reshape(-1, size, length)
    return [_batch(g) for g in groups]


def drawn(ids: Tensor, count: int, seed: int, size: int = BATCH, length: int = LENGTH) -> list[Batch]:
    """`count` batches of windows drawn from the seed."""
    generator = torch.Generator().manual_seed(seed)
    starts = torch.randint(len(ids) - length, (count, size), generator=generator)
    return [_batch(torch.stack([ids[s : s + length] for s in row.tolist()])) for row in starts]


def _batch(ids: Tensor) -> Batch:
    return Batch({"input_ids": ids, "attention_mask": torch.ones_like(ids)}, {})


def nats(model: nn.Module, batch: Batch) -> Tensor:
    """Mean nats per predicted character."""
    ids = batch.inputs["input_ids"]
    logits = model(**batch.inputs, use_cache=False).logits[:, :-1]
    return nn.functional.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten())


@torch.no_grad()
def loss(model: nn.Module, batches: Sequence[Batch]) -> float:
    """Mean nats per character over batches."""
    model.eval()
    return sum(float(nats(model, b)) for b in batches) / len(batches)


def decoder(
    symbols: int, seed: int, depth: int = 4, width: int = 128, heads: int = 4, **fields: Any
) -> nn.Module:
    """A fresh decoder of GPT-2's form, without dropout."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=symbols, n_positions=LENGTH, n_embd=width, n_layer=depth, n_head=heads, resid_pdrop=0.0,
        embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0, **fields,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return GPT2LMHeadModel(config).eval()


def train(model: nn.Module, ids: Tensor, steps: int, seed: int, lr: float = 2e-3) -> nn.Module:
    """Train in place for so many batches of windows drawn from the seed."""
    settings = Settings(steps=max(steps, 1), lr=lr, warmup=0.05, precision=common.precision(), seed=seed)
    fit(model, drawn(ids, max(steps, 1), seed), nats, settings)
    return model.eval()


class _Windows:
    """Stands in for a tokenizer: an example's text is a list of ids already."""

    pad_token_id = 0
    padding_side = "right"

    def __call__(
        self, texts: Sequence[Sequence[int]], pairs: Any = None, **options: Any
    ) -> dict[str, list[list[int]]]:
        limit = options.get("max_length")
        return {"input_ids": [list(t)[:limit] for t in texts]}


class _Ids(list):  # type: ignore[type-arg]
    """A list of ids that survives the prompt put before it ("")."""

    def __radd__(self, prompt: str) -> _Ids:
        return self


@dataclass
class Windows:
    """As much of a causal language modelling task as training steps look at; an example is a window of ids."""

    ids: Tensor
    count: int
    seed: int = 0
    name: str = "causal-lm"

    @property
    def fingerprint(self) -> str:
        return f"windows-{len(self.ids)}-{self.count}-{self.seed}"

    def training_examples(self, use_labels: bool) -> list[dict[str, Any]]:
        rows = torch.cat([b.inputs["input_ids"] for b in drawn(self.ids, -(-self.count // BATCH), self.seed)])
        return [{"text": _Ids(row)} for row in rows[: self.count].tolist()]

    def calibration(self, n: int, seed: int = 0) -> list[dict[str, Any]]:
        rows = torch.cat([b.inputs["input_ids"] for b in drawn(self.ids, -(-n // BATCH), seed + 1000)])
        return [{"text": _Ids(row)} for row in rows[:n].tolist()]

    def collate(self, bundle: Bundle, examples: Sequence[Any], seed: int = 0) -> Batch:
        return bundle.collate(examples)

    def loss(self, outputs: Any, batch: Batch) -> Tensor:
        ids = batch.inputs["input_ids"]
        logits = outputs["logits"][:, :-1].float()
        return nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())


def bundle(model: nn.Module) -> Bundle:
    """A decoder as what steps take."""
    return Bundle(model, _Windows(), "causal-lm", max_length=LENGTH)
