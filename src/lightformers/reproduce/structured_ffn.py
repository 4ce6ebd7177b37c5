"""Structured feed-forwards (arXiv 2406.16450): a third of the weights, with and without a dense guide early on.

    lightformers reproduce structured-ffn

Hardware: two cores, five minutes. Character decoders (4 layers, width 128) on Tiny Shakespeare: dense, LowRank,
BlockDense and BlockShuffle at about 32 % of the feed-forward's weights (the first layer stays dense), and LowRank with
self-guided training, in equal steps and in equal arithmetic. Expected: structured ones lose a little; guidance takes
part of the loss back. Beside it, where a merged matrix overtakes the factors.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from lightformers import reproduce
from lightformers.bundle import Bundle
from lightformers.measure import timing
from lightformers.parts.ffn.guided import Guided
from lightformers.parts.ffn.structured import dense, structured
from lightformers.reproduce import characters, common, decoders
from lightformers.reproduce.finding import Finding
from lightformers.train.guidance import SelfGuided, guide, release
from lightformers.train.loop import Objective

CLAIM = "Self-guided training brings low-rank feed-forwards of a third of the weights nearer to the dense ones, in equal steps."
_LR = 2e-3
_BASE = "LowRank"
_FORMS = {"LowRank": "low_rank", "BlockDense": "block_dense", "BlockShuffle": "block_shuffle"}
_GUIDED, _SPARING = "LowRank, guided", "LowRank, guided, equal arithmetic"
_ARMS = ("dense", _BASE, _GUIDED, "BlockDense", "BlockShuffle", _SPARING)


def run(budget: float = common.FULL) -> Finding:
    """Train every arm once per seed; time factors against merged matrices."""
    clock = common.Clock(budget)
    seeds = clock.seeds()
    letters, job = decoders.world(clock)
    arms = _ARMS[: 3 if clock.few else None]
    crossings = _crossings(clock)

    def make(arm: str, seed: int, steps: int) -> Bundle:
        bundle = decoders.decoder(letters, seed, _layers(arm))
        if arm not in (_GUIDED, _SPARING):
            decoders.train(bundle, job, steps, seed, _LR)
            return bundle
        guide(bundle.model)
        if arm == _SPARING:
            steps = max(round(steps * _share(bundle.model)), 1)
        decoders.train(bundle, job, steps, seed, _LR, _guided(max(steps // 2, 1), arm == _SPARING, seed))
        release(bundle.model)
        return bundle

    found = decoders.contest(
        clock, seeds, arms, make, lambda _, bundle: {"loss": characters.loss(bundle, job)}
    )
    helped, behind = found.gain(_GUIDED, _BASE), common.gain(found.cell(_GUIDED), found.cell("dense"))
    counts = {arm: decoders.decoder(letters, 0, _layers(arm)).parameters for arm in arms}
    equal = "" if clock.few else f" In equal arithmetic: {common.said(found.gain(_SPARING, _BASE))}."
    return reproduce.conclude(
        slug="structured-ffn",
        claim=CLAIM,
        verdict=reproduce.judge(helped),
        summary=(
            f"guidance lowers the loss of LowRank by {common.said(helped)} nats, which leaves it {common.said(behind)} above the "
            f"dense model; LowRank without stands {common.said(common.gain(found.cell(_BASE), found.cell('dense')))} above.{equal} "
            f"The factors of a layer 512 to 2048 at rank 128 overtake its merged matrix from {crossings['from']} tokens on."
        ),
        table=found.table(parameters=counts),
        baseline=_BASE,
        settings={
            "model": f"decoder, {decoders.DEPTH} layers, width {decoders.WIDTH}, feed-forward of 512, the first layer dense",
            "steps": dict(zip(map(str, seeds), found.steps)),
            "guided": "half of the steps, cosine; in equal arithmetic by drawing, with fewer steps",
            "learning rate": _LR,
            "data": decoders.DATA,
        },
        limits=(
            "Under a million parameters: slopes of scaling laws, throughput of wide structured models with grouped keys and "
            "the gap at 1.3 billion cannot be shown." + clock.note()
        ),
        started=clock.started,
        seeds=seeds,
        plots={"one layer, 512 to 2048": {k: v for k, v in crossings.items() if k != "from"}},
    )  # fmt: skip


def _layers(arm: str) -> list[dict[str, Any]]:
    form = _FORMS.get(arm.split(",")[0])
    first = {"mixer": decoders.attention(), "ffn": decoders.mlp()}
    ffn = decoders.mlp() if form is None else {"kind": "structured", "form": form, "bias": False}
    return [first] + [{"mixer": decoders.attention(), "ffn": ffn}] * (decoders.DEPTH - 1)


def _guided(steps: int, sparing: bool, seed: int) -> Callable[[Objective], Objective]:
    return lambda objective: SelfGuided(objective, steps, sparing, seed=seed)


def _share(model: nn.Module) -> float:
    """Steps of guided training that cost as much as one without: the dense part runs in a quarter of them on average."""
    extra = sum(m.guide.numel() for m in model.modules() if isinstance(m, Guided))
    whole = decoders.multiply_adds(model)
    whole += sum(p.numel() for m in model.modules() if isinstance(m, Guided) for p in m.layer.parameters())
    return whole / (whole + 0.25 * extra)


@torch.no_grad()
def _crossings(clock: common.Clock) -> dict[str, Any]:
    """Milliseconds of factors and merged matrix over the number of tokens, and where the factors overtake."""
    layer = structured("low_rank", 512, 2048, 128, bias=False)
    matrix, counts = dense(layer).contiguous(), [1, 4, 16, 64, 256, 1024]
    factors, merged = [], []
    for n in counts[: 2 if clock.short else None]:
        x = torch.randn(n, 512)
        runners = {"factors": lambda x=x: layer(x), "merged": lambda x=x: nn.functional.linear(x, matrix)}
        seen = timing.compare(runners, rounds=5 if clock.short else 30)
        factors.append(1000 * seen["factors"].median)
        merged.append(1000 * seen["merged"].median)
    ahead = [n for n, f, m in zip(counts, factors, merged) if f < m]
    return {
        "tokens": counts[: len(factors)], "factors, ms": factors, "merged, ms": merged,
        "from": ahead[0] if ahead else f"more than {counts[len(factors) - 1]}",
    }  # fmt: skip
