"""How far activations stray: the measures by which a model is hard to quantize, and the plain quantizer they hurt."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightformers.compress.quantize.observers import Range
from lightformers.errors import UserError


def largest(x: Tensor) -> float:
    """The infinity norm: the largest magnitude there is."""
    return float(x.detach().abs().max()) if x.numel() else 0.0


def kurtosis(x: Tensor) -> Tensor:
    """Per token over its features, E[(x - mean)^4] / (s^4 + 1e-6), s with Bessel's correction: (..., h) -> (...).

    3 for a normal distribution, up to h where one feature stands out. As the official code of Quantizable Transformers
    (arXiv 2306.12929) has it. Raises UserError for fewer than two features.
    """
    if x.shape[-1] < 2:
        raise UserError("kurtosis needs two features or more")
    wide = x.detach().float()
    gap = wide - wide.mean(-1, keepdim=True)
    return gap.pow(4).mean(-1) / (wide.var(-1).square() + 1e-6)


@dataclass(frozen=True)
class Outliers:
    """Of one layer's output: infinity norm, averaged over batches; kurtosis, averaged over tokens."""

    largest: float
    kurtosis: float


@torch.no_grad()
def outliers(
    forward: Callable[[Tensor], object], layers: Sequence[nn.Module], batches: Iterable[Tensor]
) -> list[Outliers]:
    """Run the batches through `forward`, and look at what these layers put out. Raises UserError without batches."""
    kept: list[list[tuple[float, float]]] = [[] for _ in layers]

    def hook(place: int) -> Callable[..., None]:
        def see(module: nn.Module, args: object, output: object) -> None:
            x = output if isinstance(output, Tensor) else output[0]  # type: ignore[index]
            kept[place].append((largest(x), float(kurtosis(x).mean())))

        return see

    with ExitStack() as stack:
        for place, layer in enumerate(layers):
            stack.callback(layer.register_forward_hook(hook(place)).remove)
        for batch in batches:
            forward(batch)
    if not all(kept):
        raise UserError("the layers were never reached: give at least one batch")
    return [Outliers(*(sum(column) / len(rows) for column in zip(*rows))) for rows in kept]


def affine(x: Tensor, low: float, high: float, bits: int = 8) -> Tensor:
    """Asymmetric rounding to 2^bits equal steps over [low, high], which is widened to hold 0; 0 stays exact."""
    if not 2 <= bits <= 16:
        raise UserError(f"bits is 2 to 16, got {bits}")
    low, high = min(low, 0.0), max(high, 0.0)
    step = (high - low) / (2**bits - 1) or 1.0
    offset = round(-low / step)
    return ((x / step).round() + offset).clamp(0, 2**bits - 1).sub(offset) * step


@contextmanager
def min_max(
    forward: Callable[[Tensor], object], layers: Sequence[nn.Linear], batches: Iterable[Tensor],
    weight_bits: int = 8, activation_bits: int = 8, momentum: float = 0.9,
) -> Iterator[None]:  # fmt: skip
    """While the block runs, these linear layers multiply in few bits, the plain way that outliers break.

    Weights symmetric, one step per tensor; inputs and outputs asymmetric, one range per tensor, the running min-max of
    the calibration batches (the paper's W8A8: weight `momentum` on the range so far). Weights are put back afterwards.
    """
    ranges = {id(m): (Range(momentum), Range(momentum)) for m in layers}

    def see(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        for observer, x in zip(ranges[id(module)], (args[0], output)):
            observer.see(x.detach())

    with ExitStack() as stack, torch.no_grad():
        for layer in layers:
            stack.callback(layer.register_forward_hook(see).remove)
        for batch in batches:
            forward(batch)
    if not all(r.tokens for pair in ranges.values() for r in pair):
        raise UserError("no calibration batch reached the layers: give at least one")

    def read(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (_within(args[0], ranges[id(module)][0], activation_bits), *args[1:])

    def write(module: nn.Module, args: object, output: Tensor) -> Tensor:
        return _within(output, ranges[id(module)][1], activation_bits)

    held = [layer.weight.detach().clone() for layer in layers]
    with ExitStack() as stack:
        for layer, weight in zip(layers, held):
            stack.callback(_put, layer, weight)
            top = 2 ** (weight_bits - 1) - 1
            step = largest(weight) / top or 1.0
            _put(layer, (weight / step).round().clamp(-top, top) * step)
            stack.callback(layer.register_forward_pre_hook(read).remove)
            stack.callback(layer.register_forward_hook(write).remove)
        yield


def _within(x: Tensor, seen: Range, bits: int) -> Tensor:
    assert seen.low is not None and seen.high is not None
    return affine(x, seen.low, seen.high, bits)


def _put(layer: nn.Linear, weight: Tensor) -> None:
    with torch.no_grad():
        layer.weight.copy_(weight)
