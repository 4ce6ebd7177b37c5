"""Which blocks go first where a cut leaves some out.

How far the output moves without a block is known in seconds, but it is not what training makes of the cut. A classifier of six
blocks (MiniLM on SST-2) that is cut to four learns most with its first three and the last, least with the four whose absence
shows least; the encoder it comes from, on retrieval, is best off with every other block (one training each). So a run that is
not to take minutes trains a cut of middle depth for a moment with each of a few orders, and goes on with the best.
"""

from __future__ import annotations

from collections.abc import Sequence

from lightformers import anatomy
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
    run = session.run()
    found = anatomy.of(session.bundle.model)
    if min(space.blocks) == len(found.blocks):
        return candidates.in_turn(found, [])
    session.progress.trying("sensitivity: each block left out in turn")
    first = [
        leave_out.removal_order(
            session.bundle, session.task, found.stack(s.name), _most(s), SIGNAL_EXAMPLES, run
        )
        for s in found.stacks
    ]
    sensitivity = candidates.in_turn(found, first)
    depth = (min(space.blocks) + len(found.blocks)) // 2
    if session.brief or depth == len(found.blocks):
        return sensitivity
    orders = [sensitivity, *(candidates.in_turn(found, [o(s) for s in found.stacks]) for o in (even, early))]
    different = [
        o for i, o in enumerate(orders) if set(o[-depth:]) not in [set(p[-depth:]) for p in orders[:i]]
    ]
    return sensitivity if len(different) == 1 else _tried(session, different, depth, run)


def _most(stack: anatomy.Stack) -> int:
    """Blocks of a stack that may go."""
    return stack.depth - max(1, stack.depth // 3)


def early(stack: anatomy.Stack) -> list[int]:
    """The blocks before the last, from behind: what stays is how the stack begins, and its last block."""
    return list(range(stack.depth - 2, -1, -1))[: _most(stack)]


def even(stack: anatomy.Stack) -> list[int]:
    """Inner blocks, each as far as may be from those that went before it (van der Corput's order), then the first."""
    inner = range(max(stack.depth - 2, 0))
    bits = max(len(inner) - 1, 1).bit_length()
    return [*(i + 1 for i in sorted(inner, key=lambda i: f"{i:0{bits}b}"[::-1])), 0][: _most(stack)]


def _tried(session: Session, orders: Sequence[list[int]], depth: int, run: Run) -> list[int]:
    """The order whose cut to `depth` blocks is nearest to the original after a moment of training."""
    reference = leave_out.outputs(session.bundle, session.task, TRIED_EXAMPLES, run)
    seconds = TRIAL_SHARE * session.settings.budget
    candidates.prepare(session)
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
    others = "".join(f", another choice {d:.3f}" for d, n in distances if n != number)
    session.progress.log(
        f"{depth} blocks: {sorted(orders[number][-depth:])} stay, {best:.3f} from the original after training{others}"
    )
    return orders[number]
