"""What runners of every runtime share: named outputs, a forward without caches, an example to trace with."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lightformers.bundle import Batch, Bundle, Example
from lightformers.errors import ModelError
from lightformers.processors import Processor

#: Outputs that tasks read. A model that has one of them is run for it alone.
WANTED = ("embedding", "logits", "prediction")
#: What transformers calls them elsewhere.
_ALIASES = {"prediction_outputs": "prediction"}


def named(outputs: Any) -> dict[str, Tensor]:
    """The tensors of a model's outputs by name; only "embedding", "logits" or "prediction" where there is one."""
    if isinstance(outputs, Tensor):
        return {"logits": outputs}
    if not isinstance(outputs, Mapping):
        raise ModelError(
            f"the model returned {type(outputs).__name__}; runners need a mapping with a field 'logits', 'embedding' or 'prediction'"
        )
    outputs = {_ALIASES.get(k, k): v for k, v in outputs.items()}
    for name in WANTED:
        if isinstance(outputs.get(name), Tensor):
            return {name: outputs[name]}
    tensors = {k: v for k, v in outputs.items() if isinstance(v, Tensor)}
    if not tensors:
        raise ModelError(
            "the model returned no tensor by name; runners need 'logits', 'embedding' or 'prediction'"
        )
    return tensors


def plain_arguments(module: nn.Module) -> dict[str, bool]:
    """Keyword arguments that keep a forward from building what no task reads (key/value caches)."""
    inner = getattr(module, "backbone", module)
    return {"use_cache": False} if "use_cache" in inspect.signature(inner.forward).parameters else {}


class Traceable(nn.Module):
    """A model with positional inputs (in the order of `inputs`) and a dictionary of `named` outputs."""

    def __init__(self, module: nn.Module, inputs: Sequence[str]) -> None:
        super().__init__()
        self.module = module
        self.inputs = tuple(inputs)
        self.arguments = plain_arguments(module)

    def forward(self, *tensors: Tensor) -> dict[str, Tensor]:
        return named(self.module(**dict(zip(self.inputs, tensors)), **self.arguments))


def example_batch(bundle: Bundle, examples: Sequence[Example] | None = None) -> Batch:
    """Two examples of unequal length to trace a graph with: the caller's, or made up where there are none."""
    if examples:
        return bundle.collate(list(examples[:2]) if len(examples) > 1 else [examples[0]] * 2)
    if isinstance(bundle.processor, Processor):
        return bundle.collate(bundle.processor.samples(2))
    if _takes_images(bundle):
        return bundle.collate([{"image": np.zeros((64, 64, 3), dtype=np.uint8)}] * 2)
    return bundle.collate([{"text": "one two three four five six"}, {"text": "seven eight"}])


def _takes_images(bundle: Bundle) -> bool:
    return getattr(bundle.model, "main_input_name", "input_ids") == "pixel_values"


def numpy_inputs(batch: Batch) -> dict[str, np.ndarray]:
    return {k: v.numpy() for k, v in batch.inputs.items()}


def to_tensor(array: np.ndarray) -> Tensor:
    """A float32 tensor over an output of another runtime."""
    return torch.from_numpy(array)
