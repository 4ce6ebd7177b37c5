"""MatMul-free language model (arXiv 2406.02528): what do ternary weights and a recurrence without products cost?

    lightformers reproduce matmul-free

Hardware: two cores, five minutes. Decoders of four layers, width 96, learn the characters of Tiny Shakespeare in as many
steps: a transformer with rotary positions and SwiGLU; the MatMul-free model; the same with full weights; the transformer
with ternary layers. Expected: ternary weights cost some percent, and attention bears them worse than the recurrence.
Every product with a ternary weight is an addition; stored, a layer's weights take a tenth of half-precision ones.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from lightformers import reproduce
from lightformers.bundle import Batch
from lightformers.measure import flops
from lightformers.models.language.decoder import Decoder, DecoderConfig
from lightformers.parts.bit_linear import BitLinear, PackedBitLinear, pack, ternarize
from lightformers.reproduce import common, recall, shakespeare
from lightformers.reproduce.finding import Finding, Verdict

CLAIM = (
    "At equal parameters and steps the ternary model needs at most five percent more bits per character than a transformer of full "
    "weights, and fewer than a transformer of ternary ones; its weights are stored in an eighth of half precision or less, "
    "with equal outputs of every layer."
)
_PLAIN, _TERNARY, _FULL, _BITS = (
    "transformer",
    "MatMul-free",
    "MatMul-free, full weights",
    "transformer, ternary",
)
_WIDTH, _LAYERS, _HIDDEN, _LR = 96, 4, 256, 4e-3
#: Share of bits that ternary weights and the recurrence may cost.
COST = 0.05
#: Times smaller than half precision that packed weights must be.
SMALLER = 8.0
_ERROR, _PACKED = "largest difference of a layer when packed", "bits per character, packed"


def build(arm: str, vocab: int, seed: int) -> Decoder:
    """A decoder of an arm. Heads are not tied; those of the MatMul-free forms and of ternary ones are `BitLinear` too."""
    recurrent, ternary = arm in (_TERNARY, _FULL), arm in (_TERNARY, _BITS)
    if recurrent:
        row: dict[str, Any] = {
            "mixer": {"kind": "mlgru", "ternary": ternary},
            "ffn": {"kind": "bit-swiglu", "hidden": _HIDDEN, "ternary": ternary},
        }
    else:
        row = {"mixer": {"kind": "attention", "heads": 4}, "ffn": {"kind": "swiglu", "hidden": _HIDDEN}}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Decoder(
            DecoderConfig(vocab, _WIDTH, [row] * _LAYERS, norm_eps=1e-6, tie_word_embeddings=False)
        )
    if recurrent or ternary:
        ternarize(model, ternary=ternary)
    return model.eval()


def run(budget: float = common.FULL) -> Finding:
    """Train every arm once per seed; pack what is ternary."""
    clock = common.Clock(budget)
    seeds = clock.seeds()
    play = shakespeare.Shakespeare.of(clock)
    names = (_PLAIN, _TERNARY, _FULL, _BITS)
    trials = [
        play.trial(
            arm,
            partial(build, arm, play.vocab),
            _LR,
            partial(_packed, play=play) if arm in (_TERNARY, _BITS) else None,
        )
        for arm in names
    ]
    found = recall.contest(clock, seeds, {"characters": (1.0, trials)})
    costs = {arm: cost(build(arm, play.vocab, 0), play) for arm in names}
    return _conclude(clock, seeds, found, costs, play.vocab)


@torch.no_grad()
def _packed(learnt: shakespeare.Learnt, play: shakespeare.Shakespeare) -> dict[str, float]:
    """What packing changes: in each layer for itself, where nothing but the order of sums may differ, and in the whole,
    where such a difference may turn the rounding of an activation."""
    errors: list[float] = []

    def compare(layer: BitLinear, given: tuple[torch.Tensor, ...], out: torch.Tensor) -> None:
        errors.append(float((layer.packed()(given[0]) - out).abs().max() / out.abs().max()))

    small = learnt.bundle.copy()
    hooks = [m.register_forward_hook(compare) for m in small.model.modules() if isinstance(m, BitLinear)]
    ids = torch.randint(play.vocab, (2, 64), generator=torch.Generator().manual_seed(0))
    small.model(input_ids=ids)
    for hook in hooks:
        hook.remove()
    pack(small.model)
    return {_ERROR: max(errors), _PACKED: play.bits(small)}


def cost(model: nn.Module, play: shakespeare.Shakespeare) -> dict[str, float]:
    """Multiply-adds and additions of matrix products per token of 128, and bytes of the matrices in layers and head.

    Full matrices are counted at two bytes a weight. Attention is counted over all 128 places. Elementwise work is in
    neither count.
    """
    ids = torch.zeros(1, 128, dtype=torch.long)
    with sdpa_kernel(SDPBackend.MATH):  # torch does not count its fused attention of the CPU
        products = flops(model, Batch({"input_ids": ids}, {})) / 2 / ids.numel()
    bits = [m for m in model.modules() if isinstance(m, BitLinear) and m.ternary]
    additions = sum(m.weight.numel() for m in bits)
    full = sum(
        m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear) or (isinstance(m, BitLinear) and not m.ternary)
    )  # fmt: skip
    packed: list[PackedBitLinear] = [m.packed() for m in bits]
    return {
        "multiply-adds per token": products - additions,
        "additions per token": float(additions),
        "bytes of matrices": float(2 * full + sum(m.bytes for m in packed)),
        "bytes in half precision": 2.0 * (full + additions),
        "parameters": float(sum(p.numel() for p in model.parameters())),
    }


def _conclude(
    clock: common.Clock,
    seeds: tuple[int, ...],
    found: recall.Contest,
    costs: dict[str, dict[str, float]],
    vocab: int,
) -> Finding:
    bits = {arm: cells[shakespeare.BITS] for arm, cells in found.scores.items()}
    more = [new / old - 1 for new, old in zip(bits[_TERNARY], bits[_PLAIN])]
    rounding = [new / old - 1 for new, old in zip(bits[_TERNARY], bits[_FULL])]
    attention = common.gain(bits[_BITS], bits[_TERNARY])
    smaller = costs[_TERNARY]["bytes in half precision"] / costs[_TERNARY]["bytes of matrices"]
    error = max(found.scores[_TERNARY][_ERROR])
    stored: Verdict = "holds here" if smaller >= SMALLER and error <= 1e-4 else "does not hold here"
    verdict = common.together(reproduce.judge([-x for x in more], -COST), reproduce.judge(attention), stored)
    return reproduce.conclude(
        slug="matmul-free",
        claim=CLAIM,
        verdict=verdict,
        summary=(
            f"Bits per character over the transformer of full weights, as a share: {common.said(more)}; of that the rounding "
            f"itself {common.said(rounding)}. The ternary transformer needs {common.said(attention)} bits more than the "
            f"MatMul-free model. Matrices are stored in 1/{smaller:.1f} of half precision; packed layers differ by {error:.0e} at "
            f"most. Multiply-adds of matrix products per token: {costs[_TERNARY]['multiply-adds per token']:.0f} against "
            f"{costs[_PLAIN]['multiply-adds per token']:.0f}."
        ),
        table=[reproduce.row(arm, **cells, **costs[arm]) for arm, cells in found.scores.items()],
        baseline=_PLAIN,
        settings={
            "model": f"{_LAYERS} layers, width {_WIDTH}, feed-forward {_HIDDEN}, {vocab} characters, head not tied",
            "steps": list(found.steps["characters"]),
            "milliseconds a step": {arm: round(1000 * c["characters"], 1) for arm, c in found.seconds.items()},
            "learning rate": _LR,
        },
        limits=(
            "Half a million parameters and some hundreds of steps at one learning rate for all, where the paper has 370 million to "
            "2.7 billion, on 15 to 100 billion tokens, at rates of their own: where the curves of both cross cannot be shown, nor memory of "
            "a GPU or power of an FPGA. The additions are counted, not run as such: this processor multiplies." + clock.note()
        ),
        started=clock.started,
        seeds=seeds,
    )  # fmt: skip
