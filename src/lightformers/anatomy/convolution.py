"""Grouped convolutions on the hidden size (the positions of hubert and wav2vec2), and weight norm on them.

A normed weight g * v / |v| is composed before it is cut and split again afterwards: what is left of the norm is that
of the cut weight, so nothing changes but the size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from lightformers.anatomy.access import replace
from lightformers.errors import ModelError

_DIRECTION = ".parametrizations.weight.original1"
_LENGTH = ".parametrizations.weight.original0"


def normed(model: nn.Module) -> dict[str, int]:
    """Path of each 1-D convolution whose weight is normed -> the dimension of the norm."""
    found = {}
    for path, module in model.named_modules():
        if isinstance(module, nn.Conv1d) and parametrize.is_parametrized(module, "weight"):
            made: Any = module.parametrizations["weight"][0]  # type: ignore[index]
            if type(made).__name__ != "_WeightNorm":
                raise ModelError(
                    f"{path} has a {type(made).__name__} on its weight: only weight norm is known."
                )
            found[path] = made.dim
    return found


def composed(model: nn.Module) -> dict[str, int]:
    """Put plain convolutions where normed ones stand, in place; returns what `normed` did.

    New modules instead of `parametrize.remove_parametrizations`: that edits a class which copies share.
    """
    found = normed(model)
    for path in found:
        old: Any = model.get_submodule(path)
        new = nn.Conv1d(
            old.in_channels, old.out_channels, old.kernel_size, old.stride, old.padding, old.dilation, old.groups,
            bias=False, padding_mode=old.padding_mode, device="meta",
        )  # fmt: skip
        wanted = any(p.requires_grad for p in old.parametrizations["weight"].parameters())
        new.weight = nn.Parameter(old.weight.detach().clone(), requires_grad=wanted)
        new.bias = old.bias
        replace(model, path, new.train(old.training))
    return found


def norm_again(model: nn.Module, found: dict[str, int]) -> None:
    """Undo `composed`, in place: the weights stay, as length and direction."""
    for path, dim in found.items():
        parametrizations.weight_norm(model.get_submodule(path), "weight", dim)


def grouped(model: nn.Module) -> list[int]:
    """Numbers of groups of the 1-D convolutions that have several: an elastic hidden size is a multiple of each."""
    return [m.groups for m in model.modules() if isinstance(m, nn.Conv1d) and m.groups > 1]


def plainly(tensors: dict[str, Any]) -> dict[str, Any]:
    """Names and tensors (or shapes) as if normed weights were composed: the direction has the weight's shape."""
    return {
        name.replace(_DIRECTION, ".weight"): value
        for name, value in tensors.items()
        if not name.endswith(_LENGTH)
    }


def live(module: nn.Module) -> dict[str, Tensor]:
    """The parameters by name, normed weights composed (gradients flow through) instead of in two parts."""
    found: dict[str, Tensor] = {
        n: p for n, p in module.named_parameters() if not n.endswith((_DIRECTION, _LENGTH))
    }
    for path in normed(module):
        found[f"{path}.weight"] = module.get_submodule(path).weight  # type: ignore[assignment]
    return found


def columns(kept: Sequence[int], width: int, groups: int, what: str) -> list[int]:
    """Which inputs of its group each kept output of a grouped convolution keeps, for channels that are in and out.

    Two cuts can be said by one list: the same places in every group, which is a restriction of the convolution; and
    the first channels of all, where group i takes over the i-th part of them (LightHuBERT, Wang et al., 2022, arXiv
    2203.15610). Raises ModelError for others.
    """
    size = width // groups
    if len(kept) % groups:
        raise ModelError(
            f"{what} has {groups} groups: keep a multiple of {groups} hidden channels, not {len(kept)}."
        )
    places = [[i - group * size for i in kept if i // size == group] for group in range(groups)]
    if all(place == places[0] for place in places):
        return places[0]
    if list(kept) != list(range(len(kept))):
        raise ModelError(
            f"{what} has {groups} groups of {size} hidden channels: keep the same places in each, or the first channels."
        )
    return list(range(len(kept) // groups))
