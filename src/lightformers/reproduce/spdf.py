"""SPDF (arXiv 2303.10464): is a model that was pre-trained sparse as good as a dense one after dense fine-tuning?

    lightformers reproduce spdf

Hardware: two cores, five minutes. A character decoder (4 blocks, width 128) is pre-trained on WikiText-2 with 0, 50 and
75 % of its projections masked, and densely on as few steps as cost the flops of the 75 % one; then fine-tuned on
templated descriptions of tables (easy) and on Tiny Shakespeare (harder). Expected: the loss of pre-training rises with
sparsity, the gap shrinks in dense fine-tuning, most on the easy task, and keeping the mask is worse than dropping it.
"""

from __future__ import annotations

import random
import time
from typing import Any

from lightformers import reproduce
from lightformers.bundle import Bundle
from lightformers.compress.prune import schedule, spdf
from lightformers.reproduce import characters, common
from lightformers.reproduce.finding import Finding

CLAIM = (
    "A decoder pre-trained with 75 % of its projections masked loses at most 2 % of the loss of a dense one after dense "
    "fine-tuning on an easy task, and dense fine-tuning beats fine-tuning under the mask."
)
TOLERANCE = 0.02
_LR, _FINE_LR = 1.5e-3, 7e-4
_EASY, _HARD = "tables", "Shakespeare"
_DENSE, _HALF, _SPARSE = "dense", "50 % masked", "75 % masked"
_MASKED, _FEWER = "75 % masked, mask kept", "dense, flops of 75 %"
_SPARSITY = {_DENSE: 0.0, _HALF: 0.5, _SPARSE: 0.75}
#: Steps of one fine-tuning for each step of pre-training.
_FINE = 0.25


def run(budget: float = common.FULL) -> Finding:
    """Pre-train and fine-tune every arm once per seed, with equal steps but for the arm of equal flops."""
    clock = common.Clock(budget)
    seeds = clock.seeds()
    wiki = {part: common.text("wikitext2_small", part) for part in ("train", "valid")}
    plays = {part: common.text("tinyshakespeare", part) for part in ("train", "valid")}
    letters = characters.alphabet(*plays.values(), "0123456789=|>%")
    jobs = {"WikiText-2": _job(wiki, clock), _HARD: _job(plays, clock), _EASY: _tables(clock)}
    arms = tuple(a for a in _SPARSITY if not (clock.few and a == _HALF))
    steps = _plan(clock, letters, jobs, arms, len(seeds))
    scores: dict[str, dict[str, list[float]]] = {}
    used = []
    for seed, count in clock.rounds(seeds, steps):
        used.append(count)
        for arm, cells in _one(letters, jobs, arms, count, seed).items():
            for cell, value in cells.items():
                scores.setdefault(arm, {}).setdefault(cell, []).append(value)
    return _conclude(clock, seeds, scores, used, letters, arms)


def _job(text: dict[str, str], clock: common.Clock) -> Any:
    train, valid = text["train"][: clock.size(1_000_000, 20_000)], text["valid"][: clock.size(60_000, 6_000)]
    return characters.task(characters.windows(train), characters.windows(valid))


def _tables(clock: common.Clock) -> Any:
    """Lines such as "city=Rome|day=4|sky=clear|degrees=17> On day 4 the sky over Rome is clear at 17 degrees."."""
    drawn = random.Random(0)
    cities = ["Rome", "Lima", "Oslo", "Cairo", "Quito", "Delhi", "Paris", "Turin", "Kyoto", "Accra"]
    skies = ["clear", "grey", "dark", "bright", "cloudy"]

    def line() -> str:
        city, sky = drawn.choice(cities), drawn.choice(skies)
        day, degrees = drawn.randint(1, 30), drawn.randint(0, 39)
        said = f"On day {day} the sky over {city} is {sky} at {degrees} degrees."
        return f"city={city}|day={day}|sky={sky}|degrees={degrees}> {said}"

    rows = [{"text": line()} for _ in range(clock.size(3000, 160))]
    return characters.task(rows[:-100], rows[-100:])


def _pretrained(
    letters: characters.Characters, jobs: dict[str, Any], sparsity: float, steps: int, seed: int
) -> tuple[Bundle, schedule.Held]:
    bundle = characters.decoder(letters, seed)
    spdf.initialise(bundle.model, seed)
    held = schedule.Held(bundle.model, spdf.random_masks(bundle.model, sparsity, seed))
    characters.train(bundle, jobs["WikiText-2"], steps, seed, _LR, "cosine", held)
    return bundle, held


def _one(
    letters: characters.Characters, jobs: dict[str, Any], arms: tuple[str, ...], steps: int, seed: int
) -> dict[str, dict[str, float]]:
    """Arm -> cell -> nats per character, for one seed."""
    out: dict[str, dict[str, float]] = {}
    share = _share(letters)
    for arm in (*arms, _FEWER):
        length = max(int(steps * share), 1) if arm == _FEWER else steps
        bundle, held = _pretrained(letters, jobs, _SPARSITY.get(arm, 0.0), length, seed)
        out[arm] = {"loss of pre-training": characters.loss(bundle, jobs["WikiText-2"])}
        for name in (_EASY, _HARD):
            if arm == _SPARSE:
                kept = bundle.copy()
                mask = schedule.Held(kept.model, held.masks)
                out.setdefault(_MASKED, {})[f"loss on {name}"] = _tuned(kept, jobs[name], steps, seed, mask)
            free = bundle.copy()  # a copy is not held: all its weights learn
            out[arm][f"loss on {name}"] = _tuned(free, jobs[name], steps, seed)
    return out


def _tuned(bundle: Bundle, job: Any, steps: int, seed: int, held: schedule.Held | None = None) -> float:
    characters.train(bundle, job, int(steps * _FINE), seed, _FINE_LR, held=held)
    return characters.loss(bundle, job)


def _share(letters: characters.Characters) -> float:
    model = characters.decoder(letters, 0).model
    sparse, dense = (spdf.flops_per_token(model, characters.LENGTH, s) for s in (0.75, 0.0))
    return sparse / dense


def _plan(
    clock: common.Clock,
    letters: characters.Characters,
    jobs: dict[str, Any],
    arms: tuple[str, ...],
    seeds: int,
) -> int:
    """Steps of one pre-training that fit, from timed ones."""
    characters.train(characters.decoder(letters, 99), jobs["WikiText-2"], 1, 99, _LR)  # first calls are slow
    begun = time.monotonic()
    bundle = characters.decoder(letters, 99)
    characters.train(bundle, jobs["WikiText-2"], 1, 99, _LR)
    start = time.monotonic() - begun
    begun = time.monotonic()
    characters.train(bundle, jobs["WikiText-2"], 9, 99, _LR)
    step = max((time.monotonic() - begun - start) / 8, 1e-3)
    begun = time.monotonic()
    characters.loss(bundle, jobs["WikiText-2"])
    score = time.monotonic() - begun
    trainings, tuned = len(arms) + _share(letters), 2 * (len(arms) + 2)
    fixed = (start + score) * (len(arms) + 1 + tuned)
    return max(int((clock.left() / seeds - fixed) / step / (trainings + _FINE * tuned)), 4)


def _conclude(
    clock: common.Clock, seeds: tuple[int, ...], scores: dict[str, dict[str, list[float]]], used: list[int],
    letters: characters.Characters, arms: tuple[str, ...],
) -> Finding:  # fmt: skip
    def relative(arm: str, cell: str) -> list[float]:
        return [(new - old) / old for new, old in zip(scores[arm][cell], scores[_DENSE][cell])]

    def gaps(arm: str) -> str:
        cells = ("loss of pre-training", f"loss on {_EASY}", f"loss on {_HARD}")
        return ", ".join(common.said(relative(arm, cell)) for cell in cells)

    easy = relative(_SPARSE, f"loss on {_EASY}")
    kept = [
        sum(scores[_MASKED][f"loss on {n}"][i] - scores[_SPARSE][f"loss on {n}"][i] for n in (_EASY, _HARD))
        / 2
        for i in range(len(seeds))
    ]
    verdict = common.together(reproduce.judge([-v for v in easy], -TOLERANCE), reproduce.judge(kept))
    model = characters.decoder(letters, 0).model
    return reproduce.conclude(
        slug="spdf",
        claim=CLAIM,
        verdict=verdict,
        summary=(
            f"relative rise of the loss over dense (pre-training, then after dense fine-tuning on tables, on Shakespeare): 75 % "
            f"masked {gaps(_SPARSE)}; dense of equal flops {gaps(_FEWER)}. Keeping the mask costs {common.said(kept)} nats "
            "per character more than dropping it."
        ),
        table=[reproduce.row(arm, **cells) for arm, cells in scores.items()],
        baseline=_DENSE,
        settings={
            "model": f"GPT-2 form, 4 blocks, width 128, {len(letters.symbols)} characters",
            "steps of pre-training": dict(zip(map(str, seeds), used)),
            "steps of each fine-tuning": f"{_FINE} times as many",
            "forward flops per token": {a: spdf.flops_per_token(model, characters.LENGTH, _SPARSITY[a]) for a in arms},
            "learning rates": {"pre-training": _LR, "fine-tuning": _FINE_LR},
            "data": "WikiText-2, templated tables, Tiny Shakespeare; characters, windows of 128",
        },
        limits=(
            "A decoder of less than a million parameters and hundreds of steps. Flops are counted, not saved: there is no "
            "sparse kernel. Data-to-text metrics, summarisation and the effect of model size were not tried." + clock.note()
        ),
        started=clock.started,
        seeds=seeds,
    )  # fmt: skip
