"""RETRO (arXiv 2304.06762): does a decoder learn to read what it retrieves, so that it knows what it was never taught?

    lightformers reproduce retro

Hardware: two cores, five minutes. 4,000 made-up facts (three syllables -> one of ten values) stand in a database; training
asks for half of them, the test for the others. A question fills a chunk of 8 tokens, the answer is the first token of the
next. RETRO (4 layers of width 48, two of which read two neighbours, an encoder of one layer) against a decoder of equal
parameters (6 layers) that sees questions alone, and one that has the best passage in its context; all for equal seconds.
Control: RETRO with neighbours of other questions. Expected: the decoder guesses (0.1), RETRO nears the one with the passage in
context, and falls to guessing with others' neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from lightformers import reproduce
from lightformers.bundle import Batch
from lightformers.models.language.decoder import Decoder, DecoderConfig
from lightformers.models.language.retro import Retro, RetroConfig
from lightformers.models.language.retro_index import ChunkIndex, TokenBag, cut
from lightformers.reproduce import common
from lightformers.reproduce.finding import Finding
from lightformers.train import Feed, Settings, fit

CLAIM = (
    "Asked for facts that stand in its database and were never in training, RETRO is right at least 50 points more often than a "
    "decoder of equal parameters trained as long, and this comes from what it retrieves: with others' neighbours it is not."
)
MARGIN = 0.5
SYLLABLES, VALUES, CHUNK, QUESTIONS, WIDTH, BATCH, LR = 40, 10, 8, 4, 48, 32, 3e-3
ASK, IS, WHAT, FILL = (SYLLABLES + VALUES + i for i in range(4))
TOKENS = FILL + 1
_RETRO, _OTHERS, _PLAIN, _CONTEXT = (
    "RETRO",
    "RETRO, others' neighbours",
    "decoder",
    "decoder, passage in context",
)
_GUESS = 1 / VALUES


@dataclass(frozen=True)
class World:
    """names (facts, 3) syllables in rising order, no two alike; values (facts); index of one statement each."""

    names: Tensor
    values: Tensor
    index: ChunkIndex
    bag: TokenBag

    @classmethod
    def drawn(cls, facts: int, seed: int) -> World:
        rng = np.random.default_rng(seed)
        every = np.array([(a, b, c) for a in range(SYLLABLES) for b in range(a) for c in range(b)])
        names = torch.from_numpy(every[rng.permutation(len(every))[:facts]])
        values = torch.from_numpy(rng.integers(SYLLABLES, SYLLABLES + VALUES, facts))
        statements = [
            [*name, IS, value, FILL, FILL, FILL] for name, value in zip(names.tolist(), values.tolist())
        ]
        bag = TokenBag.of(cut(statements, CHUNK)[0], TOKENS)
        return cls(names, values, ChunkIndex.of(statements, CHUNK, bag), bag)

    def texts(self, facts: Tensor) -> tuple[Tensor, Tensor]:
        """facts (count, questions) -> tokens (count, questions * chunk): each chunk asks and the next one begins with the
        answer; and the neighbours (count, questions, 2, chunk) of every chunk."""
        count, asked = facts.shape
        ids = torch.full((count, asked, CHUNK), FILL)
        ids[:, 1:, 0] = self.values[facts[:, :-1]]
        ids[:, :, 1], ids[:, :, 5] = WHAT, ASK
        ids[:, :, 2:5] = self.names[facts]
        near = self.index.neighbours(ids.flatten(0, 1), self.bag, 2, CHUNK)
        return ids.flatten(1), near.view(count, asked, 2, CHUNK)


def retro() -> Retro:
    return Retro(RetroConfig(TOKENS, WIDTH, 4, 4, chunk=CHUNK, encoder_layers=1, cross=(2, 4), rotary=1.0))


def plain() -> Decoder:
    """Six layers have the parameters of RETRO's four, its two cross-attentions and its encoder."""
    row = {
        "mixer": {"kind": "attention", "heads": 4, "bias": True},
        "ffn": {"kind": "mlp", "hidden": 4 * WIDTH, "bias": True},
    }
    return Decoder(DecoderConfig(vocab_size=TOKENS, hidden_size=WIDTH, layers=[row] * 6, norm="layer"))


def with_passages(ids: Tensor, near: Tensor) -> Tensor:
    """The best neighbour of every chunk before it: (count, 2 * length)."""
    chunks = ids.view(len(ids), -1, CHUNK)
    return torch.stack([near[:, :, 0].clamp(min=0), chunks], 2).flatten(1)


def answered(arm: str, module: nn.Module, ids: Tensor, near: Tensor) -> Tensor:
    """(count, questions, tokens) logits at the last token of every question."""
    if arm == _CONTEXT:
        logits = module(input_ids=with_passages(ids, near), use_cache=False).logits
        return logits[:, 2 * CHUNK - 1 :: 2 * CHUNK]
    if arm == _PLAIN:
        logits = module(input_ids=ids, use_cache=False).logits
    else:
        logits = module(ids, near.roll(1, 0) if arm == _OTHERS else near)["logits"]
    return logits[:, CHUNK - 1 :: CHUNK]


def run(budget: float = common.FULL) -> Finding:
    """Every arm with every seed and its own world, for equal seconds."""
    clock = common.Clock(budget)
    seeds = clock.seeds()
    arms = (_PLAIN, _CONTEXT, _RETRO)
    facts, count, held = clock.size(4000, 100), clock.size(6000, 64), clock.size(200, 8)
    seconds = clock.left(0.2) / (len(seeds) * len(arms))
    scores: dict[str, dict[str, list[float]]] = {}
    updates: dict[str, list[int]] = {arm: [] for arm in arms}
    found = []
    for seed in seeds:
        world = World.drawn(facts, seed)
        g = torch.Generator().manual_seed(seed)
        known = torch.randint(0, facts // 2, (count, QUESTIONS), generator=g)
        tests = {
            "right, facts of training": known[:held],
            "right, facts of the database": torch.randint(facts // 2, facts, (held, QUESTIONS), generator=g),
        }
        train, near = world.texts(known)
        wanted = world.values[tests["right, facts of the database"]]
        found.append(_found(world.texts(tests["right, facts of the database"])[1], wanted))
        for arm in arms:
            with torch.random.fork_rng():
                torch.manual_seed(seed)
                module: nn.Module = retro() if arm == _RETRO else plain()
            updates[arm].append(_train(arm, module, train, near, world.values[known], seconds, seed))
            for shown in (arm, _OTHERS) if arm == _RETRO else (arm,):
                for column, asked in tests.items():
                    right = _right(shown, module, *world.texts(asked), world.values[asked])
                    scores.setdefault(shown, {}).setdefault(column, []).append(right)
    return _conclude(clock, seeds, scores, updates, found)


def _train(
    arm: str, module: nn.Module, ids: Tensor, near: Tensor, values: Tensor, seconds: float, seed: int
) -> int:
    def pad(items: list[int], _: int) -> Batch:
        return Batch({"ids": ids[items], "near": near[items]}, {"values": values[items]})

    def objective(model: nn.Module, batch: Batch) -> Tensor:
        logits = answered(arm, model, batch.inputs["ids"], batch.inputs["near"])
        return nn.functional.cross_entropy(logits.flatten(0, 1), batch.targets["values"].flatten())

    feed = Feed(range(len(ids)), pad, np.full(len(ids), ids.shape[1]), BATCH * ids.shape[1], BATCH, seed=seed)
    settings = Settings(seconds=seconds, lr=LR, warmup=0.1, precision="fp32", seed=seed)
    return fit(module, feed, objective, settings).steps


@torch.no_grad()
def _right(arm: str, module: nn.Module, ids: Tensor, near: Tensor, values: Tensor) -> float:
    module.eval()
    parts = zip(ids.split(BATCH), near.split(BATCH))
    said = torch.cat([answered(arm, module, a, b).argmax(-1) for a, b in parts])
    return float((said == values).float().mean())


def _found(near: Tensor, values: Tensor) -> float:
    """How often the value stands in the best neighbour: what retrieval allows."""
    return float((near[:, :, 0, 4] == values).float().mean())


def _conclude(
    clock: common.Clock, seeds: tuple[int, ...], scores: dict[str, dict[str, list[float]]],
    updates: dict[str, list[int]], found: list[float],
) -> Finding:  # fmt: skip
    column = "right, facts of the database"
    mine, others = scores[_RETRO][column], scores[_OTHERS][column]
    gain, through = common.gain(mine, scores[_PLAIN][column]), common.gain(mine, others)
    verdict = common.together(reproduce.judge(gain, margin=MARGIN), reproduce.judge(through, margin=MARGIN))
    sizes = {_RETRO: retro(), _OTHERS: retro(), _PLAIN: plain(), _CONTEXT: plain()}
    caution = ""
    if verdict == "does not hold here" and max(scores[_CONTEXT][column]) < 0.5:
        verdict, caution = "inconclusive", " Nothing follows: not even a passage in the context was read."
    return reproduce.conclude(
        slug="retro",
        claim=CLAIM,
        verdict=verdict,
        summary=(
            f"Right on facts of the database: RETRO {common.said(mine, False)}, {common.said(gain)} against the decoder and "
            f"{common.said(through)} against others' neighbours; a passage in context reaches "
            f"{common.said(scores[_CONTEXT][column], False)}; guessing {_GUESS:.2f}.{caution}"
        ),
        table=[
            reproduce.row(arm, **cells, parameters=sum(p.numel() for p in sizes[arm].parameters()), **({"updates": updates[arm]} if arm in updates else {}))
            for arm, cells in scores.items()
        ],
        baseline=_PLAIN,
        settings={
            "facts": clock.size(4000, 100), "values": VALUES, "chunk": CHUNK, "neighbours": 2, "width": WIDTH, "batch": BATCH,
            "lr": LR, "loss": "answers alone", "search": "token bag, exact", "value in the best neighbour": found,
        },
        seeds=seeds,
        limits=(
            "A made world in which retrieval finds nearly all. Perplexity of real text, toxicity, Natural Questions and RETRO++ "
            "after fine-tuning were not tried." + clock.note()
        ),
        started=clock.started,
    )  # fmt: skip
