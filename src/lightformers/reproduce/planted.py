"""Text into which one sign is written that is asked for later: language modelling and far recall in one training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightformers.bundle import Batch
from lightformers.reproduce import common
from lightformers.train import Settings, fit

SIGNS = 8
#: A sign stands at least so many tokens before its question.
LEAST = 8


@dataclass(frozen=True)
class Planted:
    """Characters of Tiny Shakespeare in texts of `length`, `rows` to a batch.

    train, valid: ids; `symbols` kinds of characters, then the question mark, then SIGNS signs. A text holds one sign,
    and in its second half the question mark with the sign behind it.
    """

    train: Tensor
    valid: Tensor
    symbols: int
    length: int
    rows: int

    @classmethod
    def of(cls, length: int, rows: int) -> Planted:
        """Read the data. Raises DataError where it is not there."""
        text = {part: common.text("tinyshakespeare", part) for part in ("train", "valid")}
        number = {c: i for i, c in enumerate(sorted(set(text["train"] + text["valid"])))}
        ids = {part: torch.tensor([number[c] for c in t]) for part, t in text.items()}
        return cls(ids["train"], ids["valid"], len(number), length, rows)

    @property
    def vocabulary(self) -> int:
        return self.symbols + 1 + SIGNS

    def batches(self, part: str, count: int, seed: int) -> list[Batch]:
        return list(self._batches(getattr(self, part), count, torch.Generator().manual_seed(seed)))

    def _batches(self, ids: Tensor, count: int, generator: torch.Generator) -> Iterator[Batch]:
        def draw(low: Tensor | int, high: Tensor | int) -> Tensor:
            return (
                low + torch.rand(self.rows, 1, generator=generator) * (torch.as_tensor(high) - low)
            ).long()

        for _ in range(count):
            words = ids[draw(0, len(ids) - self.length) + torch.arange(self.length)]
            sign = self.symbols + 1 + draw(0, SIGNS)
            asked = draw(self.length // 2, self.length - 1)
            place = draw(0, asked - LEAST)
            words = words.scatter(1, place, sign).scatter(1, asked, self.symbols).scatter(1, asked + 1, sign)
            yield Batch({"input_ids": words}, {"asked": asked, "distance": (asked - place)[:, 0]})


def objective(module: nn.Module, batch: Batch) -> Tensor:
    """Nats per token, and once more those of the answer: one token of hundreds would be learned too slowly."""
    text, answer = _nats(module, batch)
    return text.mean() + answer.mean()


def _nats(module: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Of all tokens, (rows, length - 1), and of the answers, (rows, 1)."""
    words = batch.inputs["input_ids"]
    logits = module(input_ids=words).logits[:, :-1].float()
    nats = nn.functional.cross_entropy(logits.transpose(1, 2), words[:, 1:], reduction="none")
    return nats, nats.gather(1, batch.targets["asked"])


def train(model: nn.Module, batches: Sequence[Batch], steps: int, seed: int, lr: float) -> None:
    """On the batches, in place."""
    fit(
        model,
        batches,
        objective,
        Settings(steps=steps, lr=lr, warmup=0.1, precision=common.precision(), seed=seed),
    )


@torch.no_grad()
def measure(model: nn.Module, batches: Sequence[Batch], far: int) -> dict[str, float]:
    """Nats per character without the answers, and the share of right answers, near and beyond `far` tokens."""
    total, count, right, distance = 0.0, 0, [], []
    for batch in batches:
        words, asked = batch.inputs["input_ids"], batch.targets["asked"]
        logits: Any = model(input_ids=words).logits
        nats = nn.functional.cross_entropy(
            logits[:, :-1].float().transpose(1, 2), words[:, 1:], reduction="none"
        )
        total += float(nats.sum() - nats.gather(1, asked).sum())
        count += nats.numel() - len(nats)
        guess = logits.argmax(-1).gather(1, asked)
        right.append((guess == words.gather(1, asked + 1))[:, 0])
        distance.append(batch.targets["distance"])
    hit, away = torch.cat(right).float(), torch.cat(distance) > far
    out = {"loss": total / count, "recall": float(hit.mean())}
    out["recall, far"] = float(hit[away].mean()) if away.any() else 0.0
    out["recall, near"] = float(hit[~away].mean()) if (~away).any() else 0.0
    return out
