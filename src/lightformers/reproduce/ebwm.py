"""Energy-based world models (arXiv 2406.08862): is prediction by descent on an energy worth its price in language?

    lightformers reproduce ebwm

Hardware: two cores, five minutes. Characters of Tiny Shakespeare, contexts of 64: an energy-based transformer (2 layers,
width 64, two steps of descent) against a transformer of equal parameters, at equal seconds and at equal updates. Loss after
each step of descent, trained and further ones; how well energies of single characters tell the true next one from a random
one, against the transformer's probabilities (area under the curve); how the final energy goes with the loss. Expected: the
transformer predicts better at equal time; steps help as far as they were trained; energies are informative.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lightformers import reproduce
from lightformers.bundle import Batch
from lightformers.models.language.decoder import Decoder, DecoderConfig
from lightformers.models.language.ebwm import EBWMConfig, EnergyBasedTransformer
from lightformers.reproduce import characters, common
from lightformers.reproduce.finding import Finding
from lightformers.train import Feed, Settings, fit

CLAIM = (
    "In an energy-based transformer every step of descent that was trained lowers the loss, and energies tell the true next "
    "character from a random one at most 0.02 worse (area under the curve) than the probabilities of a transformer that "
    "was trained for the same time."
)
MARGIN = 0.02
LENGTH, BATCH, LR, WIDTH, LAYERS, STEPS, FURTHER = 64, 8, 3e-3, 64, 2, 2, 8
_EBT, _PLAIN, _UPDATES = (
    "energy-based transformer",
    "transformer, equal seconds",
    "transformer, equal updates",
)


def energy_based(symbols: int) -> EnergyBasedTransformer:
    """The paper's form, with a step that suits so few symbols."""
    return EnergyBasedTransformer(EBWMConfig(symbols, WIDTH, LAYERS, 4, steps=STEPS, step_size=30.0))


def plain(symbols: int) -> Decoder:
    """The same blocks with a head."""
    row = {
        "mixer": {"kind": "attention", "heads": 4},
        "ffn": {"kind": "swiglu", "hidden": 8 * round(WIDTH / 3)},
    }
    return Decoder(
        DecoderConfig(vocab_size=symbols, hidden_size=WIDTH, layers=[row] * LAYERS, tie_word_embeddings=False)
    )


def run(budget: float = common.FULL) -> Finding:
    """Every arm with every seed; the transformer of equal updates stops where the energy-based one did."""
    clock = common.Clock(budget)
    seeds = clock.seeds()
    text = {part: common.text("tinyshakespeare", part) for part in ("train", "valid")}
    letters = characters.alphabet(*text.values())
    symbols = len(letters.symbols) + 1
    train = _ids(letters, text["train"][: clock.size(len(text["train"]), 20_000)])
    held = _ids(letters, text["valid"])[: clock.size(256, 8)]
    seconds = clock.left(0.25) / len(seeds) / 2.4
    scores: dict[str, dict[str, list[float]]] = {}
    updates: dict[str, list[int]] = {}
    curves: list[list[float]] = []
    for seed in seeds:
        models: dict[str, nn.Module] = {}
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            models = {_EBT: energy_based(symbols), _PLAIN: plain(symbols), _UPDATES: plain(symbols)}
            count = _train(models[_EBT], train, seed, seconds=seconds)
            updates.setdefault(_EBT, []).append(count)
            updates.setdefault(_PLAIN, []).append(_train(models[_PLAIN], train, seed, seconds=seconds))
            updates.setdefault(_UPDATES, []).append(_train(models[_UPDATES], train, seed, steps=count))
            cells, curve = _descended(models[_EBT], held, symbols, seed)  # type: ignore[arg-type]
        curves.append(curve)
        found = {_EBT: cells, **{arm: _read(models[arm], held, symbols, seed) for arm in (_PLAIN, _UPDATES)}}
        for arm, row in found.items():
            for cell, value in row.items():
                scores.setdefault(arm, {}).setdefault(cell, []).append(value)
    return _conclude(clock, seeds, scores, updates, curves, symbols)


def _ids(letters: characters.Characters, text: str) -> Tensor:
    numbers = torch.tensor(letters([text])["input_ids"][0])
    return numbers[: len(numbers) // LENGTH * LENGTH].view(-1, LENGTH)


def _train(module: nn.Module, rows: Tensor, seed: int, **budget: Any) -> int:
    def pad(items: list[int], _: int) -> Batch:
        return Batch({"input_ids": rows[items]}, {})

    def objective(model: nn.Module, batch: Batch) -> Tensor:
        ids = batch.inputs["input_ids"]
        if isinstance(model, EnergyBasedTransformer):
            return model.loss(ids)
        return _cross(model(input_ids=ids, use_cache=False).logits, ids)

    feed = Feed(range(len(rows)), pad, np.full(len(rows), LENGTH), BATCH * LENGTH, BATCH, seed=seed)
    settings = Settings(**budget, lr=LR, warmup=0.1, schedule="cosine", precision="fp32", seed=seed)
    return fit(module, feed, objective, settings).steps


def _cross(logits: Tensor, ids: Tensor) -> Tensor:
    return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


def _descended(
    model: EnergyBasedTransformer, rows: Tensor, symbols: int, seed: int
) -> tuple[dict[str, float], list[float]]:
    """Losses after each step, trained and further; energies of true and of random characters."""
    losses: list[list[float]] = []
    true: list[Tensor] = []
    random: list[Tensor] = []
    final: list[Tensor] = []
    each: list[Tensor] = []
    torch.manual_seed(seed)
    with torch.no_grad():
        for ids in rows.split(BATCH):
            at = torch.arange(LENGTH)
            observed = model.observe(ids)
            found = model.descend(observed, at, FURTHER, last=True)
            losses.append([float(_cross(y, ids)) * len(ids) for y in found.logits])
            trained = found.logits[STEPS - 1][:, :-1]
            each.append(nn.functional.cross_entropy(trained.mT, ids[:, 1:], reduction="none").flatten())
            final.append(found.energies[STEPS][:, :-1].flatten())
            for tokens, out in ((ids[:, 1:], true), (_others(ids[:, 1:], symbols, seed), random)):
                shares = nn.functional.one_hot(tokens, symbols).float()
                out.append(model.judge(observed, at[:-1], shares, STEPS - 1).flatten())
    curve = (np.array(losses).sum(0) / len(rows)).tolist()
    cells = {f"loss after step {i + 1}": curve[i] for i in range(STEPS)}
    cells |= {"loss": curve[STEPS - 1], "true against random": area(-torch.cat(true), -torch.cat(random))}
    cells["energy with loss (correlation)"] = _correlation(torch.cat(final), torch.cat(each))
    return cells, curve


@torch.no_grad()
def _read(model: nn.Module, rows: Tensor, symbols: int, seed: int) -> dict[str, float]:
    loss, true, random = 0.0, [], []
    for ids in rows.split(BATCH):
        logits = model(input_ids=ids, use_cache=False).logits
        loss += float(_cross(logits, ids)) * len(ids)
        said = logits[:, :-1].log_softmax(-1)
        true.append(said.gather(-1, ids[:, 1:, None]).flatten())
        random.append(said.gather(-1, _others(ids[:, 1:], symbols, seed)[..., None]).flatten())
    return {"loss": loss / len(rows), "true against random": area(torch.cat(true), torch.cat(random))}


def _others(ids: Tensor, symbols: int, seed: int) -> Tensor:
    """Any other character than these, padding left out."""
    away = torch.randint(1, symbols - 1, ids.shape, generator=torch.Generator().manual_seed(seed))
    return (ids - 1 + away) % (symbols - 1) + 1


def area(higher: Tensor, lower: Tensor) -> float:
    """Area under the ROC curve: the chance that one of `higher` is above one of `lower`, a tie counts half."""
    both = torch.cat([higher, lower]).double()
    _, inverse, counts = both.unique(return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    ranks = (last - (counts - 1) / 2)[inverse]
    n, m = len(higher), len(lower)
    return float((ranks[:n].sum() - n * (n + 1) / 2) / (n * m))


def _correlation(a: Tensor, b: Tensor) -> float:
    if float(a.std()) == 0 or float(b.std()) == 0:
        return 0.0
    return float(torch.corrcoef(torch.stack([a.double(), b.double()]))[0, 1])


def _conclude(
    clock: common.Clock, seeds: tuple[int, ...], scores: dict[str, dict[str, list[float]]], updates: dict[str, list[int]],
    curves: list[list[float]], symbols: int,
) -> Finding:  # fmt: skip
    mine, other = scores[_EBT], scores[_PLAIN]
    refined = common.gain(mine["loss after step 1"], mine[f"loss after step {STEPS}"])
    told = common.gain(mine["true against random"], other["true against random"])
    worse = common.gain(mine["loss"], other["loss"])
    verdict = common.together(reproduce.judge(refined), reproduce.judge(told, margin=-MARGIN))
    caution = ""
    if min(mine["loss"]) > 3.1:
        verdict, caution = "inconclusive", " Nothing follows: it has hardly learnt."
    sizes = {_EBT: energy_based(symbols), _PLAIN: plain(symbols), _UPDATES: plain(symbols)}
    return reproduce.conclude(
        slug="ebwm",
        claim=CLAIM,
        verdict=verdict,
        summary=(
            f"The second step of descent saves {common.said(refined)} nats; area under the curve {common.said(told)} against the "
            f"transformer's; the loss is {common.said(worse)} nats higher at equal seconds and "
            f"{common.said(common.gain(mine['loss'], scores[_UPDATES]['loss']))} at equal updates.{caution}"
        ),
        table=[
            reproduce.row(arm, **cells, updates=updates[arm], parameters=sum(p.numel() for p in sizes[arm].parameters()))
            for arm, cells in scores.items()
        ],
        baseline=_PLAIN,
        settings={
            "data": "Tiny Shakespeare, characters", "context": LENGTH, "width": WIDTH, "layers": LAYERS, "batch": BATCH, "lr": LR,
            "steps of descent": STEPS, "step size at the start": 30.0,
        },
        seeds=seeds,
        limits=(
            "The paper's claim is about how loss falls with data and hours at scale, in video first of all: neither can be shown "
            "here." + clock.note()
        ),
        plots={"loss after each step": {"steps": list(range(1, FURTHER + 1)), "loss": np.mean(curves, axis=0).clip(max=1e6).tolist()}},
        started=clock.started,
    )  # fmt: skip
