"""Why it is not faster: plain sentences, each computed from a measurement and carrying its number."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from lightformers.bundle import Bundle, Example
from lightformers.measure.machine import machine
from lightformers.measure.peaks import peaks
from lightformers.measure.profile import profile, profile_openvino
from lightformers.measure.resources import flops
from lightformers.processors import Processor
from lightformers.runners import Reduce, Runner
from lightformers.runners.batching import fill, plan
from lightformers.telemetry import quiet

#: Modules and kinds whose time is spent in matrix products.
_PRODUCTS = {"matrix products"}
#: Fewer padded tokens than this in a batch leave the matrix units waiting.
SMALL_BATCH = 256


@dataclass(frozen=True)
class Facts:
    """What was measured over one pass of a workload. Shares are of `seconds`, in [0, 1].

    products: share of the forward spent in matrix products, or None where it could not be profiled.
    work: GFLOP of matrix products of the pass, padding included. peak: GFLOP/s of a large product in the precision
    named by `peak_precision`. texts: examples are counted in tokens (series and rows are not). weights: bytes of weights as stored; bandwidth: bytes/s of a large copy.
    """

    seconds: float
    tokenization: float
    padding_work: float
    padding: float
    products: float | None
    work: float
    peak: float
    peak_precision: str
    batches: int
    tokens: int
    weights: int
    bandwidth: float
    cores: int
    isa: dict[str, bool]
    precision: str
    other: tuple[tuple[str, float], ...] = ()
    texts: bool = True


def sentences(facts: Facts) -> list[str]:
    """What holds the pass back, the largest share first. Only what was measured, nothing guessed."""
    found: list[tuple[float, str]] = []
    computing = facts.seconds * max(1e-9, 1 - facts.tokenization - facts.padding_work)
    rate = facts.work / computing
    found.append((
        1 - min(rate / facts.peak, 1.0),
        f"Matrix products run at {rate:.0f} GFLOP/s, {_percent(rate / facts.peak)} of the {facts.peak:.0f} GFLOP/s that "
        f"one large {facts.peak_precision} product reaches on this machine.",
    ))  # fmt: skip
    if facts.products is not None:
        rest = 1 - facts.products
        named = ", ".join(f"{name} {_percent(share)}" for name, share in facts.other[:3])
        found.append((
            rest,
            f"{_percent(rest)} of the forward is not matrix products"
            + (f" ({named})" if named else "")
            + ": fewer or smaller weights do not make that part faster.",
        ))  # fmt: skip
    if facts.padding > 0.02:
        found.append((
            facts.padding,
            f"{_percent(facts.padding)} of the tokens computed are padding: sort by length, or set a token budget.",
        ))  # fmt: skip
    if facts.tokenization > 0.02:
        found.append(
            (
                facts.tokenization,
                f"{'Tokenization' if facts.texts else 'Making inputs of examples'} takes {_percent(facts.tokenization)} of the time.",
            )
        )
    if facts.padding_work > 0.02:
        found.append((
            facts.padding_work,
            f"Padding batches and handing them over takes {_percent(facts.padding_work)} of the time.",
        ))  # fmt: skip
    reading = facts.weights * facts.batches / facts.bandwidth / computing
    if reading > 0.2:
        found.append((
            min(reading, 1.0),
            f"Memory-bound: reading {facts.weights / 1e6:.0f} MB of weights {facts.batches} times at the "
            f"{facts.bandwidth / 1e9:.0f} GB/s of this machine would alone take {_percent(reading)} of the time.",
        ))  # fmt: skip
    mean = facts.tokens / max(facts.batches, 1)
    if mean < SMALL_BATCH and facts.texts:
        found.append((
            0.3,
            f"Batches hold {mean:.0f} tokens on average; below {SMALL_BATCH} the matrix units mostly wait.",
        ))  # fmt: skip
    found.sort(key=lambda item: -item[0])
    return [text for _, text in found] + _missing(facts)


def _missing(facts: Facts) -> list[str]:
    out = []
    x86 = facts.isa.get("avx2", False)
    if facts.precision.startswith("int8") and x86 and not facts.isa.get("amx_int8"):
        vnni = facts.isa.get("avx512_vnni") or facts.isa.get("avx_vnni")
        without = "AMX" if vnni else "AMX or VNNI"
        out.append(f"This processor has no {without}: 0 of its {facts.cores} cores have int8 matrix units.")
    if facts.precision == "bf16" and x86 and not (facts.isa.get("amx_bf16") or facts.isa.get("avx512_bf16")):
        out.append(f"None of the {facts.cores} cores computes in bf16: it is emulated in fp32 here.")
    if facts.cores <= 2:
        out.append(f"The process may use {facts.cores} core{'s' if facts.cores > 1 else ''}.")
    return out


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.0995 else f"{100 * share:.1f} %"


def why_not_faster(
    runner: Runner, bundle: Bundle, examples: Sequence[Example], reduce: Reduce, rounds: int = 3
) -> list[str]:
    """Measure one pass of `runner` over `examples` and say what holds it back. Takes a few passes' time."""
    return sentences(gather(runner, bundle, list(examples), reduce, rounds))


def gather(
    runner: Runner, bundle: Bundle, examples: Sequence[Example], reduce: Reduce, rounds: int = 3
) -> Facts:
    """The measurements that `sentences` speaks from."""
    deploy = runner.deploy
    encoded = runner.encode(examples)
    lengths = [bundle.length(e) for e in encoded]
    pad: Callable[[int], int] = getattr(runner, "padded_length", lambda length: length)
    batches = plan(lengths, deploy.batching, deploy.batch_size, deploy.max_tokens, pad)
    runner(examples, reduce)
    seconds = _best(lambda: runner(examples, reduce), rounds)
    tokenizing = _best(lambda: runner.encode(examples), rounds)
    padding = _best(lambda: [bundle.pad([encoded[i] for i in b]) for b in batches], rounds)
    real = deploy.batching == "packed"
    tokens = sum(lengths) if real else sum(len(b) * pad(max(lengths[i] for i in b)) for b in batches)
    middle = [encoded[i] for i in batches[len(batches) // 2]][:8]
    batch = bundle.pad(middle)
    cells = len(middle) * pad(max(bundle.length(e) for e in middle))
    work = flops(bundle.module(), batch) / cells * tokens / 1e9
    best = peaks()
    precision = "fp32" if deploy.precision == "fp32" else "bf16"
    products, other = _products(runner, bundle, batch, examples, batches)
    width = {"fp32": 4, "bf16": 2}.get(deploy.precision, 1)
    facts = machine()
    return Facts(
        seconds=seconds,
        tokenization=min(tokenizing / seconds, 1.0),
        padding_work=min(padding / seconds, 1.0),
        padding=0.0 if real else 1 - fill(batches, lengths, pad),
        products=products,
        work=work,
        peak=best.gflops[precision],
        peak_precision=precision,
        batches=len(batches),
        tokens=tokens,
        weights=width * _read_weights(bundle),
        bandwidth=best.bandwidth,
        cores=deploy.threads * deploy.streams if deploy.threads else facts["cores"]["usable"],
        isa=facts["isa"],
        precision=deploy.precision,
        other=other,
        texts=not isinstance(bundle.processor, Processor),
    )


def _read_weights(bundle: Bundle) -> int:
    """Parameters that a forward reads whole: all but the embedding tables, of which it reads rows."""
    from torch import nn

    tables = {id(p) for m in bundle.model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    return sum(p.numel() for p in bundle.model.parameters() if id(p) not in tables)


def _products(
    runner: Runner, bundle: Bundle, batch: Any, examples: Sequence[Example], batches: Sequence[Sequence[int]]
) -> tuple[float | None, tuple[tuple[str, float], ...]]:
    """Share of a forward in matrix products, and the largest other kinds with theirs."""
    if runner.deploy.runtime == "openvino":
        rows = profile_openvino(runner, [examples[i] for i in batches[len(batches) // 2]])
        shares: dict[str, float] = {}
        for row in rows:
            shares[row["kind"]] = shares.get(row["kind"], 0.0) + row["share"]
        rest = sorted(((k, s) for k, s in shares.items() if k not in _PRODUCTS), key=lambda item: -item[1])
        return sum(shares.get(k, 0.0) for k in _PRODUCTS), tuple(rest)
    if runner.deploy.runtime == "torch" and runner.deploy.precision == "fp32":
        shares = {}
        for row in profile(bundle, batch):
            shares[row["kind"]] = shares.get(row["kind"], 0.0) + row["share"]
        return _linear_share(bundle, batch), tuple(
            (k, s) for k, s in shares.items() if k not in ("attention", "feed-forward", "head") and s > 0.005
        )
    return None, ()


def _linear_share(bundle: Bundle, batch: Any) -> float:
    """Share of an eager forward inside Linear and Conv1D modules."""
    import torch
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as watch

    module = bundle.module()
    training = [m for m in module.modules() if m.training]
    module.eval()
    try:
        with torch.inference_mode():
            module(**batch.inputs)
            with quiet(), watch(activities=[ProfilerActivity.CPU]) as seen:  # the profiler writes to stderr
                module(**batch.inputs)
    finally:
        for m in training:
            m.training = True
    events = seen.key_averages()
    total = sum(e.self_cpu_time_total for e in events) or 1
    names = (
        "aten::addmm",
        "aten::mm",
        "aten::bmm",
        "aten::baddbmm",
        "aten::convolution",
        "mkldnn",
        "mkl_linear",
    )
    return sum(e.self_cpu_time_total for e in events if e.key.startswith(names) or "linear" in e.key) / total


def _best(call: Callable[[], Any], rounds: int) -> float:
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return min(seconds)
