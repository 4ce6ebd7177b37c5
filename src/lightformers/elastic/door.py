"""`Elastic`: a trained whole with its sizes. Train, keep, pick, extract, show."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from lightformers import anatomy, export, runners, stats
from lightformers.bundle import Bundle, load
from lightformers.compress import elastic as methods
from lightformers.compress.elastic.shared import Shared
from lightformers.compress.elastic.size import Size, cut, size_of
from lightformers.compress.elastic.space import Space
from lightformers.elastic import frontier, picking
from lightformers.elastic.budget import Budget
from lightformers.elastic.picking import Picked, Predictor
from lightformers.errors import ModelError, UserError
from lightformers.files import read_json, write_json
from lightformers.runners.named import named
from lightformers.steps import Deploy, Run, fields_of

FILE = "elastic.json"
#: How sizes are scored: order and padding change no result.
EXACT = Deploy("torch", "fp32", "sorted", batch_size=64, max_tokens=4096)


@dataclass(frozen=True)
class Elastic:
    """The whole model, the space of its sizes, and the method that trained it. Raises ModelError if they don't fit."""

    bundle: Bundle
    space: Space
    method: methods.Method

    def __post_init__(self) -> None:
        self.space.check(self.bundle.model)

    @classmethod
    def train(cls, bundle: Bundle, task: Any, method: methods.Method, run: Run | None = None) -> Elastic:
        """Train a copy of `bundle`; the original is untouched, and teaches it where the run names no other teacher."""
        run = replace(run) if run else Run()
        run.teacher = run.teacher or bundle
        work = bundle.copy()
        space = method.space(work)
        space.check(work.model)
        begun = time.monotonic()
        work = method.train(work, task, run)
        work.history.append(_entry(type(method).__name__, fields_of(method), work, work, begun))
        return cls(work, space, method)

    def save(self, folder: str | Path, allow_custom: bool = False) -> Path:
        """The whole model as `export.save` writes it, and elastic.json beside it. Raises ModelError as that does."""
        name = methods.name_of(self.method)
        export.save(self.bundle, folder, allow_custom)
        return write_json(
            Path(folder) / FILE,
            {
                "elastic": 1,
                "method": {"name": name, "fields": fields_of(self.method)},
                "space": self.space.to_dict(),
                "whole": size_of(self.bundle.model).to_dict(),
            },
        )

    @classmethod
    def load(cls, folder: str | Path, task: str | None = None, trust_remote_code: bool = False) -> Elastic:
        """What `save` wrote. Raises UserError where it is no elastic model or is damaged."""
        file = Path(folder) / FILE
        if not file.is_file():
            raise UserError(
                f"{folder} is no elastic model: it has no {FILE}. `lightformers elastic train` writes one"
            )
        try:
            held = read_json(file)
            if held["elastic"] != 1:
                raise ModelError(f"{file} has format {held['elastic']}: it needs a newer lightformers")
            space = Space.from_dict(held["space"])
            method = methods.method(held["method"]["name"], held["method"]["fields"])
            size = Size.from_dict(held["whole"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelError(f"{file} is damaged: {error!r}") from error
        bundle = load(folder, task, trust_remote_code)
        if (found := size_of(bundle.model)) != size:
            raise ModelError(f"{folder} holds another model than its {FILE} says: {found}, not {size}")
        return cls(bundle, space, method)

    @cached_property
    def _shared(self) -> Shared:
        return Shared(self.bundle, self.space.nesting)

    @cached_property
    def _weights(self) -> dict[Size, int]:
        return {}

    @cached_property
    def _opens(self) -> dict[Size, bool]:
        return {}

    def parameters(self, size: Size) -> int:
        """How many weights this size has."""
        if size not in self._weights:
            self._weights[size] = self._shared.parameters_of(size)
        return self._weights[size]

    def native(self, size: Size) -> bool:
        """Whether plain transformers opens this size."""
        if size not in self._opens:
            self._opens[size] = not anatomy.native_reasons(self._shared.outline(size).model)
        return self._opens[size]

    def extract(self, size: Size) -> Bundle:
        """This size as a model of its own, with the outputs it has inside the whole. Raises ModelError for others."""
        if size not in self.space:
            raise ModelError(f"{size} is none of this model's sizes: {self.space}")
        begun, small = time.monotonic(), self.bundle.copy()
        stacks = anatomy.of(small.model).stacks
        cut(small.model, size, self.space.nesting)
        if len(stacks) == 1:
            name, depth = stacks[0].name, len(anatomy.of(self.bundle.model).blocks)
            old = tuple(small.origin.blocks.get(name) or range(depth))
            kept = self.space.nesting.blocks(size.blocks, depth)
            small.origin = replace(
                small.origin, blocks={**small.origin.blocks, name: tuple(old[i] for i in kept)}
            )
        small.history.append(_entry("Elastic.extract", size.to_dict(), self.bundle, small, begun))
        return small

    def sizes(self, number: int = 12, seed: int = 0) -> list[Size]:
        """Up to `number` sizes from the smallest to the largest, by their weights."""
        found = picking.candidates(self.space, number, np.random.default_rng(seed))
        return sorted(found, key=self.parameters)

    def pick(
        self, budget: str | Budget, task: Any = None, number: int = 12, native: bool = False,
        deploy: Deploy | None = None, seed: int = 0, say: Callable[[str], None] = lambda text: None,
    ) -> Picked:  # fmt: skip
        """The best size within a budget such as "params=10M" or "latency=5ms".

        With a task, about `number` sizes that fit are scored on its search split and the best is taken; without one, the
        one with the most weights. Latency is that of one example of the task's workload run as `deploy` (default: the
        bundle's own, else eager fp32): predicted from a few sizes that are timed, and measured for the one that is taken.
        native: only sizes that plain transformers opens. say: called with what is being done.
        Raises UserError where nothing fits, with the least that is possible.
        """
        wanted = Budget.parse(budget) if isinstance(budget, str) else budget
        if wanted.kind == "latency" and task is None:
            raise UserError("latency is measured on a task's workload: give a task (--task and --data)")
        rng = np.random.default_rng(seed)
        # no config says unequal blocks: where plain transformers is to open the result, they need not be looked at
        space = replace(self.space, alike=True) if native else self.space
        pool = [s for s in picking.candidates(space, picking.POOL, rng) if not native or self.native(s)]
        if not pool:
            raise UserError(
                "plain transformers opens no size of this space: use --allow-custom (native=False)"
            )
        cost: Callable[[Size], float] = self.parameters
        if wanted.kind == "latency":
            say("timing a few sizes")
            cost = self._predictor(pool, task, deploy, seed)
        fits = [size for size in pool if cost(size) <= wanted.limit]
        if not fits:
            least = wanted.said(min(map(cost, pool)))
            raise UserError(f"no size of this model fits {wanted}: the smallest possible takes {least}")
        if task is None:
            best = max(fits, key=self.parameters)
            return Picked(best, self.parameters(best))

        def price(size: Size) -> float:
            return cost(size) if not native or self.native(size) else float("inf")

        higher, quality = self._quality(task, say)
        tried = picking.search(space, fits, price, wanted.limit, quality, number, rng)
        said = tuple((size, value if higher else -value) for size, value in tried)
        if wanted.kind == "latency":
            return self._within(wanted, task, deploy, said, fits, seed, say)
        return Picked(said[0][0], self.parameters(said[0][0]), None, said[0][1], said)

    def _predictor(
        self, pool: list[Size], task: Any, deploy: Deploy | None, seed: int
    ) -> Callable[[Size], float]:
        """Milliseconds of a size, from a few of the pool that are timed."""
        order = sorted(pool, key=self.parameters)
        grid = list(dict.fromkeys(order[round(i)] for i in np.linspace(0, len(order) - 1, picking.GRID)))
        found = Predictor.fit(grid, [self.parameters(s) for s in grid], self._times(grid, task, deploy, seed))
        return lambda size: found(size, self.parameters(size))

    def _times(self, sizes: list[Size], task: Any, deploy: Deploy | None, seed: int) -> list[float]:
        examples = task.workload(picking.ALONE, seed=seed)
        return picking.times(map(self.extract, sizes), examples, task.reduce, deploy)

    def _quality(self, task: Any, say: Callable[[str], None]) -> tuple[bool, Callable[[Size], float]]:
        """Whether more is better in the task's metric, and the quality of a size so that more is better."""
        sign = 1 if task.metric.higher_is_better else -1
        reference = runners.build(self.bundle, EXACT)
        task.set_reference(reference, ("search",))
        reference.close()

        def quality(size: Size) -> float:
            say(f"scoring {size}")
            return sign * self._scores(size, task, "search", picking.SCORED).value

        return sign > 0, quality

    def _scores(self, size: Size, task: Any, split: str, limit: int | None) -> stats.Scores:
        runner = runners.build(self.extract(size), EXACT)
        try:
            found: stats.Scores = task.evaluate(runner, split, limit)
            return found
        finally:
            runner.close()

    def _within(
        self, wanted: Budget, task: Any, deploy: Deploy | None, said: tuple[tuple[Size, float], ...], fits: list[Size],
        seed: int, say: Callable[[str], None],
    ) -> Picked:  # fmt: skip
        """The best of those tried that is measured to keep within the latency, else the smallest that does."""
        smallest = min(fits, key=self.parameters)
        ms = float("inf")
        for size, value in [*said, *((s, None) for s in [smallest] if s not in dict(said))]:
            say(f"timing {size}")
            (ms,) = self._times([size], task, deploy, seed)
            if ms <= wanted.limit:
                return Picked(size, self.parameters(size), ms, value, said)
        raise UserError(
            f"no size of this model was measured within {wanted}: the smallest takes {wanted.said(ms)}"
        )

    def frontier(
        self, task: Any, folder: str | Path | None = None, number: int = 12, split: str = "verify",
        deploy: Deploy | None = None, seed: int = 0,
    ) -> dict[str, Any]:  # fmt: skip
        """Quality on `split` with its 95 % interval, weights and latency of up to `number` sizes, smallest first.

        The latencies are those of single examples, all sizes in turn. folder: frontier.json and frontier.html, a page
        that needs nothing else, are written there.
        """
        chosen = self.sizes(number, seed)
        reference = runners.build(self.bundle, EXACT)
        task.set_reference(reference, (split,))
        reference.close()
        rows = []
        for size, ms in zip(chosen, self._times(chosen, task, deploy, seed)):
            found = stats.interval(self._scores(size, task, split, None))
            quality = {"estimate": found.estimate, "low": found.low, "high": found.high}
            rows.append({"name": str(size), "size": size.to_dict(), "parameters": self.parameters(size),
                         "latency_ms": ms, "quality": quality})  # fmt: skip
        facts = {
            "method": type(self.method).__name__,
            "task": task.name,
            "metric": task.metric.name,
            "higher_is_better": task.metric.higher_is_better,
            "split": split,
            "sizes_in_all": self.space.count,
            "deploy": str(deploy or self.bundle.deploy or Deploy()),
            "rows": rows,
        }
        if folder is not None:
            frontier.write(facts, folder)
        return facts

    def outputs(self, size: Size, **inputs: Any) -> Any:
        """Named outputs of a size on the whole model's own weights, without extracting it."""
        return named(self._shared(size, **inputs))


def _entry(name: str, fields: dict[str, Any], before: Bundle, after: Bundle, begun: float) -> dict[str, Any]:
    return {
        "step": name, "parameters": fields, "size_before": before.parameters, "size_after": after.parameters,
        "seconds": round(time.monotonic() - begun, 2),
    }  # fmt: skip
