"""Which blocks go first where a cut leaves some out.

How far the output moves without a block is known in seconds, but it is not what training makes of the cut: a classifier of six
blocks that learns for a minute is better off with its first three and the last than with the four whose absence shows least,
and another model is not. So a run that is not to take minutes trains a cut of middle depth for a moment with each of a few
orders, and goes on with the best.
"""

from __future__ import annotations

from collections.abc import Sequence

from lightformers import anatomy
from lightformers.compress.distill import common
from lightformers.compress.prune import leave_out
from lightformers.errors import UserError, reason
from lightformers.slim import candidates
from lightformers.slim.session import Session
from lightformers.slim.space import Cut, Space
from lightformers.steps import Run

#: Examples that sensitivity is measured on, and those that trained trials are compared on.
SIGNAL_EXAMPLES, TRIED_EXAMPLES = 48, 192
#: Share of the budget that the training of one order takes.
TRIAL_SHARE = 0.015


def block_order(session: Session, space: Space) -> list[int]:
    """Blocks in the order in which they can best be spared, as far as the space goes; the rest as they stand."""
    run = Run(seed=session.settings.seed)
    found = anatomy.of(session.bundle.model)
    if min(space.blocks) == len(found.blocks):
        return candidates.in_turn(found, [])
    session.progress.trying("sensitivity: each block left out in turn")
    orders = [_sensitivity(session, found, run, bridged=False)]
    depth = (min(space.blocks) + len(found.blocks)) // 2
    if session.brief or depth == len(found.blocks):
        return orders[0]
    orders += [_sensitivity(session, found, run, bridged=True), candidates.in_turn(found, early(found))]
    different = [
        o for i, o in enumerate(orders) if set(o[-depth:]) not in [set(p[-depth:]) for p in orders[:i]]
    ]
    return orders[0] if len(different) == 1 else _tried(session, different, depth, run)


def early(found: anatomy.Anatomy) -> list[list[int]]:
    """For each stack the blocks before its last one, from behind: what stays is how it begins, and the last."""
    return [list(range(s.depth - 2, -1, -1))[: s.depth - max(1, s.depth // 3)] for s in found.stacks]


def _sensitivity(session: Session, found: anatomy.Anatomy, run: Run, bridged: bool) -> list[int]:
    """By the distance of the output without a block, or with a linear map in its place."""
    first = []
    for stack in found.stacks:
        blocks = found.stack(stack.name)
        count = len(blocks) - max(1, len(blocks) // 3)
        first.append(
            leave_out.removal_order(
                session.bundle, session.task, blocks, count, SIGNAL_EXAMPLES, run, bridged=bridged
            )
        )
    return candidates.in_turn(found, first)


def _tried(session: Session, orders: Sequence[list[int]], depth: int, run: Run) -> list[int]:
    """The order whose cut to `depth` blocks is nearest to the original after a moment of training."""
    reference = leave_out.outputs(session.bundle, session.task, TRIED_EXAMPLES, run)
    seconds = TRIAL_SHARE * session.settings.budget
    length = candidates.length(session)
    common.feed(
        session.bundle,
        session.task,
        Run(seed=run.seed, use_labels=session.settings.use_labels),
        length=length,
    )  # made once, and no trial's time
    distances: list[tuple[float, int]] = []
    for number, order in enumerate(orders):
        kept = sorted(order[-depth:])
        session.progress.trying(f"blocks {', '.join(map(str, kept))}, trained for {seconds:.0f} s")
        try:
            made = candidates.trained(session, Cut(depth), tuple(order), seconds, None)
            told = leave_out.outputs(made, session.task, TRIED_EXAMPLES, run)
            distances.append((leave_out.distance(told, reference), number))
        except (RuntimeError, MemoryError, UserError) as error:
            session.warn(f"blocks {kept}: {reason(error)}; another choice is taken")
    if not distances:
        return orders[0]
    best, number = min(distances)
    others = ", ".join(f"{d:.3f}" for d, n in distances if n != number)
    session.progress.log(
        f"of {depth} blocks stay {sorted(orders[number][-depth:])}: {best:.3f} from the original "
        f"after training, others {others}"
    )
    return orders[number]
