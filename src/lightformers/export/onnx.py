"""ONNX: a graph for ONNX Runtime, in fp32 or with dynamic int8."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from lightformers.bundle import Bundle, Example
from lightformers.errors import MissingExtra, ModelError, UserError, reason
from lightformers.export.graph import (
    Exported,
    moving_axes,
    ready,
    sample,
    size_of,
    without_cache,
    write_deploy,
)
from lightformers.files import replacing
from lightformers.steps import Deploy
from lightformers.telemetry import quiet

FILE = "model.onnx"


def save(
    bundle: Bundle, deploy: Deploy, folder: str | Path, calibration: Sequence[Example] | None = None
) -> Exported:
    """Write `folder`/onnx: `model.onnx` (with its data file), transformers' `export.json`, `deploy.json`.

    Batch and length are dynamic; for embedding models the pooling is in the graph. precision "int8" is ONNX Runtime's
    dynamic quantization: int8 weights, activations quantized as they come, no calibration (examples only serve to
    trace). Raises UserError for other precisions, ModelError where the model cannot be converted.
    """
    if deploy.runtime != "onnxruntime" or deploy.precision not in ("fp32", "int8"):
        raise UserError(
            f"ONNX export is for runtime onnxruntime in fp32 or int8, not {deploy.runtime} {deploy.precision}"
        )
    with quiet():
        try:
            import onnx  # noqa: F401
            import onnxruntime  # noqa: F401
            import onnxscript  # noqa: F401
        except ImportError as error:
            raise MissingExtra("onnx", str(error.name)) from error
    module, inputs = ready(bundle), sample(bundle, calibration)
    target = Path(folder) / "onnx"
    how = "transformers.exporters" + (" + onnxruntime dynamic int8" if deploy.precision == "int8" else "")
    with replacing(target, directory=True) as new:
        with quiet(), torch.no_grad():
            try:
                exported = _export(module, inputs, deploy)
                exported.config = bundle.model.config
                exported.save_pretrained(new)
            except Exception as error:
                raise ModelError(f"this model cannot be converted to ONNX: {reason(error)}") from error
        write_deploy(new, bundle, deploy, {}, how, list(inputs))
        size = size_of(new)
    return Exported(target, size, how)


def _export(module: Any, inputs: dict[str, Any], deploy: Deploy) -> Any:
    hf: Any = importlib.import_module("transformers.exporters")
    exporter: Any = importlib.import_module("transformers.exporters.exporter_onnx").OnnxExporter()
    config = hf.OnnxConfig(dynamic=True, dynamic_shapes=moving_axes(inputs))
    exported = exporter.export(module, {**inputs, **without_cache(module)}, config=config)
    component = exported.components["model"]
    _unique_names(component.program)
    if deploy.precision == "int8":
        # matrix products only: int8 embedding tables gain nothing in speed and cost quality
        quantizer = hf.OnnxRuntimeQuantizer(
            hf.OnnxRuntimeDynamicConfig(op_types_to_quantize=["MatMul", "Gemm"])
        )
        component.program = quantizer.quantize(component.program, inputs, config.export_format)
    return exported


def _unique_names(program: Any) -> None:
    """Rename inner values that carry an output's name.

    transformers 5.23 names the outputs last: an "embedding" output then meets the value of the table lookup, which
    torch calls "embedding" too, and ONNX Runtime refuses the graph.
    """
    outputs = list(program.graph.outputs)
    taken = {value.name for value in outputs}
    for node in program.graph:
        for value in node.outputs:
            if value.name in taken and not any(value is output for output in outputs):
                value.name = f"{value.name}.inner"
