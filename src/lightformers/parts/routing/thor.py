"""Experts without a router: one is drawn at random (Zuo et al., 2021, arXiv 2110.04260)."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from lightformers.errors import UserError

Level = Literal["batch", "sentence", "token", "mean"]
#: An expert for all; one for every sentence (its rows follow each other); drawn anew for every token; all, averaged.
Choice = int | Tensor | torch.Generator | Literal["mean"]


class Expert(nn.Module):
    """W_2 dropout(relu(W_1 x)) with biases. (..., width) -> (..., width)."""

    def __init__(self, width: int, inner: int, dropout: float) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, inner), nn.Linear(inner, width)
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        inner = nn.functional.dropout(self.up(x).relu(), self.dropout, self.training)
        return nn.functional.dropout(self.down(inner), self.dropout, self.training)


class StochasticExperts(nn.Module):
    """Several whole feed-forwards, one of which is run. (batch, ..., width) -> the same.

    choice: which. None: drawn for the whole batch in training mode, the first otherwise, so that a model that is merely
    called gives the same twice; any expert serves once the experts agree. `routed` sets other choices for a while, the
    objective `train.consistency.TwoPasses` its own. hidden: 4 * width by default. The paper puts experts into every
    other layer, from the first on. dropout: after both matrices.
    Raises UserError for less than one expert.
    """

    def __init__(
        self, width: int, *, hidden: int | None = None, experts: int = 2, dropout: float = 0.0
    ) -> None:
        super().__init__()
        if experts < 1:
            raise UserError(f"at least one expert is needed, got {experts}")
        self.experts = nn.ModuleList(Expert(width, hidden or 4 * width, dropout) for _ in range(experts))
        self.choice: Choice | None = None

    def forward(self, x: Tensor) -> Tensor:
        count, choice = len(self.experts), self.choice
        if choice is None:
            choice = int(torch.randint(count, ())) if self.training else 0
        if isinstance(choice, int):
            out: Tensor = self.experts[choice](x)
            return out
        if isinstance(choice, str):
            return torch.stack([expert(x) for expert in self.experts]).mean(0)
        if isinstance(choice, torch.Generator):
            return self._dispatch(x, torch.randint(count, x.shape[:-1], generator=choice).to(x.device))
        if len(x) % len(choice):
            raise UserError(f"experts were drawn for {len(choice)} sentences, and there are {len(x)} rows")
        return self._dispatch(x, choice.to(x.device).repeat_interleave(len(x) // len(choice)))

    def _dispatch(self, x: Tensor, index: Tensor) -> Tensor:
        """index: (batch) or one for every position. Each position is computed once, by its own expert."""
        out: Tensor | None = None
        for number, expert in enumerate(self.experts):
            taken = index == number
            if taken.any():
                part = expert(x[taken])
                out = x.new_zeros(x.shape, dtype=part.dtype) if out is None else out
                out = out.index_put((taken,), part)
        return x if out is None else out  # x is empty

    @torch.no_grad()
    def dense(self, expert: int | None = None) -> Expert:
        """A copy of one expert, or, for None, one whose weights are the mean of all: a plain feed-forward to keep."""
        one = copy.deepcopy(self.experts[expert or 0])
        if expert is None:
            for name, p in one.named_parameters():
                p.copy_(torch.stack([dict(e.named_parameters())[name] for e in self.experts]).mean(0))
        assert isinstance(one, Expert)
        return one


def stochastic(model: nn.Module) -> list[StochasticExperts]:
    """All layers of a model that draw."""
    return [m for m in model.modules() if isinstance(m, StochasticExperts)]


@contextmanager
def routed(
    model: nn.Module,
    level: Level = "sentence",
    seed: int = 0,
    sentences: int | None = None,
    expert: int | None = None,
) -> Iterator[None]:
    """How experts are chosen while the block runs, reproducibly from `seed`.

    "token": anew for every token and call. "sentence": once for each of `sentences`, for the whole block, so for a whole
    decoding, and all beams of a sentence (rows that follow each other) share it. "batch": one for all, `expert` in
    every layer, or drawn. "mean": all are run and averaged. Raises UserError for an unknown level, an expert that does
    not exist, and "sentence" without their number.
    """
    layers, generator = stochastic(model), torch.Generator().manual_seed(seed)
    if level not in get_args(Level):
        raise UserError(f"level {level!r} is not one of {', '.join(get_args(Level))}")
    if level == "sentence" and not sentences:
        raise UserError("say how many sentences there are, so that each keeps its expert")
    if expert is not None and not all(0 <= expert < len(layer.experts) for layer in layers):
        raise UserError(f"there is no expert {expert} in every layer")
    before = [layer.choice for layer in layers]
    try:
        for layer in layers:
            layer.choice = _choice(level, len(layer.experts), generator, sentences, expert)
        yield
    finally:
        for layer, choice in zip(layers, before):
            layer.choice = choice


def _choice(
    level: Level, count: int, generator: torch.Generator, sentences: int | None, expert: int | None
) -> Choice:
    if level == "token":
        return generator
    if level == "mean":
        return "mean"
    if level == "sentence":
        return torch.randint(count, (sentences or 0,), generator=generator)
    return int(torch.randint(count, (), generator=generator)) if expert is None else expert
