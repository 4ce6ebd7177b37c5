"""Running in PyTorch: eager fp32 or bf16, dynamic int8, padded, sorted or packed."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightformers.bundle import Batch, Bundle, Encoded, Example
from lightformers.errors import ModelError
from lightformers.parts.packed import packed
from lightformers.runners.batching import in_order, plan
from lightformers.runners.named import named, plain_arguments
from lightformers.steps import Deploy


class TorchRunner:
    """Runs a bundle in PyTorch as its deploy says.

    fp32 shares the bundle's weights: edits and training of the bundle show in the next run. bf16 and int8 run a copy.
    The model is put into eval mode and torch's thread count is set while it runs; both are put back after.
    """

    def __init__(self, bundle: Bundle, deploy: Deploy) -> None:
        self.bundle = bundle
        self.deploy = deploy
        self.name = str(deploy)
        self.module = _prepare(bundle, deploy)
        self.arguments = plain_arguments(bundle.module())

    def encode(self, examples: Sequence[Example]) -> list[Encoded]:
        return self.bundle.encode(examples)

    def __call__(self, examples: Sequence[Example], reduce: Any) -> list:
        return self.run(self.encode(examples), reduce)

    def run(self, encoded: Sequence[Encoded], reduce: Any) -> list:
        """One item per example, in the given order. reduce: (outputs, batch) -> one item per row."""
        lengths = [self.bundle.length(e) for e in encoded]
        deploy = self.deploy
        batches = plan(lengths, deploy.batching, deploy.batch_size, deploy.max_tokens)
        results = []
        with _threads(deploy.threads), _evaluating(self.module), torch.inference_mode():
            for indices in batches:
                batch = self.bundle.pad([encoded[i] for i in indices])
                results.append(reduce(self.outputs(batch), batch))
        return in_order(batches, results)

    def outputs(self, batch: Batch) -> Mapping[str, Tensor]:
        """Named outputs of one padded batch, float32 on the CPU."""
        device, dtype = _place(self.module)
        inputs = {k: v.to(device) for k, v in batch.inputs.items()}
        if dtype is torch.bfloat16:  # pixels must come in the weights' type; token ids stay integers
            inputs = {k: v.to(dtype) if v.is_floating_point() else v for k, v in inputs.items()}
        outputs = named(self.module(**inputs, **self.arguments))
        return {k: v.float().cpu() if v.is_floating_point() else v.cpu() for k, v in outputs.items()}

    def close(self) -> None:
        """Let go of the model."""
        self.module = nn.Identity()


def _prepare(bundle: Bundle, deploy: Deploy) -> nn.Module:
    module = bundle.module()
    if deploy.batching == "packed":
        module = packed(module)  # before any cast: equality is probed in the precision of the weights
    if deploy.precision == "fp32":
        return module
    module = copy.deepcopy(module).eval()
    if deploy.precision == "bf16":
        return module.to(torch.bfloat16)
    return _dynamic_int8(module)


def _dynamic_int8(module: nn.Module) -> nn.Module:
    """torch's dynamic quantization: int8 weights (a scale per output channel), activations as they come, Linear layers."""
    try:
        from torch.ao.quantization import per_channel_dynamic_qconfig, quantize_dynamic
    except ImportError as error:  # torch is taking this module out in favour of torchao
        raise ModelError(
            "this torch has no dynamic quantization any more: use Deploy(runtime='openvino', precision='int8')"
        ) from error
    if not any(isinstance(m, nn.Linear) for m in module.modules()):
        raise ModelError(
            "the model has no Linear layer for torch's dynamic int8: use Deploy(runtime='openvino', precision='int8')"
        )
    return quantize_dynamic(module.float().cpu(), {nn.Linear: per_channel_dynamic_qconfig})


def _place(module: nn.Module) -> tuple[torch.device, torch.dtype]:
    parameter = next(module.parameters(), None)
    return (torch.device("cpu"), torch.float32) if parameter is None else (parameter.device, parameter.dtype)


@contextlib.contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    if count:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    training = [m for m in module.modules() if m.training]
    module.eval()
    try:
        yield
    finally:
        for m in training:
            m.training = True
