"""What experiments share: a clock that keeps to the budget, data of the shared sets, fine-tuning a classifier."""

from __future__ import annotations

import dataclasses
import gzip
import json
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from lightformers import anatomy, reproduce
from lightformers.bundle import Batch, Bundle, Embedder, Pooling
from lightformers.compress.distill.common import precision as fastest
from lightformers.loading import packaged_model
from lightformers.reproduce.finding import Verdict
from lightformers.runners import build
from lightformers.runners.named import named, plain_arguments
from lightformers.steps import Deploy, Run
from lightformers.tasks.text_classification import TextClassification
from lightformers.train import Feed, Settings, TrainResult, fit

#: The budget that sizes are written for; a smaller one takes fewer seeds, steps and examples.
FULL = 300.0
#: Below this many seconds only the arms that decide are run; below the second, with two seeds and tiny data.
FEW = 200.0
SHORT = 60.0
#: Below this many there is no time to measure how many steps fit: the least is done.
TINY = 5.0
#: What the unit-length vector of a text is multiplied with before the head, so that few steps move the logits.
SCALE = 20.0


@dataclass
class Clock:
    """Keeps an experiment inside its budget (seconds)."""

    budget: float
    started: float = field(default_factory=time.monotonic)

    @property
    def few(self) -> bool:
        return self.budget < FEW

    @property
    def short(self) -> bool:
        return self.budget < SHORT

    def left(self, reserve: float = 0.1) -> float:
        """Seconds that may still be spent, `reserve` of the budget kept back; a moment where all is spent, so that what
        is still to be trained comes to its end."""
        return max(self._left(reserve), 0.05)

    def _left(self, reserve: float) -> float:
        return self.budget * (1 - reserve) - (time.monotonic() - self.started)

    def size(self, full: int, least: int) -> int:
        """`full` for the full budget, in proportion for a smaller one."""
        return max(least, round(full * min(self.budget / FULL, 1.0)))

    def seeds(self) -> tuple[int, ...]:
        return reproduce.seeds(2 if self.short else 3)

    def rounds(self, seeds: Sequence[int], tokens: int, until: float = 0.1) -> Iterator[tuple[int, int]]:
        """(seed, training tokens of an arm): as many as planned, fewer where earlier rounds took too long.

        Within a round every arm gets the same, so that comparisons are of equal budget.
        """
        for done, seed in enumerate(seeds, 1):
            begun = time.monotonic()
            yield seed, tokens
            took, rounds = time.monotonic() - begun, len(seeds) - done
            if rounds:
                tokens = max(int(tokens * min(1.0, max(self._left(until), 0.0) / rounds / took)), 1)

    def note(self) -> str:
        """What to add to the limits of a finding made on less than the full budget."""
        if self.budget >= FULL:
            return ""
        less = "steps, examples" + (", arms" if self.few else "") + (", seeds" if self.short else "")
        return f" This run had {self.budget:g} s instead of {FULL:g}: fewer {less}."


def together(*verdicts: Verdict) -> Verdict:
    """A claim of several parts holds if all do, and fails with the first part that does."""
    if "does not hold here" in verdicts:
        return "does not hold here"
    return "inconclusive" if "inconclusive" in verdicts else "holds here"


def gain(new: Sequence[float], old: Sequence[float]) -> list[float]:
    """Differences seed by seed."""
    return [a - b for a, b in zip(new, old)]


def said(values: Sequence[float], signed: bool = True) -> str:
    """Mean with interval, for a summary: "+0.012 [-0.003, +0.027]"."""
    seen, sign = reproduce.spread(values), "+" if signed else ""
    if seen["low"] is None:
        return f"{seen['mean']:{sign}.3f}"
    return f"{seen['mean']:{sign}.3f} [{seen['low']:{sign}.3f}, {seen['high']:{sign}.3f}]"


def records(name: str, part: str) -> list[dict[str, Any]]:
    """The rows of a `.jsonl.gz` file of a shared data set. Raises DataError where it is not there."""
    with gzip.open(reproduce.data(name) / f"{part}.jsonl.gz", "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def text(name: str, part: str) -> str:
    """A `.txt.gz` file of a shared data set."""
    with gzip.open(reproduce.data(name) / f"{part}.txt.gz", "rt", encoding="utf-8") as file:
        return file.read()


def sentences(name: str, part: str) -> list[str]:
    """The sentences of a treebank (`# text = ...`)."""
    with gzip.open(reproduce.data(name) / f"{part}.conllu.gz", "rt", encoding="utf-8") as file:
        return [line[9:].strip() for line in file if line.startswith("# text = ")]


def classification(name: str, train: int, held_out: int) -> TextClassification:
    """A classification set, cut to `train` training texts (drawn once) and at most `held_out` to verify on.

    trec's test part is small, so what training leaves of its train part is verified on as well.
    """
    label = "coarse" if name == "trec" else "label"
    rows = [{"text": r["text"], "label": r[label]} for r in records(name, "train")]
    test = [{"text": r["text"], "label": r[label]} for r in records(name, "test")]
    rows = [rows[i] for i in np.random.default_rng(0).permutation(len(rows))]
    rest = rows[train:]
    search, spare = (rest[:50], rest[50:]) if len(rest) > 50 else (test[:50], [])
    verify = ([*test, *spare] if name == "trec" else test)[:held_out]
    return TextClassification.from_examples({"train": rows[:train], "valid": search, "test": verify})


def encoder(task: str = "embedding", max_length: int = 64) -> Bundle:
    """all-MiniLM-L6-v2 from its package: 6 blocks, width 384, 12 heads, 22.7 million parameters."""
    from lightformers.bundle import load

    bundle = load(packaged_model(), task)
    bundle.max_length = max_length
    return bundle


class Classifier(nn.Module):
    """An encoder, the mean of its last states at unit length, and a linear head. (B, S) -> {"logits": (B, classes)}.

    The head of BERT, on the first token through a fresh or unused pooler, needs more steps than there are here.
    """

    def __init__(self, backbone: nn.Module, width: int, classes: int, seed: int) -> None:
        super().__init__()
        self.embedder = Embedder(backbone, Pooling("mean", True))
        self.head = nn.Linear(width, classes)
        with torch.no_grad():
            self.head.weight.normal_(0, 0.02, generator=torch.Generator().manual_seed(seed))
            self.head.bias.zero_()

    def forward(self, **inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"logits": self.head(SCALE * self.embedder(**inputs)["embedding"])}


def classifier(bundle: Bundle, classes: int, seed: int) -> Bundle:
    """The bundle's encoder, itself and no copy, with a fresh head for `classes`."""
    backbone: Any = getattr(bundle.model, "bert", bundle.model)
    model = Classifier(backbone, anatomy.of(bundle.model).width, classes, seed)
    return dataclasses.replace(
        bundle, model=model.eval(), task="text-classification", pooling=None, prompts={}, history=[]
    )


def chance(task: TextClassification) -> float:
    """Accuracy on the verify split of always saying its commonest label."""
    labels = [e["label"] for e in task.splits["verify"]]
    return max(map(labels.count, set(labels))) / len(labels)


def settled(
    verdict: Verdict, accuracy: Sequence[float], tasks: Iterable[TextClassification]
) -> tuple[Verdict, str]:
    """The verdict, or "inconclusive" with a sentence where models have hardly learnt: equal ignorance proves nothing.

    accuracy: of the best arm, one mean over the tasks per seed.
    """
    chances = [chance(task) for task in tasks]
    guess, seen = sum(chances) / len(chances), sum(accuracy) / len(accuracy)
    if seen - guess >= 0.1:
        return verdict, ""
    return (
        "inconclusive",
        f" Nothing follows: accuracy {seen:.3f}, the commonest label alone gives {guess:.3f}.",
    )


def precision() -> Any:
    """bf16 where this processor multiplies in it."""
    return fastest(Run(dtype="bf16"))


def fine_tune(
    bundle: Bundle, task: Any, tokens: int, seed: int, lr: float, frozen: Sequence[str] = (), steps: int | None = None
) -> TrainResult:  # fmt: skip
    """Train on the task's labels, in place, for so many tokens; the order of the examples depends on the seed."""
    feed = Feed.of(bundle, task.training_examples(True), max_tokens=2048, max_examples=32, seed=seed)
    arguments = plain_arguments(bundle.module())

    def objective(module: nn.Module, batch: Batch) -> torch.Tensor:
        loss: torch.Tensor = task.loss(named(module(**batch.inputs, **arguments)), batch)
        return loss

    settings = Settings(
        tokens=tokens, steps=steps, lr=lr, warmup=0.1, precision=precision(), frozen=tuple(frozen), seed=seed
    )
    return fit(bundle.module(), feed, objective, settings)


def accuracy(bundle: Bundle, task: Any) -> float:
    """On the verify split."""
    runner = build(bundle, Deploy("torch", precision(), "sorted", batch_size=128, max_tokens=4096))
    try:
        return float(task.evaluate(runner).value)
    finally:
        runner.close()


def vectors(bundle: Bundle, texts: Sequence[str], exact: bool = False) -> np.ndarray:
    """(n, width) embeddings. exact: in fp32."""
    deploy = Deploy("torch", "fp32" if exact else precision(), "sorted", batch_size=128, max_tokens=4096)
    runner = build(bundle, deploy)
    try:
        return np.stack(runner([{"text": t} for t in texts], lambda out, _: list(out["embedding"].numpy())))
    finally:
        runner.close()


def pairs(count: int) -> list[dict[str, Any]]:
    """Sentence pairs with a score of similarity (SemEval 2015), drawn once."""
    rows = records("sts", "test")
    return [rows[i] for i in np.random.default_rng(0).permutation(len(rows))[:count]]


def similarity(bundle: Bundle, rows: Sequence[dict[str, Any]], exact: bool = False) -> float:
    """Pearson's correlation of cosine and score over sentence pairs."""
    a, b = (vectors(bundle, [r[side] for r in rows], exact) for side in ("a", "b"))
    cosine = (a * b).sum(1) / np.maximum(np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1), 1e-12)
    return float(np.corrcoef(cosine, [r["score"] for r in rows])[0, 1])
