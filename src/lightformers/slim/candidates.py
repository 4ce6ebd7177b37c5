"""A candidate of the search: the steps that make it, its recovery, and its weights on disk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from lightformers import anatomy
from lightformers.bundle import Bundle
from lightformers.files import replacing
from lightformers.slim.methods import BITS, method
from lightformers.slim.session import Session
from lightformers.slim.space import CostModel, Cut, work_of
from lightformers.steps import Deploy, Recipe, Run, Stage, Step

BRIEF_LENGTH = 128  # tokens that training texts are cut to in a run of minutes
#: Times that a training may see each text before texts are made up beside; how many at most for each that is there, and in all.
EPOCHS, MOST_MADE_UP, ALL_MADE_UP = 4, 16, 300_000
#: Seconds of training a candidate on a text, relative to eager fp32 running the original on it in order of arrival; and the
#: share of a budget that the winner is trained for.
TRAINED, WINNER = 0.3, 0.4


def steps_of(cut: Cut, bundle: Bundle, order: tuple[int, ...]) -> list[Step]:
    """The steps that make `cut` of `bundle`, without recovery; `order`: blocks, the one to drop first in front."""
    from lightformers.compress import DropBlocks, LowRank, PruneChannels, PruneHeads, PruneWidth

    if cut.method:
        return list(method(cut.method).make(cut.ratio, bundle))
    steps: list[Step] = []
    found = anatomy.of(bundle.model)
    dropped = set(order[: len(order) - cut.blocks])
    for stack in found.stacks if dropped else ():
        left = (b.index for i, b in enumerate(found.blocks) if b.stack == stack.name and i not in dropped)
        if len(kept := tuple(left)) < stack.depth:
            steps.append(DropBlocks(blocks=kept, stack=stack.name if len(found.stacks) > 1 else None))
    if cut.width < 1:
        steps.append(PruneWidth(keep=cut.width))
    if cut.heads < 1:
        steps.append(PruneHeads(keep=cut.heads))
    if cut.channels < 1:
        steps.append(PruneChannels(keep=cut.channels))
    if cut.rank < 1:
        steps.append(LowRank(rank=cut.rank))
    return steps


def in_turn(found: anatomy.Anatomy, first: Sequence[Sequence[int]]) -> list[int]:
    """All blocks, by their place in the model, the one to drop first in front: the stacks give one in turn, so that each
    is shortened in proportion.

    first: for each stack, in its own numbers, those that can best be spared; the others follow, last ones first, and
    what may not go (a stack keeps a third of its blocks, and one at least) comes at the end.
    """
    spare, kept, start = [], [], 0
    for number, stack in enumerate(found.stacks):
        begun = list(first[number]) if first else []
        rest = [i for i in reversed(range(stack.depth)) if i not in begun]
        order = [start + i for i in (*begun, *rest)]
        most = stack.depth - max(1, stack.depth // 3)
        spare += [((place + 1) / most, i) for place, i in enumerate(order[:most])]
        kept += order[most:]
        start += stack.depth
    return [i for _, i in sorted(spare, key=lambda s: s[0])] + sorted(kept)


def split(steps: list[Step]) -> tuple[list[Step], list[Step]]:
    """Steps before recovery, and those after it: zeros are packed when nothing learns any more."""
    from lightformers.compress import PackSparse

    return [s for s in steps if not isinstance(s, PackSparse)], [
        s for s in steps if isinstance(s, PackSparse)
    ]


def trains(cut: Cut) -> bool:
    """Whether the candidate's own method trains, so that its model cannot be built without its training."""
    return bool(cut.method) and method(cut.method).needs_training


def student(session: Session, cut: Cut, order: tuple[int, ...]) -> Bundle:
    """The original with `cut` made, not trained."""
    steps, _ = split(steps_of(cut, session.bundle, order))
    return (
        Recipe(steps).apply(session.bundle, session.task, session.run()) if steps else session.bundle.copy()
    )


def length(session: Session) -> int | None:
    """Tokens that training texts are cut to."""
    return BRIEF_LENGTH if session.brief else None


def made_up(session: Session) -> int:
    """How many texts are made up for each training text: as many as let the winner see none too often."""
    from lightformers.compress.distill import common

    batch = session.store.get("seconds_per_batch")
    rows = session.task.training_examples(session.settings.use_labels)
    if not batch or not common.single_texts(session.bundle, rows):
        return 0
    epoch = TRAINED * batch * len(rows) / session.settings.batch
    wanted = int(WINNER * session.settings.budget / epoch / EPOCHS)
    return min(wanted, MOST_MADE_UP, ALL_MADE_UP // len(rows))


def prepare(session: Session) -> None:
    """Make what recoveries learn from, once: it is nobody's training time."""
    from lightformers.compress.distill import common

    session.progress.trying("preparing what recovery learns from")
    common.feed(session.bundle, session.task, session.run(), length=length(session), more=made_up(session))


def recovery(session: Session, seconds: float) -> list[Step]:
    """The recovery of the search; `seconds` stand in the recipe, so that a replay trains as long."""
    from lightformers.compress import MiniLM, Recover

    shape: dict[str, Any] = {"length": length(session), "made_up": made_up(session)}
    if session.settings.names("minilm"):
        half = seconds / 2
        return [MiniLM(seconds=half, share=0.5), Recover(seconds=half, share=0.5, **shape)]
    return [Recover(seconds=seconds, **shape)]


def recovered(session: Session, cut: Cut, seconds: float) -> list[Step]:
    """What brings a candidate back: nothing beside what its own method does."""
    return (
        [] if trains(cut) or (cut.method and not method(cut.method).recovers) else recovery(session, seconds)
    )


def trained(
    session: Session, cut: Cut, order: tuple[int, ...], seconds: float, before: Path | None
) -> Bundle:
    """A candidate after `seconds` of training: from the weights in `before` on, or, where its method trains, anew."""
    run = Run(
        teacher=session.bundle, seed=session.settings.seed, seconds=seconds, use_labels=session.settings.use_labels,
        progress=lambda e: session.progress.training(**e),
    )  # fmt: skip
    if trains(cut):
        steps, _ = split(steps_of(cut, session.bundle, order))
        return Recipe(steps).apply(session.bundle, session.task, run)
    model = student(session, cut, order)
    if before:
        load_weights(model, before)
    for step in recovered(session, cut, seconds):
        model = step.apply(model, session.task, run)
    return model


def keep(cut: Cut, bundle: Bundle, path: Path) -> None:
    """Keep a trained candidate: its weights, or the whole model where it cannot be built again."""
    from lightformers import export

    if trains(cut):
        export.save(bundle, path.with_suffix(""), allow_custom=True)
    else:
        save_weights(bundle, path)


def restored(session: Session, cut: Cut, order: tuple[int, ...], path: Path) -> Bundle:
    """A candidate as it was kept."""
    from lightformers.bundle import load

    if trains(cut):
        return load(path.with_suffix(""), task=session.bundle.task)
    model = student(session, cut, order)
    load_weights(model, path)
    return model


def on_torch(cut: Cut) -> bool:
    """Whether the candidate runs from a form of its own, which other runtimes would only unpack."""
    return bool(cut.method) and (not method(cut.method).faster or method(cut.method).kind == "quantize")


def deployed(cut: Cut, deploy: Deploy) -> Deploy:
    """How a candidate is run where the original is best run as `deploy`."""
    return in_torch(deploy) if on_torch(cut) else deploy


def in_torch(deploy: Deploy) -> Deploy:
    """The same batches, run by torch in full precision: packed weights bring a precision of their own."""
    return replace(deploy, runtime="torch", precision="fp32", streams=1, threads=None)


def placed(steps: Sequence[Step], step: Step) -> list[Step]:
    """`steps` with `step` where its stage belongs."""
    later = (i for i, s in enumerate(steps) if s.stage > step.stage and s.stage is not Stage.RECOVER)
    place = next(later, len(steps))
    return [*steps[:place], step, *steps[place:]]


def price(
    session: Session, cut: Cut, made: Bundle | None, cost: CostModel, examples: int
) -> dict[str, float | int]:
    """What a candidate will cost: predicted milliseconds an example, parameters, and the one of both (or the bytes) that
    the goal is about. made: None for one that is not trained yet: then it is taken to come to its ratio."""
    whole = session.bundle
    blocks = [b.path for b in anatomy.of(whole.model).blocks]
    held = anatomy.parameters_of(whole.model, blocks)
    work, parameters = cut.work(), made.parameters if made else whole.parameters
    if cut.method and method(cut.method).faster:
        work = work_of(made.model, whole.model) if made else work * np.array([1.0, 1.0, cut.ratio, cut.ratio])
    if cut.method and method(cut.method).sized and (made is None or on_torch(cut)):
        parameters = whole.parameters - round((1 - cut.ratio) * held)
    predicted = 1000 * cost.seconds(work) / examples
    deploy = deployed(cut, Deploy(**session.store.get("deploy")["best"]))
    size = parameters * (1 if deploy.precision.startswith("int8") else 4)
    return {
        "predicted_ms": predicted,
        "parameters": parameters,
        "cost": size if session.settings.goal == "size" else predicted,
    }


def whole(session: Session, cost: CostModel, examples: int) -> float:
    """What the original costs, in the same words."""
    found = Cut(len(anatomy.of(session.bundle.model).blocks))
    return float(price(session, found, session.bundle, cost, examples)["cost"])


def quantizer(name: str, bundle: Bundle, goal: str) -> list[Step]:
    """The steps of a quantizing method: four bits where size is the goal and it has them, else eight."""
    bits = 4 if goal == "size" and name != "llm-int8" else 8
    return list(method(name).make(BITS[bits], bundle))


def slug(name: str) -> str:
    """A candidate's name as part of a file's name."""
    return name.replace(", ", "-").replace(" ", "_")


def checkpoint(session: Session, name: str, rung: int) -> Path:
    """Where the weights of a candidate lie after a rung."""
    return session.store.folder / "weights" / f"{slug(name)}-{rung}.safetensors"


def save_weights(bundle: Bundle, path: Path) -> None:
    """Keep the weights of a candidate; tied ones once."""
    from safetensors.torch import save_model

    with replacing(path) as temporary:
        save_model(bundle.model, str(temporary))


def load_weights(bundle: Bundle, path: Path) -> None:
    """Load weights that `save_weights` kept into a model of the same shape."""
    from safetensors.torch import load_model

    load_model(bundle.model, str(path))
