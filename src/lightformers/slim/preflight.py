"""Pre-flight: can this be done at all, what will be tried, and what can the data prove?"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch

from lightformers import anatomy, runners, stats
from lightformers.errors import DataError
from lightformers.slim import cascading, methods
from lightformers.slim.session import Session
from lightformers.slim.space import Space, draw
from lightformers.steps import Deploy

PROBE = 192  # examples of the search split that the spread of the score is foreseen from


@dataclass(frozen=True)
class Preflight:
    """What is known before hours are spent."""

    family: str
    parameters: int
    splits: dict[str, int]
    space: Space
    resolvable: float
    provable: bool
    seconds_exact: float
    seconds_per_batch: float
    memory: int
    lines: tuple[str, ...]

    def share(self, split: str) -> float:
        """Of the examples that are scored, those of one split."""
        return self.splits[split] / (self.splits["search"] + self.splits["verify"])


def check(session: Session) -> Preflight:
    """Read the anatomy, check data against model, foresee time, memory, and the smallest loss that can be resolved."""
    bundle, task, settings = session.bundle, session.task, session.settings
    task.check(bundle)
    for text in getattr(task, "warnings", ()):
        session.warn(text)
    splits = {name: len(examples) for name, examples in task.splits.items()}
    for needed in ("search", "verify"):
        if splits.get(needed, 0) < 20:
            raise DataError(
                f"the {needed} split holds {splits.get(needed, 0)} examples; at least 20 are needed to measure quality. "
                "Give more data, or a file of its own for each split"
            )
    session.settle()
    if hasattr(task, "set_reference"):
        _reference(session)
    space = draw(bundle, settings)
    found = anatomy.of(bundle.model) if space.readable else None
    family = found.family if found else type(bundle.model).__name__
    blocks = f"{len(found.blocks)} blocks" if found else "blocks unknown"
    session.menu = methods.draw(bundle, task, settings, session.runtime, session.brief)
    cascading.check(session)
    rate, per_batch, probe = _probe(session)
    loss = stats.resolvable(probe, settings.confidence, splits["verify"])
    allowed = (
        1 - settings.floor if settings.max_drop is None else settings.max_drop / max(abs(probe.value), 1e-9)
    )
    provable = loss <= allowed
    seconds = (splits["search"] + splits["verify"]) / rate
    memory = _memory(bundle.parameters)
    lines = [
        f"{family}: {blocks}, {bundle.parameters / 1e6:.{1 if bundle.parameters > 5e4 else 3}f} M parameters; {task.name}, {task.metric.name}",
        "data: " + ", ".join(f"{n:,} {name}" for name, n in splits.items() if n),
        f"will try: {_tries(space, session)}",
        *(
            f"will not try {reason}"
            for reason in (*space.closed, *session.menu.closed, *cascading.closed(session))
        ),
        f"quality of the original takes about {seconds:.0f} s to measure; training needs about {memory / 2**30:.1f} GiB",
        f"{splits['verify']:,} verification examples can resolve a loss of about {100 * loss:.2g} %",
    ]
    if not provable:
        lines.append(
            f"a floor of {1 - allowed:.4g} can hardly be proven with this data: even an equally good model would show a "
            f"bound of about {1 - loss:.4g}. Give about {int(splits['verify'] * (loss / allowed) ** 2) + 1:,} verification "
            "examples, a lower --floor, or a lower --confidence"
        )
    return Preflight(
        family,
        bundle.parameters,
        splits,
        space,
        loss,
        provable,
        seconds,
        per_batch,
        memory,
        tuple(lines),
    )


def _reference(session: Session) -> None:
    """Tasks that measure agreement with the original (plain texts) need its outputs once."""
    runner = session.runner(session.bundle, session.exact)
    try:
        session.task.set_reference(runner)
    finally:
        runner.close()


def _probe(session: Session) -> tuple[float, float, stats.Scores]:
    """On eager fp32: examples scored per second, seconds of a batch as it arrives, and scores of part of the search split."""
    task, batch = session.task, session.settings.batch
    runner = runners.build(session.bundle, Deploy(batching="sorted", batch_size=32))
    n = min(PROBE, len(task.splits["search"]))
    try:
        arriving = task.workload(batch, seed=session.settings.seed, lengths=session.settings.lengths)
        runner(arriving[:4], task.reduce)  # warm
        start = time.monotonic()
        runner(arriving, task.reduce)
        middle = time.monotonic()
        scores = task.evaluate(runner, "search", n)
        return n / max(time.monotonic() - middle, 1e-6), max(middle - start, 1e-6), scores
    finally:
        runner.close()


def _memory(parameters: int) -> int:
    """Bytes at the height of training: original, student, gradients and two moments, and an eighth for activations."""
    base = torch.finfo(torch.float32).bits // 8 * parameters
    return int(base * 5 * 1.125) + 700 * 2**20


def _tries(space: Space, session: Session) -> str:
    menu = session.menu
    kinds = {
        "blocks": space.blocks,
        "FFN channels": space.channels,
        "heads": space.heads,
        "width": space.width,
        "rank": space.rank,
    }
    open_kinds = [f"{k} {min(v):g}..{max(v):g}" for k, v in kinds.items() if len(v) > 1]
    named = list(dict.fromkeys(name for name, _ in menu.points)) + list(menu.finishes)
    how = "relations, then outputs" if menu.relations else "distillation"
    cascades = ["each in front of the original"] if cascading.allowed(session) else []
    forms = "int8 and bf16 on openvino" if session.runtime == "openvino" else "bf16 and fp32 on torch"
    return "; ".join([*open_kinds, *named, *cascades, f"recovery by {how}, {forms}"])


def to_dict(preflight: Preflight) -> dict[str, Any]:
    """The part that `--json --dry-run` prints."""
    return {
        "family": preflight.family,
        "parameters": preflight.parameters,
        "splits": preflight.splits,
        "resolvable_loss": preflight.resolvable,
        "provable": preflight.provable,
        "seconds": round(preflight.seconds_exact, 1),
        "memory_bytes": preflight.memory,
        "plan": list(preflight.lines),
    }
