"""Teaching Arithmetic to Small Transformers (arXiv 2307.03381): does the way that sums are written decide?

    lightformers reproduce teaching-arithmetic

Hardware: two cores. Time: five minutes. Small character decoders learn addition from balanced pairs, the sums written as
usual or units first, from few and from many different pairs, all for equally many steps; one more learns from written-out
steps for as many tokens, one from pairs drawn evenly. Held-out pairs come in no draw, not even commuted. Expected by the
paper: units first rises earlier and sharper; written-out steps need fewer pairs; balance helps where much is carried;
sums longer than those trained on stay wrong. As a control, the addition table is completed at rank 2 from the same pairs.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lightformers import reproduce
from lightformers.bundle import Batch
from lightformers.reproduce import common, plots, small
from lightformers.reproduce.finding import Finding
from lightformers.tasks import arithmetic
from lightformers.tasks.arithmetic import Pair, Style
from lightformers.train import Settings, fit

CLAIM = (
    "Trained on the same pairs for the same number of steps, a small decoder that writes sums units first gets more held-out "
    "additions exactly right than one that writes them as usual, over different numbers of training pairs."
)
DIGITS, WIDTH, LAYERS, HEADS = 3, 64, 2, 4
#: Different training pairs; the last one is the size of the other comparisons.
SIZES = (500, 2000, 8000)
_ROWS, _LR, _TESTED = 64, 6e-3, 300
_PLAIN: Style = "plain"
_REVERSE: Style = "reverse"
_STEPS: Style = "simplified"
_EVEN = "reverse, even draw"


@dataclass(frozen=True)
class Samples:
    """Texts as batches: every row is one whole sample from its first character, so none is cut (the paper's windows start
    anywhere). The loss is over all characters of the sample, the question too, as in the paper."""

    tokens: Tensor
    seed: int
    rows: int = _ROWS

    @classmethod
    def of(cls, pairs: Sequence[Pair], style: Style, seed: int, rows: int = _ROWS) -> Samples:
        encoded = [arithmetic.encode(arithmetic.write(a, b, style), style) for a, b in pairs]
        longest = max(map(len, encoded))
        return cls(torch.tensor([e + [-100] * (longest - len(e)) for e in encoded]), seed, rows)

    def batch(self, position: int) -> Batch:
        drawn = np.random.default_rng((self.seed, position)).integers(len(self.tokens), size=self.rows)
        wanted = self.tokens[torch.from_numpy(drawn)]
        return Batch({"input_ids": wanted.clamp(min=0)}, {"wanted": wanted})


def objective(module: nn.Module, batch: Batch) -> Tensor:
    """Nats per character."""
    logits = module(**batch.inputs).logits[:, :-1].float()
    return nn.functional.cross_entropy(
        logits.flatten(0, 1), batch.targets["wanted"][:, 1:].flatten(), ignore_index=-100
    )


@torch.no_grad()
def sums(model: nn.Module, pairs: Sequence[Pair], style: Style, most: int = 0) -> list[int | None]:
    """What the model says the sums are, by greedy decoding; None where it states no number.

    Prompts of equal length are decoded together: padding would move learned positions. most: characters that it may
    write, 0: as many as the longest right completion.
    """
    most = most or max(len(arithmetic.completion(a, b, style)) for a, b in pairs)
    groups: dict[int, list[int]] = defaultdict(list)
    prompts = [arithmetic.prompt(a, b, style) for a, b in pairs]
    for i, text in enumerate(prompts):
        groups[len(text)].append(i)
    said: list[int | None] = [None] * len(pairs)
    for rows in groups.values():
        new = torch.tensor([arithmetic.encode(prompts[i], style) for i in rows])
        states, written = None, []
        for _ in range(most):
            out: Any = model(input_ids=new, past_key_values=states, use_cache=True)
            states, new = out.past_key_values, out.logits[:, -1:].argmax(-1)
            written.append(new[:, 0])
        for i, tokens in zip(rows, torch.stack(written, 1).tolist()):
            said[i] = arithmetic.answer(arithmetic.decode(tokens, style), style)
    return said


def right(model: nn.Module, pairs: Sequence[Pair], style: Style) -> float:
    """Share of the sums that are exactly right."""
    return float(np.mean([s == a + b for s, (a, b) in zip(sums(model, pairs, style), pairs)]))


def table_completed(
    pairs: Sequence[Pair], held: Sequence[Pair], digits: int = DIGITS, sweeps: int = 60
) -> float:
    """The control: share of the held-out sums that completion at rank 2 finds from the training pairs."""
    known = np.full((10**digits, 10**digits), np.nan)
    for a, b in pairs:
        known[a, b] = a + b
    found = np.round(arithmetic.complete(known, sweeps=sweeps))
    return float(np.mean([found[a, b] == a + b for a, b in held]))


def run(budget: float = common.FULL) -> Finding:
    """Every arm once per seed."""
    clock = common.Clock(budget)
    seeds = clock.seeds()
    sizes = SIZES[:2] if clock.short else SIZES[-2:] if clock.few else SIZES
    tested = clock.size(_TESTED, 30)
    steps = _plan(clock, len(sizes), len(seeds), tested)
    scores: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    used = []
    for seed, count in clock.rounds(seeds, steps):
        used.append(count)
        shut = arithmetic.hold_out(seed, 4 * tested, DIGITS)
        held = shut[:tested]
        hard = [p for p in shut if arithmetic.carries(*p) == DIGITS][:tested]
        longer = [p for p in arithmetic.uniform(seed, 200, DIGITS + 1) if max(p) >= 10**DIGITS][: tested // 3]
        for size in sizes:
            pairs = arithmetic.balanced(seed + 1, size, DIGITS, shut)
            for style in (_PLAIN, _REVERSE):
                model = _trained(pairs, style, seed, count)
                cells = scores[_arm(style, size)]
                cells["right"].append(right(model, held, style))
                cells["right, all carried"].append(right(model, hard, style))
                if size == sizes[-1]:
                    cells["right, a digit more"].append(right(model, longer, style))
            scores[_arm("rank 2", size)]["right"].append(
                table_completed(pairs, held, sweeps=2 if clock.short else 60)
            )
        middle = sizes[len(sizes) // 2]
        even = arithmetic.uniform(seed + 1, middle, DIGITS, shut)
        drawn: dict[str, tuple[Style, list[Pair]]] = {_arm(_EVEN, middle): (_REVERSE, even)}
        if not clock.few:
            drawn[_arm(_STEPS, middle)] = (_STEPS, arithmetic.balanced(seed + 1, middle, DIGITS, shut))
        for arm, (way, pairs) in drawn.items():
            model = _trained(pairs, way, seed, count)
            scores[arm]["right"].append(right(model, held, way))
            scores[arm]["right, all carried"].append(right(model, hard, way))
    return _conclude(clock, seeds, sizes, scores, used, tested)


def _arm(name: str, size: int) -> str:
    return f"{name}, {size} pairs"


def _model(style: Style, seed: int) -> nn.Module:
    """Room for sums of a digit more, whose positions are then untrained."""
    top = 10 ** (DIGITS + 1) - 1
    return small.decoder(
        len(arithmetic.SYMBOLS[style]), {"kind": "attention", "heads": HEADS, "rotary": False}, seed, LAYERS, WIDTH,
        length=len(arithmetic.write(top, top, style)),
    )  # fmt: skip


def _trained(pairs: Sequence[Pair], style: Style, seed: int, steps: int) -> nn.Module:
    """After `steps` of plain or reversed samples, or of as many tokens of a longer style."""
    model = _model(style, seed)
    samples = Samples.of(pairs, style, seed)
    if style not in (_PLAIN, _REVERSE):
        length = len(arithmetic.write(10**DIGITS - 1, 10**DIGITS - 1, "reverse"))
        samples = Samples(samples.tokens, seed, max(_ROWS * length // samples.tokens.shape[1], 1))
    settings = Settings(
        steps=steps, lr=_LR, warmup=0.1, schedule="cosine", weight_decay=0.1, betas=(0.9, 0.99),
        precision="fp32", seed=seed,
    )  # fmt: skip
    fit(model, samples, objective, settings)
    return model


def _plan(clock: common.Clock, sizes: int, seeds: int, tested: int) -> int:
    """Steps that fit."""
    if clock.budget < common.TINY:
        return 2
    pairs = arithmetic.balanced(0, 200, DIGITS)
    _trained(pairs, "reverse", 0, 2)  # first calls are slow
    begun = time.monotonic()
    model = _trained(pairs, "reverse", 0, 6)
    step = (time.monotonic() - begun) / 6
    begun = time.monotonic()
    right(model, arithmetic.hold_out(0, tested, DIGITS), "reverse")
    runs = 2 * sizes + (1 if clock.few else 2)
    other = 4 * runs * (time.monotonic() - begun)
    return max(int((clock.left(0.15) / seeds - other) / runs / step), 2)


def _conclude(
    clock: common.Clock, seeds: tuple[int, ...], sizes: Sequence[int], scores: dict[str, dict[str, list[float]]],
    used: list[int], tested: int,
) -> Finding:  # fmt: skip
    def of(name: str, size: int, cell: str = "right") -> list[float]:
        return scores[_arm(name, size)][cell]

    better = np.mean([common.gain(of(_REVERSE, size), of(_PLAIN, size)) for size in sizes], 0).tolist()
    verdict = reproduce.judge(better)
    best = max(np.mean(of(style, size)) for style in (_PLAIN, _REVERSE) for size in sizes)
    caution = ""
    if best < 0.2:
        verdict, caution = (
            "inconclusive",
            f" Nothing follows: the best model gets {best:.3f} right, none has learned to add.",
        )
    middle = sizes[len(sizes) // 2]
    even = common.gain(of(_REVERSE, middle, "right, all carried"), of(_EVEN, middle, "right, all carried"))
    curves = {
        name: [of(name, size) for size in sizes] for name in (_PLAIN, _REVERSE, "rank 2") if _arm(name, sizes[0]) in scores
    }  # fmt: skip
    return reproduce.conclude(
        slug="teaching-arithmetic",
        claim=CLAIM,
        verdict=verdict,
        summary=(
            f"held-out sums right, units first less as usual: {common.said(better)} over {len(sizes)} numbers of pairs; with "
            f"{sizes[-1]} pairs {common.said(of(_REVERSE, sizes[-1]), False)} against "
            f"{common.said(of(_PLAIN, sizes[-1]), False)}; balanced less even draw where every digit carries: "
            f"{common.said(even)}; with a digit more than trained on "
            f"{np.mean(of(_REVERSE, sizes[-1], 'right, a digit more')):.3f}.{caution}"
        ),
        table=[reproduce.row(arm, **cells) for arm, cells in scores.items()],
        baseline=_arm(_PLAIN, sizes[-1]),
        settings={
            "model": f"decoder, {LAYERS} layers, width {WIDTH}, {HEADS} heads, learned positions, characters, "
            f"{small.count(_model('reverse', 0)):,} parameters",
            "task": f"addition of numbers of up to {DIGITS} digits",
            "steps of an arm": dict(zip(map(str, seeds), used)),
            "samples of a batch": f"{_ROWS}, whole ones from their first character; of written-out steps as many as have "
            "equally many tokens",
            "learning rate": _LR,
            "held-out pairs": tested,
            "rank 2": "completion of the addition table by alternating least squares from the same pairs",
        },
        limits=(
            "A decoder a hundred times smaller than the paper's and a few thousandths of its training: where its curves "
            "end cannot be shown, nor other operations, detailed steps and pretrained models. Samples are whole rows, not windows of a running text." + clock.note()
        ),
        started=clock.started,
        seeds=seeds,
        plots={"Sums right by number of training pairs": plots.curves("different training pairs", "held-out sums right", list(sizes), curves, log=True, within=(0, 1))},
    )  # fmt: skip
