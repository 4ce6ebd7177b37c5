"""THOR (arXiv 2110.04260): experts drawn at random and pulled to agree, against a learned router and dropout alone.

    lightformers reproduce thor

Hardware: two cores, five minutes. Character decoders (4 layers, width 128) on Tiny Shakespeare; layers 0 and 2 hold two
feed-forwards. All arms have the same active weights, the same dropout, and two forward passes per step: one feed-forward;
one, with the passes pulled to agree (R-Drop, the control that matters); two behind a Switch router; two drawn at random;
two drawn and pulled to agree (THOR). Expected: random draws do about as well as a router; agreement lowers the variance over
draws at inference; what it gains over the control may be small.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lightformers import reproduce
from lightformers.bundle import Batch, Bundle
from lightformers.compress.calibration import batches
from lightformers.parts.routing.thor import StochasticExperts, routed, stochastic
from lightformers.reproduce import characters, common, decoders
from lightformers.reproduce.finding import Finding
from lightformers.train.consistency import TwoPasses

CLAIM = (
    "Experts drawn at random and trained to agree predict better than a Switch router and than random experts that are not "
    "pulled together, in equal forward passes."
)
_LR, _ALPHA, _DROPOUT, _BALANCE = 2e-3, 1.0, 0.1, 0.01
_SWITCH, _RANDOM, _THOR = "Switch router", "random experts", "THOR"
_DENSE, _CONTROL = "dense", "dense, passes agree"
#: experts, weight of the agreement
_ARMS = {_THOR: (2, _ALPHA), _SWITCH: (2, 0.0), _RANDOM: (2, 0.0), _CONTROL: (1, _ALPHA), _DENSE: (1, 0.0)}


class Switch(nn.Module):
    """The routed baseline (Fedus et al., 2021, arXiv 2101.03961): every token goes to its most probable expert.

    (..., width) -> (..., width). balance: experts * sum_i share of tokens of i * mean probability of i, of the last call.
    """

    def __init__(self, layer: StochasticExperts, width: int) -> None:
        super().__init__()
        self.experts, self.router = layer.experts, nn.Linear(width, len(layer.experts), bias=False)
        self.balance = torch.zeros(())

    def forward(self, x: Tensor) -> Tensor:
        shares = self.router(x).float().softmax(-1)
        best, index = shares.max(-1)
        taken = nn.functional.one_hot(index, len(self.experts)).float()
        self.balance = (
            len(self.experts) * (taken.flatten(0, -2).mean(0) * shares.flatten(0, -2).mean(0)).sum()
        )
        out = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            here = index == number
            out = out.index_put((here,), expert(x[here]).to(x.dtype))
        return out * best[..., None].to(x.dtype)


def run(budget: float = common.FULL) -> Finding:
    """Train every arm once per seed; score with an expert drawn for every token."""
    clock = common.Clock(budget)
    seeds = clock.seeds()
    letters, job = decoders.world(clock)
    arms = list(_ARMS)[: 3 if clock.few else None]
    draws = 2 if clock.short else 4

    def make(arm: str, seed: int, steps: int) -> Bundle:
        bundle = _decoder(letters, arm, seed)
        objective = TwoPasses(
            lambda outputs, batch: _loss(bundle.model, job, outputs, batch), _ARMS[arm][1], seed=seed
        )
        decoders.train(bundle, job, steps, seed, _LR, lambda _: objective, dropout=True)
        return bundle

    def measure(arm: str, bundle: Bundle) -> dict[str, float]:
        losses = []
        for draw in range(draws):
            with routed(bundle.model, "token", seed=draw):
                losses.append(characters.loss(bundle, job, 200 if draw == 0 else 40))
        cells = {"loss": losses[0]}
        if arm in (_THOR, _RANDOM):
            cells["deviation over draws"] = float(torch.tensor(losses[1:]).std(correction=0))
            cells["next tokens on which experts agree"] = _agreement(bundle, job)
        return cells

    found = decoders.contest(clock, seeds, arms, make, measure)
    over_router, over_random = found.gain(_THOR, _SWITCH), found.gain(_THOR, _RANDOM)
    control = "" if clock.few else (
        f" Against one feed-forward whose passes agree, the same without experts: {common.said(found.gain(_THOR, _CONTROL))}."
    )  # fmt: skip
    alike = [
        common.said(found.cell(arm, "next tokens on which experts agree"), False) for arm in (_THOR, _RANDOM)
    ]
    return reproduce.conclude(
        slug="thor",
        claim=CLAIM,
        verdict=common.together(reproduce.judge(over_router), reproduce.judge(over_random)),
        summary=(
            f"THOR stands {common.said(over_router)} nats below the router and {common.said(over_random)} below random experts; "
            f"experts say the same next token {alike[0]} of the time with agreement, {alike[1]} without.{control}"
        ),
        table=found.table(parameters={arm: _decoder(letters, arm, 0).parameters for arm in arms}),
        baseline=_SWITCH,
        settings={
            "model": f"decoder, {decoders.DEPTH} layers, width {decoders.WIDTH}, feed-forwards of 512 with dropout {_DROPOUT}, "
            f"experts in layers 0 and 2",
            "steps, of two passes": dict(zip(map(str, seeds), found.steps)),
            "alpha": _ALPHA,
            "weight of the router's balance": _BALANCE,
            "inference": "an expert drawn for every token",
            "learning rate": _LR,
            "data": decoders.DATA,
        },
        limits=(
            "A decoder far from overfitting, where the paper translates with little data or many languages: its gains of two BLEU "
            "cannot be shown, nor more than two experts. The router drops no token." + clock.note()
        ),
        started=clock.started,
        seeds=seeds,
    )


def _decoder(letters: characters.Characters, arm: str, seed: int) -> Bundle:
    def layer(experts: int) -> dict[str, Any]:
        ffn = {"kind": "thor", "experts": experts, "dropout": _DROPOUT}
        return {"mixer": decoders.attention(), "ffn": ffn}

    experts = _ARMS[arm][0]
    bundle = decoders.decoder(letters, seed, [layer(1 if i % 2 else experts) for i in range(decoders.DEPTH)])
    if arm == _SWITCH:
        with torch.random.fork_rng():
            torch.manual_seed(seed + 1)
            layers: Any = bundle.model.layers
            for block in layers[::2]:
                block.ffn = Switch(block.ffn, decoders.WIDTH)
    return bundle


def _loss(model: nn.Module, job: Any, outputs: Any, batch: Batch) -> Tensor:
    loss: Tensor = job.loss(outputs, batch)
    return loss + _BALANCE * sum(m.balance for m in model.modules() if isinstance(m, Switch))


@torch.no_grad()
def _agreement(bundle: Bundle, job: Any) -> float:
    """Share of next tokens that are the same whether the first or the second expert is taken in every layer."""
    same = count = 0
    for batch in batches(bundle, job.splits["verify"][:16]):
        said = []
        for expert in range(2):
            pairs = [layer for layer in stochastic(bundle.model) if len(layer.experts) > 1]
            for layer in pairs:
                layer.choice = expert
            said.append(bundle.model(**batch.inputs, use_cache=False).logits.argmax(-1))
            for layer in pairs:
                layer.choice = None
        same += int((said[0] == said[1]).sum())
        count += said[0].numel()
    return same / count
