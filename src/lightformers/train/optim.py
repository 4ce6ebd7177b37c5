"""The optimizer of the loop: AdamW on what is trained, bf16 copies of the weights, and what is saved of both."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatch
from typing import Any

import torch
from torch import Tensor, nn

from lightformers.errors import UserError
from lightformers.train.state import TrainState


def exempt(module: nn.Module) -> None:
    """Marks the parameters that modules name in `no_decay`, a tuple of paths from there.

    A part marks its parameter itself, but copying a model and loading its weights make new parameters without the mark.
    """
    for part in module.modules():
        names = getattr(part, "no_decay", ())
        for name in names if isinstance(names, tuple) else ():
            part.get_parameter(name).no_decay = True  # type: ignore[attr-defined]


@contextmanager
def trainable(module: nn.Module, objective: Any, frozen: Sequence[str]) -> Iterator[dict[str, nn.Parameter]]:
    """Name -> parameter of everything that is trained; the rest needs no gradient while the block runs.

    Parameters of the objective are named "objective.NAME". Raises UserError where a pattern matches nothing or
    nothing is left.
    """
    named = dict(module.named_parameters())
    exempt(module)
    for pattern in frozen:
        if not any(fnmatch(name, pattern) for name in named):
            raise UserError(
                f"no parameter matches the frozen pattern {pattern!r}; the first is {next(iter(named), None)}"
            )
    before = {name: p.requires_grad for name, p in named.items()}
    try:
        for name, p in named.items():
            p.requires_grad_(
                p.is_floating_point() and before[name] and not any(fnmatch(name, f) for f in frozen)
            )
        chosen = {name: p for name, p in named.items() if p.requires_grad}
        if isinstance(objective, nn.Module):
            chosen |= {f"objective.{k}": p for k, p in objective.named_parameters() if p.requires_grad}
        if not chosen:
            raise UserError("every parameter is frozen: nothing is left to train")
        yield chosen
    finally:
        for name, p in named.items():
            p.requires_grad_(before[name])
            p.grad = None


@dataclass
class Weights:
    """What the optimizer updates (fp32) beside what the module computes with: the same tensors, or bf16 copies."""

    masters: dict[str, Tensor]
    copies: list[tuple[Tensor, nn.Parameter]] = field(default_factory=list)

    def gather(self) -> None:
        """Gradients of the copies -> fp32 gradients of the masters."""
        for master, copy in self.copies:
            master.grad = None if copy.grad is None else copy.grad.float()
            copy.grad = None

    @torch.no_grad()
    def scatter(self) -> None:
        """Updated masters -> copies."""
        if self.copies:
            torch._foreach_copy_([copy for _, copy in self.copies], [master for master, _ in self.copies])


@contextmanager
def weights(module: nn.Module, parameters: Mapping[str, nn.Parameter], half: bool) -> Iterator[Weights]:
    """With `half`, the module's parameters are bf16 copies while the block runs; afterwards they are the masters."""
    if not half:
        yield Weights(dict(parameters))
        return
    originals = {p: p.data for p in module.parameters() if p.dtype == torch.float32}
    masters: dict[str, Tensor] = {}
    copies = []
    for name, p in parameters.items():
        if p in originals:
            masters[name] = originals[p].requires_grad_()
            masters[name].no_decay = getattr(p, "no_decay", False)  # type: ignore[attr-defined]
            copies.append((masters[name], p))
        else:
            masters[name] = p
    try:
        for p, data in originals.items():
            p.data = data.detach().to(torch.bfloat16)
        yield Weights(masters, copies)
    finally:
        for p, data in originals.items():
            p.grad = None
            p.data = data.detach()


def adamw(
    masters: Mapping[str, Tensor], lr: float, weight_decay: float, betas: tuple[float, float]
) -> torch.optim.AdamW:
    """AdamW (arXiv 1711.05101), fused; decay on matrices only, not on biases, norms and what is marked `no_decay`."""
    decays = {id(p) for p in masters.values() if p.ndim >= 2 and not getattr(p, "no_decay", False)}
    groups = [
        {"params": [p for p in masters.values() if id(p) in decays], "weight_decay": weight_decay},
        {"params": [p for p in masters.values() if id(p) not in decays], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=lr, betas=betas, fused=True)


def snapshot(optimizer: Any, masters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a `TrainState`. They share memory with the weights until they are saved."""
    state = getattr(optimizer, "optimizer", optimizer).state
    tensors = {}
    for name, p in masters.items():
        tensors[f"weight/{name}"] = p.detach()
        for key in ("exp_avg", "exp_avg_sq", "step"):
            if key in state.get(p, {}):
                tensors[f"{key}/{name}"] = state[p][key]
    return tensors


@torch.no_grad()
def restore_weights(parameters: Mapping[str, nn.Parameter], state: TrainState) -> None:
    """Copy saved weights into the parameters. Raises UserError where they don't belong to this model."""
    saved = {k.removeprefix("weight/"): v for k, v in state.tensors.items() if k.startswith("weight/")}
    wrong = sorted(set(saved) ^ set(parameters)) or sorted(
        k for k in saved if saved[k].shape != parameters[k].shape
    )
    if wrong:
        raise UserError(
            f"the saved training state belongs to another model or other frozen parameters: {', '.join(wrong[:3])} "
            f"({len(wrong)} in all)"
        )
    for name, p in parameters.items():
        p.copy_(saved[name])


def restore_moments(
    optimizer: torch.optim.Optimizer, masters: Mapping[str, Tensor], state: TrainState
) -> None:
    """Put the saved moments back. Parameters that never had a gradient have none."""
    for name, p in masters.items():
        if f"exp_avg/{name}" in state.tensors:
            optimizer.state[p] = {
                key: state.tensors[f"{key}/{name}"]
                .to("cpu" if key == "step" and p.device.type == "cpu" else p.device)
                .clone()
                for key in ("step", "exp_avg", "exp_avg_sq")
            }
