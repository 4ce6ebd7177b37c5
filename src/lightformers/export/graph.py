"""What OpenVINO and ONNX exports share: sample inputs, moving axes, and the record of how to run the result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightformers.bundle import Bundle, Example
from lightformers.errors import ModelError
from lightformers.files import write_json
from lightformers.processors import Processor
from lightformers.runners.named import named
from lightformers.steps import Deploy

DEPLOY_FILE = "deploy.json"


@dataclass(frozen=True)
class Exported:
    """A graph on disk. path: its folder. size: bytes. method: what made it. note: what a user must know, or empty."""

    path: Path
    size: int
    method: str
    note: str = ""
    properties: dict[str, Any] = field(default_factory=dict)


def sample(bundle: Bundle, calibration: Sequence[Example] | None) -> dict[str, Tensor]:
    """Inputs to trace with: at least two examples of at least two tokens, so that no axis looks constant."""
    examples = list(calibration or ())[:4]
    if not examples and isinstance(bundle.processor, Processor):
        examples = bundle.processor.samples(2)
    elif not examples:
        if "pixel_values" in str(getattr(bundle.model, "main_input_name", "")):
            import numpy as np

            examples = [{"image": np.full((64, 64, 3), shade, dtype=np.uint8)} for shade in (64, 192)]
        else:
            examples = [{"text": "a few words to trace the model with"}, {"text": "and some more"}]
    return bundle.collate((examples * 2)[: max(len(examples), 2)]).inputs


def moving_axes(inputs: dict[str, Tensor]) -> dict[str, dict[int, Any]]:
    """Batch and length move; the sides of an image do not (position embeddings fix them)."""
    auto = torch.export.Dim.AUTO
    return {name: {0: auto, 1: auto} if value.dim() == 2 else {0: auto} for name, value in inputs.items()}


def output_name(bundle: Bundle) -> str:
    """The output that counts: "embedding", "logits", "prediction", or the states of a bare backbone."""
    if bundle.pooling is not None:
        return "embedding"
    if bundle.task in ("forecasting", "tabular-regression"):
        return "prediction"
    return "logits" if bundle.task else "last_hidden_state"


def write_deploy(
    folder: Path,
    bundle: Bundle,
    deploy: Deploy,
    properties: dict[str, Any],
    method: str,
    inputs: Sequence[str],
    avoid_lengths: Sequence[int] = (),
) -> None:
    """`deploy.json` beside the graph: how it is meant to be run, in words that need no lightformers to read.

    avoid_lengths: lengths that a batch must not be padded to, because the runtime computes them wrongly.
    """
    write_json(
        folder / DEPLOY_FILE,
        {
            "runtime": deploy.runtime,
            "precision": deploy.precision,
            "batching": deploy.batching,
            "batch_size": deploy.batch_size,
            "max_tokens": deploy.max_tokens,
            "threads": deploy.threads,
            "streams": deploy.streams,
            "properties": properties,
            "inputs": list(inputs),
            "avoid_lengths": list(avoid_lengths),
            "output": output_name(bundle),
            "max_length": bundle.max_length,
            "method": method,
        },
    )


class Forecaster(nn.Module):
    """A forecaster whose graph gives one output, `prediction`, whatever the model calls it and gives beside it."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, **inputs: Tensor) -> dict[str, Tensor]:
        return {"prediction": named(self.backbone(**inputs))["prediction"]}


def ready(bundle: Bundle) -> nn.Module:
    """The module to export, in evaluation mode and on the CPU."""
    if bundle.processor is None:
        raise ModelError(
            "exporting needs sample inputs, and this bundle has no tokenizer, image processor or other processor"
        )
    module = bundle.module().eval()
    return Forecaster(module) if bundle.task == "forecasting" else module


def size_of(folder: Path) -> int:
    """Bytes of all files under `folder`."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def without_cache(module: nn.Module) -> dict[str, bool]:
    """Arguments for a graph that scores whole sequences and does not generate: no cache among its outputs."""
    return {"use_cache": False} if getattr(getattr(module, "config", None), "use_cache", None) else {}
