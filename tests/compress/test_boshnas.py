"""BOSHNAS: surrogates, second-order descent, and the search against chance."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lightformers.compress.elastic import boshnas_surrogates as surrogates
from lightformers.compress.elastic.boshnas import Boshnas, Library, Query
from lightformers.compress.elastic.boshnas_descent import descend, snap
from lightformers.compress.elastic.boshnas_surrogates import Fitting, Surrogates
from lightformers.compress.elastic.flexibert import FlexiSpace, library_of, share
from lightformers.compress.elastic.space import Space
from lightformers.errors import UserError

QUICK = Fitting(epochs=15, batch=64, rate=2e-2, natural_rate=1.0)
SMALL = FlexiSpace(
    (2, 3), (16, 32), (2,), {"sa": ("sdp",), "l": ("dct",), "c": (5,)}, (1,), (32, 64), stack=1
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- surrogates


def test_moments_are_those_of_samples() -> None:
    mean, variance = torch.tensor([-1.5, -0.2, 0.0, 0.7, 2.0]), torch.tensor([0.5, 2.0, 1.0, 0.05, 0.3])
    drawn = mean + variance.sqrt() * torch.randn(100_000, 5, generator=generator())
    for moments, function, close in (
        (surrogates.relu_moments, torch.relu, 0.01),
        (surrogates.sigmoid_moments, torch.sigmoid, 0.03),
    ):
        found, spread = moments(mean, variance)
        seen = function(drawn)
        torch.testing.assert_close(found, seen.mean(0), atol=close, rtol=0)
        torch.testing.assert_close(spread, seen.var(0), atol=close, rtol=0)


def test_a_natural_layer_is_that_of_sampled_weights() -> None:
    torch.manual_seed(0)
    layer = surrogates.NaturalLinear(4, 2)
    with torch.no_grad():
        layer.variance.fill_(-1.0)
    x, v = torch.randn(1, 4), torch.rand(1, 4)
    mean, variance = layer(x, v)
    own = torch.nn.functional.softplus(layer.variance)
    inputs = x + v.sqrt() * torch.randn(200_000, 1, 4)
    weights = layer.mean + own.sqrt() * torch.randn(200_000, 4, 2)
    seen = (inputs @ weights)[:, 0]
    torch.testing.assert_close(mean[0], seen.mean(0), atol=0.02, rtol=0)
    torch.testing.assert_close(variance[0], seen.var(0), atol=0.05, rtol=0.02)


def test_variances_stay_positive_and_losses_are_the_papers() -> None:
    net = surrogates.NaturalNetwork(3)
    for scale in (0.0, 1.0, 1e3):
        mean, variance = net(scale * torch.randn(50, 3))
        assert bool((variance > 0).all()) and torch.isfinite(mean).all()
    mean, variance, y = torch.tensor([0.4]), torch.tensor([0.1]), torch.tensor([0.6])
    wanted = 0.5 * (10 * 0.04 / 0.1 + np.log(0.1))
    assert float(surrogates.natural_loss(mean, variance, y)) == pytest.approx(wanted, rel=1e-5)


def test_surrogates_learn_a_slope_and_where_the_teacher_is_unsure() -> None:
    torch.manual_seed(0)
    x = torch.rand(30, 2, generator=generator())
    made = Surrogates(2, Fitting(epochs=60, batch=64, rate=2e-2, natural_rate=1.0))
    made.fit(x, x[:, 0], generator())
    mean, _ = made.natural(x)
    assert float(torch.corrcoef(torch.stack([mean.detach(), x[:, 0]]))[0, 1]) > 0.9
    assert (
        float(
            (made.student(x).detach() - torch.stack([made.spread(x) for _ in range(50)]).mean(0)).abs().mean()
        )
        < 0.05
    )
    plain, doubting = made.bound(x, 0.5, False), made.bound(x, 0.5, True)
    torch.testing.assert_close(plain, mean - 0.5 * made.student(x))
    assert bool((doubting < plain).all())


# --- descent


def test_descent_steps_as_newton_where_curvature_is_diagonal() -> None:
    middle, curves = torch.tensor([0.3, -0.6]), torch.tensor([4.0, 0.5])
    low, high = torch.full((2,), -1.0), torch.full((2,), 1.0)

    def bowl(x: Tensor) -> Tensor:
        return (curves * (x - middle).square()).sum(-1)

    start = torch.tensor([[0.9, 0.9], [-1.0, 0.0]])
    once = descend(bowl, start, low, high, generator(), rate=1.0, steps=1)
    torch.testing.assert_close(once, middle.expand(2, 2), atol=1e-3, rtol=0)
    assert float((descend(bowl, start, low, high, generator()) - middle).abs().max()) < 0.02
    away = descend(lambda x: -bowl(x), start, low, high, generator())
    assert float(away.abs().max()) <= 1.0 and bool((away.abs() == 1).any())  # clamped to the box
    library = torch.tensor([[0.0, 0.0], [0.4, -0.5], [0.3, 0.9]])
    assert snap(once, library).tolist() == [1, 1]


# --- the search


def planted(seed: int, count: int = 200) -> tuple[Tensor, list[float]]:
    """Scores rise along one direction, out of which another one matters little."""
    points = torch.randn(count, 4, generator=generator(seed))
    return points, torch.sigmoid(points[:, 0] - 0.3 * points[:, 1]).tolist()


@pytest.mark.parametrize("seed", [0, 1])
def test_it_finds_a_planted_best_sooner_than_chance(seed: int) -> None:
    points, scores = planted(seed)
    library = Library(list(range(len(points))), points)
    search = Boshnas(start=5, restarts=4, patience=50, steps=8, fitting=QUICK, seed=seed)
    found = search.search(library, lambda i, _: scores[i], 12)
    chance = np.random.default_rng(seed).permutation(len(scores))[:12]
    assert len({q.index for q in found.queries}) == 12 and not found.converged
    assert [q.index for q in found.queries[:5]] == chance[:5].tolist()
    assert found.best.score > max(scores[i] for i in chance)
    assert sum(s > found.best.score for s in scores) < 5  # chance comes to 14 on average


def test_rounds_ask_as_they_are_told_and_an_idle_search_ends() -> None:
    points, scores = planted(0, 40)
    library = Library(list(range(40)), points)
    common: dict[str, Any] = {"start": 4, "restarts": 3, "steps": 3, "fitting": Fitting(1, 64)}
    drawn = Boshnas(uncertain=0.0, random=1.0, **common).search(library, lambda i, _: scores[i], 9)
    assert [q.how for q in drawn.queries] == ["start"] * 4 + ["random"] * 5
    unsure = Boshnas(uncertain=1.0, random=0.0, **common).search(library, lambda i, _: scores[i], 9)
    assert {q.how for q in unsure.queries[4:]} == {"uncertain"}
    idle = Boshnas(uncertain=0.0, random=0.0, patience=3, **common).search(library, lambda i, _: 0.5, 40)
    assert idle.converged and len(idle.queries) == 4 + 2 * 3 and idle.best.index == idle.queries[0].index
    again = Boshnas(uncertain=0.0, random=0.0, patience=3, **common).search(library, lambda i, _: 0.5, 40)
    assert again == idle and idle.curve == [0.5] * 10
    every = Boshnas(**{**common, "start": 40}).search(library, lambda i, _: scores[i], 99)
    assert len(every.queries) == 40 and every.curve[-1] == max(scores)


def test_neighbours_hand_their_weights_on() -> None:
    library = library_of(SMALL.sample(16, seed=0), pairs=0.01, steps=50)
    asked: list[tuple[object, object]] = []

    def score(item: object, source: object) -> float:
        asked.append((item, source))
        return 0.5

    search = Boshnas(
        start=5, restarts=8, uncertain=0.0, random=0.0, overlap=0.3, steps=3, fitting=Fitting(1, 64)
    )
    found = search.search(library, score, 10)
    given: list[Query] = [q for q in found.queries if q.source is not None]  # type: ignore[type-arg]
    assert given and [item for item, _ in asked] == [q.item for q in found.queries]
    for query in given:
        before = [q.index for q in found.queries[: found.queries.index(query)]]
        assert query.source in before and share(query.item, library.items[query.source]) >= 0.3


def test_any_space_can_be_searched() -> None:
    space = Space(blocks=(2, 3, 4), heads=(1, 2), width=(16, 32), channels=(32, 64), alike=True)
    sizes = list(space)
    points = torch.tensor([[s.blocks, s.heads[0], s.channels[0] / 32, s.width / 16] for s in sizes])
    library = Library(sizes, points)
    search = Boshnas(start=4, restarts=4, patience=50, steps=5, fitting=QUICK)
    found = search.search(library, lambda s, _: s.blocks * s.width / 256 + s.heads[0] / 10, 9)
    assert found.best.score > np.median([s.blocks * s.width / 256 + s.heads[0] / 10 for s in sizes])


def test_senseless_searches_are_refused() -> None:
    points, scores = planted(0, 10)
    library = Library(list(range(10)), points)
    with pytest.raises(UserError, match="between 0 and 1"):
        Boshnas().search(library, lambda i, _: float("nan"), 5)
    with pytest.raises(UserError, match="2 or more"):
        Boshnas().search(library, lambda i, _: scores[i], 1)
    with pytest.raises(UserError, match="shares of the rounds"):
        Boshnas(uncertain=0.6, random=0.6)
    with pytest.raises(UserError, match="rates above 0"):
        Fitting(rate=0.0)
    with pytest.raises(UserError, match="a point for each"):
        Library([1, 2, 3], points)
