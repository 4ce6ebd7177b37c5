"""One cell of an arena: one mixer trained on one task with one seed; and how fast and how large it is beside others."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lightformers import measure, stats
from lightformers.arena import model
from lightformers.arena.mixers import Contender
from lightformers.arena.rows import Row, is_probe, row
from lightformers.arena.settings import Settings
from lightformers.bundle import Batch
from lightformers.errors import reason
from lightformers.measure.allocation import allocated
from lightformers.models.matching import Matched
from lightformers.slim.session import interval_dict
from lightformers.tasks import arena as tasks
from lightformers.tasks import probing, sequences
from lightformers.tasks.probes import PROBES, Probe
from lightformers.tasks.sequences import Split
from lightformers.train import Diverged, Feed, fit
from lightformers.train import Settings as Training

Told = Callable[[dict[str, Any]], None]
#: Examples that a probe is scored on.
_ASKED = 512


@dataclass
class Job:
    """A task with its data: makes models for it, trains, scores and times them. split: None for a probe."""

    task: str
    row: Row
    settings: Settings
    split: Split | None

    @classmethod
    def of(cls, task: str, settings: Settings) -> Job:
        """Loads or generates the data. Raises UserError where it cannot be had."""
        chosen = row(task, settings.scale)
        if is_probe(task):
            return cls(task, chosen, settings, None)
        known = tasks.ARENA[task].sizes[settings.scale]
        fewer = {}
        if settings.examples is not None:
            fewer = {
                "train": min(settings.examples, known["train"]),
                "test": min(settings.examples // 5, known["test"]),
            }
        split = tasks.load(task, settings.scale, settings.seed, settings.data.get(task), **fewer)
        return cls(task, chosen, settings, split)

    @property
    def chance(self) -> float:
        """Accuracy of a guess."""
        if self.split is not None:
            return self.split.chance
        return 1 / self.probe.answers

    @property
    def probe(self) -> Probe:
        """The generator, at the row's sizes."""
        return PROBES[self.task].sized(**self.row.probe)

    def facts(self) -> dict[str, Any]:
        """What a report says of the task."""
        if self.split is None:
            length = self.batch().inputs["input_ids"].shape[1]
            sizes = {
                "about": self.probe.summary,
                "length": length,
                "answers": self.probe.answers,
                "examples": None,
            }
        else:
            sizes = {
                "about": self.split.about, "length": self.split.length, "answers": self.split.classes,
                "examples": {"train": len(self.split.train), "test": len(self.split.test)},
            }  # fmt: skip
        return {
            "name": self.task,
            "probe": self.split is None,
            "chance": self.chance,
            "row": vars(self.row),
            **sizes,
        }

    def build(self, who: Contender, hidden: int) -> nn.Module:
        """A model with random weights."""
        if self.split is not None:
            return model.encoder(who, self.row, self.split, hidden)
        length = self._probe_batch(1, 0).inputs["input_ids"].shape[1]
        return model.decoder(who, self.row, self.probe.vocab, length, hidden)

    def size(self, who: Contender) -> Matched:
        """The feed-forward's width and the parameters that come of it."""
        return model.sized(self.build, who, self.row, self.settings.equal)

    def train(
        self, who: Contender, hidden: int, seed: int, seconds: float | None, told: Told
    ) -> dict[str, Any]:
        """Trains a fresh model and scores it. Raises Diverged where the loss is not finite."""
        torch.manual_seed(seed)
        module = self.build(who, hidden)
        steps = None if seconds is not None else self.settings.steps or self.row.steps
        training = Training(
            seconds=seconds, steps=steps, lr=self.row.lr, warmup=self.row.warmup, schedule=self.row.schedule,
            weight_decay=self.row.weight_decay, precision="fp32", seed=seed,
        )  # fmt: skip
        feed, loss = self._feed(seed)
        result = fit(module, feed, loss, training, told, device=self.settings.device)
        found = self._score(module.eval())
        return {
            "quality": interval_dict(stats.interval(found)),
            "loss": result.loss,
            "steps": result.steps,
            "seconds": result.seconds,
            "losses": _thin(result.losses),
        }

    def _feed(self, seed: int) -> tuple[Any, Callable[[nn.Module, Batch], Tensor]]:
        if self.split is None:
            return probing.Fresh(self.probe, self.row.batch, seed), probing.asked_loss
        train = self.split.train
        feed = Feed(
            range(len(train)), lambda index, _: train.batch(index), train.lengths, seed=seed,
            max_tokens=self.row.batch * self.split.length, max_examples=self.row.batch,
        )  # fmt: skip
        return feed, sequences.class_loss

    def _score(self, module: nn.Module) -> stats.Scores:
        if self.split is not None:
            return sequences.score(module, self.split.test, self.row.batch)
        # other seeds than those of training, the same for all mixers
        return probing.score(module, self.probe, self.settings.seed, _ASKED, self.row.batch)

    def _probe_batch(self, size: int, position: int) -> Batch:
        return probing.Fresh(self.probe, size, self.settings.seed).batch(position)

    def batch(self) -> Batch:
        """The one that is timed: as many examples as in training, the longest ones."""
        if self.split is None:
            return self._probe_batch(self.row.batch, 0)
        longest = self.split.train.lengths.argsort()[::-1][: self.row.batch]
        return self.split.train.batch(longest.tolist())

    def speeds(self, hidden: Mapping[Contender, int]) -> dict[str, dict[str, Any]]:
        """name -> examples a second in training (forward and backward) and inference, with ratios to the first, in turn;
        and the most bytes that a training step allocates."""
        device = self.settings.device
        batch = self.batch().to(device)
        _, loss = self._feed(0)
        learn, infer, memory = {}, {}, {}
        for who, width in hidden.items():
            with torch.random.fork_rng():
                torch.manual_seed(self.settings.seed)
                module = self.build(who, width).eval().to(device)
            learn[who.name] = partial(_learn, module, batch, loss)
            infer[who.name] = partial(_infer, module, batch, loss)
            learn[who.name]()  # gradients are there and kernels are chosen before anything is counted
            memory[who.name] = allocated(learn[who.name], device)
        timed = {
            "train": measure.compare(learn, self.settings.rounds),
            "infer": measure.compare(infer, self.settings.rounds),
        }
        first, size = next(iter(hidden)).name, self.row.batch
        return {
            who.name: {
                "memory": memory[who.name],
                **{
                    way: {
                        "throughput": size / timing[who.name].median,
                        "speedup": interval_dict(measure.paired(timing[first], timing[who.name])),
                    }
                    for way, timing in timed.items()
                },
            }
            for who in hidden
        }


def _learn(module: nn.Module, batch: Batch, loss: Callable[[nn.Module, Batch], Tensor]) -> float:
    value = loss(module, batch)
    value.backward()
    module.zero_grad()
    return float(value.detach())


@torch.no_grad()
def _infer(module: nn.Module, batch: Batch, loss: Callable[[nn.Module, Batch], Tensor]) -> float:
    return float(loss(module, batch))


def _thin(losses: list[float], count: int = 60) -> list[float]:
    """Means of so many equal parts, for a curve."""
    parts = min(count, len(losses))
    bounds = [round(i * len(losses) / parts) for i in range(parts + 1)] if parts else []
    return [sum(losses[a:b]) / (b - a) for a, b in itertools.pairwise(bounds)]


def attempt(
    job: Job, who: Contender, hidden: int, seed: int, seconds: float | None, told: Told
) -> dict[str, Any]:
    """`train`, as a row of results: state "done", or "failed" with the reason."""
    started = time.monotonic()
    try:
        found: dict[str, Any] = {"state": "done", **job.train(who, hidden, seed, seconds, told)}
    except Diverged as error:
        found = {"state": "failed", "reason": str(error)}
    except (
        RuntimeError,
        ValueError,
    ) as error:  # a mixer that cannot do this shape, or memory that is not enough
        found = {"state": "failed", "reason": reason(error)}
    if found["state"] == "done" and not math.isfinite(found["loss"]):
        found = {"state": "failed", "reason": "the loss is not finite"}
    return found | {"task": job.task, "mixer": who.name, "seed": seed, "took": time.monotonic() - started}
