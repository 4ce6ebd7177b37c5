"""PolyCom (arXiv 2411.03884): learned polynomials as activations, against GELU and SwiGLU at equal parameters.

    lightformers reproduce polycom

Hardware: two cores, five minutes. Character decoders (4 layers, width 128) on Tiny Shakespeare that differ in the
activation alone: ReLU, GELU, squared ReLU, SwiGLU, PolyReLU, PolyNorm, all with the same weights (516 channels, 344
gated) but for four scalars a layer. Expected: PolyNorm and PolyReLU at or below GELU and SwiGLU; differences of a
hundredth of a nat are near the noise of three seeds. A smooth curve is fitted with fewer units, and activations have a
higher effective rank.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightformers import reproduce
from lightformers.bundle import Bundle
from lightformers.compress.calibration import batches
from lightformers.parts.ffn.polycom import PolyReLU, ungated
from lightformers.reproduce import characters, common, decoders
from lightformers.reproduce.finding import Finding

CLAIM = (
    "At equal parameters and steps a decoder with PolyNorm predicts better than one with GELU and one with SwiGLU, and one with "
    "PolyReLU better than one with ReLU."
)
_LR = 2e-3
_GATED = 344
_ARMS: dict[str, dict[str, Any]] = {
    "SwiGLU": {"kind": "swiglu", "hidden": _GATED},
    "GELU": decoders.mlp(ungated(_GATED)),
    "ReLU": decoders.mlp(ungated(_GATED), "relu"),
    "PolyReLU": decoders.mlp(ungated(_GATED), "poly_relu"),
    "PolyNorm": decoders.mlp(ungated(_GATED), "poly_norm"),
    "squared ReLU": decoders.mlp(ungated(_GATED), "squared_relu"),
}
_BASE = "SwiGLU"


def run(budget: float = common.FULL) -> Finding:
    """Train every activation once per seed; fit a curve with each of the element-wise ones."""
    clock = common.Clock(budget)
    seeds = clock.seeds()
    letters, job = decoders.world(clock)
    arms = list(_ARMS)[: 5 if clock.few else None]

    def make(arm: str, seed: int, steps: int) -> Bundle:
        layer = {"mixer": decoders.attention(), "ffn": _ARMS[arm]}
        bundle = decoders.decoder(letters, seed, [layer] * decoders.DEPTH)
        decoders.train(bundle, job, steps, seed, _LR)
        return bundle

    def measure(arm: str, bundle: Bundle) -> dict[str, float]:
        return {"loss": characters.loss(bundle, job), "effective rank": effective_rank(bundle, job)}

    found = decoders.contest(clock, seeds, arms, make, measure)
    gains = {
        pair: found.gain(*pair)
        for pair in (("PolyNorm", "SwiGLU"), ("PolyNorm", "GELU"), ("PolyReLU", "ReLU"))
    }
    fits = {name: fit_error(name, 16) for name in ("ReLU", "PolyReLU")}
    sizes = {
        arm: decoders.decoder(
            letters, 0, [{"mixer": decoders.attention(), "ffn": _ARMS[arm]}] * decoders.DEPTH
        )
        for arm in arms
    }
    said = "; ".join(f"{a} below {b} by {common.said(v)} nats" for (a, b), v in gains.items())
    rank = [common.said(found.cell(arm, "effective rank"), False) for arm in ("PolyNorm", "GELU")]
    return reproduce.conclude(
        slug="polycom",
        claim=CLAIM,
        verdict=common.together(*(reproduce.judge(v) for v in gains.values())),
        summary=(
            f"{said}. Effective rank of what leaves the activation: PolyNorm {rank[0]}, GELU {rank[1]}. Error of the best "
            f"fit of a curve with 16 random units: PolyReLU {fits['PolyReLU']:.1e}, ReLU {fits['ReLU']:.1e}."
        ),
        table=found.table(parameters={arm: bundle.parameters for arm, bundle in sizes.items()}),
        baseline=_BASE,
        settings={
            "model": f"decoder, {decoders.DEPTH} layers, width {decoders.WIDTH}, {ungated(_GATED)} channels ({_GATED} gated)",
            "steps": dict(zip(map(str, seeds), found.steps)),
            "learning rate": _LR,
            "data": decoders.DATA,
        },
        limits=(
            "Models of under a million parameters and hundreds of steps, against billions of tokens in the paper: gains at "
            "scale, mixtures of experts and downstream tasks cannot be shown." + clock.note()
        ),
        started=clock.started,
        seeds=seeds,
    )


@torch.no_grad()
def effective_rank(bundle: Bundle, job: Any) -> float:
    """exp(entropy of the normalised singular values) of what the second matrices read on text, mean over layers."""
    seen: list[Tensor] = []
    layers: Any = bundle.model.layers
    hooks = [
        layer.ffn.down.register_forward_pre_hook(lambda _, args: seen.append(args[0].flatten(0, -2).float()))
        for layer in layers
    ]
    try:
        for batch in batches(bundle, job.splits["verify"][:4]):
            bundle.model(**batch.inputs, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    ranks = []
    for x in seen:
        share = torch.linalg.svdvals(x - x.mean(0))
        share = share / share.sum()
        ranks.append(float((-(share * share.clamp(min=1e-12).log()).sum()).exp()))
    return sum(ranks) / len(ranks)


@torch.no_grad()
def fit_error(name: str, units: int, draws: int = 20) -> float:
    """Mean squared error of the best second layer over a random first one, on sin(3 x) e^x over [-1, 1]; median."""
    x = torch.linspace(-1, 1, 200, dtype=torch.float64)[:, None]
    goal = torch.sin(3 * x) * x.exp()
    errors = []
    for seed in range(draws):
        generator = torch.Generator().manual_seed(seed)
        w, b = (torch.randn(1, units, generator=generator, dtype=torch.float64) for _ in range(2))
        z = x @ w + b
        features = torch.cat([z.relu() if name == "ReLU" else PolyReLU().double()(z), torch.ones_like(x)], 1)
        best = torch.linalg.lstsq(features, goal, driver="gelsd").solution
        errors.append(float((features @ best - goal).square().mean()))
    return sorted(errors)[draws // 2]
