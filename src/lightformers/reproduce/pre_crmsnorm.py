"""Pre-RMSNorm and Pre-CRMSNorm (arXiv 2305.14858): cheaper norms with equal outputs.

    lightformers reproduce pre-crmsnorm

Hardware: two cores, five minutes. A character decoder is trained, converted, and compared in float64 and float32, and
in what it generates; twins are trained on from it with and without LayerNorm; then norms and whole forwards of widths
256 to 1024 are timed interleaved. Expected: equality; no gain in time, because torch's LayerNorm is one fused kernel on
the CPU and the converted norms are several operations.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from lightformers import anatomy, measure, reproduce
from lightformers.bundle import Batch, Bundle
from lightformers.compress.fold.pre_crmsnorm import Kind, ToRMSNorm
from lightformers.parts.zero_mean import CRMSNorm, RMSNorm
from lightformers.reproduce import characters, common
from lightformers.reproduce.finding import Finding
from lightformers.runners.named import named
from lightformers.steps import Recipe

CLAIM = (
    "A pre-norm decoder converted to RMSNorm or CRMSNorm gives the same outputs (1e-10 in float64, 1e-4 in float32), "
    "trains alike, and a forward pass takes at least one percent less time."
)
EXACT = {torch.float64: 1e-10, torch.float32: 1e-4}
FASTER = 0.01
_KINDS: tuple[Kind, ...] = ("rms", "crms")
_NAMES = {"rms": "Pre-RMSNorm", "crms": "Pre-CRMSNorm"}
_BASE = "Pre-LN"
_LR = 2e-3


def run(budget: float = common.FULL) -> Finding:
    """Train a decoder per seed and convert it; time the forms."""
    clock = common.Clock(budget)
    seeds = clock.seeds()
    text = {part: common.text("tinyshakespeare", part) for part in ("train", "valid")}
    letters = characters.alphabet(*text.values())
    held_out = characters.windows(text["valid"])[: 8 * clock.size(8, 1)]  # half of it is verified on
    job = characters.task(characters.windows(text["train"][: clock.size(10**6, 50_000)]), held_out)
    cells: dict[str, dict[str, list[float]]] = {name: {} for name in (_BASE, *_NAMES.values())}

    def note(kind: str, cell: str, value: float) -> None:
        cells[kind].setdefault(cell, []).append(value)

    for seed in seeds:
        trained = characters.decoder(letters, seed)
        characters.train(trained, job, clock.size(250, 1), seed, _LR)
        _stretch(trained.model, seed)
        batch = trained.collate(held_out[:4])
        note(_BASE, "nats per character", characters.loss(trained, job))
        for kind in _KINDS:
            for dtype, word in ((torch.float64, "float64"), (torch.float32, "float32")):
                one = trained.copy()
                one.model.to(dtype)
                other = convert(one, kind)
                note(_NAMES[kind], f"largest difference, {word}", _gap(one.model, other.model, batch))
            note(_NAMES[kind], "nats per character", characters.loss(other, job))
            note(
                _NAMES[kind],
                "share of generated characters that agree",
                _agree(one.model, other.model, batch),
            )
        rows = characters.drawn(text["train"], 4 * clock.size(30, 3), seed + 50)
        note(_NAMES["rms"], "largest difference of training losses", _twins(trained, job, rows))
    widths = (256, 512, 1024)[: 1 if clock.short else 3]
    for width in widths:
        for factors in _times(letters, held_out[:4], width, clock, len(seeds)):
            for timed, (norm, whole) in factors.items():
                note(_NAMES[timed], f"norm, times faster, width {width}", norm)
                note(_NAMES[timed], f"forward, times faster, width {width}", whole)
    return _conclude(clock, seeds, cells, widths)


def convert(bundle: Bundle, kind: Kind, keep_zero_mean: bool = False) -> Bundle:
    """A converted copy."""
    return Recipe([ToRMSNorm(kind, keep_zero_mean)]).apply(bundle)


@torch.no_grad()
def _stretch(model: nn.Module, seed: int) -> None:
    """Gains and offsets that short training leaves near 1 and 0 are spread, so that folding them has to be right."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            for parameter in module.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


@torch.no_grad()
def _gap(one: nn.Module, other: nn.Module, batch: Batch) -> float:
    a, b = (m(**batch.inputs, use_cache=False).logits for m in (one, other))
    return float((a - b).abs().max())


@torch.no_grad()
def _agree(one: Any, other: Any, batch: Batch) -> float:
    start = batch.inputs["input_ids"][:, :16]
    mask = torch.ones_like(start)
    a, b = (m.generate(start, attention_mask=mask, max_new_tokens=64, do_sample=False, pad_token_id=0) for m in (one, other))  # fmt: skip
    return float((a == b).double().mean())


def _twins(trained: Bundle, job: Any, rows: list[dict[str, Any]]) -> float:
    """Plain SGD in float64 from one point, with LayerNorm (gains held) and with RMSNorm and zero-mean layers.

    A step takes four of the rows.
    """
    start = trained.copy()
    plain = start.model.double()
    held = [
        p
        for block in anatomy.of(plain).blocks
        for n in block.norms
        for p in anatomy.get(plain, n).parameters()
    ]
    with torch.no_grad():
        for place, parameter in enumerate(held):
            parameter.fill_(1.0 if place % 2 == 0 else 0.0)
            parameter.requires_grad_(False)
    batches = [trained.collate(rows[i : i + 4]) for i in range(0, len(rows), 4)]
    curves = []
    for twin in (plain, convert(start, "rms", keep_zero_mean=True).model):
        optimizer = torch.optim.SGD([p for p in twin.parameters() if p.requires_grad], lr=0.1)
        curve = []
        for batch in batches:
            loss = job.loss(named(twin(**batch.inputs, use_cache=False)), batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            curve.append(float(loss.detach()))
        curves.append(curve)
    return max(abs(a - b) for a, b in zip(*curves))


@torch.no_grad()
def _times(
    letters: characters.Characters, rows: list[dict[str, Any]], width: int, clock: common.Clock, repeats: int
) -> list[dict[Kind, tuple[float, float]]]:
    """Per repeat: kind -> how many times faster than LayerNorm a norm and a forward of four blocks are."""
    fresh = characters.decoder(letters, 0, width=width, heads=width // 64)
    models: dict[str, nn.Module] = {_BASE: fresh.model}
    models.update({kind: convert(fresh, kind).model for kind in _KINDS})
    batch = fresh.collate(rows)
    x = torch.randn(len(rows) * characters.LENGTH, width)
    x -= x.mean(-1, keepdim=True)
    narrow = x[:, :-1].contiguous()
    plain, rms, crms = nn.LayerNorm(width), RMSNorm(width, affine=False), CRMSNorm(width)
    norms: dict[str, Callable[[], object]] = {
        _BASE: lambda: plain(x),
        "rms": lambda: rms(x),
        "crms": lambda: crms(narrow),
    }
    whole = {k: lambda m=m: m(**batch.inputs, use_cache=False) for k, m in models.items()}
    out = []
    for _ in range(repeats):
        a = measure.compare(norms, rounds=clock.size(100, 3))
        b = measure.compare(whole, rounds=clock.size(20, 2))
        out.append(
            {
                k: (measure.paired(a[_BASE], a[k]).estimate, measure.paired(b[_BASE], b[k]).estimate)
                for k in _KINDS
            }
        )
    return out


def _conclude(
    clock: common.Clock,
    seeds: tuple[int, ...],
    cells: dict[str, dict[str, list[float]]],
    widths: tuple[int, ...],
) -> Finding:
    def digits(cell: str, limit: float) -> list[float]:
        """Decimal places below the limit, of the worse kind."""
        pairs = zip(*(cells[_NAMES[k]][cell] for k in _KINDS))
        return [math.log10(limit) - math.log10(max(*pair, 1e-18)) for pair in pairs]

    exact = [reproduce.judge(digits(f"largest difference, {w}", EXACT[d])) for d, w in ((torch.float64, "float64"), (torch.float32, "float32"))]  # fmt: skip
    twins = [
        -8 - math.log10(max(v, 1e-18)) for v in cells[_NAMES["rms"]]["largest difference of training losses"]
    ]
    exact.append(reproduce.judge(twins))

    def forward(kind: Kind) -> list[float]:
        columns = [cells[_NAMES[kind]][f"forward, times faster, width {w}"] for w in widths]
        return [sum(v) / len(v) - 1 for v in zip(*columns)]

    best = [max(pair) for pair in zip(forward("rms"), forward("crms"))]
    worst = {k: max(cells[_NAMES[k]]["largest difference, float64"]) for k in _KINDS}
    return reproduce.conclude(
        slug="pre-crmsnorm",
        claim=CLAIM,
        verdict=common.together(*exact, reproduce.judge(best, FASTER)),
        summary=(
            f"Largest difference of a logit in float64 {worst['rms']:.0e} (RMSNorm) and {worst['crms']:.0e} (CRMSNorm): "
            f"{common.together(*exact)} as to equality. Change of speed of a whole forward, mean over widths: "
            f"{common.said(forward('rms'))} and {common.said(forward('crms'))} of the time of LayerNorm."
        ),
        table=[reproduce.row(arm, **columns) for arm, columns in cells.items()],
        baseline=_BASE,
        settings={
            "model": "GPT-2 form, 4 blocks, width 128, characters of Tiny Shakespeare; timing: random weights, heads of 64",
            "training steps": clock.size(250, 1),
            "steps of twins": clock.size(30, 3),
            "timed input": f"4 x {characters.LENGTH} characters, float32, eager",
            "widths timed": list(widths),
        },
        limits=(
            "The paper's gain is on accelerators with kernels of their own for the norms; here both norms are eager torch "
            "operations against a fused LayerNorm. Gains of the blocks' norms are held at one while twins train." + clock.note()
        ),
        started=clock.started,
        seeds=seeds,
    )  # fmt: skip
