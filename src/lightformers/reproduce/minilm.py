"""MiniLM (arXiv 2002.10957): a student that only imitates the attention of its teacher's last block.

    lightformers reproduce minilm

Hardware: two cores, five minutes. Teacher: all-MiniLM-L6-v2 (6 blocks, width 384). Student: 3 blocks, width 192, 12
heads, random but for the word embeddings (main components of the teacher's). Distilled on WikiText-2 sentences and AG News for equal tokens, then fine-tuned on TREC
and SST-2 with equal tokens. Expected: any distillation beats none; whether value relations help, and whether
attention beats matching hidden states, may lie inside the noise at so few steps.
"""

from __future__ import annotations

import dataclasses
import time
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lightformers import anatomy, reproduce
from lightformers.bundle import Batch, Bundle, Pooling
from lightformers.compress.distill import MiniLM
from lightformers.compress.distill import common as distilling
from lightformers.reproduce import common
from lightformers.reproduce.finding import Finding
from lightformers.steps import Run
from lightformers.tasks.embedding import Embedding
from lightformers.train import losses
from lightformers.train.capture import Capture

CLAIM = (
    "A small student that imitates attention distributions and value relations of its teacher's last block learns "
    "more than one that matches the last hidden states for the same budget, and more than one that is not distilled."
)
_LR = 1e-3
_FINE_LR = 5e-4
_LENGTH = 48
_MAX_TOKENS = 1024
_BOTH = "attention + values"
_ATTENTION = "attention only"
_HIDDEN = "hidden states"
_NONE = "no distillation"
_ARMS = (_BOTH, _ATTENTION, _HIDDEN, _NONE)
_STEPS = {
    _BOTH: MiniLM(version="v1", assistant=False, lr=_LR, max_tokens=_MAX_TOKENS),
    _ATTENTION: MiniLM(version="v1", assistant=False, values=0.0, lr=_LR, max_tokens=_MAX_TOKENS),
}
#: Share of the time that distillation gets; the rest is fine-tuning.
_SHARE = 0.6


def run(budget: float = common.FULL) -> Finding:
    """Distil every arm, fine-tune it on both tasks, once per seed."""
    clock = common.Clock(budget)
    seeds = clock.seeds()
    arms = [_BOTH, _HIDDEN, _NONE] if clock.few else list(_ARMS)
    names = ("trec",) if clock.few else ("trec", "sst2")
    tasks = {name: common.classification(name, 5000, clock.size(900, 64)) for name in names}
    texts = _texts(clock.size(5000, 200))
    teacher = common.encoder(max_length=_LENGTH)
    held_out = teacher.encode(texts.texts("verify")[: clock.size(256, 32)])
    tokens, fine = _plan(clock, teacher, texts, tasks, len(arms) - 1, len(seeds))
    scores: dict[str, dict[str, list[float]]] = {arm: {} for arm in arms}
    used = []
    for seed, count in clock.rounds(seeds, tokens):
        share = count / tokens  # a late round shortens both parts alike
        used.append(count)
        for arm in arms:
            student = _student(teacher, seed)
            if arm != _NONE:
                _distil(arm, student, teacher, texts, count, seed)
            found = _relations(student, teacher, held_out)
            for name, task in tasks.items():
                found[f"accuracy {name}"] = _score(student, task, max(int(fine * share), 32), seed)
            for name, value in found.items():
                scores[arm].setdefault(name, []).append(value)
    return _conclude(clock, seeds, scores, used, fine, tasks, teacher)


def _texts(count: int) -> Embedding:
    """Unlabelled text: WikiText-2 cut into sentences, and AG News."""
    wiki = [
        s.strip() for line in common.text("wikitext2_small", "train").splitlines()
        for s in line.split(" . ") if len(s.split()) > 5
    ]  # fmt: skip
    news = [f"{r['title']}. {r['text']}" for r in common.records("ag_news", "train")]
    rows = [*wiki, *news]
    order = np.random.default_rng(0).permutation(len(rows))
    drawn = [{"text": rows[i]} for i in order[: count + 400]]
    return Embedding.from_examples({"train": drawn[:count], "valid": drawn[count:-300], "test": drawn[-300:]})


def _student(teacher: Bundle, seed: int, blocks: int = 3, width: int = 192) -> Bundle:
    """A BERT of the teacher's vocabulary and head count: random, but for the word embeddings.

    They are the teacher's main components, in every arm: minutes cannot teach 30,000 random ones.
    """
    from transformers import BertConfig, BertModel

    settings: dict[str, Any] = {
        "vocab_size": _rows(teacher), "hidden_size": width, "num_hidden_layers": blocks,
        "num_attention_heads": 12, "intermediate_size": 4 * width, "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0, "max_position_embeddings": 128,
    }  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: Any = BertModel(BertConfig(**settings))
    with torch.no_grad():
        source = teacher.model.get_input_embeddings().weight.float()  # type: ignore[operator]
        source = source - source.mean(0)
        _, directions = torch.linalg.eigh(source.T @ source)  # ascending
        main = source @ directions[:, -width:]
        model.embeddings.word_embeddings.weight.copy_(main * source.std() / main.std())
    return dataclasses.replace(
        teacher, model=model.eval(), pooling=Pooling(), max_length=_LENGTH, source=None, history=[]
    )


def _rows(bundle: Bundle) -> int:
    return int(bundle.model.get_input_embeddings().weight.shape[0])  # type: ignore[operator]


def _distil(arm: str, student: Bundle, teacher: Bundle, texts: Embedding, tokens: int, seed: int) -> None:
    run = Run(teacher=teacher, tokens=tokens, seed=seed)
    if arm == _HIDDEN:
        _match_hidden(student, teacher, texts, run)
    else:
        _STEPS[arm].apply(student, texts, run)


class _Hidden(nn.Module):
    """Mean squared difference of the last hidden states, the student's through a learnt linear map."""

    def __init__(self, width: int, goal: int, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.map = nn.Linear(width, goal)
        self.run_both: Any = None

    def forward(self, module: nn.Module, batch: Batch) -> Tensor:
        own, theirs = self.run_both(module, batch)
        return losses.normalized_hidden_mse(self.map(own), theirs, batch.inputs["attention_mask"])


def _match_hidden(student: Bundle, teacher: Bundle, texts: Embedding, run: Run) -> None:
    """The rival: everything as in the other arms but for what is matched."""
    own, theirs = anatomy.of(student.model), anatomy.of(teacher.model)
    with ExitStack() as stack:
        call = stack.enter_context(distilling.live(teacher, run.device))
        mine = stack.enter_context(Capture(student.model, own, hidden=[len(own.blocks) - 1]))
        goal = stack.enter_context(Capture(teacher.model, theirs, hidden=[len(theirs.blocks) - 1]))

        def both(module: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
            module(**batch.inputs)
            call(batch.inputs)
            return mine.hidden(len(own.blocks) - 1), goal.hidden(len(theirs.blocks) - 1)

        objective = _Hidden(own.width, theirs.width, run.seed)
        objective.run_both = both
        feed = distilling.feed(student, texts, run, _MAX_TOKENS)
        plan = distilling.Plan(_LR, 1.0, MiniLM.warmup, MiniLM.weight_decay)
        distilling.train(student, feed, objective, plan, run, time.monotonic())


@torch.no_grad()
def _relations(student: Bundle, teacher: Bundle, encoded: list[Any]) -> dict[str, float]:
    """Both of MiniLM's losses on held-out text, in nats per row of the relation."""
    own, theirs = anatomy.of(student.model), anatomy.of(teacher.model)
    last, goal = len(own.blocks) - 1, len(theirs.blocks) - 1
    totals = {"held-out attention KL": 0.0, "held-out value KL": 0.0}
    encoded = sorted(encoded, key=lambda e: len(e["input_ids"]))
    with (
        Capture(student.model, own, relations=[last]) as s,
        Capture(teacher.model, theirs, relations=[goal]) as t,
    ):
        for start in range(0, len(encoded), 32):
            batch = student.pad(encoded[start : start + 32])
            student.model(**batch.inputs)
            teacher.model(**batch.inputs)
            (q, k, v), (tq, tk, tv) = ([c.qkv(i, p) for p in "qkv"] for c, i in ((s, last), (t, goal)))
            mask, size = batch.inputs["attention_mask"], len(batch.inputs["input_ids"]) / len(encoded)
            totals["held-out attention KL"] += size * float(losses.attention_kl((q, k), (tq, tk), mask))
            totals["held-out value KL"] += size * float(losses.self_relation_kl(v, tv, mask))
    return totals


def _score(student: Bundle, task: Any, tokens: int, seed: int) -> float:
    bundle = common.classifier(student.copy(), len(task.labels), seed)
    common.fine_tune(bundle, task, tokens, seed, _FINE_LR)
    return common.accuracy(bundle, task)


def _plan(
    clock: common.Clock, teacher: Bundle, texts: Embedding, tasks: dict[str, Any], distilled: int, seeds: int
) -> tuple[int, int]:
    """Tokens of one distillation and of one fine-tuning that fit, from short timed ones."""
    student, probe = _student(teacher, 0), 3 * _MAX_TOKENS
    _distil(_BOTH, student, teacher, texts, 64, 0)  # first calls are slow
    begun = time.monotonic()
    _distil(_BOTH, student, teacher, texts, 64, 0)
    starting = time.monotonic() - begun  # tokenizing the texts, most of it
    begun = time.monotonic()
    _distil(_BOTH, student, teacher, texts, probe, 0)
    distil = probe / max(time.monotonic() - begun - starting, 1e-3)
    task = tasks["trec"]
    bundle = common.classifier(student.copy(), len(task.labels), 0)
    common.fine_tune(bundle, task, 10**9, 0, _FINE_LR, steps=1)
    result = common.fine_tune(bundle, task, 10**9, 0, _FINE_LR, steps=3)
    begun = time.monotonic()
    common.accuracy(bundle, task)
    other = 2 * (time.monotonic() - begun) + 0.5  # evaluating, encoding, building
    each = clock.left() / seeds - (distilled + 1) * len(tasks) * other - distilled * starting
    fine = result.tokens / result.seconds
    return (
        max(int(distil * each * _SHARE / distilled), 64),
        max(int(fine * each * (1 - _SHARE) / ((distilled + 1) * len(tasks))), 32),
    )


def _conclude(
    clock: common.Clock, seeds: tuple[int, ...], scores: dict[str, dict[str, list[float]]], used: list[int],
    fine: int, tasks: dict[str, Any], teacher: Bundle,
) -> Finding:  # fmt: skip
    def mean(arm: str) -> list[float]:
        return [sum(v) / len(tasks) for v in zip(*(scores[arm][f"accuracy {name}"] for name in tasks))]

    rival = common.gain(mean(_BOTH), mean(_HIDDEN))
    nothing = common.gain(mean(_BOTH), mean(_NONE))
    values = "not tried"
    if _ATTENTION in scores:
        values = common.said(common.gain(mean(_BOTH), mean(_ATTENTION)))
    student = _student(teacher, 0).model
    embeddings = anatomy.get(student, anatomy.of(student).embeddings or "").weight.numel()  # type: ignore[operator]
    size = sum(p.numel() for p in student.parameters())
    verdict, caution = common.settled(
        common.together(reproduce.judge(rival), reproduce.judge(nothing)),
        max(map(mean, scores), key=sum), tasks.values(),
    )  # fmt: skip
    return reproduce.conclude(
        slug="minilm",
        claim=CLAIM,
        verdict=verdict,
        summary=(
            f"mean accuracy over {' and '.join(tasks)}: attention and value relations against hidden states "
            f"{common.said(rival)}, against no distillation {common.said(nothing)}; what value "
            f"relations add to attention alone: {values}.{caution}"
        ),
        table=[reproduce.row(arm, **cells) for arm, cells in scores.items()],
        baseline=_HIDDEN,
        settings={
            "teacher": "all-MiniLM-L6-v2: 6 blocks, width 384, 12 heads",
            "student": f"3 blocks, width 192, 12 heads, random but for word embeddings (main components of the teacher's); {size:,} parameters, {size - embeddings:,} without word embeddings",
            "distillation tokens per arm": dict(zip(map(str, seeds), used)),
            "fine-tuning tokens per task": fine,
            "learning rates": {"distillation": _LR, "fine-tuning": _FINE_LR},
            "text": "WikiText-2 sentences and AG News, length 48",
            "data": {n: {"train": len(t.splits["train"]), "verify": len(t.splits["verify"])} for n, t in tasks.items()},
        },
        limits=(
            "Minutes of distillation instead of 400,000 steps, and word embeddings that start from the teacher's: that more than 99 % of the teacher is kept cannot be shown, "
            "nor what a teacher assistant brings at real gaps of size, nor other languages. 'No distillation' gets the same "
            "fine-tuning, not the time of the distillation. Both losses leave the last block's feed-forward untrained." + clock.note()
        ),
        started=clock.started,
        seeds=seeds,
    )  # fmt: skip
