"""The three networks of BOSHNAS (arXiv 2205.11656): what a point is worth, and how sure that is.

All minimise and all take points (n, d) -> (n,). Natural-parameter networks: Wang et al., 2016, arXiv 1611.00448.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightformers.errors import UserError

#: A variance is never below this.
LEAST = 1e-6
_PASSES = 10  # of the teacher with dropout, whose spread is what the student learns


class NaturalLinear(nn.Module):
    """A linear map whose weights are normal distributions: (mean, variance) (n, inputs) -> the same, (n, outputs)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        reach = math.sqrt(6 / (inputs + outputs))
        self.mean = nn.Parameter(torch.empty(inputs, outputs).uniform_(-reach, reach))
        variance = 0.01 * reach * torch.rand(inputs, outputs).clamp(min=1e-3)
        self.variance = nn.Parameter(variance.expm1().log())  # before softplus
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.bias_variance = nn.Parameter(torch.full((outputs,), -10.0))

    def forward(self, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
        own = F.softplus(self.variance)
        spread = variance @ (own + self.mean.square()) + mean.square() @ own + F.softplus(self.bias_variance)
        return mean @ self.mean + self.bias, spread


def relu_moments(mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of max(x, 0) for normal x. Exact; the paper's code has a logistic curve for the normal one."""
    scale = variance.clamp(min=LEAST).sqrt()
    ratio = mean / scale
    below = 0.5 * (1 + torch.erf(ratio / math.sqrt(2)))
    density = torch.exp(-0.5 * ratio.square()) / math.sqrt(2 * math.pi)
    first = mean * below + scale * density
    second = (mean.square() + scale.square()) * below + mean * scale * density
    return first, (second - first.square()).clamp(min=LEAST)


def sigmoid_moments(mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of the logistic function of a normal x, by the approximations of arXiv 1611.00448."""
    slope, shift, shrink = 4 - 2 * math.sqrt(2), -math.log(math.sqrt(2) + 1), math.pi / 8
    first = torch.sigmoid(mean / (1 + shrink * variance).sqrt())
    second = torch.sigmoid(slope * (mean + shift) / (1 + shrink * slope**2 * variance).sqrt())
    return first, (second - first.square()).clamp(min=LEAST)


class NaturalNetwork(nn.Module):
    """32-32-1: (n, d) -> mean and variance, each (n,); the variance is what the data itself leaves open."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(NaturalLinear(a, b) for a, b in ((inputs, 32), (32, 32), (32, 1)))

    def forward(self, points: Tensor) -> tuple[Tensor, Tensor]:
        mean, variance = points, torch.zeros_like(points)
        for layer in self.layers[:-1]:
            mean, variance = relu_moments(*layer(mean, variance))
        mean, variance = sigmoid_moments(*self.layers[-1](mean, variance))
        return mean[:, 0], variance[:, 0]


def natural_loss(mean: Tensor, variance: Tensor, y: Tensor) -> Tensor:
    """Half of 10 (mean - y)^2 / variance + log variance, mean over the points."""
    return 0.5 * (10 * (mean - y).square() / variance + variance.log()).mean()


def regressor(inputs: int, dropout: float = 0.0) -> nn.Module:
    """64-32-1 with softplus, between 0 and 1: teacher (with dropout) and student. (n, d) -> (n,)."""
    return nn.Sequential(
        nn.Linear(inputs, 64), nn.Softplus(), nn.Dropout(dropout), nn.Linear(64, 32), nn.Softplus(),
        nn.Dropout(dropout), nn.Linear(32, 1), nn.Sigmoid(), nn.Flatten(0),
    )  # fmt: skip


@dataclass(frozen=True)
class Fitting:
    """How surrogates are trained.

    epochs: at most; early stopping after 7 in a row without a smaller error on the points left out.
    batch: points of an update. rate: of all, times 2 for teacher and student, times 0.05 for the natural network.
    natural_rate: that factor.
    """

    epochs: int = 200
    batch: int = 1
    rate: float = 1e-3
    natural_rate: float = 0.05

    def __post_init__(self) -> None:
        if min(self.epochs, self.batch) < 1 or min(self.rate, self.natural_rate) <= 0:
            raise UserError(f"surrogates need an epoch, a batch of one point and rates above 0, got {self}")


class Surrogates:
    """The three networks with their optimizers; `fit` goes on from where the last one ended."""

    def __init__(self, inputs: int, fitting: Fitting) -> None:
        self.fitting = fitting
        self.natural = NaturalNetwork(inputs)
        self.teacher, self.student = regressor(inputs, 0.3), regressor(inputs)
        self._optimizers = (
            torch.optim.AdamW(self.teacher.parameters(), lr=2 * fitting.rate),
            torch.optim.SGD(self.student.parameters(), lr=2 * fitting.rate),
            torch.optim.AdamW(self.natural.parameters(), lr=fitting.natural_rate * fitting.rate),
        )

    def fit(self, points: Tensor, y: Tensor, generator: torch.Generator) -> None:
        """points: (n, d) known so far; y: (n,), between 0 and 1, smaller is better."""
        teacher, student, natural = self._optimizers
        _fit(lambda x, t: F.mse_loss(self.teacher(x), t), teacher, points, y, self.fitting, generator)
        _fit(
            lambda x, _: F.mse_loss(self.student(x), self.spread(x)),
            student,
            points,
            y,
            self.fitting,
            generator,
        )
        _fit(lambda x, t: self._natural_loss(x, t), natural, points, y, self.fitting, generator)

    def _natural_loss(self, points: Tensor, y: Tensor) -> Tensor:
        mean, variance = self.natural(points)
        return natural_loss(mean, variance, y)

    @torch.no_grad()
    def spread(self, points: Tensor) -> Tensor:
        """Standard deviation of ten passes of the teacher with dropout, (n,)."""
        return self.teacher(points.repeat(_PASSES, 1)).view(_PASSES, -1).std(0)

    def bound(self, points: Tensor, explore: float, aleatoric: bool) -> Tensor:
        """mean - explore * uncertainty, (n,), to be minimised. The uncertainty is epistemic, plus aleatoric if asked."""
        mean, variance = self.natural(points)
        unsure: Tensor = self.student(points)
        return mean - explore * (unsure + variance.sqrt() if aleatoric else unsure)


def _fit(
    loss: Callable[[Tensor, Tensor], Tensor], optimizer: torch.optim.Optimizer, points: Tensor, y: Tensor,
    fitting: Fitting, generator: torch.Generator,
) -> None:  # fmt: skip
    """A fifth is left out, drawn anew every epoch as in the paper's code: with few points none can be spared for good."""
    errors: list[float] = []
    for _ in range(fitting.epochs):
        order = torch.randperm(len(points), generator=generator)
        train = order[: max(int(0.8 * len(points)), 1)]
        for part in train.split(fitting.batch):
            optimizer.zero_grad()
            loss(points[part], y[part]).backward()
            optimizer.step()
        if len(rest := order[len(train) :]):
            with torch.no_grad():
                errors.append(float(loss(points[rest], y[rest])))
        if len(errors) > 10 and all(new >= old for new, old in zip(errors[-7:], errors[-8:-1])):
            return
