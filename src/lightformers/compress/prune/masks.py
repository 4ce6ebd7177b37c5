"""Masks of unstructured pruning: which weights are zero, chosen exactly, and kept zero while a model trains."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightformers import anatomy
from lightformers.errors import ModelError, UserError

Masks = dict[str, Tensor]
"""Path of a linear layer -> bool (out, in): True where the weight stays."""


def smallest(scores: Mapping[str, Tensor], count: int) -> Masks:
    """Remove the `count` lowest scores of all tensors together, exactly that many however many are equal.

    Of equal ones the first go; NaN counts as highest. Holds no copy of the scores: beside them a sorted selection would
    take four times their memory.
    """
    flat = {path: s.detach().float().reshape(-1) for path, s in scores.items()}
    if not count:
        return {path: torch.ones_like(s, dtype=torch.bool) for path, s in scores.items()}
    highest = _th_smallest(list(flat.values()), count)
    left = count - sum(int((s < highest).sum()) for s in flat.values())
    kept = {}
    for path, s in flat.items():
        keep = ~(s < highest)
        places = (keep if highest == math.inf else s == highest).nonzero()[:left, 0] if left else ()
        if len(places):
            keep[places] = False
            left -= len(places)
        kept[path] = keep.reshape(scores[path].shape)
    return kept


def _th_smallest(parts: Sequence[Tensor], count: int) -> float:
    """The `count`-th smallest float32 of all parts together, infinity where it is NaN: the bits of the number are found
    one by one, as positive floats are ordered like the whole numbers that have their bits."""

    def number(key: int) -> float:
        value: float = struct.unpack("f", struct.pack("I", abs(key)))[0]
        return math.copysign(value, key)

    top = 0x7F800000  # infinity
    low, high = -top, top
    while low < high:
        middle = (low + high) // 2
        border = number(middle)
        if sum(int((s <= border).sum()) for s in parts) >= count:
            high = middle
        else:
            low = middle + 1
    return number(low)


def per_layer(scores: Mapping[str, Tensor], counts: Sequence[int]) -> Masks:
    """Remove the lowest `counts[i]` scores of layer i, each layer on its own."""
    return {p: smallest({p: s}, n)[p] for (p, s), n in zip(scores.items(), counts)}


def n_of_m(scores: Mapping[str, Tensor], n: int, m: int) -> Masks:
    """Keep the n highest scores of every m consecutive inputs of a row (n is the number KEPT).

    Raises UserError unless 0 < n <= m and m divides the inputs of every layer.
    """
    if not 0 < n <= m:
        raise UserError(f"n of m: n weights stay of each m, so 0 < n <= m; got {n} of {m}")
    if wrong := [p for p, s in scores.items() if s.shape[1] % m]:
        raise UserError(
            f"groups of {m} do not divide the {scores[wrong[0]].shape[1]} inputs of {wrong[0]}; choose another m"
        )
    masks = {}
    for path, s in scores.items():
        groups = s.detach().float().reshape(s.shape[0], -1, m)
        top = groups.topk(n, dim=-1).indices
        masks[path] = torch.zeros_like(groups, dtype=torch.bool).scatter_(-1, top, True).reshape(s.shape)
    return masks


def erdos_renyi(shapes: Sequence[tuple[int, int]], sparsity: float) -> list[float]:
    """Density of each layer, proportional to (in + out) / (in * out), scaled to the sparsity of all together.

    Layers that would exceed density 1 are dense, and the rest is solved again (ERK; Evci et al., 2019,
    arXiv 1911.11134). shapes: (out, in) of each layer.
    """
    sizes = [a * b for a, b in shapes]
    raw = [(a + b) / (a * b) for a, b in shapes]
    budget = (1 - sparsity) * sum(sizes)
    dense: set[int] = set()
    while len(dense) < len(sizes):
        rest = [i for i in range(len(sizes)) if i not in dense]
        scale = (budget - sum(sizes[i] for i in dense)) / sum(raw[i] * sizes[i] for i in rest)
        over = [i for i in rest if scale * raw[i] > 1]
        if not over:
            return [1.0 if i in dense else scale * raw[i] for i in range(len(sizes))]
        dense.update(over)
    return [1.0] * len(sizes)


def weights(model: nn.Module, paths: Iterable[str]) -> dict[str, Tensor]:
    """Path -> weight (out, in), views of the stored tensors. Raises ModelError for NaN weights."""
    found = {p: anatomy.linear(model, p)[0] for p in paths}
    for path, weight in found.items():
        if not bool(torch.isfinite(weight).all()):
            raise ModelError(f"the weights of {path} hold NaN or infinity: the checkpoint is damaged")
    return found


def apply(model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Set to zero, in place, what the masks remove."""
    with torch.no_grad():
        for path, mask in masks.items():
            weight = anatomy.linear(model, path)[0]
            if weight.shape != mask.shape:
                raise ModelError(
                    f"the mask of {path} is {tuple(mask.shape)}, its weight is {tuple(weight.shape)}"
                )
            weight.mul_(mask.to(weight))


def hold(model: nn.Module, masks: Mapping[str, Tensor]) -> Callable[[], None]:
    """Apply the masks and stop gradients at them: SGD, Adam and AdamW then leave the zeros as they are.

    A masked weight gets gradient 0, so no moments build up, and weight decay scales 0. For optimizers that already
    have moments, use `guard`. A copy of the model is not held. Returns what lets go again.
    """
    apply(model, masks)
    handles = []
    for path, mask in masks.items():
        module = anatomy.get(model, path)
        stored: nn.Parameter = module.weight  # type: ignore[assignment]
        placed = mask if stored.shape == mask.shape and anatomy.linear(model, path)[0] is stored else mask.T
        if stored.requires_grad:
            handles.append(stored.register_hook(_stop(placed)))

    def release() -> None:
        for handle in handles:
            handle.remove()

    return release


def _stop(mask: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda gradient: gradient * mask.to(gradient)


def guard(optimizer: torch.optim.Optimizer, model: nn.Module, masks: Mapping[str, Tensor]) -> Any:
    """Apply the masks after every step of an optimizer, whatever it did. Returns a handle with `remove()`."""
    apply(model, masks)
    return optimizer.register_step_post_hook(lambda *_: apply(model, masks))


def zeros(model: nn.Module, paths: Iterable[str]) -> Masks:
    """The masks that a pruned model shows: True where a weight is not zero."""
    return {p: w.detach() != 0 for p, w in weights(model, paths).items()}


def sparsity(masks: Mapping[str, Tensor]) -> float:
    """Share of removed weights over all masks together."""
    total = sum(m.numel() for m in masks.values())
    return 1.0 - sum(int(m.sum()) for m in masks.values()) / total if total else 0.0


def overlap(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    """Cosine similarity of two sets of masks: `|a and b| / sqrt(|a| |b|)`, 1 for equal ones."""
    if a.keys() != b.keys():
        raise UserError("the masks are of different layers")
    both = sum(int((a[p] & b[p]).sum()) for p in a)
    size = sum(int(a[p].sum()) for p in a) * sum(int(b[p].sum()) for p in b)
    return both / size**0.5 if size else 0.0
