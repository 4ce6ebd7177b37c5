"""Decoders that learn the characters of Tiny Shakespeare: the task that experiments on layers share (`recall.contest`)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lightformers.bundle import Bundle
from lightformers.reproduce import characters, common, recall

#: Test loss, in the tables.
BITS = "bits per character"


@dataclass(frozen=True)
class Learnt:
    """A trained model, and the loss of every step (nats)."""

    bundle: Bundle
    losses: list[float]


@dataclass(frozen=True)
class Shakespeare:
    """The alphabet, and windows to learn from and to be scored on: fewer on a smaller budget."""

    letters: characters.Characters
    job: Any

    @staticmethod
    def of(clock: common.Clock, scored: int = 40_000) -> Shakespeare:
        text = {part: common.text("tinyshakespeare", part) for part in ("train", "valid")}
        job = characters.task(
            characters.windows(text["train"][: clock.size(len(text["train"]), 20_000)]),
            characters.windows(text["valid"][: clock.size(scored, 3_000)]),
        )
        return Shakespeare(characters.alphabet(*text.values()), job)

    @property
    def vocab(self) -> int:
        return len(self.letters.symbols) + 1

    def bits(self, bundle: Bundle) -> float:
        """Bits per character on the verify split."""
        return characters.loss(bundle, self.job) / math.log(2)

    def trial(
        self,
        arm: str,
        make: Callable[[int], Any],
        lr: float,
        also: Callable[[Learnt], dict[str, float]] | None = None,
    ) -> recall.Trial:
        """An arm of `recall.contest`. make: seed -> model over `vocab` tokens. also: more cells of a trained one."""

        def learn(seed: int, steps: int) -> Learnt:
            bundle = Bundle(make(seed), self.letters, "causal-lm", max_length=characters.LENGTH)
            return Learnt(bundle, characters.train(bundle, self.job, steps, seed, lr).losses)

        def measure(learnt: Learnt) -> dict[str, float]:
            return {BITS: self.bits(learnt.bundle), **({} if also is None else also(learnt))}

        return recall.Trial(arm, learn, measure)
