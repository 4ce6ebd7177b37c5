"""The reload guarantee: a fresh process without lightformers opens what was exported, compares it and times it."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lightformers.bundle import Bundle, Example
from lightformers.errors import UserError
from lightformers.export.graph import DEPLOY_FILE, output_name
from lightformers.files import read_json, write_json
from lightformers.manifest import FILE as MANIFEST
from lightformers.models.registry import MODELS
from lightformers.processors import Processor

SCRIPT = Path(__file__).parent / "templates" / "reload_check.py"
#: The least cosine per example to the torch model, where no outputs of the exported graph itself were recorded.
CLOSE = {"fp32": 0.9999, "bf16": 0.99, "int8-weights": 0.97, "int8": 0.9}
#: The largest difference to recorded outputs, relative to the largest recorded one. bf16 kernels round by batch shape.
EQUAL = {"fp32": 1e-4, "bf16": 2e-2, "int8-weights": 2e-2, "int8": 5e-2}
SECONDS = 600


def rows(outputs: Mapping[str, Any], batch: Any) -> list[np.ndarray]:
    """What is compared, one vector per example; per-token outputs are averaged over what is no padding.

    A `Reduce` for runners: (outputs by name, batch) -> one item per example.
    """
    for name in ("embedding", "logits", "prediction", "prediction_outputs", "last_hidden_state"):
        if name in outputs:
            value = outputs[name].float()
            break
    else:
        raise UserError(
            f"the outputs hold {', '.join(outputs)}; embedding, logits, prediction or last_hidden_state is compared"
        )
    if name.startswith("prediction"):
        value = value.reshape(len(value), -1)
    if value.dim() == 3:
        mask = batch.inputs.get("attention_mask", torch.ones(value.shape[:2], dtype=torch.long)).unsqueeze(-1)
        value = (value * mask).sum(1) / mask.sum(1)
    return list(value.numpy())


def record(bundle: Bundle, probes: Sequence[Example], runner: Any = None, batch_size: int = 32) -> np.ndarray:
    """Outputs of `probes`, (n, d): by `runner` (see `lightformers.runners`), or in eager torch."""
    if runner is not None:
        return np.stack(runner(list(probes), rows))
    module = bundle.module().eval()
    encoded = bundle.encode(list(probes))
    order = sorted(range(len(encoded)), key=lambda i: bundle.length(encoded[i]))
    out: dict[int, np.ndarray] = {}
    with torch.inference_mode():
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            batch = bundle.pad([encoded[i] for i in chosen])
            out.update(zip(chosen, rows(module(**batch.inputs), batch)))
    return np.stack([out[i] for i in range(len(out))])


def check(
    folder: str | Path,
    probes: Sequence[Example],
    bundle: Bundle,
    expected: Mapping[str, np.ndarray] | None = None,
    batch_size: int = 32,
    rounds: int = 3,
    threads: int | None = None,
    only: Sequence[str] | None = None,
) -> list[dict[str, Any]]:
    """Open every form that stands in `folder` in a process of its own and compare its outputs on `probes`.

    expected: format ("transformers", "openvino", "onnx") -> recorded outputs (see `record`); what is not given is
    compared with the bundle in eager torch, as closely as its precision allows. only: leave out other formats.
    Returns one dictionary per form: format, ok, max_difference, throughput (examples per second, tokenization
    included but for series and rows, length-sorted batches, best of `rounds`), note.
    """
    folder = Path(folder).resolve()
    if not probes:
        raise UserError("the reload check needs some examples")
    reference = record(bundle, probes, batch_size=batch_size)
    with tempfile.TemporaryDirectory(prefix="lightformers-") as name:
        work = Path(name)
        shutil.copy(SCRIPT, work)  # run from elsewhere, so that the package is not on the path by accident
        shared = {
            "folder": str(folder), "task": bundle.task, "output": output_name(bundle), "max_length": bundle.max_length,
            "pooling": vars(bundle.pooling) if bundle.pooling else None, "batch_size": batch_size, "rounds": rounds,
            "threads": threads, "probes": str(_write_probes(bundle, probes, work, batch_size)),
        }  # fmt: skip
        out = []
        for form, precision in _forms(folder, probes):
            if only is not None and form not in only:
                continue
            recorded = (expected or {}).get(form)
            wanted = reference if recorded is None else recorded
            np.save(work / "expected.npy", wanted.astype(np.float32))
            write_json(work / "spec.json", {**shared, "format": form, "expected": str(work / "expected.npy")})
            out.append(_judge(form, precision, recorded is not None, _run(work, form)))
        return out


def _forms(folder: Path, probes: Sequence[Example]) -> list[tuple[str, str]]:
    """(format, precision) of everything in `folder` that can be opened here."""
    named = (
        read_json(folder / "config.json").get("architectures") if (folder / "config.json").is_file() else None
    )
    custom = (folder / MANIFEST).is_file() or any(
        name in MODELS for name in named or ()
    )  # ours know no other process
    out = [("lightformers" if custom else "transformers", "fp32")]
    texts = "text" in probes[0] and "text_pair" not in probes[0]
    installed = importlib.util.find_spec("sentence_transformers") is not None
    if not custom and texts and installed and (folder / "modules.json").is_file():
        out.append(("sentence-transformers", "fp32"))
    for form in ("openvino", "onnx"):
        if (folder / form / DEPLOY_FILE).is_file():
            out.append((form, read_json(folder / form / DEPLOY_FILE)["precision"]))
    return out


def _write_probes(bundle: Bundle, probes: Sequence[Example], folder: Path, batch_size: int) -> Path:
    """What the other process is given: texts and images as they are; of what only our processors read, batches of arrays."""
    if isinstance(bundle.processor, Processor):
        sizes, held_arrays = [], {}
        for start in range(0, len(probes), batch_size):
            part = list(probes[start : start + batch_size])
            for name, tensor in bundle.collate(part).inputs.items():
                held_arrays[f"{len(sizes)}.{name}"] = tensor.numpy()
            sizes.append(len(part))
        np.savez(folder / "probes.npz", sizes=np.array(sizes), **held_arrays)  # type: ignore[arg-type]
        return folder / "probes.npz"
    if "image" in probes[0]:
        np.savez(folder / "probes.npz", **{f"image{i}": np.asarray(e["image"]) for i, e in enumerate(probes)})  # type: ignore[arg-type]
        return folder / "probes.npz"
    held: dict[str, list[Any]]
    if "words" in probes[0]:
        held = {"words": [list(e["words"]) for e in probes]}
    else:
        held = {"texts": [bundle.prompts.get(e.get("role", ""), "") + e["text"] for e in probes]}
    if "text_pair" in probes[0]:
        held["pairs"] = [e["text_pair"] for e in probes]
    return write_json(folder / "probes.json", held)


def _run(work: Path, form: str) -> dict[str, Any]:
    environment = dict(os.environ)
    if form == "lightformers":
        root = str(Path(__file__).parents[2])
        environment["PYTHONPATH"] = os.pathsep.join([root, *filter(None, [environment.get("PYTHONPATH")])])
    command = [sys.executable, str(work / SCRIPT.name), str(work / "spec.json")]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=SECONDS, env=environment, cwd=work
        )
    except subprocess.TimeoutExpired:
        return {"error": f"took longer than {SECONDS} s"}
    lines = done.stdout.strip().splitlines()
    if done.returncode == 0 and lines:
        found: dict[str, Any] = json.loads(lines[-1])
        return found
    return {"error": (done.stderr.strip().splitlines() or [f"ended with status {done.returncode}"])[-1][:300]}


def _judge(form: str, precision: str, recorded: bool, found: Mapping[str, Any]) -> dict[str, Any]:
    if "error" in found:
        return {
            "format": form,
            "ok": False,
            "max_difference": None,
            "throughput": None,
            "note": found["error"],
        }
    if recorded or precision == "fp32":
        ok = found["max_difference"] <= EQUAL[precision] * max(found["scale"], 1e-6)
    else:
        ok = found["cosine"] >= CLOSE[precision]
    doors = {
        "transformers": "opened by plain transformers",
        "sentence-transformers": "opened by SentenceTransformer",
        "openvino": "opened by plain OpenVINO"
        + (" and ExportedModel" if found["by_exported_model"] else " only"),
        "onnx": "opened by plain ONNX Runtime",
        "lightformers": "opens with lightformers.load only: plain transformers cannot express this structure",
    }
    against = "its recorded outputs" if recorded else "the torch model"
    note = f"{doors[form]}; least cosine to {against} {found['cosine']:.5f}"
    if not found["without_lightformers"]:
        ok, note = False, "lightformers was imported in the process that was to do without it"
    return {
        "format": form,
        "ok": bool(ok),
        "max_difference": found["max_difference"],
        "throughput": found["throughput"],
        "note": note,
    }
