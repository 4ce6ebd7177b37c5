"""What this machine can do at best: matrix products and memory, measured in under a second."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial

import torch

SIDE = 1024
COPY_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Peaks:
    """gflops: precision ("fp32", "bf16") -> GFLOP/s of a large matrix product. bandwidth: bytes/s read plus written."""

    gflops: dict[str, float]
    bandwidth: float
    threads: int


def peaks() -> Peaks:
    """Best of several tries, with as many threads as torch now uses. Measured once per thread count."""
    return _peaks(torch.get_num_threads())


@cache
def _peaks(threads: int) -> Peaks:
    gflops = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        a, b = torch.randn(2, SIDE, SIDE).to(dtype)
        out = torch.empty(SIDE, SIDE, dtype=dtype)
        gflops[name] = 2 * SIDE**3 / _best(partial(torch.mm, a, b, out=out)) / 1e9
    source = torch.zeros(COPY_BYTES, dtype=torch.uint8)
    target = torch.empty_like(source)
    return Peaks(gflops, 2 * COPY_BYTES / _best(lambda: target.copy_(source)), threads)


def _best(call: Callable[[], object], tries: int = 6) -> float:
    call()
    seconds = []
    for _ in range(tries):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return min(seconds)
