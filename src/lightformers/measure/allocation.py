"""How much memory torch's own allocator held, at most, while something ran."""

from __future__ import annotations

from collections.abc import Callable

import torch

from lightformers.telemetry import quiet


def allocated(call: Callable[[], object], device: torch.device | str = "cpu") -> int:
    """Most bytes that tensors made during `call()` held at once.

    On the CPU every allocation and release of torch's allocator is added up: the same for every run, and free of what the
    C library keeps. What a library of kernels takes for itself (oneDNN's scratch pads) is not in it. Timing is spoilt
    while it is counted. On a GPU: torch's own count, above what was held before; what is released of that is taken off.
    """
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    from torch.profiler import ProfilerActivity, profile

    with (
        quiet(),
        profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found,
    ):  # it says that it starts
        call()
    assert found.profiler is not None and found.profiler.kineto_results is not None
    events = [e for e in found.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most
