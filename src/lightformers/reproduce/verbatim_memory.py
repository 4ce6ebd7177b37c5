"""Verbatim short-term memory (arXiv 2210.13569): how much less does a list of nouns surprise that was read before?

    lightformers reproduce verbatim-memory

Hardware: two cores. Time: five minutes. Small language models over frequent words of WikiText-2 read texts in which a list of
nouns comes again (repeat), in another order (permute), or others come (control), after delays of different length. Such small
models learn little retrieval from so little text, so every second training text holds a list of random nouns that comes
again and again: the same texts for all models, and one model without lists. Expected by the paper: two layers of attention retrieve nouns and their order, one layer hardly, an
LSTM weakly and without order, and less the longer the delay; with attention weights shuffled after training nothing.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lightformers import reproduce
from lightformers.bundle import Batch
from lightformers.errors import UserError
from lightformers.reproduce import common, plots, small
from lightformers.reproduce.finding import Finding
from lightformers.tasks import noun_lists
from lightformers.tasks.noun_lists import CONDITIONS, Stimulus
from lightformers.train import Settings, fit

CLAIM = (
    "After most of its window a small transformer of two layers is less surprised by a repeated list than by the same nouns in "
    "another order, by these less than by new ones, and by a repeated list less than an LSTM of equal size and training is."
)
WINDOW, WORDS, WIDTH, LENGTH = 96, 600, 64, 5
#: Words between the lists.
DELAYS = (12, 30, 55)
#: Training texts in which a list comes again, one in so many.
PLANTED = 2
_ROWS, _LR, _TESTED = 16, 4e-3, 100
_ATTENTION = {"kind": "attention", "heads": 4}
_TWO, _ONE, _LSTM, _NONE, _SHUFFLED = (
    "2 layers", "1 layer", "lstm", "2 layers, no lists in training", "2 layers, attention shuffled",
)  # fmt: skip
#: Mixer (a row of `parts.mixers.table`, or the LSTM), layers, and whether lists are in the training texts.
ARMS: dict[str, tuple[Mapping[str, Any], int, bool]] = {
    _TWO: (_ATTENTION, 2, True),
    _ONE: (_ATTENTION, 1, True),
    _LSTM: ({"kind": small.LSTM}, 2, True),
    "deltanet, 2 layers": ({"kind": "deltanet", "heads": 2}, 2, True),
    _NONE: (_ATTENTION, 2, False),
}
_FEW = (_TWO, _LSTM)


@dataclass(frozen=True)
class Text:
    """Words of WikiText-2 as tokens, 0 for those that are not known. train: (words), held: words to fill delays with."""

    train: np.ndarray
    held: tuple[str, ...]
    number: Mapping[str, int]

    @classmethod
    def of(cls, size: int = WORDS) -> Text:
        """The commonest words, and every noun of the lists. Raises DataError where the data is not there."""
        train, held = (common.text("wikitext2_small", part).split() for part in ("train", "valid"))
        common_words = [w for w, _ in Counter(train).most_common(size) if w != "<unk>"]
        known = dict.fromkeys([*noun_lists.NOUNS, ",", ".", *common_words])
        number = {word: i for i, word in enumerate(list(known)[: size - 1], 1)}
        return cls(np.array([number.get(w, 0) for w in train]), tuple(held), number)

    @property
    def vocabulary(self) -> int:
        return len(self.number) + 1

    def tokens(self, made: Sequence[Stimulus]) -> Tensor:
        """(count, longest). Raises UserError for texts longer than the window, which are not cut, and unknown nouns."""
        longest = max(len(text.words) for text in made)
        if longest > WINDOW:
            raise UserError(f"a text of {longest} words is longer than the window of {WINDOW}")
        out = np.zeros((len(made), longest), np.int64)
        for row, text in zip(out, made):
            row[: len(text.words)] = [self.number.get(w, 0) for w in text.words]
            if not row[[*text.first, *text.second]].all():
                raise UserError(
                    "a noun of the lists is not in the vocabulary: its surprisal would mean nothing"
                )
        return torch.from_numpy(out)


@dataclass(frozen=True)
class Windows:
    """Training texts: windows from anywhere; with `lists` one in PLANTED has a list in it that comes again and again. The other texts
    are the same with and without."""

    text: Text
    seed: int
    lists: bool
    rows: int = _ROWS

    def batch(self, position: int) -> Batch:
        rng = np.random.default_rng((self.seed, position))
        starts = rng.integers(0, len(self.text.train) - WINDOW, self.rows)
        words = self.text.train[starts[:, None] + np.arange(WINDOW)]
        for row in range(self.rows):
            planted, chosen = rng.random() < 1 / PLANTED, rng.permutation(len(noun_lists.NOUNS))
            length, at, gaps = int(rng.integers(3, 11)), int(rng.integers(10)), rng.integers(1, 56, WINDOW)
            if planted and self.lists:
                nouns = [noun_lists.NOUNS[i] for i in chosen[:length]]
                said = np.array([self.text.number[w] for w in noun_lists.listed(nouns)])
                gaps[0] = min(gaps[0], WINDOW - at - 2 * len(said))  # the second time it always fits
                for gap in gaps:
                    if at + len(said) > WINDOW:
                        break
                    words[row, at : at + len(said)] = said
                    at += len(said) + int(gap)
        return Batch({"input_ids": torch.from_numpy(words)}, {})


def objective(module: nn.Module, batch: Batch) -> Tensor:
    """Nats per word."""
    words = batch.inputs["input_ids"]
    logits = module(input_ids=words).logits[:, :-1].float()
    return nn.functional.cross_entropy(logits.flatten(0, 1), words[:, 1:].flatten())


@torch.no_grad()
def surprisal(model: nn.Module, tokens: Tensor, rows: int = 64) -> np.ndarray:
    """(count, n) tokens -> nats of each given those before it, in eval mode; 0 for the first. No state is carried over."""
    training = model.training
    model.eval()
    out = []
    for part in tokens.split(rows):
        scores = model(input_ids=part).logits[:, :-1].float()
        nats = nn.functional.cross_entropy(scores.transpose(1, 2), part[:, 1:], reduction="none")
        out.append(nn.functional.pad(nats, (1, 0)))
    model.train(training)
    return torch.cat(out).numpy()


@torch.no_grad()
def shuffled(model: nn.Module, seed: int) -> nn.Module:
    """In place: the rows of every query's and key's matrix in random order, so that what was learned to match is not."""
    generator = torch.Generator().manual_seed(seed)
    found = [m for name, m in model.named_modules() if name.rsplit(".", 1)[-1] in ("query", "key") and isinstance(m, nn.Linear)]  # fmt: skip
    if not found:
        raise UserError("this model has no queries and keys to shuffle")
    for layer in found:
        layer.weight.copy_(layer.weight[torch.randperm(len(layer.weight), generator=generator)])
    return model


def arm(name: str, vocabulary: int, seed: int) -> nn.Module:
    """A model with as many parameters as two layers of attention: other feed-forwards, or an LSTM's other width."""
    mixer, layers, _ = ARMS[name]
    wanted = small.count(small.decoder(vocabulary, _ATTENTION, 0, 2, WIDTH))
    if mixer["kind"] == small.LSTM:
        width = small.fitted(wanted, lambda w: small.decoder(vocabulary, mixer, 0, layers, w), 4, 512)
        return small.decoder(vocabulary, mixer, seed, layers, width)
    hidden = small.fitted(wanted, lambda h: small.decoder(vocabulary, mixer, 0, layers, WIDTH, h), 8, 2048)
    return small.decoder(vocabulary, mixer, seed, layers, WIDTH, hidden)


def measure(model: nn.Module, text: Text, seed: int, count: int) -> dict[tuple[str, int], float]:
    """(condition, delay) -> median of the repeat surprisal over texts, in per cent."""
    out: dict[tuple[str, int], float] = {}
    for condition in CONDITIONS:
        for delay in DELAYS:
            made = noun_lists.stimuli(condition, seed, count, LENGTH, delay, text.held)
            out[condition, delay] = float(
                np.median(noun_lists.percent(surprisal(model, text.tokens(made)), made))
            )
    return out


def run(budget: float = common.FULL) -> Finding:
    """Every arm once per seed."""
    clock = common.Clock(budget)
    seeds = clock.seeds()
    text = Text.of()
    names = [name for name in ARMS if not clock.few or name in _FEW]
    tested = clock.size(_TESTED, 10)
    steps = _plan(clock, text, names, len(seeds), tested)
    scores: dict[str, dict[tuple[str, int], list[float]]] = defaultdict(lambda: defaultdict(list))
    losses: dict[str, list[float]] = defaultdict(list)
    used = []
    for seed, count in clock.rounds(seeds, steps):
        used.append(count)
        for name in names:
            model = arm(name, text.vocabulary, seed)
            losses[name].append(_train(model, Windows(text, seed, ARMS[name][2]), count, seed))
            for cell, value in measure(model, text, seed, tested).items():
                scores[name][cell].append(value)
            if name == _TWO:
                for cell, value in measure(shuffled(model, seed), text, seed, tested).items():
                    scores[_SHUFFLED][cell].append(value)
    return _conclude(clock, seeds, text, scores, losses, used, tested)


def _train(model: nn.Module, windows: Windows, steps: int, seed: int) -> float:
    settings = Settings(steps=steps, lr=_LR, warmup=0.1, schedule="cosine", precision="fp32", seed=seed)
    return fit(model, windows, objective, settings).loss


def _plan(clock: common.Clock, text: Text, names: Sequence[str], seeds: int, tested: int) -> int:
    """Steps that fit: equally many for every arm."""
    if clock.budget < common.TINY:
        return 2
    step = other = 0.0
    for name in names:
        model, windows = arm(name, text.vocabulary, 0), Windows(text, 0, True)
        _train(model, windows, 2, 0)  # first calls are slow
        begun = time.monotonic()
        _train(model, windows, 4, 0)
        step += (time.monotonic() - begun) / 4
        begun = time.monotonic()
        measure(model, text, 0, tested)
        other += (time.monotonic() - begun) * (2 if name == _TWO else 1)
    return max(int((clock.left(0.12) / seeds - other) / step), 2)


def _conclude(
    clock: common.Clock, seeds: tuple[int, ...], text: Text, scores: dict[str, dict[tuple[str, int], list[float]]],
    losses: dict[str, list[float]], used: list[int], tested: int,
) -> Finding:  # fmt: skip
    far = DELAYS[-1]

    def less(a: list[float], b: list[float]) -> list[float]:
        return common.gain(b, a)

    two = scores[_TWO]
    order = less(two["repeat", far], two["permute", far])
    identity = less(two["permute", far], two["control", far])
    rival = less(two["repeat", far], scores[_LSTM]["repeat", far])
    verdict = common.together(*(reproduce.judge(x) for x in (order, identity, rival)))
    caution = ""
    if np.mean(less(two["repeat", DELAYS[0]], two["control", DELAYS[0]])) < 5:
        verdict = "inconclusive"
        caution = " Nothing follows: two layers of attention have not learned to retrieve, even after the shortest delay."
    table = [
        reproduce.row(
            name,
            **{f"{c}, after {d}": cells[c, d] for c in CONDITIONS for d in (DELAYS[0], far)},
            **({"training loss": losses[name]} if name in losses else {}),
        )
        for name, cells in scores.items()
    ]
    drawings = {
        f"{condition}: surprisal of the second list": plots.curves(
            "words between the lists", "per cent of the first list's", list(DELAYS),
            {name: [cells[condition, d] for d in DELAYS] for name, cells in scores.items()},
        )
        for condition in CONDITIONS
    }  # fmt: skip
    return reproduce.conclude(
        slug="verbatim-memory",
        claim=CLAIM,
        verdict=verdict,
        summary=(
            f"repeat surprisal after {far} words, in points: two layers of attention, another order less the same "
            f"{common.said(order)}, new nouns less another order {common.said(identity)}; LSTM less two layers, repeated "
            f"{common.said(rival)}; repeated, two layers {common.said(two['repeat', far], False)}, shuffled "
            f"{common.said(scores[_SHUFFLED]['repeat', far], False)}.{caution}"
        ),
        table=table,
        baseline=_LSTM,
        settings={
            "model": f"width {WIDTH}, 4 heads, rotary, feed-forwards (or an LSTM's width) so that all have as many parameters",
            "parameters": {n: f"{small.count(arm(n, text.vocabulary, 0)):,}" for n in losses},
            "vocabulary": text.vocabulary,
            "window": WINDOW,
            "lists": f"{LENGTH} nouns of all kinds; one training text in {PLANTED} holds a random list of 3 to 10, twice or more often",
            "measure": "100 x surprisal of the second list / of the first, nouns but the first of a list; median of texts",
            "steps of an arm": dict(zip(map(str, seeds), used)),
            "windows of a batch": _ROWS,
            "learning rate": _LR,
            "texts of a condition": tested,
        },
        limits=(
            f"Models of a tenth of a million parameters over {WORDS} words and minutes of training: levels of GPT-2, delays of "
            "hundreds of words, twelve layers and semantic lists cannot be shown, and what is retrieved was taught by lists "
            "in the training text, not found in plain text." + clock.note()
        ),
        started=clock.started,
        seeds=seeds,
        plots=drawings,
    )  # fmt: skip
