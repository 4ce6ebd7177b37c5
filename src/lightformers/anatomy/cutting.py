"""The one engine that slices tensors: which index to keep along which dimension, per stored tensor.

A cut is first written down (`Plan.keep`), checked, and only then applied to the whole model at once. Tensors are
known by identity, so what is tied stays tied.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lightformers.anatomy.access import get, is_conv1d
from lightformers.errors import ModelError


class Plan:
    """What to keep of which tensor. Nothing changes until `apply`."""

    def __init__(self) -> None:
        self._tensors: dict[int, Tensor] = {}
        self._keep: dict[tuple[int, int], Tensor] = {}

    def keep(self, tensor: Tensor, dim: int, index: Tensor | Sequence[int]) -> None:
        """Keep only `index` (in this order) of `tensor` along `dim`."""
        index = torch.as_tensor(index, dtype=torch.long)
        if index.numel() == 0 or int(index.max()) >= tensor.shape[dim] or int(index.min()) < 0:
            raise ModelError(
                f"Can't keep {index.numel()} entries of a tensor of shape {tuple(tensor.shape)}."
            )
        key = (id(tensor), dim)
        if key in self._keep and not torch.equal(self._keep[key], index):
            raise ModelError("Two parts of the model share one tensor and would be cut differently.")
        self._tensors[id(tensor)] = tensor
        self._keep[key] = index

    def has(self, tensor: Tensor, dim: int) -> bool:
        """Whether something is already to be kept of this dimension."""
        return (id(tensor), dim) in self._keep

    def shape(self, tensor: Tensor) -> tuple[int, ...]:
        """The shape that the tensor will have."""
        sizes = [self._keep.get((id(tensor), dim)) for dim in range(tensor.dim())]
        return tuple(old if index is None else index.numel() for old, index in zip(tensor.shape, sizes))

    def linear(
        self,
        model: nn.Module,
        path: str,
        out: Tensor | Sequence[int] | None = None,
        into: Tensor | None = None,
    ) -> None:
        """Keep outputs `out` and inputs `into` of the linear layer at `path`, bias included."""
        module = get(model, path)
        weight = getattr(module, "weight", None)
        if not (isinstance(module, nn.Linear) or is_conv1d(module)) or not isinstance(weight, Tensor):
            raise ModelError(
                f"{path} is a {type(module).__name__}, not a plain linear layer: cut before it is replaced "
                "(factorized, wrapped by an adapter or quantized)."
            )
        flip = is_conv1d(module)
        if out is not None:
            self.keep(weight, 1 if flip else 0, out)
            if isinstance(module.bias, Tensor):
                self.keep(module.bias, 0, out)
        if into is not None:
            self.keep(weight, 0 if flip else 1, into)

    def apply(self, model: nn.Module) -> None:
        """Slice, put the new tensors wherever the old ones were, and let the modules know their new sizes."""
        new: dict[int, Tensor] = {}
        for key, tensor in self._tensors.items():
            cut = tensor.detach()
            for dim in range(tensor.dim()):
                index = self._keep.get((key, dim))
                if index is not None:
                    cut = cut.index_select(dim, index.to(cut.device))
            cut = cut.clone().contiguous()
            is_parameter = isinstance(tensor, nn.Parameter)
            new[key] = nn.Parameter(cut, requires_grad=tensor.requires_grad) if is_parameter else cut
        for module in model.modules():
            touched = False
            for store in (module._parameters, module._buffers):
                for name, held in store.items():
                    if held is not None and id(held) in new:
                        store[name] = new[id(held)]  # type: ignore[assignment]
                        touched = True
            if touched:
                refit(module)


def refit(module: nn.Module) -> None:
    """Make the sizes a module keeps about itself those of its weight."""
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor):
        return
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = weight.shape
    elif is_conv1d(module):
        module.nx, module.nf = weight.shape  # type: ignore[assignment]
    elif isinstance(module, nn.Embedding):
        module.num_embeddings, module.embedding_dim = weight.shape
    elif isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
        module.normalized_shape = tuple(weight.shape)
    elif isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        module.out_channels = weight.shape[0]
        module.in_channels = weight.shape[1] * module.groups


def chosen(keep: Sequence[int], size: int, what: str, ascending: bool = True) -> list[int]:
    """The indices as a list, checked: some, whole, unique, in range, and in order."""
    kept = [int(i) for i in keep]
    if not kept:
        raise ModelError(f"Nothing of {what} would be left; keep at least one of {size}.")
    if len(set(kept)) != len(kept):
        raise ModelError(f"{what}: an index is named twice.")
    if min(kept) < 0 or max(kept) >= size:
        raise ModelError(f"{what}: indices run from 0 to {size - 1}, got {min(kept)} to {max(kept)}.")
    if ascending and kept != sorted(kept):
        raise ModelError(f"{what}: name the indices in ascending order.")
    return kept
