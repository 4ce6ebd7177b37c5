"""A chain of small learners whose outputs add up, and a gate that says per token how many of them run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": nn.functional.gelu,
    "identity": lambda x: x,
}
#: Logits of the gate (..., choices) -> weights of the choices (..., choices).
Router = Callable[[Tensor], Tensor]


class AdaptiveModule(nn.Module):
    """The adaptive computation module of Wójcik et al. (2023, arXiv 2312.10193). (..., in) -> (..., out).

    Learner n of N is `s_n(x) = act(A_n x + b_n) B_n` of hidden size `width`; with k learners a token gets
    `s_1(x) + ... + s_k(x)`, zero for k = 0. A gate of two hidden layers (size `hidden`) chooses k from `least` to N.

    first: (N * width, in) all A_n below each other; bias: (N * width,); second: (out, N * width). least: 0 or 1; 0 only
    where the output is added to a residual stream. router: while it is set, all learners run, weighted by what it makes
    of the gate's logits; None (as loaded): the likeliest k, and learner n runs on tokens with k >= n alone. Tokens are
    gathered and scattered by plain torch operations: no fast kernel exists yet, so small learners save no time.
    """

    #: Models that look at `layer.weight.dtype` (t5) find no single matrix here, and skip their check.
    weight = None

    def __init__(
        self, in_features: int, out_features: int, learners: int, width: int, least: int = 0, activation: str = "gelu",
        hidden: int = 16, device: torch.device | str | None = None, dtype: torch.dtype | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        if learners < 1 or width < 1 or hidden < 1:
            raise ValueError(f"learners ({learners}), width ({width}) and hidden ({hidden}) are at least 1")
        if least not in (0, 1) or activation not in ACTIVATIONS:
            raise ValueError(f"least is 0 or 1, activation one of {', '.join(ACTIVATIONS)}")
        self.in_features, self.out_features = in_features, out_features
        self.learners, self.width, self.least = learners, width, least
        self.activation, self.hidden = activation, hidden
        self.router: Router | None = None
        kind: dict[str, Any] = {"device": device, "dtype": dtype}
        self.first = nn.Parameter(torch.empty(learners * width, in_features, **kind))
        self.bias = nn.Parameter(torch.zeros(learners * width, **kind))
        self.second = nn.Parameter(torch.empty(out_features, learners * width, **kind))
        nn.init.uniform_(self.first, -(in_features**-0.5), in_features**-0.5)  # Kaiming-uniform(sqrt 5)
        nn.init.uniform_(self.second, -(width**-0.5), width**-0.5)
        self.gate = nn.Sequential(
            nn.Linear(in_features, hidden, **kind),
            nn.GELU(),
            nn.Linear(hidden, hidden, **kind),
            nn.GELU(),
            nn.Linear(hidden, self.choices, **kind),
        )

    @property
    def args(self) -> dict[str, Any]:
        """What a manifest needs to rebuild this module."""
        names = ("in_features", "out_features", "learners", "width", "least", "activation", "hidden")
        return {name: getattr(self, name) for name in names}

    @property
    def choices(self) -> int:
        """How many answers the gate has."""
        return self.learners + 1 - self.least

    @property
    def learner_macs(self) -> int:
        """Multiply-adds of one learner on one token."""
        return self.width * (self.in_features + self.out_features)

    @property
    def gate_macs(self) -> int:
        """Multiply-adds of the gate on one token."""
        return self.hidden * (self.in_features + self.hidden + self.choices)

    def inner(self, x: Tensor) -> Tensor:
        """Hidden units of all learners: (..., in) -> (..., N, width)."""
        made = ACTIVATIONS[self.activation](nn.functional.linear(x, self.first, self.bias))
        return made.unflatten(-1, (self.learners, self.width))

    def partial_sums(self, x: Tensor) -> Tensor:
        """What every choice would give: (..., in) -> (choices, ..., out), float32, beginning with `least` learners."""
        parts = self.second.unflatten(1, (self.learners, self.width))
        inner = self.inner(x)
        made = [nn.functional.linear(inner[..., n, :], parts[:, n]).float() for n in range(self.learners)]
        sums = torch.stack(made).cumsum(0)
        return sums if self.least else torch.cat([torch.zeros_like(sums[:1]), sums])

    def mixed(self, x: Tensor, weights: Tensor) -> Tensor:
        """Sum over k of `weights[..., k] * out_k`; weights: (..., choices), summing to 1.

        A learner counts in every choice that is no smaller than it, so that one product over all learners does.
        """
        share = weights.flip(-1).cumsum(-1).flip(-1)[..., -self.learners :]
        inner = self.inner(x)
        return nn.functional.linear((inner * share.to(inner.dtype)[..., None]).flatten(-2), self.second)

    def count(self, x: Tensor) -> Tensor:
        """How many learners the gate wants for each token: (..., in) -> (...), from `least` to N."""
        return self.gate(x).argmax(-1) + self.least

    def run(self, x: Tensor, count: Tensor) -> Tensor:
        """x: (..., in) through the first `count` (...) learners, learner n on its tokens alone."""
        flat, wanted = x.reshape(-1, self.in_features), count.reshape(-1)
        out = x.new_zeros(flat.shape[0], self.out_features)
        act = ACTIVATIONS[self.activation]
        for n in range(self.learners):
            # no test for emptiness: products over no rows cost nothing, and a traced graph must hold every learner
            rows = (wanted > n).nonzero().squeeze(1)
            units = slice(n * self.width, (n + 1) * self.width)
            inner = act(nn.functional.linear(flat[rows], self.first[units], self.bias[units]))
            out = out.index_add(0, rows, nn.functional.linear(inner, self.second[:, units]).to(out.dtype))
        return out.reshape(*x.shape[:-1], self.out_features)

    def forward(self, x: Tensor) -> Tensor:
        if self.router is None:
            return self.run(x, self.count(x))
        return self.mixed(x, self.router(self.gate(x)))

    def extra_repr(self) -> str:
        return ", ".join(f"{key}={value}" for key, value in self.args.items())


class PassThrough(nn.Module):
    """Stands where a linear layer was whose work another module has taken over. (..., width) -> the same."""

    weight = None

    def __init__(self, width: int) -> None:
        super().__init__()
        self.in_features = self.out_features = width

    @property
    def args(self) -> dict[str, Any]:
        """What a manifest needs to rebuild this module."""
        return {"width": self.in_features}

    def forward(self, x: Tensor) -> Tensor:
        return x
