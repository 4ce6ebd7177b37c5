"""Runners: what is scored and timed, on PyTorch, OpenVINO and ONNX Runtime alike.

A runner turns raw examples into one item per example, in the given order, however it batches them inside.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from torch import Tensor

from lightformers.bundle import Batch, Bundle, Encoded, Example
from lightformers.errors import UserError
from lightformers.steps import Deploy

__all__ = ["Reduce", "Runner", "build", "openvino_folder"]

#: (outputs of one batch by name, the batch) -> one item per example, in batch order.
Reduce = Callable[[Mapping[str, Tensor], Batch], Sequence]


class Runner(Protocol):
    """Runs a model over examples. Close it to free what its runtime holds."""

    name: str
    deploy: Deploy

    def encode(self, examples: Sequence[Example]) -> list[Encoded]: ...
    def run(self, encoded: Sequence[Encoded], reduce: Reduce) -> list: ...
    def __call__(self, examples: Sequence[Example], reduce: Reduce) -> list: ...
    def close(self) -> None: ...


def build(
    bundle: Bundle, deploy: Deploy | None = None, calibration: Sequence[Example] | None = None
) -> Runner:
    """The runner of a deploy (default: the bundle's own, else eager fp32).

    calibration: examples of the task that int8 on OpenVINO is fitted to; needed for that precision only.
    Raises MissingExtra where the runtime is not installed, ModelError where the model cannot be run that way.
    """
    deploy = deploy or bundle.deploy or Deploy()
    if deploy.runtime == "torch":
        from lightformers.runners.torch_runner import TorchRunner

        return TorchRunner(bundle, deploy)
    if deploy.runtime == "openvino":
        if deploy.precision == "int8" and not calibration:
            raise UserError(
                "int8 on OpenVINO needs calibration examples: pass build(..., calibration=task.calibration(24))"
            )
        from lightformers.runners.openvino_runner import build_openvino

        return build_openvino(bundle, deploy, calibration)
    from lightformers.runners.onnx_runner import build_onnx

    return build_onnx(bundle, deploy, calibration)


def openvino_folder(path: str | Path, bundle: Bundle, deploy: Deploy | None = None) -> Runner:
    """A runner over an exported OpenVINO folder; tokenizing and padding come from `bundle`."""
    from lightformers.runners.openvino_runner import open_folder

    return open_folder(path, bundle, deploy)
