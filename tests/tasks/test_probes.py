"""Every probe is solved by a literal rule that reads one row from left to right: its targets are right."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lightformers.errors import UserError
from lightformers.tasks import probes
from lightformers.tasks.groups import elements, group, order
from lightformers.tasks.probes import NOTHING, PROBES
from lightformers.tasks.probing import Fresh, as_batch, asked_loss, score
from lightformers.train import Settings, fit

Row = list[int]
Rule = Callable[[Row], dict[int, int]]


def holds(made: tuple[np.ndarray, np.ndarray], rule: Rule) -> tuple[np.ndarray, np.ndarray]:
    """The rule gives every target of every row, and no place more."""
    tokens, targets = made
    assert tokens.dtype == targets.dtype == np.int64 and tokens.shape == targets.shape
    for row, wanted in zip(tokens.tolist(), targets.tolist()):
        assert rule(row) == {t: y for t, y in enumerate(wanted) if y != NOTHING}
    return made


@pytest.mark.parametrize(("length", "pairs", "writes"), [(64, 8, 1), (40, 5, 3), (10, 2, 1), (129, 16, 2), (4, 1, 1)])  # fmt: skip
def test_mqar(length: int, pairs: int, writes: int) -> None:
    def rule(row: Row) -> dict[int, int]:
        context = 2 * pairs * writes
        bound = {}
        for key, value in zip(row[0:context:2], row[1:context:2]):
            bound[key] = value
        assert len(bound) == pairs and all(1 <= k < 32 for k in bound) and all(32 <= v < 64 for v in bound.values())  # fmt: skip
        asked = {t: bound[x] for t, x in enumerate(row) if t >= context and x in bound}
        assert len(asked) == pairs
        return asked

    tokens, _targets = holds(probes.mqar(3, 50, length, pairs, 64, writes), rule)
    assert tokens.shape == (50, length)
    if writes == 1:
        values = np.sort(tokens[:, 1 : 2 * pairs : 2], 1)
        assert (np.diff(values, axis=1) > 0).all()


def test_mqar_asks_soon_by_its_power() -> None:
    """With the paper's power most questions follow the bindings at once, with power 1 they are spread evenly."""

    def mean(power: float) -> float:
        targets = probes.mqar(0, 400, 256, 4, 64, power=power)[1]
        return float(np.nonzero(targets != NOTHING)[1].mean())

    assert mean(0.01) < 90 < 120 < mean(1.0) < 144


def test_copying() -> None:
    def rule(row: Row) -> dict[int, int]:
        at = row.index(1)
        assert row[at - 7 : at] == [0] * 7
        return {at + i: x for i, x in enumerate(row[: at - 7])}

    tokens, targets = holds(probes.copying(0, 40, symbols=9, vocab=11, delay=7), rule)
    assert tokens.shape == (40, 25)
    assert (targets[:, 16:-1] == tokens[:, 17:]).all()  # what is asked comes next: it can be generated


def test_selective_copying() -> None:
    def rule(row: Row) -> dict[int, int]:
        said = [x for x in row if x > 1]
        assert len(said) == 6 and row[-6:] == [1] * 6
        return {len(row) - 6 + i: x for i, x in enumerate(said)}

    assert holds(probes.selective_copying(0, 40, 50, 6, 9), rule)[0].shape == (40, 50)
    holds(probes.selective_copying(0, 5, 12, 6, 9), rule)


def test_induction() -> None:
    def rule(row: Row) -> dict[int, int]:
        assert row.count(0) == 2 and row[-1] == 0
        return {len(row) - 1: row[row.index(0) + 1]}

    tokens, _ = holds(probes.induction(0, 300, 12, 5), rule)
    assert {int(np.flatnonzero(row == 0)[0]) for row in tokens} == set(range(10))
    holds(probes.induction(0, 3, 3, 3), rule)


@pytest.mark.parametrize("kind", ["parity", "z7", "s3", "s5", "a5"])
def test_state_tracking(kind: str) -> None:
    """Numbers are added, permutations are carried out one after the other on a row of things."""

    def sums(row: Row) -> dict[int, int]:
        return {t: sum(row[: t + 1]) % order(kind) for t in range(len(row))}

    def moves(row: Row) -> dict[int, int]:
        known = [tuple(p) for p in elements(kind).tolist()]
        at, out = tuple(range(len(known[0]))), {}
        for t, x in enumerate(row):
            at = tuple(known[x][i] for i in at)
            out[t] = known.index(at)
        return out

    holds(probes.state_tracking(1, 20, 30, kind), sums if kind[0] in "pz" else moves)
    assert set(np.unique(probes.state_tracking(1, 200, 30, kind)[0])) == set(range(order(kind)))


def test_phonebook() -> None:
    def rule(row: Row) -> dict[int, int]:
        *lines, question = "".join(probes.LETTERS[x] for x in row).split("\n")
        book = dict(line.split(" ") for line in lines)
        name, start = question.split(" ")
        assert len(book) == 5 and len(book[name]) == 4 and book[name].startswith(start) and len(start) == 3
        return {len(row) - 4 + i: probes.LETTERS.index(d) for i, d in enumerate(book[name])}

    for letters in (1, 3, 4, 13):
        tokens, _ = holds(probes.phonebook(0, 60, 5, letters, 4), rule)
        assert tokens.shape == (60, 6 * (letters + 6) - 2)


@pytest.mark.parametrize("kind", ["z6", "s3", "a4", "s4"])
def test_tables_are_groups(kind: str) -> None:
    table = group(kind)
    n = order(kind)
    assert table.shape == (n, n)
    assert (table[0] == np.arange(n)).all() and (table[:, 0] == np.arange(n)).all()
    assert (np.sort(table, 1) == np.arange(n)).all() and (np.sort(table, 0) == np.arange(n)[:, None]).all()
    for a, b, c in itertools.islice(itertools.product(range(n), repeat=3), 500):
        assert table[table[a, b], c] == table[a, table[b, c]]


@pytest.mark.parametrize("name", PROBES)
def test_rows_are_drawn_by_the_seed(name: str) -> None:
    probe = PROBES[name]
    tokens, targets = probe.draw(5, 20)
    again = probe.draw(5, 20)
    assert (tokens == again[0]).all() and (targets == again[1]).all()
    assert (tokens != probe.draw(6, 20)[0]).any()
    assert tokens.min() >= 0 and tokens.max() < probe.vocab and targets.max() < probe.vocab
    generator = np.random.default_rng(5)
    assert (probe.draw(generator, 20)[0] == tokens).all()
    assert (probe.draw(generator, 20)[0] != tokens).any()  # it is drawn on


@pytest.mark.parametrize("name", PROBES)
def test_as_many_answers_as_are_said_are_asked_for(name: str) -> None:
    probe = PROBES[name].sized(**({"length": 40} if name == "state-tracking" else {}))
    targets = probe.draw(0, 400)[1]
    found = np.unique(targets[targets != NOTHING])
    assert len(found) == probe.answers <= probe.vocab and found.max() < probe.vocab
    with pytest.raises(UserError, match="no size breadth"):
        probe.sized(breadth=1)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: probes.mqar(0, 4, 64, 40, 64), "a vocab of at least 82"),
        (lambda: probes.mqar(0, 4, 20, 8, 64), "a length of at least 32, not 20"),
        (lambda: probes.mqar(0, 4, 32, 8, 64, writes=2), "at least 48"),
        (lambda: probes.mqar(0, 4, 32, 8, 64, power=0), "power"),
        (lambda: probes.mqar(0, 0), "count must be at least 1"),
        (lambda: probes.copying(0, 4, 0), "symbols must be at least 1"),
        (lambda: probes.copying(0, 4, 4, delay=-1), "delay"),
        (lambda: probes.copying(0, 4, 4, vocab=3), "at least 4"),
        (lambda: probes.selective_copying(0, 4, 15, 8), "length of at least 16"),
        (lambda: probes.induction(0, 4, 2), "length of at least 3"),
        (lambda: probes.induction(0, 4, 8, 2), "vocab of at least 3"),
        (lambda: probes.state_tracking(0, 4, 8, "d4"), "not one of parity"),
        (lambda: probes.state_tracking(0, 4, 8, "s9"), "not one of parity"),
        (lambda: elements("z5"), "not of permutations"),
        (lambda: probes.phonebook(0, 4, 27, 1), "only 26 names"),
        (lambda: probes.phonebook(0, 4, 5, 14), "at most 13 letters"),
        (lambda: probes.accuracy(np.zeros((2, 3, 4)), np.zeros((2, 4))), "do not belong"),
        (lambda: probes.accuracy(np.zeros((2, 3, 4)), np.full((2, 3), NOTHING)), "nothing is asked"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(make: Callable[[], object], said: str) -> None:
    with pytest.raises(UserError, match=said):
        make()


def test_accuracy_counts_what_is_asked() -> None:
    targets = torch.tensor([[NOTHING, 2, 0], [1, NOTHING, NOTHING]])
    logits = torch.nn.functional.one_hot(torch.tensor([[0, 2, 1], [1, 0, 0]]), 3).bfloat16()
    assert probes.accuracy(logits.requires_grad_(False), targets) == pytest.approx(2 / 3)


class Bigram(nn.Module):
    """Says what depends on the token alone."""

    def __init__(self, vocab: int) -> None:
        super().__init__()
        self.table = nn.Embedding(vocab, vocab)

    def forward(self, input_ids: Tensor) -> dict[str, Tensor]:
        return {"logits": self.table(input_ids)}


def test_training_on_fresh_batches() -> None:
    """What needs no memory is learnt by a table, and scored; what needs one is not."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Bigram(7)
    probe = PROBES["modular-addition"]
    feed = Fresh(probe, 64, seed=1, changed={"length": 1})  # the first sum is the token itself
    assert torch.equal(feed.batch(3).inputs["input_ids"], feed.batch(3).inputs["input_ids"])
    assert not torch.equal(feed.batch(3).inputs["input_ids"], feed.batch(4).inputs["input_ids"])
    fit(model, feed, asked_loss, Settings(steps=60, lr=0.1, precision="fp32"))
    assert score(model, probe, count=100, length=1).value == 1.0
    assert score(model, probe, count=100, length=8).value < 0.4
    found = score(model, probe, count=10, size=3, length=8)
    assert len(found) == 10 and (found.stats[:, 1] == 8).all()


def test_loss_is_over_what_is_asked() -> None:
    tokens, targets = probes.induction(0, 4, 6, 5)
    model = Bigram(5)
    logits = model(torch.from_numpy(tokens))["logits"][:, -1]
    wanted = nn.functional.cross_entropy(logits, torch.from_numpy(targets[:, -1]))
    assert torch.allclose(asked_loss(model, as_batch(tokens, targets)), wanted)
