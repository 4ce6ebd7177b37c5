"""Whether torch writes down what is done, as a graph for another runtime, and what cannot be written down."""

from __future__ import annotations

import torch
from torch import Tensor

from lightformers.errors import ModelError


def recorded() -> bool:
    """Whether torch writes down what is done, to run it elsewhere on other numbers: none of them may be looked at."""
    exporting: bool = getattr(torch.compiler, "is_exporting", bool)()  # since torch 2.7
    return exporting or torch.jit.is_tracing()


def eager(x: Tensor) -> bool:
    """Whether x holds numbers in the memory of the CPU, and nothing records what is done with it as a graph."""
    plain = type(x) in (Tensor, torch.nn.Parameter) and x.device.type == "cpu"
    return plain and not torch.compiler.is_compiling() and not torch.jit.is_tracing()


def refuse(kind: str, instead: str = "") -> None:
    """What a part says whose graph would hold for one length only. Raises ModelError where a graph is written down.

    instead: what to do other than running it in torch.
    """
    if recorded():
        also = f", or {instead}" if instead else ""
        raise ModelError(f"a graph of {kind} would hold for one length only: run it in torch{also}")
