"""Memory, size on disk, and arithmetic work."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lightformers.bundle import Batch
from lightformers.errors import UserError


def size_on_disk(path: str | Path) -> int:
    """Bytes of a file, or of all files under a folder; links count what they point to."""
    path = Path(path)
    if not path.exists():
        raise UserError(f"nothing stands at {path}: there is no size to measure")
    if path.is_file():
        return path.stat().st_size
    return sum(f.stat().st_size for f in path.rglob("*") if f.is_file())


_CHILD = """
import pickle, sys
sys.path[:0] = pickle.loads(bytes.fromhex(sys.argv[1]))
call, arguments = pickle.loads(sys.stdin.buffer.read())
call(*arguments)
from lightformers.measure.resources import own_peak
print(own_peak())
"""


def peak_memory(call: Callable[..., Any] | None = None, *arguments: Any) -> int:
    """Most bytes of memory that a process ever held at once.

    Without a call: this process so far. With one: a fresh process that runs `call(*arguments)`, imports included;
    the call must be importable by name (a function at the top of a module). Raises UserError where it fails there.
    """
    if call is None:
        return own_peak()
    paths = pickle.dumps([p for p in sys.path if p]).hex()
    done = subprocess.run(
        [sys.executable, "-c", _CHILD, paths], input=pickle.dumps((call, arguments)), capture_output=True
    )
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise UserError(f"measuring memory failed in its process: {said[-1] if said else 'no message'}")
    return int(done.stdout.split()[-1])


def own_peak() -> int:
    """Bytes of this process's high-water mark."""
    status = Path("/proc/self/status")
    if status.is_file():  # ru_maxrss is handed down over fork and exec on Linux; VmHWM is this program's own
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    try:
        import resource
    except ImportError:  # Windows
        import psutil

        return int(psutil.Process(os.getpid()).memory_info().peak_wset)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def flops(module: nn.Module, batch: Batch) -> int:
    """Floating point operations of one forward over a batch (a multiply-add counts two), padding included.

    Counted by torch over matrix products, convolutions and attention; norms and activations are not in it.
    """
    from torch.utils.flop_counter import FlopCounterMode

    training = [m for m in module.modules() if m.training]
    module.eval()
    try:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            module(**batch.inputs)
    finally:
        for m in training:
            m.training = True
    return int(counter.get_total_flops())
