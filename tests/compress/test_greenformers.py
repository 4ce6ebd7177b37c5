"""Greenformers: the solvers, LED and CED units, Linformer, the step."""

from __future__ import annotations

from pathlib import Path

import pytest
import steps_world as world
import torch
import transformers as T
from torch import nn

from lightformers import anatomy
from lightformers.bundle import Bundle
from lightformers.compress import Greenformers
from lightformers.compress.factorize.greenformers import pair, semi_nmf
from lightformers.compress.layers import linears
from lightformers.errors import ModelError, UserError
from lightformers.manifest import build_from_manifest, write_manifest
from lightformers.parts.low_rank import LowRankLinear
from lightformers.parts.low_rank_conv import LowRankConv
from lightformers.steps import Recipe, Run


def test_parameter_counts_of_the_low_rank_bert() -> None:
    with torch.device("meta"):
        model = T.BertModel(T.BertConfig())
    assert sum(p.numel() for p in model.parameters()) == 109_482_240
    paths = linears(anatomy.of(model))
    assert sum(anatomy.linear(model, p)[0].numel() for p in paths) == 84_934_656
    Greenformers(100, "random").apply(Bundle(model), None, Run())
    layers = [anatomy.get(model, p) for p in paths]
    assert all(isinstance(m, LowRankLinear) and m.rank == 100 for m in layers)
    assert sum(m.first.numel() + m.second.numel() for m in layers) == 16_588_800
    assert sum(p.numel() for p in model.parameters()) == 41_136_384


def test_semi_nmf_is_the_literal_update() -> None:
    torch.manual_seed(0)
    weight = torch.randn(6, 5, dtype=torch.float64)
    first, second = semi_nmf(weight, 3, iterations=0)
    again_first, again_second = semi_nmf(weight, 3, iterations=1)
    want = second.clone()
    for i in range(6):
        for k in range(3):
            a = float(weight[i] @ first[k])
            gram = [float(first[j] @ first[k]) for j in range(3)]
            up = max(a, 0) + sum(float(second[i, j]) * max(-g, 0) for j, g in enumerate(gram))
            down = max(-a, 0) + sum(float(second[i, j]) * max(g, 0) for j, g in enumerate(gram))
            want[i, k] = second[i, k] * (up / down) ** 0.5
    torch.testing.assert_close(again_second, want)
    torch.testing.assert_close(again_first, torch.linalg.lstsq(want, weight).solution)


def test_semi_nmf_gets_better_and_stays_positive() -> None:
    torch.manual_seed(0)
    planted = torch.rand(30, 4) @ torch.randn(4, 20)
    errors = []
    for iterations in (0, 1, 3, 10, 300):
        first, second = semi_nmf(planted, 4, iterations)
        assert float(second.min()) >= 0
        errors.append(float((second @ first - planted).norm() / planted.norm()))
    assert errors == sorted(errors, reverse=True) and errors[-1] < 0.02
    weight = torch.randn(30, 20)
    lost = {s: float((b @ a - weight).norm()) for s in ("svd", "snmf") for a, b in [pair(weight, 6, s, 50)]}  # type: ignore[arg-type]
    assert lost["svd"] <= lost["snmf"] < float(weight.norm())
    assert torch.isfinite(semi_nmf(torch.zeros(4, 3), 2)[0]).all()


@pytest.mark.parametrize("sides", [1, 2, 3])
def test_convolutions(sides: int) -> None:
    torch.manual_seed(0)
    kind = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[sides]
    old = kind(3, 8, 3, stride=2, padding=1, dilation=2)
    x = torch.randn(2, 3, *([9] * sides))
    full = Greenformers(8)._convolution(old, 8, 0)
    assert isinstance(full, LowRankConv)
    torch.testing.assert_close(full(x), old(x), rtol=1e-4, atol=1e-5)
    thin = Greenformers(2)._convolution(old, 2, 0)
    want = nn.Sequential(kind(3, 2, 3, stride=2, padding=1, dilation=2, bias=False), kind(2, 8, 1))
    want[0].weight, want[1].weight, want[1].bias = thin.first, thin.second, thin.bias
    torch.testing.assert_close(thin(x), want(x))
    again = LowRankConv(**thin.args)
    again.load_state_dict(thin.state_dict())
    assert torch.equal(again(x), thin(x)) and thin.bias is not old.bias


@pytest.mark.parametrize("solver", ["svd", "snmf", "random"])
@pytest.mark.parametrize("family", ["bert", "gpt2", "llama", "t5", "vit"])
def test_every_family(family: str, solver: str, tmp_path: Path) -> None:
    original = world.bundle(family)
    edited = Recipe([Greenformers(0.5, solver)]).apply(original, None, Run())  # type: ignore[arg-type]
    held = [m for m in edited.model.modules() if isinstance(m, LowRankLinear)]
    assert len(held) == len(linears(anatomy.of(original.model)))
    for path in linears(anatomy.of(original.model)):
        rows, columns = anatomy.linear(original.model, path)[0].shape
        assert anatomy.get(edited.model, path).rank == rows * columns // (rows + columns) // 2
    assert edited.parameters < original.parameters
    write_manifest(edited, tmp_path)
    again = edited.copy()
    again.model = build_from_manifest(tmp_path, edited.model.config)
    assert torch.equal(world.outputs(again), world.outputs(edited))
    assert torch.equal(
        world.outputs(Recipe([Greenformers(0.5, solver)]).apply(original)), world.outputs(edited)
    )  # type: ignore[arg-type]


def test_planted_ranks_are_kept_by_svd_alone() -> None:
    original = world.bundle("vit")
    with torch.no_grad():
        for path in linears(anatomy.of(original.model)):
            weight = anatomy.linear(original.model, path)[0]
            weight.copy_(torch.randn(len(weight), 6) @ torch.randn(6, weight.shape[1]) * 0.05)
    want = world.outputs(original)
    gaps = {}
    for solver in ("svd", "snmf", "random"):
        edited = Recipe([Greenformers(6, solver)]).apply(original)  # type: ignore[arg-type]
        gaps[solver] = float((world.outputs(edited) - want).detach().norm())
    assert gaps["svd"] < 1e-3 < gaps["snmf"] and gaps["svd"] < 1e-3 < gaps["random"]


def test_patch_embeddings(tmp_path: Path) -> None:
    original = world.bundle("vit")  # 3 x 4 x 4 -> 32: pays below 48 * 32 / 80 = 19.2
    edited = Recipe([Greenformers(10, where=(), convolutions=True)]).apply(original)
    thin = [m for m in edited.model.modules() if isinstance(m, LowRankConv)]
    assert len(thin) == 1 and original.parameters - edited.parameters == 48 * 32 - 10 * 80
    write_manifest(edited, tmp_path)
    again = edited.copy()
    again.model = build_from_manifest(tmp_path, edited.model.config)
    assert torch.equal(world.outputs(again), world.outputs(edited))
    same = Recipe([Greenformers(19, where=(), convolutions=True)]).apply(original)
    assert float((world.outputs(same) - world.outputs(original)).detach().norm()) < float(
        (world.outputs(edited) - world.outputs(original)).detach().norm()
    )


def test_layers_that_would_grow_stay_and_nothing_nests() -> None:
    original = world.bundle()  # attention 32 x 32 pays below 16, feed-forward 64 x 32 below 22
    edited = Recipe([Greenformers(18)]).apply(original)
    thin = {n for n, m in edited.model.named_modules() if isinstance(m, LowRankLinear)}
    assert thin == set(linears(anatomy.of(original.model), ["ffn"]))
    twice = Recipe([Greenformers(4)]).apply(edited)
    ranks = {m.rank for m in twice.model.modules() if isinstance(m, LowRankLinear)}
    assert ranks == {18, 4}
    with pytest.raises(ModelError, match="none of the 24 layers"):
        Recipe([Greenformers(22)]).apply(original)
    with pytest.raises(ModelError, match="none of the"):
        Recipe([Greenformers(0.01)]).apply(original)


def test_bad_input_is_refused() -> None:
    for rank in (0, -3, 0.0, 1.0, float("nan")):
        with pytest.raises(UserError, match="rank"):
            Greenformers(rank)
    with pytest.raises(UserError, match="solver"):
        Greenformers(solver="nmf")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="where"):
        Greenformers(where=())
    model = world.model("vit")
    model.vit.embeddings.patch_embeddings.projection = nn.Conv2d(4, 32, 4, 4, groups=2)
    with pytest.raises(ModelError, match="groups"):
        Greenformers(convolutions=True).apply(Bundle(model), None, Run())
