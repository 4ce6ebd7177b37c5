"""Running in ONNX Runtime: fp32, or its dynamic int8."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from lightformers.bundle import Bundle, Encoded, Example
from lightformers.errors import MissingExtra, ModelError, reason
from lightformers.runners.batching import in_order, plan
from lightformers.runners.named import Traceable, example_batch, numpy_inputs, to_tensor
from lightformers.steps import Deploy
from lightformers.telemetry import quiet, silence

#: Before the names of a graph's outputs: the exporter calls inner values "embedding" too, and names must be unique.
PREFIX = "output."


class OnnxRunner:
    """Runs an ONNX graph on the CPU provider."""

    def __init__(self, path: Path, bundle: Bundle, deploy: Deploy) -> None:
        ort = _import()
        self.bundle = bundle
        self.deploy = deploy
        self.name = str(deploy)
        options = ort.SessionOptions()
        options.log_severity_level = 3
        if deploy.threads:
            options.intra_op_num_threads = deploy.threads
        self.session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.inputs = {i.name for i in self.session.get_inputs()}
        self.outputs = [o.name for o in self.session.get_outputs()]

    def encode(self, examples: Sequence[Example]) -> list[Encoded]:
        return self.bundle.encode(examples)

    def __call__(self, examples: Sequence[Example], reduce: Any) -> list:
        return self.run(self.encode(examples), reduce)

    def run(self, encoded: Sequence[Encoded], reduce: Any) -> list:
        """One item per example, in the given order. reduce: (outputs, batch) -> one item per row."""
        lengths = [self.bundle.length(e) for e in encoded]
        batches = plan(lengths, self.deploy.batching, self.deploy.batch_size, self.deploy.max_tokens)
        results = []
        for indices in batches:
            batch = self.bundle.pad([encoded[i] for i in indices])
            feed = {k: v for k, v in numpy_inputs(batch).items() if k in self.inputs}
            arrays = self.session.run(self.outputs, feed)
            named = zip(self.outputs, arrays)
            results.append(reduce({k.removeprefix(PREFIX): to_tensor(v) for k, v in named}, batch))
        return in_order(batches, results)

    def close(self) -> None:
        """Free the session."""
        self.session = None


def _import() -> Any:
    silence()
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingExtra("onnx", "onnxruntime") from error
    return onnxruntime


def build_onnx(bundle: Bundle, deploy: Deploy, examples: Sequence[Example] | None = None) -> OnnxRunner:
    """Convert in a temporary folder, quantize where the deploy says so, open."""
    _import()
    with tempfile.TemporaryDirectory() as folder:
        path = convert(bundle, Path(folder) / "model.onnx", examples)
        if deploy.precision == "int8":
            path = quantize(path)
        return OnnxRunner(path, bundle, deploy)


def convert(bundle: Bundle, path: Path, examples: Sequence[Example] | None = None) -> Path:
    """Write the bundle's module as an ONNX graph with dynamic batch and length."""
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise MissingExtra("onnx", "onnx with onnxscript") from error
    batch = example_batch(bundle, examples)
    module = Traceable(bundle.module(), list(batch.inputs))
    tensors = tuple(batch.inputs.values())
    # Tokens move in length; the second axis of numbers may be columns that the weights fix, which only AUTO accepts.
    move, may = torch.export.Dim.DYNAMIC, torch.export.Dim.AUTO
    shapes = tuple(
        {0: move, **({1: may if t.is_floating_point() else move} if t.dim() == 2 else {})} for t in tensors
    )
    training = [m for m in module.modules() if m.training]
    module.eval()
    try:
        with torch.no_grad(), quiet():
            names = list(module(*tensors))
            torch.onnx.export(
                module, tensors, str(path), input_names=list(batch.inputs), output_names=[PREFIX + n for n in names],
                dynamic_shapes=(shapes,), dynamo=True, external_data=False, optimize=True, verbose=False,
            )  # fmt: skip
    except Exception as error:
        raise ModelError(f"this model cannot be converted to ONNX: {reason(error)}") from error
    finally:
        for m in training:
            m.training = True
    return path


def quantize(path: Path) -> Path:
    """ONNX Runtime's dynamic int8: weights in eight bits per channel, activations as they come."""
    with quiet():
        import onnx
        from onnxruntime.quantization import QuantType, quantize_dynamic

        # The exporter folds transposes into weights and leaves their old shapes noted, which shape inference refuses.
        model = onnx.load(str(path))
        del model.graph.value_info[:]
        target = path.with_name("int8.onnx")
        quantize_dynamic(model, str(target), weight_type=QuantType.QInt8, per_channel=True)
    return target
