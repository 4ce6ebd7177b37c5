"""Small decoders over characters, for experiments on language models that train in seconds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from lightformers.bundle import Batch, Bundle
from lightformers.compress.calibration import batches
from lightformers.reproduce import common
from lightformers.runners.named import named, plain_arguments
from lightformers.tasks.causal_lm import CausalLM
from lightformers.train import Feed, Settings, TrainResult, fit
from lightformers.train.schedules import Schedule

LENGTH = 128


@dataclass(frozen=True)
class Characters:
    """A tokenizer of single characters: id 0 is padding, unknown ones are dropped."""

    symbols: str
    pad_token_id: int = 0
    padding_side: str = "right"

    def __call__(
        self, texts: Sequence[str], pairs: Any = None, max_length: int | None = None, **options: Any
    ) -> dict[str, list[list[int]]]:
        number = {c: i for i, c in enumerate(self.symbols, 1)}
        return {"input_ids": [[number[c] for c in t if c in number][:max_length] for t in texts]}


def alphabet(*texts: str) -> Characters:
    """Every character that occurs."""
    return Characters("".join(sorted(set().union(*texts))))


def windows(text: str, length: int = LENGTH) -> list[dict[str, Any]]:
    """Consecutive pieces of `length` characters; a shorter rest is left out."""
    return [{"text": text[i : i + length]} for i in range(0, len(text) - length + 1, length)]


def drawn(text: str, count: int, seed: int, length: int = LENGTH) -> list[dict[str, Any]]:
    """`count` pieces of `length` characters from anywhere in the text; they may overlap."""
    starts = np.random.default_rng(seed).integers(len(text) - length + 1, size=count)
    return [{"text": text[i : i + length]} for i in starts.tolist()]


def task(train: list[dict[str, Any]], valid: list[dict[str, Any]]) -> CausalLM:
    """Language modelling; half of `valid` is the search split, the other half is verified on."""
    half = len(valid) // 2
    return CausalLM.from_examples({"train": train, "valid": valid[:half], "test": valid[half:]})


def decoder(characters: Characters, seed: int, blocks: int = 4, width: int = 128, heads: int = 4, inner: int | None = None) -> Bundle:  # fmt: skip
    """A GPT-2 form with random weights."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=len(characters.symbols) + 1, n_positions=LENGTH, n_embd=width, n_layer=blocks, n_head=heads,
        n_inner=inner, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: nn.Module = GPT2LMHeadModel(config)
    return Bundle(model.eval(), characters, "causal-lm", max_length=LENGTH)


def train(
    bundle: Bundle,
    job: Any,
    steps: int,
    seed: int,
    lr: float,
    schedule: Schedule = "linear",
    held: Any = None,
) -> TrainResult:
    """Train on the task's own loss, in place, in batches of 16 windows. held: masks to keep in force."""
    feed = Feed.of(bundle, job.training_examples(True), max_tokens=16 * LENGTH, max_examples=16, seed=seed)
    arguments = plain_arguments(bundle.module())

    def objective(module: nn.Module, batch: Batch) -> torch.Tensor:
        loss: torch.Tensor = job.loss(named(module(**batch.inputs, **arguments)), batch)
        return loss

    settings = Settings(steps=max(steps, 1), lr=lr, warmup=0.1, precision=common.precision(), schedule=schedule, seed=seed)  # fmt: skip
    result = fit(bundle.module(), feed, objective, settings)
    if held is not None:
        held.enforce()
    return result


@torch.no_grad()
def loss(bundle: Bundle, job: Any, limit: int = 200) -> float:
    """Nats per character on the verify split."""
    total = count = 0.0
    for batch in batches(bundle, job.splits["verify"][:limit]):
        weight = float(batch.inputs["attention_mask"].sum())
        total += weight * float(job.loss(named(bundle.model(**batch.inputs, use_cache=False)), batch))
        count += weight
    return total / count
