"""Every function class against its rule, written out; every learner against brute force."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from lightformers.errors import UserError
from lightformers.tasks import boolean_functions as boolean
from lightformers.tasks.boolean_functions import KINDS, prompts

CUBE = np.array(list(itertools.product((-1, 1), repeat=5)))


def labels(kind: str, seed: int) -> np.ndarray:
    """A function on all 32 inputs."""
    return boolean.FUNCTIONS[kind](np.random.default_rng(seed), 5).label(CUBE)


def all_literals() -> list[tuple[int, ...]]:
    return list(itertools.product((0, 1, -1), repeat=5))


def conjunction(w: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(1 if all(x[j] == w[j] for j in range(5) if w[j]) else -1 for x in CUBE.tolist())


def disjunction(w: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(1 if any(x[j] == w[j] for j in range(5) if w[j]) else -1 for x in CUBE.tolist())


@pytest.mark.parametrize("kind", ["conjunction", "monotone", "disjunction", "sparse-disjunction"])
def test_clauses_are_clauses(kind: str) -> None:
    """The truth table is that of a clause by its definition in words; the empty conjunction is true everywhere."""
    words = disjunction if "disjunction" in kind else conjunction
    signs = [w for w in all_literals() if kind == "conjunction" or kind == "disjunction" or min(w) >= 0]
    if kind == "sparse-disjunction":
        signs = [w for w in signs if sum(w) == 4]
    tables = {words(w) for w in signs}
    found = {tuple(labels(kind, seed).tolist()) for seed in range(60)}
    assert found <= tables and len(found) >= min(5, len(tables))
    if kind == "conjunction":
        assert (1,) * 32 in {tuple(labels(kind, s).tolist()) for s in range(60)}


def test_parities() -> None:
    def table(subset: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(1 if sum(x[j] > 0 for j in subset) % 2 else -1 for x in CUBE.tolist())

    subsets = [s for n in range(6) for s in itertools.combinations(range(5), n)]
    assert {tuple(labels("parity", s).tolist()) for s in range(400)} == {table(s) for s in subsets}
    pairs = {table(s) for s in subsets if len(s) == 2}
    assert {tuple(labels("sparse-parity", s).tolist()) for s in range(100)} == pairs


@pytest.mark.parametrize("kind", ["dnf", "cnf"])
def test_forms_are_made_of_three_clauses(kind: str) -> None:
    words = conjunction if kind == "dnf" else disjunction
    one = [np.array(words(w)) for w in all_literals()]
    merge = np.maximum if kind == "dnf" else np.minimum
    for seed in range(10):
        found = labels(kind, seed)
        inside = [t for t in one if ((t <= found) if kind == "dnf" else (t >= found)).all()]
        assert any((merge(merge(a, b), c) == found).all() for a, b, c in itertools.combinations_with_replacement(_widest(inside, kind), 3))  # fmt: skip


def _widest(tables: list[np.ndarray], kind: str) -> list[np.ndarray]:
    """Those that no other one covers: the prime clauses; with one copy of each."""
    distinct = list({tuple(t.tolist()): t for t in tables}.values())
    covers = (lambda a, b: (a >= b).all()) if kind == "dnf" else (lambda a, b: (a <= b).all())
    return [t for t in distinct if not any(o is not t and covers(o, t) for o in distinct)]


@pytest.mark.parametrize("kind", ["majority", "threshold", "halfspace"])
def test_thresholds_are_linear_and_never_on_the_border(kind: str) -> None:
    values = {"majority": (0, 1), "threshold": (0, 1, -1), "halfspace": range(-3, 4)}[kind]
    bounds = np.arange(-3, 3) + 0.5 if kind == "threshold" else np.array([0.5])
    sums = CUBE @ np.array(list(itertools.product(values, repeat=5))).T
    tables = {t for b in bounds for t in map(tuple, np.sign(sums - b).T.astype(int).tolist())}
    for seed in range(40):
        assert tuple(labels(kind, seed).tolist()) in tables


@pytest.mark.parametrize("kind", KINDS)
def test_prompts_are_right_and_do_not_depend_on_how_many_are_drawn(kind: str) -> None:
    many, few = prompts(kind, 3, 9, 20, 6), prompts(kind, 3, 4, 20, 6)
    assert many.x.shape == (9, 20, 6) and many.y.shape == (9, 20) and set(np.unique(many.x)) == {-1, 1}
    assert set(np.unique(many.y)) <= {-1, 1}
    assert (many.x[:4] == few.x).all() and (many.y[:4] == few.y).all()
    assert (prompts(kind, 4, 4, 20, 6).x != few.x).any()
    for x, y in zip(many.x, many.y):  # a function: equal inputs have equal labels
        seen: dict[tuple[int, ...], int] = {}
        assert all(seen.setdefault(tuple(a), b) == b for a, b in zip(x.tolist(), y.tolist()))


def test_labels_are_not_nearly_constant() -> None:
    """Without forced examples a conjunction of 10 variables is positive once in many; with them it is not."""
    for kind, least in [("conjunction", 0.3), ("disjunction", 0.3), ("dnf", 0.3), ("cnf", 0.3)]:
        positive = float((prompts(kind, 0, 200, 40, 20).y > 0).mean())
        assert least < positive < 1 - least, (kind, positive)


def test_nearest_labels() -> None:
    made = prompts("nearest", 0, 30, 24, 5, labelled=8)
    for x, y in zip(made.x.tolist(), made.y.tolist()):
        for i in range(8, 24):
            alike = [sum(a == b for a, b in zip(x[i], x[j])) for j in range(i)]
            assert y[i] == y[alike.index(max(alike))]
    assert (boolean.neighbour(made)[:, 8:] == made.y[:, 8:]).all()
    assert (boolean.neighbour(made)[:, :8] != made.y[:, :8]).any()


def test_interleaved() -> None:
    made = prompts("majority", 0, 2, 3, 4)
    rows = boolean.interleaved(made)
    assert rows.shape == (2, 6, 4)
    assert (
        (rows[:, 0::2] == made.x).all() and (rows[:, 1::2, 0] == made.y).all() and not rows[:, 1::2, 1:].any()
    )


def test_a_teaching_sequence_decides_the_function() -> None:
    """After it, elimination never errs again; and no shorter prefix always does."""
    for kind in ("monotone", "conjunction"):
        made = prompts(kind, 0, 50, 40, 8, teach=True)
        right = boolean.elimination(made) == made.y
        after = np.arange(40) >= made.taught[:, None]
        literals = made.taught - (1 if kind == "monotone" else 2)
        assert (literals >= 0).all() and literals.max() > 1
        assert (made.y[np.arange(50), 0] == 1).all()
        negatives = [(y[t - k : t] == -1).all() for y, t, k in zip(made.y, made.taught, literals)]
        assert all(negatives)
        if kind == "conjunction":
            assert right[after].all()
        else:  # elimination does not know that no literal is negated; knowing it, the first positive says all
            first = made.x[:, :1] > 0
            known = (~first | (made.x > 0)).all(-1)
            assert (np.where(known, 1, -1) == made.y)[after].all()
    dnf = prompts("dnf", 0, 5, 40, 6, teach=True)
    assert (dnf.taught >= 6).all()
    assert (prompts("conjunction", 0, 5, 40, 8).taught == 0).all()


def test_elimination_is_never_wrong_on_negatives_and_learns() -> None:
    made = prompts("conjunction", 1, 300, 40, 8)
    guess = boolean.elimination(made)
    assert (guess[made.y < 0] == -1).all()
    right = (guess == made.y).mean(0)
    assert right[-1] > 0.97 > right[2]
    # against the definition: 1 only if every conjunction that agrees with the past says 1
    small = prompts("conjunction", 2, 8, 12, 5)
    index = {tuple(x): i for i, x in enumerate(CUBE.tolist())}
    tables = np.array([conjunction(w) for w in all_literals()])
    for x, y, said in zip(small.x.tolist(), small.y.tolist(), boolean.elimination(small).tolist()):
        for i in range(12):
            past = [index[tuple(p)] for p in x[:i]]
            positive = [p for p, label in zip(past, y[:i]) if label > 0]
            agree = tables[(tables[:, positive] == 1).all(1)] if positive else None
            if agree is None:
                assert said[i] == -1
            else:
                assert (said[i] == 1) == (agree[:, index[tuple(x[i])]] == 1).all()


def test_gaussian_is_right_where_the_past_decides() -> None:
    for kind in ("parity", "sparse-parity"):
        made = prompts(kind, 0, 60, 30, 8)
        right = (boolean.gaussian(made) == made.y).mean(0)
        assert right[20:].min() > 0.95 and right[0] < 0.8
    small = prompts("parity", 1, 10, 10, 5)
    tables = [tuple(labels("parity", s).tolist()) for s in range(400)]
    index = {tuple(x): i for i, x in enumerate(CUBE.tolist())}
    for x, y, said in zip(small.x.tolist(), small.y.tolist(), boolean.gaussian(small).tolist()):
        for i in range(10):
            agree = {
                t[index[tuple(x[i])]]
                for t in tables
                if all(t[index[tuple(p)]] == q for p, q in zip(x[:i], y[:i]))
            }
            assert said[i] in agree


def test_input_alone_against_counting() -> None:
    made = prompts("sparse-parity", 0, 20, 30, 6)
    for x, said in zip(made.x.reshape(-1, 6).tolist(), boolean.input_alone(made).ravel().tolist()):
        odd = sum(a != b for a, b in itertools.combinations(x, 2))
        assert said == (1 if odd > 15 - odd else -1)


def test_simple_learners() -> None:
    made = prompts("majority", 0, 400, 40, 9)
    right = (boolean.averaging(made) == made.y).mean(0)
    assert right[-10:].mean() > 0.8 > right[1]
    assert (boolean.null(made) == -1).all() and set(boolean.learners) >= {"null", "averaging", "neighbour"}


def test_bad_input() -> None:
    with pytest.raises(UserError, match="xor"):
        prompts("xor", 0, 1, 4, 4)
    with pytest.raises(UserError, match="does not fit"):
        prompts("dnf", 0, 20, 4, 12, teach=True)
    with pytest.raises(UserError, match="no teaching"):
        prompts("parity", 0, 1, 4, 4, teach=True)
    with pytest.raises(UserError, match="no sense"):
        prompts("nearest", 0, 1, 4, 4, labelled=5)
