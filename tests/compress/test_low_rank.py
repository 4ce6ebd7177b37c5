"""Low-rank factorization: the factors, the layer, the step."""

from __future__ import annotations

import pytest
import steps_world as world
import torch

from lightformers import anatomy
from lightformers.compress import LowRank
from lightformers.compress.factorize.low_rank import factors
from lightformers.compress.layers import input_of, linears
from lightformers.errors import ModelError, UserError
from lightformers.parts.low_rank import LowRankLinear, break_even
from lightformers.steps import Recipe, Run


@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (6, 6)])
def test_full_rank_is_the_matrix(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    weight, x = torch.randn(shape), torch.randn(30, shape[1])
    for gram in (None, x.T @ x / 30):
        first, second = factors(weight, min(shape), gram)
        torch.testing.assert_close(second @ first, weight, rtol=1e-4, atol=1e-5)


def test_factors_are_the_best_of_their_rank() -> None:
    torch.manual_seed(0)
    weight = torch.randn(12, 20)
    # data that lives mostly in a few directions
    x = torch.randn(500, 20) * torch.tensor([5.0] * 4 + [0.2] * 16) @ torch.linalg.qr(torch.randn(20, 20))[0]
    plain, data = factors(weight, 4), factors(weight, 4, x.T @ x / 500)
    singular = torch.linalg.svdvals(weight)
    assert float((plain[1] @ plain[0] - weight).norm()) == pytest.approx(float(singular[4:].norm()), rel=1e-4)

    def on_data(pair: tuple[torch.Tensor, torch.Tensor]) -> float:
        return float((x @ (pair[1] @ pair[0] - weight).T).norm())

    best = torch.linalg.svdvals(x @ weight.T)[4:].norm()  # no map of rank 4 does better
    assert on_data(data) == pytest.approx(float(best), rel=1e-2)
    assert on_data(data) < 0.3 * on_data(plain)


def test_degenerate_data_is_survived() -> None:
    torch.manual_seed(0)
    weight, one = torch.randn(6, 8), torch.randn(1, 8)
    for gram in (torch.zeros(8, 8), one.T @ one):
        first, second = factors(weight, 3, gram)
        assert torch.isfinite(first).all() and torch.isfinite(second).all()
    torch.testing.assert_close(one @ first.T @ second.T, one @ weight.T, rtol=1e-2, atol=1e-2)


def test_layer() -> None:
    torch.manual_seed(0)
    first, second, bias = torch.randn(2, 5), torch.randn(4, 2), torch.randn(4)
    layer = LowRankLinear.from_factors(first, second, bias)
    x = torch.randn(3, 7, 5)
    torch.testing.assert_close(layer(x), torch.nn.functional.linear(x, second @ first, bias))
    again = LowRankLinear(**layer.args)
    again.load_state_dict(layer.state_dict(), assign=True)
    assert torch.equal(again(x), layer(x))
    layer(x).sum().backward()
    assert all(p.grad is not None for p in layer.parameters())
    assert layer.double()(x.double()).dtype == torch.float64
    for rank in (0, 5):
        with pytest.raises(ValueError, match="rank"):
            LowRankLinear(5, 4, rank)


@pytest.mark.parametrize("shape", [(4, 4), (3, 50), (64, 32), (1, 1)])
def test_break_even(shape: tuple[int, int]) -> None:
    out, into = shape
    rank = break_even(into, out)
    assert rank * (out + into) < out * into <= (rank + 1) * (out + into)


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama", "vit"])
def test_a_planted_low_rank_model_is_kept_exactly(family: str) -> None:
    original = world.bundle(family)
    with torch.no_grad():
        for path in linears(anatomy.of(original.model)):
            weight = anatomy.linear(original.model, path)[0]
            u, s, v = torch.linalg.svd(weight, full_matrices=False)
            weight.copy_(u[:, :5] * s[:5] @ v[:5])
    for weighted in (True, False):
        edited = Recipe([LowRank(5, weighted=weighted)]).apply(original, world.task(family), Run())
        torch.testing.assert_close(world.outputs(edited), world.outputs(original), rtol=1e-3, atol=1e-3)
        assert edited.parameters < original.parameters


def test_data_aware_is_closer_on_data() -> None:
    original, task = world.bundle(), world.task()

    def error(weighted: bool) -> float:
        edited = Recipe([LowRank(0.4, weighted=weighted)]).apply(original, task, Run())
        return float((world.outputs(edited) - world.outputs(original)).detach().norm())

    assert error(True) < error(False)


def test_only_layers_where_it_pays_are_replaced() -> None:
    original = world.bundle()  # attention 32 x 32 pays below 16, feed-forward 64 x 32 below 22
    edited = Recipe([LowRank(20, weighted=False)]).apply(original)
    replaced = {n for n, m in edited.model.named_modules() if isinstance(m, LowRankLinear)}
    assert replaced == set(linears(anatomy.of(original.model), ["ffn"]))
    with pytest.raises(ModelError, match="rank of at most 21"):
        LowRank(22, weighted=False).apply(original.copy(), None, Run())
    with pytest.raises(ModelError, match="saves nothing"):
        LowRank(1.0, weighted=False).apply(original.copy(), None, Run())
    only = Recipe([LowRank(4, where=("attention",), weighted=False)]).apply(original)
    replaced = {n for n, m in only.model.named_modules() if isinstance(m, LowRankLinear)}
    assert replaced == set(linears(anatomy.of(original.model), ["attention"]))


def test_bad_input_is_refused() -> None:
    for rank in (0, -1, 0.0, 1.5):
        with pytest.raises(UserError, match="rank"):
            LowRank(rank)
    for where in ((), ("ffn", "head")):
        with pytest.raises(UserError, match="where"):
            LowRank(4, where=where)
    with pytest.raises(ModelError, match="plain linear"):
        twice = Recipe([LowRank(4, weighted=False)]).apply(world.bundle())
        LowRank(2, weighted=False).apply(twice, None, Run())


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama", "t5"])
def test_projections_that_share_an_input(family: str) -> None:
    """Whatever `input_of` says reads the same input does, on a real pass."""
    bundle = world.bundle(family)
    seen: dict[str, torch.Tensor] = {}
    source = input_of(anatomy.of(bundle.model))
    for path in source:
        anatomy.get(bundle.model, path).register_forward_pre_hook(
            lambda module, args, path=path: seen.__setitem__(path, args[0].detach())
        )
    world.outputs(bundle)
    assert set(source) == set(linears(anatomy.of(bundle.model))) == set(seen)
    assert all(torch.equal(seen[p], seen[q]) for p, q in source.items())
    assert len(set(source.values())) < len(source) or family == "gpt2"
