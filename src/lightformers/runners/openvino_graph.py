"""Graphs of OpenVINO: converted from a bundle, quantized, and what its faults ask of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from lightformers.bundle import Bundle, Example
from lightformers.errors import MissingExtra, ModelError, reason
from lightformers.models.cascade import CascadeModel
from lightformers.runners.batching import by_length
from lightformers.runners.named import WANTED, Traceable, example_batch, numpy_inputs
from lightformers.runners.openvino_cascade import joined
from lightformers.runners.openvino_narrow import narrowed
from lightformers.runners.unfold import without_unfold
from lightformers.telemetry import quiet, silence

#: Examples in one calibration batch: few, so that padding (which is seen by the statistics too) stays small.
CALIBRATION_BATCH = 8


def imported() -> Any:
    """OpenVINO, its telemetry off. Raises MissingExtra."""
    silence()
    try:
        import openvino
    except ImportError as error:
        raise MissingExtra("openvino", "openvino") from error
    return openvino


def program(
    bundle: Bundle,
    precision: str,
    calibration: Sequence[Example] | None = None,
    count: int = 24,
    narrow: bool = True,
) -> Any:
    """The bundle's module as an `openvino.Model`, its weights quantized where the precision says so; narrow: see `Deploy`.

    The models of a cascade are converted and quantized each by itself, so neither sees the other's statistics.
    """
    if isinstance(bundle.model, CascadeModel):
        first, second = (
            program(replace(bundle, model=model), precision, calibration, count, narrow)
            for model in (bundle.model.first, bundle.model.second)
        )
        return joined(first, second, bundle.model.config.sure)
    model = convert(bundle, calibration)
    if precision == "int8":
        model = quantize(model, bundle, calibration or (), count)
    elif precision == "int8-weights":
        model = compress_weights(model)
    return narrowed(model) if narrow else model


def convert(bundle: Bundle, examples: Sequence[Example] | None = None) -> Any:
    """The bundle's module as an `openvino.Model`, batch and length dynamic, outputs named."""
    ov = imported()
    import torch

    batch = example_batch(bundle, examples)
    module = Traceable(bundle.module(), list(batch.inputs))
    tensors = tuple(batch.inputs.values())
    # Texts: (batch, length). Images and series keep their size: position tables are made for one.
    sizes = [[-1, -1] if t.dim() == 2 else [-1, *t.shape[1:]] for t in tensors]
    training = [m for m in module.modules() if m.training]
    module.eval()
    try:
        with torch.no_grad(), quiet(), without_unfold():
            names = list(module(*tensors))
            model = ov.convert_model(module, example_input=tensors)
    except Exception as error:
        raise ModelError(f"OpenVINO cannot convert this model: {reason(error)}") from error
    finally:
        for m in training:
            m.training = True
    if len(model.inputs) != len(tensors) or len(model.outputs) != len(names):
        raise ModelError(
            f"OpenVINO's graph of this model has other inputs or outputs than {[*batch.inputs, *names]}"
        )
    for port, name, size in zip(model.inputs, batch.inputs, sizes):
        port.get_node().set_partial_shape(ov.PartialShape(size))
        port.get_tensor().set_names({name})
    model.validate_nodes_and_infer_types()
    for port, name in zip(model.outputs, names):
        port.get_tensor().set_names({name})
    return unfused(model)


def unfused(model: Any) -> Any:
    """The graph with the beta of every Swish said, which is 1.

    OpenVINO 2026.4 fuses a gated feed-forward (Llama's SwiGLU) in bf16, and with one thread a stream that fused kernel ends
    the process by a division by zero. A Swish of two inputs is not fused; it was no slower with two threads.
    """
    imported()
    from openvino import opset13

    for node in model.get_ops():
        if node.get_type_name() == "Swish" and node.get_input_size() == 1:
            node.output(0).replace(
                opset13.swish(node.input_value(0), opset13.constant(np.float32(1))).output(0)
            )
    return model


def calibration_batches(
    bundle: Bundle, examples: Sequence[Example], count: int
) -> list[dict[str, np.ndarray]]:
    """`count` examples in small batches of neighbours in length."""
    encoded = bundle.encode(list(examples)[:count])
    groups = by_length([bundle.length(e) for e in encoded], CALIBRATION_BATCH)
    return [numpy_inputs(bundle.pad([encoded[i] for i in g])) for g in groups]


def quantize(model: Any, bundle: Bundle, calibration: Sequence[Example], count: int = 24) -> Any:
    """NNCF post-training int8: weights and activations of matrix products, with SmoothQuant (arXiv 2211.10438)."""
    nncf = _nncf()
    batches = calibration_batches(bundle, calibration, count)
    names = {port_name(p) for p in model.inputs}
    data = nncf.Dataset([{k: v for k, v in b.items() if k in names} for b in batches])
    with quiet():
        return nncf.quantize(model, data, subset_size=len(batches), model_type=nncf.ModelType.TRANSFORMER)


def compress_weights(model: Any) -> Any:
    """Weights stored in int8 (per channel, asymmetric), computed in the graph's precision."""
    nncf = _nncf()
    with quiet():
        return nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_ASYM)


def _nncf() -> Any:
    imported()
    try:
        with quiet():
            import nncf
    except ImportError as error:
        raise MissingExtra("openvino", "nncf") from error
    return nncf


def awkward_lengths(model: Any) -> frozenset[int]:
    """Lengths that a batch must not be padded to.

    OpenVINO 2026.4 computes wrong attention in a quantized graph with bf16 activations where the length equals the
    head size (MiniLM: cosine 0.86 to fp32 at length 32, 0.997 at 31 and 33; every run, any batch size). One more
    column of padding avoids it.
    """
    quantized = any(op.get_type_name() == "FakeQuantize" for op in model.get_ops())
    if not quantized:
        return frozenset()
    sizes = set()
    for op in model.get_ops():
        if op.get_type_name() == "ScaledDotProductAttention":
            last = op.input_value(0).get_partial_shape()[-1]
            if last.is_static:
                sizes.add(last.get_length())
    return frozenset(sizes)


def port_name(port: Any) -> str:
    """The port's name that the rest of the house knows it by."""
    names = port.get_names()
    return next((n for n in WANTED if n in names), None) or (min(names) if names else "logits")
