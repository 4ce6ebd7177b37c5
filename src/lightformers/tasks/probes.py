"""Synthetic probes of sequence models: what a mixer can remember, copy, look up and follow, one ability at a time.

    tokens, targets = mqar(seed=0, count=64, length=128, pairs=16, vocab=256)
    accuracy(model(input_ids=torch.from_numpy(tokens)).logits, targets)

Every generator is a pure function `(seed, count, ...) -> (tokens, targets)`, two int64 arrays (count, length).
`targets[i, t]` is what the logits at place t should say (nothing is to be shifted), -100 where nothing is asked.
seed: a whole number, or a numpy Generator that is drawn on. `PROBES` names them with the sizes that they start from;
`lightformers.tasks.probing` trains and scores models on them. Raises UserError where the sizes do not fit together.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightformers.errors import UserError
from lightformers.tasks.groups import group, order

Array = NDArray[np.int64]
Seed = int | np.random.Generator
NOTHING = -100


def mqar(
    seed: Seed, count: int, length: int = 64, pairs: int = 8, vocab: int = 64, writes: int = 1, power: float = 0.01
) -> tuple[Array, Array]:  # fmt: skip
    """Multi-query associative recall (Zoology: Arora et al., 2023, arXiv 2312.04927).

    First key and value in turn, `pairs` keys, each bound `writes` times in any order: the last binding counts (with
    writes above 1 a memory must forget). Then fillers, among which every key comes once more, at every second place at
    the earliest, the gap to the end of the bindings by a power law of exponent `power` - 1 (0.01 as there: mostly
    soon); there the value is asked. Keys are 1 to vocab // 2 - 1, values and fillers those from vocab // 2 (in the
    paper fillers may be keys as well, and then look like new bindings); 0 does not occur.
    Needs length >= 2 * pairs * writes + 2 * pairs, and vocab // 2 > pairs.
    """
    keys_known = vocab // 2 - 1
    _positive(count=count, length=length, pairs=pairs, writes=writes)
    _needs(pairs <= keys_known, f"{pairs} pairs need a vocab of at least {2 * pairs + 2}, not {vocab}")
    context = 2 * pairs * writes
    least = context + 2 * pairs
    _needs(
        length >= least,
        f"{pairs} pairs written {writes} times need a length of at least {least}, not {length}",
    )
    _needs(power > 0, f"power must be above 0, not {power}")
    rng = np.random.default_rng(seed)
    tokens = rng.integers(vocab // 2, vocab, (count, length))
    keys = 1 + _distinct(rng, count, keys_known, pairs)
    turns = rng.permuted(np.tile(np.arange(pairs), (count, writes)), axis=1)  # which key is bound when
    values = rng.integers(vocab // 2, vocab, (count, pairs * writes))
    if writes == 1:
        values = vocab // 2 + _distinct(rng, count, vocab - vocab // 2, pairs)
    tokens[:, 0:context:2] = np.take_along_axis(keys, turns, 1)
    tokens[:, 1:context:2] = values
    last = np.zeros((count, pairs), np.int64)
    for turn in range(pairs * writes):
        np.put_along_axis(last, turns[:, turn, None], values[:, turn, None], 1)
    gaps = (length - context) // 2
    likely = np.arange(1, gaps + 1) ** (power - 1.0)
    # the largest of u^(1/p) are a draw without replacement by weights p (Efraimidis and Spirakis)
    drawn = np.log(1 - rng.random((count, gaps))) / likely
    places = context + 2 * np.argsort(-drawn, 1)[:, :pairs]
    np.put_along_axis(tokens, places, keys, 1)
    return tokens, _ask(tokens, places, last)


def copying(
    seed: Seed, count: int, symbols: int = 16, vocab: int = 32, delay: int = 0
) -> tuple[Array, Array]:
    """Copy what was read (Repeat After Me: Jelassi et al., 2024, arXiv 2402.01032).

    `symbols` random tokens from 2 to vocab - 1, `delay` blanks (0), a mark (1), then the same tokens again but for the
    last: each is asked at the place before it. Length 2 * symbols + delay. Needs vocab >= 4.
    """
    _positive(count=count, symbols=symbols)
    _needs(vocab >= 4, f"copying needs a vocab of at least 4 (blank, mark and two symbols), not {vocab}")
    _needs(delay >= 0, f"delay must not be negative, not {delay}")
    rng = np.random.default_rng(seed)
    said = rng.integers(2, vocab, (count, symbols))
    blanks, mark = np.zeros((count, delay), np.int64), np.ones((count, 1), np.int64)
    tokens = np.concatenate([said, blanks, mark, said[:, :-1]], 1)
    places = np.arange(symbols + delay, 2 * symbols + delay)
    return tokens, _ask(tokens, np.tile(places, (count, 1)), said)


def selective_copying(
    seed: Seed, count: int, length: int = 64, symbols: int = 8, vocab: int = 16
) -> tuple[Array, Array]:
    """Copy the symbols, not the blanks between them (Mamba: Gu and Dao, 2023, arXiv 2312.00752, section 4.1.1).

    `symbols` random tokens from 2 to vocab - 1 at random places among blanks (0), then `symbols` marks (1), at which the
    symbols are asked in their order. length: of all, marks counted; it needs 2 * symbols. The paper: 4,096 + 16, vocab 16.
    """
    _positive(count=count, symbols=symbols)
    _needs(vocab >= 4, f"selective copying needs a vocab of at least 4, not {vocab}")
    _needs(length >= 2 * symbols, f"{symbols} symbols need a length of at least {2 * symbols}, not {length}")
    rng = np.random.default_rng(seed)
    said = rng.integers(2, vocab, (count, symbols))
    tokens = np.zeros((count, length), np.int64)
    places = np.sort(_distinct(rng, count, length - symbols, symbols), 1)
    np.put_along_axis(tokens, places, said, 1)
    tokens[:, length - symbols :] = 1
    return tokens, _ask(tokens, np.tile(np.arange(length - symbols, length), (count, 1)), said)


def induction(seed: Seed, count: int, length: int = 64, vocab: int = 16) -> tuple[Array, Array]:
    """Recall what came after the mark (induction heads: Dao et al., 2022, arXiv 2212.14052; Mamba, section 4.1.2).

    Random tokens from 1 to vocab - 1; the mark (0) stands once anywhere before, and again at the end, where the token
    that followed it is asked. Trained at length 256, Mamba was tested up to a million. Needs length >= 3, vocab >= 3.
    """
    _positive(count=count)
    _needs(length >= 3, f"induction needs a length of at least 3, not {length}")
    _needs(vocab >= 3, f"induction needs a vocab of at least 3, not {vocab}")
    rng = np.random.default_rng(seed)
    tokens = rng.integers(1, vocab, (count, length))
    place = rng.integers(0, length - 2, (count, 1))
    np.put_along_axis(tokens, place, 0, 1)
    tokens[:, -1] = 0
    said = np.take_along_axis(tokens, place + 1, 1)
    return tokens, _ask(tokens, np.full((count, 1), length - 1), said)


def state_tracking(seed: Seed, count: int, length: int = 32, kind: str = "s5") -> tuple[Array, Array]:
    """The word problem of a group: after every token, the product so far (Merrill et al., 2024, arXiv 2404.08819).

    kind: "parity", "zN" (addition modulo N, as "z7"), "s3", "s4", "s5" (permutations, 120 of five things) or "a5"
    (the 60 even ones). Tokens are the elements' numbers; what stands at t is asked: x_t o ... o x_0, the earliest is
    done first. Every place is asked. S5 and A5 cannot be followed at any length by what is only parallel (TC0).
    """
    _positive(count=count, length=length)
    table = group(kind)
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, len(table), (count, length))
    targets = tokens.copy()
    for t in range(1, length):
        targets[:, t] = table[tokens[:, t], targets[:, t - 1]]
    return tokens, targets


#: What the tokens of `phonebook` stand for.
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789 \n"


def phonebook(
    seed: Seed, count: int, entries: int = 8, letters: int = 4, digits: int = 4
) -> tuple[Array, Array]:
    """Look a number up (Jelassi et al., 2024, arXiv 2402.01032; Waleffe et al., 2024, arXiv 2406.07887).

    `entries` lines "name number\\n" of `letters` and `digits` characters, no name twice; then one of the names, a blank,
    and its number but for the last digit: each digit is asked at the place before it. Tokens are places in `LETTERS`
    (38 symbols). Length (entries + 1) * (letters + digits + 2) - 2.
    """
    _positive(count=count, entries=entries, letters=letters, digits=digits)
    _needs(letters <= 13, f"names are of at most 13 letters, not {letters}")
    _needs(entries <= 26**letters, f"there are only {26**letters} names of {letters} letters, not {entries}")
    rng = np.random.default_rng(seed)
    if letters <= 3:
        spelt = _distinct(rng, count, 26**letters, entries)
    else:  # so many that two alike are rare: drawn until there are none
        spelt = rng.integers(0, 26**letters, (count, entries))
        while len(twice := np.flatnonzero((np.diff(np.sort(spelt, 1), axis=1) == 0).any(1))):
            spelt[twice] = rng.integers(0, 26**letters, (len(twice), entries))
    names = spelt[..., None] // 26 ** np.arange(letters - 1, -1, -1) % 26
    numbers = rng.integers(26, 36, (count, entries, digits))
    blank, end = (np.full((count, entries, 1), LETTERS.index(c)) for c in " \n")
    lines = np.concatenate([names, blank, numbers, end], 2).reshape(count, -1)
    who = rng.integers(0, entries, count)
    rows = np.arange(count)
    question = np.concatenate([names[rows, who], blank[:, 0], numbers[rows, who, :-1]], 1)
    tokens = np.concatenate([lines, question], 1)
    places = np.arange(tokens.shape[1] - digits, tokens.shape[1])
    return tokens, _ask(tokens, np.tile(places, (count, 1)), numbers[rows, who])


@dataclass(frozen=True)
class Probe:
    """A generator with the sizes that it starts from. options: keyword arguments beside seed and count."""

    make: Callable[..., tuple[Array, Array]]
    summary: str
    options: dict[str, Any] = field(default_factory=dict)

    def draw(self, seed: Seed, count: int, **changed: Any) -> tuple[Array, Array]:
        """Examples at these sizes, but for what is changed."""
        return self.make(seed, count, **{**self.options, **changed})

    def sized(self, **changed: Any) -> Probe:
        """The same with other sizes to start from. Raises UserError for sizes that the generator does not have."""
        if unknown := sorted(set(changed) - set(inspect.signature(self.make).parameters)):
            raise UserError(f"{self.make.__name__} has no size {', '.join(unknown)}")
        return replace(self, options={**self.options, **changed})

    @property
    def vocab(self) -> int:
        """How many tokens there are to read and to answer with."""
        if self.make is phonebook:
            return len(LETTERS)
        if self.make is state_tracking:
            return order(self.options["kind"])
        return int(self.options["vocab"])

    @property
    def answers(self) -> int:
        """How many of them can be right: a guess among them is right once in so many."""
        if self.make is phonebook:
            return 10
        if self.make is mqar:
            return self.vocab - self.vocab // 2
        return self.vocab - {copying: 2, selective_copying: 2, induction: 1}.get(self.make, 0)


PROBES: dict[str, Probe] = {
    "mqar": Probe(mqar, "recall the value of every key", {"length": 64, "pairs": 8, "vocab": 64}),
    "overwriting": Probe(
        mqar, "recall the latest value of every key", {"length": 64, "pairs": 6, "vocab": 64, "writes": 2}
    ),
    "copying": Probe(copying, "say again what was read", {"symbols": 24, "vocab": 32}),
    "selective-copying": Probe(
        selective_copying, "say again the symbols among blanks", {"length": 64, "symbols": 8, "vocab": 16}
    ),
    "induction": Probe(induction, "recall what came after the mark", {"length": 64, "vocab": 16}),
    "state-tracking": Probe(state_tracking, "products of permutations", {"length": 24, "kind": "s5"}),
    "parity": Probe(state_tracking, "is the number of ones odd", {"length": 32, "kind": "parity"}),
    "modular-addition": Probe(state_tracking, "sums modulo 7", {"length": 32, "kind": "z7"}),
    "phonebook": Probe(phonebook, "look a number up by its name", {"entries": 6, "letters": 3, "digits": 3}),
}


def accuracy(logits: Any, targets: Any) -> float:
    """Share of what is asked that the largest logit gets right. logits (count, length, vocab), targets (count, length);
    tensors or arrays. Raises UserError for other shapes, or where nothing is asked."""
    logits, targets = (
        np.asarray(x.detach().cpu().float() if hasattr(x, "detach") else x) for x in (logits, targets)
    )
    _needs(
        logits.shape[:-1] == targets.shape, f"logits {logits.shape} do not belong to targets {targets.shape}"
    )
    asked = targets != NOTHING
    _needs(bool(asked.any()), "nothing is asked: every target is -100")
    return float((logits.argmax(-1) == targets)[asked].mean())


def _ask(tokens: Array, places: Array, answers: Array) -> Array:
    targets = np.full_like(tokens, NOTHING)
    np.put_along_axis(targets, places, answers, 1)
    return targets


def _distinct(rng: np.random.Generator, count: int, among: int, size: int) -> Array:
    """(count, size) numbers below `among`, all different within a row, in random order."""
    rows = max(1, 4_000_000 // among)  # as many as keep the draw under 32 MB
    parts = [
        np.argsort(rng.random((min(rows, count - start), among)), 1)[:, :size]
        for start in range(0, count, rows)
    ]
    return np.concatenate(parts).astype(np.int64)


def _positive(**sizes: int) -> None:
    for name, size in sizes.items():
        _needs(size >= 1, f"{name} must be at least 1, not {size}")


def _needs(holds: bool, otherwise: str) -> None:
    if not holds:
        raise UserError(otherwise)
