"""Clinical-Longformer (arXiv 2201.11838): is a short encoder that was made long better on long documents?

    lightformers reproduce clinical-longformer

Hardware: two cores, five minutes. A BERT of three blocks learns masked characters of Tiny Shakespeare in pieces of 64, is
made a Longformer for 256 with windows of 32 (16 on either side), and goes on learning there, as long as it goes on in the
short form. Then documents of 256 characters are classified whose label stands at one random place: cut to 64, in windows
alone, and in windows with a global first token. Expected: copied positions start near the short model's loss, new random
ones far above; cut documents and windows alone (three blocks reach 48 characters) miss most of the evidence.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightformers import reproduce
from lightformers.bundle import Batch, Bundle
from lightformers.compress.long import LocalToGlobal, ToLong
from lightformers.reproduce import common
from lightformers.reproduce.finding import Finding
from lightformers.steps import Recipe, Run
from lightformers.train import Settings, fit

CLAIM = (
    "Made long with copied positions, a short encoder loses at once at most a tenth of a nat per masked token on texts four "
    "times as long, less than with new positions; with a global first token it classifies long documents at least 2 points "
    "better than the short one that reads their beginning, and than windows alone."
)
TOLERANCE, MARGIN = 0.1, 0.02
SHORT, LONG, WINDOW = 64, 256, 32
_WIDTH, _BLOCKS, _HEADS = 128, 3, 4
_LR, _CLASSES = 1e-3, 4
#: Ids below the characters: padding, first token, mask, the marker, and one per class.
_PAD, _FIRST, _MASK, _MARK, _LABEL, _LETTERS = 0, 1, 2, 3, 4, 4 + _CLASSES
_STEP = ToLong(LONG, WINDOW)
_CUT, _WINDOWS, _GLOBAL = "short, cut", "windows", "windows and global token"
_COPIED, _NEW = "positions copied", "positions new"


def run(budget: float = common.FULL) -> Finding:
    """Pre-train, make long, go on, classify: once per seed."""
    clock = common.Clock(budget)
    seeds = clock.seeds()
    text = {part: common.text("tinyshakespeare", part) for part in ("train", "valid")}
    number = {c: _LETTERS + i for i, c in enumerate(sorted(set(text["train"] + text["valid"])))}
    ids = {part: torch.tensor([number[c] for c in t]) for part, t in text.items()}
    work = _Work(ids, len(number), clock.size(16, 1) * LONG, clock.size(32, 2))
    unit = _plan(clock, work, len(seeds))
    scores: dict[str, dict[str, list[float]]] = {}
    used = []
    for seed, steps in clock.rounds(seeds, unit):
        used.append(steps)
        for arm, cells in _one(work, steps, seed).items():
            for cell, value in cells.items():
                scores.setdefault(arm, {}).setdefault(cell, []).append(value)
    return _conclude(clock, seeds, scores, used, work)


@dataclass(frozen=True)
class _Work:
    """ids: of train and valid; symbols: how many kinds; tokens: of a batch; held: batches that are tested on."""

    ids: dict[str, Tensor]
    symbols: int
    tokens: int
    held: int

    def masked(self, part: str, length: int, count: int, seed: int) -> list[Batch]:
        """15 % of the characters are masked; all lengths have equally many characters to a batch."""
        generator = torch.Generator().manual_seed(seed)
        out = []
        for words in _pieces(self.ids[part], length, count, self.tokens // length, generator):
            hidden = torch.rand(words.shape, generator=generator) < 0.15
            hidden[:, 0], hidden[:, 1] = False, True  # one at least
            inputs = {"input_ids": words.masked_fill(hidden, _MASK), "attention_mask": torch.ones_like(words)}
            out.append(Batch(inputs, {"label": words.masked_fill(~hidden, -100)}))
        return out

    def documents(self, part: str, count: int, seed: int) -> list[Batch]:
        """Texts into which a marker and four times a sign for the label were written, somewhere."""
        generator = torch.Generator().manual_seed(seed + 7)
        out = []
        for words in _pieces(self.ids[part], LONG, count, self.tokens // LONG, generator):
            label = torch.randint(_CLASSES, (len(words),), generator=generator)
            place = torch.randint(1, LONG - 6, (len(words),), generator=generator)
            written = torch.full((len(words), 5), _MARK)
            written[:, 1:] = _LABEL + label[:, None]
            words = words.scatter(1, place[:, None] + torch.arange(5), written)
            out.append(Batch({"input_ids": words}, {"label": label, "deep": place + 5 > SHORT}))
        return out


def _one(work: _Work, unit: int, seed: int) -> dict[str, dict[str, float]]:
    """All arms. unit: steps of going on; pre-training takes six times as many, classifying twice."""
    short = _encoder("ForMaskedLM", work.symbols, seed)
    _train(short, work.masked("train", SHORT, 6 * unit, seed), 6 * unit, seed, _masked_loss)
    tests = {n: work.masked("valid", n, work.held, 99) for n in (SHORT, LONG)}
    near, far = f"loss at {SHORT}", f"loss at {LONG}"
    out = {"short": {near: _loss(short, tests[SHORT])}}
    long = {_COPIED: _longer(short), _NEW: _longer(short)}
    with torch.no_grad():  # what a table of this length would begin with
        table = long[_NEW].longformer.embeddings.position_embeddings.weight
        table[1:].normal_(0, 0.02, generator=torch.Generator().manual_seed(seed))
    for arm, model in long.items():
        out[arm] = {far: _loss(model, tests[LONG]), near: _loss(model, tests[SHORT])}
        _train(model, work.masked("train", LONG, unit, seed + 50), unit, seed, _masked_loss)
        out[arm][f"{far}, after going on"] = _loss(model, tests[LONG])
    _train(short, work.masked("train", SHORT, unit, seed + 50), unit, seed, _masked_loss)
    out["short"][f"{near}, after going on"] = _loss(short, tests[SHORT])

    train, test = work.documents("train", 2 * unit, seed), work.documents("valid", work.held, 99)
    for arm in (_CUT, _WINDOWS, _GLOBAL):
        model = _classifier(short if arm == _CUT else long[_COPIED], work.symbols, seed)
        chosen = [_reading(batch, arm) for batch in train]
        _train(model, chosen, 2 * unit, seed, _label_loss)
        out[arm] = _accuracy(model, [_reading(batch, arm) for batch in test])
    return out


def _encoder(head: str, symbols: int, seed: int) -> Any:
    import transformers

    config = transformers.BertConfig(
        vocab_size=_LETTERS + symbols, hidden_size=_WIDTH, num_hidden_layers=_BLOCKS, num_attention_heads=_HEADS,
        intermediate_size=4 * _WIDTH, max_position_embeddings=SHORT, pad_token_id=_PAD,
    )  # fmt: skip
    config.num_labels = _CLASSES
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return getattr(transformers, f"Bert{head}")(config).eval()


def _longer(model: nn.Module) -> Any:
    return Recipe([_STEP]).apply(Bundle(model), None, Run()).model


def _classifier(encoder: Any, symbols: int, seed: int) -> Any:
    """The encoder's weights, copied, under a fresh head, the same in all arms of a seed."""
    model = _encoder("ForSequenceClassification", symbols, seed)
    long = hasattr(encoder, "longformer")
    if long:
        model = _longer(model)
    source, target = (encoder.longformer, model.longformer) if long else (encoder.bert, model.bert)
    target.load_state_dict(source.state_dict(), strict=False)  # masked language models have no pooler
    if long:
        LocalToGlobal().apply(Bundle(model), None, Run())  # going on has left those behind
    return model


def _pieces(ids: Tensor, length: int, count: int, rows: int, generator: torch.Generator) -> list[Tensor]:
    """`count` batches of pieces from anywhere, each behind the first token."""
    starts = torch.randint(len(ids) - length, (count, rows), generator=generator)
    index = starts[..., None] + torch.arange(length - 1)
    first = torch.full((count, rows, 1), _FIRST)
    return list(torch.cat([first, ids[index]], 2))


def _reading(batch: Batch, arm: str) -> Batch:
    words = batch.inputs["input_ids"][:, : SHORT if arm == _CUT else None]
    inputs = {"input_ids": words, "attention_mask": torch.ones_like(words)}
    if arm == _WINDOWS:  # else the head makes the first token global
        inputs["global_attention_mask"] = torch.zeros_like(words)
    return Batch(inputs, batch.targets)


def _masked_loss(module: nn.Module, batch: Batch) -> Tensor:
    logits = module(**batch.inputs).logits
    return nn.functional.cross_entropy(logits.flatten(0, 1).float(), batch.targets["label"].flatten())


def _label_loss(module: nn.Module, batch: Batch) -> Tensor:
    return nn.functional.cross_entropy(module(**batch.inputs).logits.float(), batch.targets["label"])


def _train(model: nn.Module, batches: Sequence[Batch], steps: int, seed: int, objective: Any) -> None:
    settings = Settings(steps=steps, lr=_LR, warmup=0.1, precision=common.precision(), seed=seed)
    fit(model, batches, objective, settings)


@torch.no_grad()
def _loss(model: nn.Module, batches: Sequence[Batch]) -> float:
    return sum(float(_masked_loss(model, b)) for b in batches) / len(batches)


@torch.no_grad()
def _accuracy(model: nn.Module, batches: Sequence[Batch]) -> dict[str, float]:
    right = torch.cat([model(**b.inputs).logits.argmax(-1) == b.targets["label"] for b in batches]).float()
    deep = torch.cat([b.targets["deep"] for b in batches])
    return {
        "accuracy": float(right.mean()),
        "accuracy, deep": float(right[deep].mean()) if deep.any() else 0.0,
    }


def _plan(clock: common.Clock, work: _Work, seeds: int) -> int:
    """Steps of going on that fit: steps of both kinds and evaluations are timed."""
    if clock.budget < common.TINY:
        return 1
    short = _encoder("ForMaskedLM", work.symbols, 0)
    timed = {}
    for length, model in ((SHORT, short), (LONG, _longer(short))):
        batches = work.masked("train", length, 2, 0)
        _train(model, batches, 1, 0, _masked_loss)  # first calls are slow
        begun = time.monotonic()
        _train(model, batches, 2, 0, _masked_loss)
        timed[length] = (time.monotonic() - begun) / 2
    near, far = timed[SHORT], timed[LONG]
    # a forward pass is a third of a step
    evaluations = work.held * (3 * near + 8 * far) / 3
    # the classifier that reads 64 of 256 characters takes a quarter of a short batch
    unit = 6 * near + near + 2 * far + 2 * (near / 4 + 2 * far)
    return max(int((clock.left() / seeds - evaluations) / unit), 1)


def _seconds(symbols: int, length: int) -> dict[str, float]:
    """Best of three forward passes over one text, full attention and windows of the same long model."""
    import transformers

    model = _encoder("Model", symbols, 0)
    windows = ToLong(length, WINDOW).apply(Bundle(model), None, Run()).model
    full = transformers.BertModel(
        transformers.BertConfig(**{**model.config.to_dict(), "max_position_embeddings": length})
    ).eval()
    words = torch.full((1, length), _LETTERS)
    out = {}
    for name, one in (("full attention", full), ("windows", windows)):
        best = float("inf")
        for _ in range(3):
            begun = time.monotonic()
            with torch.no_grad():
                one(input_ids=words, attention_mask=torch.ones_like(words))
            best = min(best, time.monotonic() - begun)
        out[name] = round(best, 3)
    return out


def _conclude(
    clock: common.Clock, seeds: tuple[int, ...], scores: dict[str, dict[str, list[float]]], used: list[int],
    work: _Work,
) -> Finding:  # fmt: skip
    near, far = f"loss at {SHORT}", f"loss at {LONG}"
    kept = common.gain(scores["short"][near], scores[_COPIED][far])
    copied = common.gain(scores[_NEW][far], scores[_COPIED][far])
    read = common.gain(scores[_GLOBAL]["accuracy"], scores[_CUT]["accuracy"])
    reach = common.gain(scores[_GLOBAL]["accuracy"], scores[_WINDOWS]["accuracy"])
    verdict = common.together(
        reproduce.judge(kept, -TOLERANCE), reproduce.judge(copied), reproduce.judge(read, MARGIN), reproduce.judge(reach, MARGIN)
    )  # fmt: skip
    caution = ""
    if sum(scores[_GLOBAL]["accuracy"]) / len(seeds) < 1 / _CLASSES + 0.1:
        verdict, caution = "inconclusive", " Nothing follows about documents: no arm has learnt to classify."
    later = f"{far}, after going on"
    return reproduce.conclude(
        slug="clinical-longformer",
        claim=CLAIM,
        verdict=verdict,
        summary=(
            f"nats per masked character, short less long at once {common.said(kept)}, new positions less copied "
            f"{common.said(copied)}, and after going on {common.said(common.gain(scores[_NEW][later], scores[_COPIED][later]))}; "
            f"accuracy of the global token over the cut document {common.said(read)}, over windows alone {common.said(reach)}.{caution}"
        ),
        table=[reproduce.row(arm, **cells) for arm, cells in scores.items()],
        baseline=_CUT,
        settings={
            "model": f"BERT, {_BLOCKS} blocks, width {_WIDTH}, {_HEADS} heads, {work.symbols} characters, Tiny Shakespeare",
            "lengths": [SHORT, LONG],
            "window": WINDOW,
            "steps of going on (pre-training six times, classifying twice as many)": dict(zip(map(str, seeds), used)),
            "characters of a batch": work.tokens,
            "learning rate": _LR,
            "held-out documents": work.held * work.tokens // LONG,
            "seconds of one text of 2048 characters": _seconds(work.symbols, 2048 if not clock.short else 256),
        },
        limits=(
            "No clinical notes and no clinical tasks: the ten tasks of the paper, and what long clinical pre-training adds, "
            "cannot be shown. The label of a document is planted. The cut classifier reads a quarter of the characters of the "
            "long ones. Clinical-BigBird was not tried." + clock.note()
        ),
        started=clock.started,
        seeds=seeds,
    )  # fmt: skip
