"""What this machine is: processor, cores, instructions, memory, versions."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import subprocess
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import nn

PACKAGES = (
    "torch", "transformers", "tokenizers", "openvino", "nncf", "onnxruntime", "onnx", "optuna",
    "sentence-transformers", "numpy", "lightformers",
)  # fmt: skip
#: Instructions that matter to transformers, by the names that Linux gives them.
ISA = (
    "avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16", "amx_int8",
    "asimd", "asimddp", "i8mm", "bf16", "sve",
)  # fmt: skip


@cache
def _facts() -> str:
    import psutil

    flags, model = _processor()
    memory = psutil.virtual_memory().total
    limit = _first_number("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
    facts = {
        "cpu": model,
        "architecture": platform.machine(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "cores": {
            "physical": psutil.cpu_count(logical=False) or os.cpu_count() or 1,
            "logical": psutil.cpu_count() or 1,
            "usable": _usable(),
            "cgroup_limit": _cgroup_cores(),
        },
        "isa": {name: name in flags for name in ISA},
        "memory_bytes": min(memory, limit) if limit else memory,
        "versions": {name: _version(name) for name in PACKAGES},
        "blas": "mkl" if torch.backends.mkl.is_available() else "other",
        "gpu": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
    }
    return json.dumps(facts)


def machine() -> dict[str, Any]:
    """Plain facts, ready for JSON.

    cpu, architecture, system, python; cores: physical, logical, usable (affinity), cgroup_limit (or None);
    isa: instruction set -> bool; memory_bytes (the container's limit counts); versions: package -> version or None;
    blas; gpu; threads: of torch at the moment.
    """
    return {**json.loads(_facts()), "threads": torch.get_num_threads()}


def machine_fingerprint() -> str:
    """A short hash of what changes timings: processor, usable cores, instructions, runtimes' versions."""
    facts = machine()
    kept = {k: facts[k] for k in ("cpu", "architecture", "cores", "isa", "gpu")}
    names = ("torch", "transformers", "openvino", "nncf", "onnxruntime")
    kept["versions"] = {k: facts["versions"][k] for k in names}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:16]


def model_fingerprint(model: nn.Module) -> str:
    """A short hash of every parameter and buffer: name, type, shape and values."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _usable() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cgroup_cores() -> float | None:
    """Cores that the container's quota allows, or None without one."""
    path = Path("/sys/fs/cgroup/cpu.max")
    if path.is_file():
        quota, period = path.read_text().split()[:2]
        return None if quota == "max" else int(quota) / int(period)
    old_quota = _first_number("/sys/fs/cgroup/cpu/cpu.cfs_quota_us")
    old_period = _first_number("/sys/fs/cgroup/cpu/cpu.cfs_period_us")
    return old_quota / old_period if old_quota and old_period and old_quota > 0 else None


def _first_number(*paths: str) -> int | None:
    for path in paths:
        try:
            return int(Path(path).read_text())
        except (OSError, ValueError):
            continue
    return None


def _processor() -> tuple[frozenset[str], str]:
    """Instruction flags by their Linux names, and the processor's name."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        return parse_cpuinfo(info.read_text())
    if sys.platform == "darwin":
        return parse_sysctl(_said("sysctl", "-a"))
    # Windows tells nothing in text; torch knows the widest vectors it would use.
    widest = {"AVX512": {"avx2", "avx512f"}, "AVX2": {"avx2"}}
    found = widest.get(str(torch.backends.cpu.get_cpu_capability()).upper(), set())
    return frozenset(found), platform.processor() or platform.machine()


def parse_cpuinfo(text: str) -> tuple[frozenset[str], str]:
    """Flags and name from the text of /proc/cpuinfo (x86 and ARM)."""
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.*)$", text, re.M)
    name = re.search(r"^(?:model name|Model|Hardware)\s*:\s*(.*)$", text, re.M)
    return (
        frozenset(flags.group(1).lower().split()) if flags else frozenset(),
        name.group(1).strip() if name else platform.processor() or platform.machine(),
    )


def parse_sysctl(text: str) -> tuple[frozenset[str], str]:
    """Flags and name from what `sysctl -a` says on macOS, Intel and Apple silicon."""
    name = re.search(r"^machdep\.cpu\.brand_string: (.*)$", text, re.M)
    features = " ".join(re.findall(r"^machdep\.cpu\.(?:leaf7_)?features: (.*)$", text, re.M)).lower().split()
    flags = set(features) & set(ISA)
    theirs = {"FEAT_DotProd": "asimddp", "FEAT_I8MM": "i8mm", "FEAT_BF16": "bf16", "AdvSIMD": "asimd"}
    for feature, ours in theirs.items():
        if re.search(rf"^hw\.optional\.(?:arm\.)?{feature}: 1$", text, re.M):
            flags.add(ours)
    return frozenset(flags), name.group(1).strip() if name else platform.machine()


def _said(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""
