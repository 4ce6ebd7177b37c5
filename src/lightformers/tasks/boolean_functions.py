"""Boolean functions to be learned from examples in the prompt (Bhattamishra et al., 2023, arXiv 2310.03016).

    made = prompts("conjunction", seed=0, count=64, points=40, size=10)
    model(inputs_embeds=project(interleaved(made))).logits[:, 0::2, 0]     # a score for every label

Inputs are of -1 and 1, labels too. A prompt is a fresh function with `points` examples of it; the prompt number i of a seed
is the same however many are drawn. `learners` predict every label of a prompt from the examples before it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lightformers.errors import UserError

Array = NDArray[np.int64]
#: Chances of a variable: left out, as it is, negated.
_LITERALS, _CLAUSES = (0.7, 0.15, 0.15), (0.8, 0.1, 0.1)
#: Share of examples that are made to satisfy (or falsify) the function, or one of its clauses.
FORCED, FORCED_CLAUSE = 0.3, 0.35


@dataclass(frozen=True)
class Prompts:
    """x: (count, points, size), y: (count, points), all -1 or 1. taught: (count), how many of the first examples are a
    teaching sequence."""

    x: Array
    y: Array
    taught: Array


@dataclass(frozen=True)
class _Function:
    """One function. label: (n, size) -> (n). force: writes into (n, size) inputs what makes them rarer labels, or None.
    share: of the examples that are forced. lesson: inputs of its teaching sequence, or None."""

    label: Callable[[Array], Array]
    force: Callable[[Array], Array] | None = None
    share: float = FORCED
    lesson: Array | None = None


def prompts(
    kind: str, seed: int | tuple[int, ...], count: int, points: int, size: int, teach: bool = False, labelled: int = 0
) -> Prompts:  # fmt: skip
    """`count` prompts of a row of `FUNCTIONS`, or of "nearest".

    teach: each begins with its teaching sequence (monotone, conjunction, dnf). labelled: for "nearest" only, how many of
    the first points have a random label (the same for the same point), before each takes the label of the most similar
    earlier one; 0: half of them. Raises UserError for unknown kinds, sizes without sense, and teaching sequences longer
    than the prompt.
    """
    if kind not in KINDS:
        raise UserError(f"{kind!r} is not one of {', '.join(KINDS)}")
    if min(count, points, size) < 1 or not 0 <= labelled <= points:
        raise UserError(
            f"{count} prompts of {points} points of size {size} with {labelled} labelled ones make no sense"
        )
    if teach and kind not in TAUGHT:
        raise UserError(f"{kind} has no teaching sequence; there is one for {', '.join(TAUGHT)}")
    base = (seed,) if isinstance(seed, int) else tuple(seed)
    rows = [
        _prompt(kind, np.random.default_rng((*base, i)), points, size, teach, labelled or max(points // 2, 1))
        for i in range(count)
    ]
    x, y, taught = zip(*rows)
    return Prompts(np.stack(x), np.stack(y), np.array(taught))


def interleaved(made: Prompts) -> NDArray[np.float32]:
    """x1, y1, x2, y2, ... as (count, 2 points, size): a label stands in the first place of a vector of zeros. What the
    label of an example is must be said at its x, the even positions, before the label comes."""
    count, points, size = made.x.shape
    out = np.zeros((count, points, 2, size), np.float32)
    out[:, :, 0], out[:, :, 1, 0] = made.x, made.y
    return out.reshape(count, 2 * points, size)


def _prompt(
    kind: str, rng: np.random.Generator, points: int, size: int, teach: bool, labelled: int
) -> tuple[Array, Array, int]:
    x = 2 * rng.integers(0, 2, (points, size)) - 1
    if kind == "nearest":
        return x, _by_similarity(x, rng, labelled), 0
    made = FUNCTIONS[kind](rng, size)
    if made.force is not None:
        rows = rng.random(points) < made.share
        x[rows] = made.force(x[rows])
    lesson = 0
    if teach and made.lesson is not None:
        lesson = len(made.lesson)
        if lesson > points:
            raise UserError(f"a teaching sequence of {lesson} examples does not fit into {points} points")
        x[:lesson] = made.lesson
    y = made.label(x)
    if not np.isin(y, (-1, 1)).all():
        raise AssertionError("labels are -1 or 1")  # thresholds are between what sums can be
    return x, y, lesson


def _by_similarity(x: Array, rng: np.random.Generator, labelled: int) -> Array:
    """Random labels first, the same for the same point; then that of the most similar earlier point, the first of them."""
    y = 2 * rng.integers(0, 2, len(x)) - 1
    alike = x @ x.T  # all have the same length, so the cosine is this in proportion
    for i in range(1, len(x)):
        near = int(alike[i, :i].argmax())
        if i >= labelled or alike[i, near] == x.shape[1]:
            y[i] = y[near]
    return np.asarray(y)


def _weights(rng: np.random.Generator, size: int, chances: tuple[float, ...], values: tuple[int, ...] = (0, 1, -1)) -> Array:  # fmt: skip
    return np.asarray(rng.choice(values, size, p=chances))


def _and(x: Array, w: Array) -> Array:
    """1 where every literal of w holds: <x, w> is the number of literals then and at least 2 less otherwise."""
    return np.sign(x @ w - (np.abs(w).sum() - 1))


def _or(x: Array, w: Array) -> Array:
    return np.sign(x @ w + np.abs(w).sum() - 1)


def _written(x: Array, w: Array) -> Array:
    return np.where(w != 0, w, x)


def _lesson(w: Array, monotone: bool) -> Array:
    """Monotone: the literals alone, then without each. Else all literals hold, the other variables once all -1 and once all
    1, then each literal is broken in turn."""
    least = np.where(w != 0, w, -1)
    broken = [np.where(np.arange(len(w)) == i, -w, least) for i in np.flatnonzero(w)]
    return np.stack([least, *([] if monotone else [np.where(w != 0, w, 1)]), *broken])


def _conjunction(rng: np.random.Generator, size: int) -> _Function:
    w = _weights(rng, size, _LITERALS)
    return _Function(lambda x: _and(x, w), lambda x: _written(x, w), lesson=_lesson(w, False))


def _monotone(rng: np.random.Generator, size: int) -> _Function:
    w = _weights(rng, size, (0.7, 0.3), (0, 1))
    return _Function(lambda x: _and(x, w), lambda x: _written(x, w), lesson=_lesson(w, True))


def _disjunction(rng: np.random.Generator, size: int) -> _Function:
    w = _weights(rng, size, _LITERALS)
    return _Function(lambda x: _or(x, w), lambda x: _written(x, -w))


def _sparse_disjunction(rng: np.random.Generator, size: int) -> _Function:
    """Exactly four positive literals (all, where there are fewer variables)."""
    w = np.zeros(size, np.int64)
    w[rng.permutation(size)[:4]] = 1
    return _Function(lambda x: _or(x, w), lambda x: _written(x, -w))


def _dnf(rng: np.random.Generator, size: int) -> _Function:
    clauses = [_weights(rng, size, _CLAUSES) for _ in range(3)]
    chosen = clauses[int(rng.integers(3))]
    return _Function(
        lambda x: np.max([_and(x, w) for w in clauses], 0), lambda x: _written(x, chosen), FORCED_CLAUSE,
        np.concatenate([_lesson(w, False) for w in clauses]),
    )  # fmt: skip


def _cnf(rng: np.random.Generator, size: int) -> _Function:
    clauses = [_weights(rng, size, _CLAUSES) for _ in range(3)]
    chosen = clauses[int(rng.integers(3))]
    return _Function(
        lambda x: np.min([_or(x, w) for w in clauses], 0), lambda x: _written(x, -chosen), FORCED_CLAUSE
    )


def _majority(rng: np.random.Generator, size: int) -> _Function:
    w = _weights(rng, size, (0.7, 0.3), (0, 1))
    return _Function(lambda x: np.sign(x @ w - 0.5).astype(np.int64))


def _threshold(rng: np.random.Generator, size: int) -> _Function:
    w, bound = _weights(rng, size, _LITERALS), int(rng.integers(-3, 3)) + 0.5
    return _Function(lambda x: np.sign(x @ w - bound).astype(np.int64))


def _halfspace(rng: np.random.Generator, size: int) -> _Function:
    w = rng.integers(-3, 4, size)
    return _Function(lambda x: np.sign(x @ w - 0.5).astype(np.int64))


def _parity_of(chosen: Array) -> _Function:
    return _Function(lambda x: 2 * ((x > 0) @ chosen % 2) - 1)


def _parity(rng: np.random.Generator, size: int) -> _Function:
    return _parity_of(rng.integers(0, 2, size))


def _sparse_parity(rng: np.random.Generator, size: int) -> _Function:
    chosen = np.zeros(size, np.int64)
    chosen[rng.permutation(size)[:2]] = 1
    return _parity_of(chosen)


FUNCTIONS: dict[str, Callable[[np.random.Generator, int], _Function]] = {
    "conjunction": _conjunction,
    "monotone": _monotone,
    "disjunction": _disjunction,
    "sparse-disjunction": _sparse_disjunction,
    "dnf": _dnf,
    "cnf": _cnf,
    "majority": _majority,
    "threshold": _threshold,
    "halfspace": _halfspace,
    "parity": _parity,
    "sparse-parity": _sparse_parity,
}
KINDS = (*FUNCTIONS, "nearest")
TAUGHT = ("conjunction", "monotone", "dnf")


def null(made: Prompts) -> Array:
    """Always -1."""
    return np.full_like(made.y, -1)


def input_alone(made: Prompts) -> Array:
    """The likelier label of a parity of two variables by x alone, without any example: it depends on how many are 1."""
    size = made.x.shape[2]
    ones = (made.x > 0).sum(-1)
    return np.where(4 * ones * (size - ones) > size * (size - 1), 1, -1)


def averaging(made: Prompts) -> Array:
    """The side of the sum of all earlier x y on which x lies; -1 where neither."""
    before = np.cumsum(made.x * made.y[..., None], 1) - made.x * made.y[..., None]
    return np.where((before * made.x).sum(-1) > 0, 1, -1)


def neighbour(made: Prompts) -> Array:
    """The label of the most similar earlier example, the first of them; -1 before there is one."""
    alike = np.einsum("bin,bjn->bij", made.x, made.x)
    points = made.x.shape[1]
    alike = np.where(np.tri(points, k=-1, dtype=bool), alike, -made.x.shape[2] - 1)
    guess = np.take_along_axis(made.y, alike.argmax(-1), 1)
    guess[:, 0] = -1
    return np.asarray(guess)


def elimination(made: Prompts) -> Array:
    """The learner of conjunctions: every literal is kept until a positive example breaks it; 1 where all that are kept hold.
    It errs on positives only, and no learner that does so errs less."""
    both = np.concatenate([made.x, -made.x], -1) > 0  # which of the 2 size literals hold
    kept = np.ones((len(both), both.shape[2]), bool)
    out = np.empty_like(made.y)
    for i in range(made.x.shape[1]):
        out[:, i] = np.where((both[:, i] | ~kept).all(1), 1, -1)
        kept &= both[:, i] | (made.y[:, i] < 0)[:, None]
    return out


def gaussian(made: Prompts) -> Array:
    """The learner of parities: linear equations over the field of two elements; right wherever x is a sum of earlier ones.
    Else it answers as if the rest of the sum were 0."""
    out = np.empty_like(made.y)
    for prompt, (x, y) in enumerate(zip((made.x > 0).astype(np.int64), (made.y > 0).astype(np.int64))):
        rows: list[tuple[int, Array, int]] = []  # first one, the bits, what they sum to
        for i in range(len(x)):
            bits, total = x[i].copy(), 0
            for lead, row, value in rows:
                if bits[lead]:
                    bits, total = bits ^ row, total ^ value
            out[prompt, i] = 2 * total - 1
            if bits.any():
                rows.append((int(bits.argmax()), bits, int(y[i]) ^ total))
    return out


learners: dict[str, Callable[[Prompts], Array]] = {
    "null": null,
    "input alone": input_alone,
    "averaging": averaging,
    "neighbour": neighbour,
    "elimination": elimination,
    "gaussian": gaussian,
}
