"""Future token prediction (arXiv 2410.18160): do state vectors that must tell several tokens mean more?

    lightformers reproduce ftp

Hardware: two cores, five minutes. News in 1,024 byte pairs, pieces of 96: future token prediction (4 layers of width 96, 4
slots, a decoder of one layer, 4 tokens ahead) against a transformer of equal parameters (5 layers and a wider one) and one
with a head of its own for each of the 4 tokens, all for equal seconds. Loss of the next token; cosine of state vectors of
neighbouring positions after the mean vector is taken away, minus that of random pairs; topics told from the mean of the
frozen states by a linear classifier; how far the two halves of generated texts use the same words. Expected: smoother
states and slightly better topics, at a slightly higher next-token loss.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lightformers import reproduce
from lightformers.bundle import Batch
from lightformers.models.language.decoder import Decoder, DecoderConfig
from lightformers.models.language.ftp import FTPConfig, FutureTokenPrediction, ahead, discounted
from lightformers.reproduce import common
from lightformers.reproduce.finding import Finding
from lightformers.train import Feed, Settings, fit

CLAIM = (
    "Trained for the same time, state vectors of future token prediction are more alike at neighbouring positions (cosine "
    "without the mean, above that of random pairs) than those of a transformer of equal parameters, and tell the topic of news "
    "better."
)
WORDS, LENGTH, BATCH, LR, WIDTH, AHEAD, DISCOUNT = 1024, 96, 16, 2e-3, 96, 4, 0.8
_FTP, _PLAIN, _HEADS = "future token prediction", "transformer", "transformer, a head for each of 4 tokens"


class Heads(nn.Module):
    """Plain prediction of several tokens: a linear layer for each, then the one head of the words."""

    def __init__(self, words: int) -> None:
        super().__init__()
        self.body = _decoder(words, 4)
        self.each = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(AHEAD))

    def tell(self, states: Tensor) -> Tensor:
        """(..., width) -> (..., tokens ahead, words)."""
        return self.body.head(torch.stack([f(states) for f in self.each], -2))


@dataclass(frozen=True)
class Arm:
    """made: a module; states: (module, ids, mask) -> (batch, n, width); loss and next: the training loss, and logits of the
    next token."""

    made: Callable[[], nn.Module]
    states: Callable[[Any, Tensor, Tensor], Tensor]
    loss: Callable[[Any, Tensor, Tensor], Tensor]
    next: Callable[[Any, Tensor, Tensor], Tensor]


def _decoder(words: int, layers: int, wider: int = 0) -> Decoder:
    row = {
        "mixer": {"kind": "attention", "heads": 4, "bias": True},
        "ffn": {"kind": "mlp", "hidden": 4 * WIDTH, "bias": True},
    }
    last = {"ffn": {"kind": "mlp", "hidden": wider, "bias": True}}
    return Decoder(
        DecoderConfig(
            vocab_size=words,
            hidden_size=WIDTH,
            layers=[row] * layers + ([last] if wider else []),
            norm="layer",
        )
    )


def arms(words: int) -> dict[str, Arm]:
    """The three, with about equal parameters."""

    def features(module: Decoder, ids: Tensor, mask: Tensor) -> Tensor:
        return module.features(ids, mask)[0]

    def plain(module: Decoder, ids: Tensor, mask: Tensor) -> Tensor:
        _, wanted = ahead(ids, 1, mask)
        return discounted(
            module.head(features(module, ids, mask)).flatten(0, 1)[:, None], wanted.flatten(0, 1), 1.0
        )

    def several(module: Heads, ids: Tensor, mask: Tensor) -> Tensor:
        _, wanted = ahead(ids, AHEAD, mask)
        rows = torch.randperm(ids.numel())[: ids.numel() // 4]  # as many as the other is trained on
        states = features(module.body, ids, mask).flatten(0, 1)[rows]
        return discounted(module.tell(states), wanted.flatten(0, 1)[rows], DISCOUNT)

    config = FTPConfig(words, (WIDTH, 4, 4), (WIDTH, 1, 4), 4, AHEAD, DISCOUNT, 0.25)
    return {
        _FTP: Arm(
            lambda: FutureTokenPrediction(config),
            lambda module, ids, mask: module.encode(ids, mask),
            lambda module, ids, mask: module.loss(ids, mask),
            lambda module, ids, mask: module(ids, mask)["logits"],
        ),
        _PLAIN: Arm(
            lambda: _decoder(words, 5, 4 * WIDTH),
            features,
            plain,
            lambda module, ids, mask: module.head(features(module, ids, mask)),
        ),
        _HEADS: Arm(
            lambda: Heads(words),
            lambda module, ids, mask: features(module.body, ids, mask),
            several,
            lambda module, ids, mask: module.tell(features(module.body, ids, mask))[..., 0, :],
        ),
    }


def run(budget: float = common.FULL) -> Finding:
    """Every arm with every seed for equal seconds."""
    clock = common.Clock(budget)
    seeds = clock.seeds()
    news = {part: common.records("ag_news", part) for part in ("train", "test")}
    train, test = news["train"][: clock.size(5600, 40)], news["test"][: clock.size(800, 40)]
    encode, words = _pairs([r["text"] for r in train], clock.size(WORDS, 300))
    rows, labels = [encode(r["text"])[:LENGTH] for r in train], torch.tensor([r["label"] for r in train])
    held, topics = [encode(r["text"])[:LENGTH] for r in test], torch.tensor([r["label"] for r in test])
    found = arms(words)
    if clock.few:
        del found[_HEADS]
    probed, batch = clock.size(2000, 40), clock.size(BATCH, 4)
    seconds = clock.left(0.3) / (len(seeds) * len(found))
    scores: dict[str, dict[str, list[float]]] = {name: {} for name in found}
    for seed in seeds:
        for name, arm in found.items():
            with torch.random.fork_rng():
                torch.manual_seed(seed)
                module = arm.made()
                cells: dict[str, float] = {"updates": _train(arm, module, rows, seconds, seed, batch)}
                module.eval()
                known, _, _ = _read(arm, module, rows[:probed])
                mean, near, loss = _read(arm, module, held)
                cells |= {
                    "next-token loss": loss,
                    "cosine of neighbours": near[0],
                    "cosine of random pairs": near[1],
                }
                cells["neighbours above random"] = near[0] - near[1]
                cells["topics right"] = probe(known, labels[:probed], mean, topics)
                cells["halves alike, generated"] = _coherence(
                    arm, module, held, clock.size(32, 4), clock.size(40, 4)
                )
            for cell, value in cells.items():
                scores[name].setdefault(cell, []).append(float(value))
    return _conclude(clock, seeds, scores, found)


def _pairs(texts: list[str], words: int) -> tuple[Callable[[str], list[int]], int]:
    from tokenizers import ByteLevelBPETokenizer

    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(texts, vocab_size=words, show_progress=False)
    return (lambda text: tokenizer.encode(text).ids), tokenizer.get_vocab_size()


def _filled(rows: list[list[int]]) -> tuple[Tensor, Tensor]:
    most = max(map(len, rows))
    ids = torch.tensor([row + [0] * (most - len(row)) for row in rows])
    return ids, torch.tensor([[1] * len(row) + [0] * (most - len(row)) for row in rows])


def _train(arm: Arm, module: nn.Module, rows: list[list[int]], seconds: float, seed: int, batch: int) -> int:
    def pad(items: list[list[int]], _: int) -> Batch:
        ids, mask = _filled(items)
        return Batch({"ids": ids, "attention_mask": mask}, {})

    def objective(model: nn.Module, batch: Batch) -> Tensor:
        return arm.loss(model, batch.inputs["ids"], batch.inputs["attention_mask"])

    feed = Feed(rows, pad, np.array([len(r) for r in rows]), batch * LENGTH, batch, seed=seed)
    settings = Settings(
        seconds=seconds,
        lr=LR,
        warmup=0.1,
        schedule="cosine",
        precision="fp32",
        dropout=True,
        seed=seed,
    )
    return fit(module, feed, objective, settings).steps


@torch.no_grad()
def _read(arm: Arm, module: nn.Module, rows: list[list[int]]) -> tuple[Tensor, tuple[float, float], float]:
    """Mean states (texts, width); cosines of neighbouring and of random states; nats per token."""
    means, firsts, seconds, loss, count = [], [], [], 0.0, 0
    for i in range(0, len(rows), 32):
        ids, mask = _filled(rows[i : i + 32])
        states = arm.states(module, ids, mask)
        real = mask[..., None].to(states.dtype)
        means.append((states * real).sum(1) / real.sum(1))
        pairs = (mask[:, 1:] != 0) & (mask[:, :-1] != 0)
        firsts.append(states[:, :-1][pairs])
        seconds.append(states[:, 1:][pairs])
        _, wanted = ahead(ids, 1, mask)
        asked = int((wanted >= 0).sum())
        logits = arm.next(module, ids, mask)
        loss += (
            float(
                nn.functional.cross_entropy(logits.flatten(0, 1).float(), wanted.flatten(), ignore_index=-100)
            )
            * asked
        )
        count += asked
    a, b = torch.cat(firsts).double(), torch.cat(seconds).double()
    middle = a.mean(0)
    shuffled = b[torch.randperm(len(b), generator=torch.Generator().manual_seed(0))]
    near = [float(nn.functional.cosine_similarity(a - middle, x - middle).mean()) for x in (b, shuffled)]
    return torch.cat(means), (near[0], near[1]), loss / max(count, 1)


@torch.no_grad()
def _coherence(arm: Arm, module: nn.Module, rows: list[list[int]], count: int, length: int) -> float:
    """Texts sampled after 8 tokens: how alike the halves are in the words they use (cosine of counts). States of the arms
    themselves would not be comparable."""
    ids = torch.tensor([row[:8] for row in rows if len(row) >= 8][:count])
    generator = torch.Generator().manual_seed(0)
    for _ in range(length):
        logits = arm.next(module, ids, torch.ones_like(ids))[:, -1]
        ids = torch.cat(
            [ids, torch.multinomial((logits.float() / 0.8).softmax(-1), 1, generator=generator)], 1
        )
    made = ids[:, 8:]
    first, second = (nn.functional.one_hot(h, int(made.max()) + 1).sum(1).double() for h in made.chunk(2, 1))
    return float(nn.functional.cosine_similarity(first, second).mean())


def probe(known: Tensor, labels: Tensor, asked: Tensor, topics: Tensor, ridge: float = 1.0) -> float:
    """Share of topics right of a ridge classifier on standardized vectors."""
    middle, scale = known.double().mean(0), known.double().std(0).clamp(min=1e-6)
    x, y = ((v.double() - middle) / scale for v in (known, asked))
    wanted = nn.functional.one_hot(labels, int(max(labels.max(), topics.max())) + 1).double()
    share = wanted.mean(0)
    weights = torch.linalg.solve(
        x.T @ x + ridge * torch.eye(x.shape[1], dtype=x.dtype), x.T @ (wanted - share)
    )
    return float(((y @ weights + share).argmax(1) == topics).double().mean())


def _conclude(
    clock: common.Clock,
    seeds: tuple[int, ...],
    scores: dict[str, dict[str, list[float]]],
    found: dict[str, Arm],
) -> Finding:
    mine, other = scores[_FTP], scores[_PLAIN]
    smooth = common.gain(mine["neighbours above random"], other["neighbours above random"])
    topics = common.gain(mine["topics right"], other["topics right"])
    cost = common.gain(mine["next-token loss"], other["next-token loss"])
    verdict = common.together(reproduce.judge(smooth), reproduce.judge(topics))
    caution = ""
    if min(other["topics right"]) < 0.35:
        verdict, caution = "inconclusive", " Nothing follows: topics are hardly told apart by any."
    return reproduce.conclude(
        slug="ftp",
        claim=CLAIM,
        verdict=verdict,
        summary=(
            f"Cosine of neighbours above random pairs {common.said(smooth)} against the transformer's, topics right "
            f"{common.said(topics)}; the next token costs {common.said(cost)} nats.{caution}"
        ),
        table=[
            reproduce.row(name, **cells, parameters=sum(p.numel() for p in found[name].made().parameters()))
            for name, cells in scores.items()
        ],
        baseline=_PLAIN,
        settings={
            "data": "AG News", "byte pairs": clock.size(WORDS, 300), "piece": LENGTH, "width": WIDTH, "layers": "4 + 1", "slots": 4,
            "ahead": AHEAD, "discount": DISCOUNT, "positions told from": "a quarter", "batch": BATCH, "lr": LR,
        },
        seeds=seeds,
        limits=(
            "Equal seconds, not equal perplexity; topics of generated text are judged by shared words alone; the paper's coding "
            "task and OpenWebText were not tried." + clock.note()
        ),
        started=clock.started,
    )  # fmt: skip
