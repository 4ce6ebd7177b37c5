"""AdamW without a schedule (Defazio et al., 2024, arXiv 2405.15682): averaging takes the place of a decaying rate.

Three sequences: gradients are taken at y = (1 - beta) z + beta x, z makes the steps of AdamW, x is the running average of z
and what is used in the end. Training may stop at any step.

    rate_t = lr sqrt(1 - beta2^t) min(1, t / warmup)        v = beta2 v + (1 - beta2) g^2
    z     -= rate_t (g / (sqrt(v) + eps) + decay y)         c = rate_t^2 / sum_i rate_i^2        x = (1 - c) x + c z
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lightformers.errors import UserError


class ScheduleFreeAdamW:
    """Updates tensors in place by their `.grad`. The tensors hold y; `averages()` gives x.

    parameters: name -> leaf. lr: of the steps; betas: of interpolation and second moment. weight_decay: of matrices alone.
    warmup: steps over which the rate grows linearly. State is kept by `state()` and put back by `restore()`.
    """

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        lr: float = 5e-4,
        betas: tuple[float, float] = (0.98, 0.999),
        weight_decay: float = 0.05,
        warmup: int = 1000,
        eps: float = 1e-8,
    ) -> None:
        if not parameters or lr <= 0 or warmup < 1 or not (0 < betas[0] < 1 and 0 <= betas[1] < 1):
            raise UserError(
                "parameters, a positive rate, a warm-up of at least one step and betas below 1 are needed"
            )
        self.names, self.y = list(parameters), list(parameters.values())
        self.lr, self.betas, self.decay, self.warmup, self.eps = lr, betas, weight_decay, warmup, eps
        self.z = [p.detach().clone() for p in self.y]
        self.v = [torch.zeros_like(p) for p in self.z]
        self.steps, self.weight = 0, 0.0

    @torch.no_grad()
    def step(self) -> None:
        """One update; a parameter without a gradient counts as one with a gradient of 0."""
        self.steps += 1
        beta, beta2 = self.betas
        rate = self.lr * (1 - beta2**self.steps) ** 0.5 * min(1.0, self.steps / self.warmup)
        self.weight += rate**2
        c = rate**2 / self.weight
        y: Any = self.y  # the fused list operations of torch have no stubs
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in y]
        torch._foreach_mul_(self.v, beta2)
        torch._foreach_addcmul_(self.v, grads, grads, 1 - beta2)
        root = torch._foreach_sqrt(self.v)
        torch._foreach_add_(root, self.eps)
        move = list(torch._foreach_div(grads, root))
        for at, p in zip(move, y):
            if p.ndim >= 2 and self.decay:
                at.add_(p, alpha=self.decay)
        # With x = (y - (1 - beta) z) / beta, the new y is (1 - c) y + c z - rate (1 - beta + beta c) move.
        torch._foreach_lerp_(y, self.z, c)
        torch._foreach_add_(y, move, alpha=-rate * (1 - beta + beta * c))
        torch._foreach_add_(self.z, move, alpha=-rate)

    @torch.no_grad()
    def averages(self) -> dict[str, Tensor]:
        """x, by name: the weights to use."""
        beta = self.betas[0]
        return {name: (y - (1 - beta) * z) / beta for name, y, z in zip(self.names, self.y, self.z)}

    def state(self) -> dict[str, Tensor]:
        """Everything that another run needs to go on, as tensors."""
        out = {
            "schedule/steps": torch.tensor(self.steps),
            "schedule/weight": torch.tensor(self.weight, dtype=torch.float64),
        }
        for kind, held in (("y", self.y), ("z", self.z), ("v", self.v)):
            out |= {f"{kind}/{name}": t.detach() for name, t in zip(self.names, held)}
        return out

    @torch.no_grad()
    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Put back what `state()` gave. Raises UserError where it is of other parameters."""
        mine = self.state()
        if state.keys() != mine.keys() or any(state[k].shape != t.shape for k, t in mine.items()):
            raise UserError("the saved training state belongs to another model")
        for name, t in mine.items():
            if not name.startswith("schedule/"):
                t.copy_(state[name])
        self.steps, self.weight = int(state["schedule/steps"]), float(state["schedule/weight"])
