"""Sorted LLaMA (arXiv 2309.08968): do early exits work when all of them are tuned at once?

    lightformers reproduce sorted-llama

Hardware: two cores, five minutes. A character decoder (Llama form, 8 blocks, width 128) learns Tiny Shakespeare and is
then tuned to answer: a line of fields in, a sentence out. Arms of equal steps: ordinary tuning; the same with a head of
its own tuned for each exit (more steps, counted); sorted tuning, the losses of exits 2, 4, 6 and 8 summed, and one exit
sampled per step; models cut to each depth and tuned apart, in as many steps in total. Expected: exits of ordinary tuning
fail, sorted ones work at a small cost to the whole.
"""

from __future__ import annotations

import dataclasses
import random
import time
from typing import Any

import torch

from lightformers import anatomy, reproduce
from lightformers.bundle import Batch, Bundle
from lightformers.compress.calibration import batches
from lightformers.compress.elastic import sorted_llama
from lightformers.compress.elastic.size import Nesting, Size, cut, size_of
from lightformers.compress.elastic.sorted_llama import SortedLlama
from lightformers.reproduce import characters, common, drafts
from lightformers.reproduce.finding import Finding
from lightformers.steps import Run
from lightformers.tasks.causal_lm import CausalLM
from lightformers.train import Feed, Settings, fit

CLAIM = (
    "Sorted tuning gives exits at a quarter, a half and three quarters of the depth a lower answer loss than exits of an "
    "ordinarily tuned model have, as they are and with heads tuned for them."
)
_EXITS = (2, 4, 6, 8)
_LR, _TUNE_LR = 1.5e-3, 1e-3
_PLAIN, _HEADS, _SUM = "ordinary tuning", "ordinary tuning + heads of exits", "sorted tuning, sum"
_SAMPLE, _APART = "sorted tuning, sample", "cut and tuned apart"
_CITIES = ("Paris", "Cairo", "Quito", "Delhi", "Turin", "Kyoto", "Accra", "Lagos", "Osaka", "Milan")
_SKIES = ("clear", "dusty", "foggy", "sunny", "windy")
#: Characters of a prompt, and of prompt and answer.
_PROMPT, _ROW = 39, 90


def run(budget: float = common.FULL) -> Finding:
    """One pre-trained decoder per seed; every arm is tuned from a copy of it."""
    clock = common.Clock(budget)
    seeds = clock.seeds()
    text = {part: common.text("tinyshakespeare", part) for part in ("train", "valid")}
    letters = characters.alphabet(*text.values(), "0123456789=|>.")
    prose = characters.task(
        characters.windows(text["train"][: clock.size(len(text["train"]), 40_000)]),
        characters.windows(text["valid"][: clock.size(60_000, 6_000)]),
    )
    job = answers(clock.size(4000, 200), clock.size(200, 12))
    arms = (_PLAIN, _HEADS, _SUM) if clock.few else (_PLAIN, _HEADS, _SUM, _SAMPLE, _APART)
    steps = _plan(clock, letters, prose, job, len(arms), len(seeds))
    scores: dict[str, dict[str, list[float]]] = {}
    used = []
    for seed, count in clock.rounds(seeds, steps):
        used.append(count)
        for arm, cells in _one(letters, prose, job, arms, count, seed).items():
            for cell, value in cells.items():
                scores.setdefault(arm, {}).setdefault(cell, []).append(value)
    return _conclude(clock, seeds, scores, used, letters)


def answers(train: int, held_out: int) -> CausalLM:
    """Rows such as "city=Paris|day=04|sky=clear|degrees=17>On day 04 the sky over Paris is clear at 17 degrees."."""
    drawn = random.Random(0)

    def line() -> dict[str, Any]:
        city, sky = drawn.choice(_CITIES), drawn.choice(_SKIES)
        day, degrees = f"{drawn.randint(1, 30):02d}", f"{drawn.randint(0, 39):02d}"
        prompt = f"city={city}|day={day}|sky={sky}|degrees={degrees}>"
        said = f"On day {day} the sky over {city} is {sky} at {degrees} degrees."
        return {"text": prompt + said, "prompt": prompt}

    rows = [line() for _ in range(train + 2 * held_out)]
    return CausalLM.from_examples(
        {"train": rows[:train], "valid": rows[train : train + held_out], "test": rows[train + held_out :]}
    )


def decoder(letters: characters.Characters, seed: int) -> Bundle:
    """A Llama form of 8 blocks with random weights and a head of its own."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(letters.symbols) + 1, hidden_size=128, num_hidden_layers=8, num_attention_heads=4,
        num_key_value_heads=4, intermediate_size=344, max_position_embeddings=characters.LENGTH, pad_token_id=0,
        bos_token_id=0, eos_token_id=0, tie_word_embeddings=False,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    return Bundle(model.eval(), letters, "causal-lm", max_length=characters.LENGTH)


def _one(
    letters: characters.Characters, prose: Any, job: Any, arms: tuple[str, ...], steps: int, seed: int
) -> dict[str, dict[str, float]]:
    base = decoder(letters, seed)
    characters.train(base, prose, steps, seed, _LR)
    plain = _tuned(base, job, SortedLlama((8,), lr=_TUNE_LR), steps, seed)
    models = {_PLAIN: _exits(plain)}
    part = max(steps // len(_EXITS), 1)
    models[_HEADS] = [*(_with_head(_exit(plain, n), job, part, seed) for n in _EXITS[:-1]), plain]
    models[_SUM] = _exits(_tuned(base, job, SortedLlama(_EXITS, lr=_TUNE_LR), steps, seed))
    if _SAMPLE in arms:
        models[_SAMPLE] = _exits(_tuned(base, job, SortedLlama(_EXITS, "sample", lr=_TUNE_LR), steps, seed))
    if _APART in arms:
        models[_APART] = [
            _tuned(_exit(base, n), job, SortedLlama((n,), lr=_TUNE_LR), part, seed) for n in _EXITS
        ]
    return {arm: _scores(found, job) for arm, found in models.items()}


def _exit(whole: Bundle, depth: int) -> Bundle:
    small, size = whole.copy(), size_of(whole.model)
    cut(small.model, Size(depth, size.heads[:depth], size.channels[:depth], size.width), Nesting())
    return small


def _exits(whole: Bundle) -> list[Bundle]:
    return [_exit(whole, n) for n in _EXITS]


def _tuned(base: Bundle, job: Any, method: SortedLlama, steps: int, seed: int) -> Bundle:
    bundle = base.copy()
    method = dataclasses.replace(method, warmup=0.1, max_tokens=16 * _ROW)
    method.train(bundle, job, Run(tokens=steps * 16 * _ROW, seed=seed, use_labels=True))
    return bundle


def _with_head(small: Bundle, job: Any, steps: int, seed: int) -> Bundle:
    """Only the norm and the head are tuned: intermediate classifier tuning."""
    found = anatomy.of(small.model)
    free = tuple(f"{path}." for path in (found.final_norm, found.head) if path)
    frozen = [n for n, _ in small.model.named_parameters() if not n.startswith(free)]
    lesson = sorted_llama.answers(small)

    def feed(items: list[Any], _: int) -> Batch:
        return small.collate(items)

    rows = job.training_examples(True)
    lengths = [len(row["text"]) for row in rows]
    batches_of = Feed(rows, feed, lengths, 16 * _ROW, seed=seed)  # type: ignore[arg-type]
    settings = Settings(
        steps=steps, lr=_TUNE_LR, warmup=0.1, precision=common.precision(), frozen=tuple(frozen), seed=seed
    )
    fit(small.module(), batches_of, lesson, settings)
    return small


@torch.no_grad()
def _answered(bundle: Bundle, job: Any) -> tuple[float, float]:
    """Nats per character of the answers, and the share of answers that greedy decoding gets right whole."""
    nats = count = right = 0.0
    rows = job.splits["verify"]
    for batch in batches(bundle, rows):
        mask = sorted_llama.answer_mask(bundle, batch)
        logits, ids = bundle.model(**batch.inputs, use_cache=False).logits, batch.inputs["input_ids"]
        weight = float(mask[:, 1:].sum())
        nats += weight * float(sorted_llama.answer_loss(logits, ids, mask))
        count += weight
        same = (logits[:, :-1].argmax(-1) == ids[:, 1:]) | ~mask[:, 1:]
        right += float(same.all(1).sum())
    return nats / count, right / len(rows)


def _scores(models: list[Bundle], job: Any) -> dict[str, float]:
    out: dict[str, float] = {}
    rows = job.splits["verify"][:64]
    for depth, model in zip(_EXITS, models):
        loss, right = _answered(model, job)
        out |= {f"answer loss, {depth} blocks": loss, f"answers right, {depth} blocks": right}
    same, divergence = drafts.agreement(models[0], models[-1], rows)
    out |= {"next tokens on which 2 blocks agree with all": same, "KL of 2 blocks from all": divergence}
    return out | {"tokens accepted of a draft of 4": drafts.accepted(models[0], models[-1], rows, _PROMPT)}


def _plan(
    clock: common.Clock, letters: characters.Characters, prose: Any, job: Any, arms: int, seeds: int
) -> int:
    """Steps that fit, from timed ones of pre-training and of sorted tuning."""
    bundle = decoder(letters, 99)
    characters.train(bundle, prose, 1, 99, _LR)  # first calls are slow
    begun = time.monotonic()
    characters.train(bundle, prose, 4, 99, _LR)
    step = (time.monotonic() - begun) / 4
    begun = time.monotonic()
    _tuned(bundle, job, SortedLlama(_EXITS), 4, 99)
    tuning = (time.monotonic() - begun) / 4
    begun = time.monotonic()
    _answered(bundle, job)
    fixed = (time.monotonic() - begun) * 8 * arms
    return max(int((clock.left() / seeds - fixed) / max(step + 0.8 * arms * tuning, 1e-3)), 3)


def _conclude(
    clock: common.Clock, seeds: tuple[int, ...], scores: dict[str, dict[str, list[float]]], used: list[int],
    letters: characters.Characters,
) -> Finding:  # fmt: skip
    names = [f"answer loss, {depth} blocks" for depth in _EXITS]

    def least(than: str) -> list[float]:
        """What sorted tuning saves at the exit where it saves least, per seed."""
        saved = [common.gain(scores[than][name], scores[_SUM][name]) for name in names[:-1]]
        return [min(column) for column in zip(*saved)]

    verdict = common.together(reproduce.judge(least(_PLAIN)), reproduce.judge(least(_HEADS)))
    cost = common.gain(scores[_SUM][names[-1]], scores[_PLAIN][names[-1]])
    apart = ""
    if _APART in scores:
        apart = f" Against models cut and tuned apart it saves {common.said(least(_APART))}."
    whole = scores[_PLAIN][names[-1]]
    caution = ""
    if sum(whole) / len(whole) > 1.0:
        verdict, caution = "inconclusive", " Nothing follows: the whole has hardly learnt to answer."
    return reproduce.conclude(
        slug="sorted-llama",
        claim=CLAIM,
        verdict=verdict,
        summary=(
            f"nats per character of the answers saved by sorted tuning, at the exit where it saves least: "
            f"{common.said(least(_PLAIN))} against exits of ordinary tuning, {common.said(least(_HEADS))} against those with heads "
            f"of their own; at full depth it costs {common.said(cost)}.{apart}{caution}"
        ),
        table=[reproduce.row(arm, **cells) for arm, cells in scores.items()],
        baseline=_PLAIN,
        settings={
            "model": f"Llama form, 8 blocks, width 128, head untied, {len(letters.symbols)} characters",
            "steps of pre-training, and of tuning": dict(zip(map(str, seeds), used)),
            "more steps for heads": "a quarter as many for each of three exits",
            "learning rates": {"pre-training": _LR, "tuning": _TUNE_LR},
            "data": "Tiny Shakespeare; lines of fields and the sentence that says them, 16 a step",
        },
        limits=(
            "A decoder of about a million and a half parameters on one kind of question; instructions, judged win rates and the "
            "speed of drafting with an exit were not tried." + clock.note()
        ),
        started=clock.started,
        seeds=seeds,
    )  # fmt: skip
