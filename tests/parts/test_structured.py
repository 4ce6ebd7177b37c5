"""Structured linear layers: the dense matrices they are, their starts and counts, guidance, merging."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lightformers.bundle import Batch
from lightformers.errors import ModelError, UserError
from lightformers.parts.ffn.guided import Guided, Premerged
from lightformers.parts.ffn.structured import (
    BlockDenseLinear,
    BlockShuffleLinear,
    Structured,
    StructuredFeedForward,
    dense,
    structured,
)
from lightformers.parts.low_rank import LowRankLinear
from lightformers.train import Feed, Settings, fit
from lightformers.train.guidance import SelfGuided, guide, release, share

LAYERS = {
    "low_rank up": lambda: structured("low_rank", 12, 24, 5),
    "block_dense up": lambda: structured("block_dense", 12, 24, 6, 3),
    "block_dense down": lambda: structured("block_dense", 24, 12, 6, 2, bias=False),
    "block_shuffle up": lambda: structured("block_shuffle", 12, 24, blocks=3),
    "block_shuffle down": lambda: structured("block_shuffle", 24, 12, blocks=4),
    "block_shuffle square": lambda: structured("block_shuffle", 12, 12, blocks=2, bias=False),
}


def written_out(layer: Structured) -> Tensor:
    """The (out, in) matrix with every block and every shuffle as a matrix of its own."""
    if isinstance(layer, LowRankLinear):
        return layer.second @ layer.first
    first = torch.block_diag(*layer.first)
    if isinstance(layer, BlockDenseLinear):
        return layer.second @ first
    b = layer.blocks
    inner, out = len(first), layer.out_features
    between, last = torch.zeros(inner, inner), torch.zeros(out, out)
    for row in range(inner // b):  # place (row, block) goes to (block, row)
        for block in range(b):
            between[block * (inner // b) + row, row * b + block] = 1
    for block in range(b):
        for s in range(out // b):  # and out of the second factor back
            last[s * b + block, block * (out // b) + s] = 1
    return last @ torch.block_diag(*layer.second) @ between @ first


@pytest.mark.parametrize("name", LAYERS)
def test_they_are_the_matrix_written_out(name: str) -> None:
    torch.manual_seed(0)
    layer, x = LAYERS[name](), torch.randn(2, 5, LAYERS[name]().in_features, requires_grad=True)
    if layer.bias is not None:
        nn.init.normal_(layer.bias)
    matrix = written_out(layer)
    torch.testing.assert_close(dense(layer), matrix)
    wanted = nn.functional.linear(x, matrix, layer.bias)
    torch.testing.assert_close(layer(x), wanted)
    along = torch.randn_like(wanted)
    leaves = [x, *layer.parameters()]
    mine, theirs = (torch.autograd.grad((y * along).sum(), leaves) for y in (layer(x), wanted))
    for a, b in zip(mine, theirs):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_every_second_block_sees_every_first_one() -> None:
    assert (dense(structured("block_shuffle", 16, 16, blocks=4)).abs() > 1e-9).all()


def test_starts() -> None:
    torch.manual_seed(0)
    eye = torch.eye(4)
    wide = BlockShuffleLinear(16, 32, 4)
    torch.testing.assert_close(wide.first[1] @ wide.first[1].T, eye)
    torch.testing.assert_close(wide.second[2].T @ wide.second[2], eye)
    low = structured("low_rank", 40, 90, 27)
    values = torch.linalg.svdvals(dense(low))
    torch.testing.assert_close(torch.linalg.svdvals(low.first) ** 2, values[:27], atol=1e-4, rtol=1e-3)
    # the largest 27 of the 40 singular values of a dense matrix of variance 1 / 40, whose squares add up to about 90
    assert 27 / 40 < values.square().sum() / 90 < 1
    assert low.bias is not None and not low.bias.any()


@pytest.mark.parametrize(
    "options, percent",
    [
        ({"form": "low_rank", "rank": 384}, 62.5),
        ({"form": "low_rank"}, 31.25),
        ({"form": "block_shuffle", "blocks": 2}, 62.5),
        ({"form": "block_shuffle"}, 31.25),
        ({"form": "block_dense", "rank": 512, "blocks": 2}, 62.5),
        ({"form": "block_dense"}, 31.25),
    ],
)
def test_shares_of_the_paper(options: dict, percent: float) -> None:  # type: ignore[type-arg]
    with torch.device("meta"):
        layer = StructuredFeedForward(768, bias=False, **options)
    assert sum(p.numel() for p in layer.parameters()) == percent / 100 * 8 * 768**2


def test_a_guide_changes_nothing_at_first_and_nothing_is_left_of_it() -> None:
    torch.manual_seed(0)
    for make in LAYERS.values():
        layer = make()
        x = torch.randn(3, layer.in_features)
        guided, plain = Guided(layer), layer(x)
        torch.testing.assert_close(guided(x), plain, atol=1e-5, rtol=1e-4)
        nn.init.normal_(guided.guide)
        far = nn.functional.linear(x, guided.guide, layer.bias)
        torch.testing.assert_close(guided(x), far)
        guided.share.fill_(0.25)
        torch.testing.assert_close(guided(x), 0.25 * far + 0.75 * plain, atol=1e-5, rtol=1e-4)
        guided.active = False
        assert torch.equal(guided(x), plain)


def test_the_share_falls_by_a_cosine_or_a_line() -> None:
    assert [round(share(s, 4), 4) for s in range(6)] == [1, 0.8536, 0.5, 0.1464, 0, 0]
    assert [share(s, 4, "linear") for s in range(6)] == [1, 0.75, 0.5, 0.25, 0, 0]


def world() -> tuple[nn.Module, Feed, SelfGuided]:
    torch.manual_seed(0)
    model = nn.Sequential(StructuredFeedForward(8, hidden=16, rank=3), nn.LayerNorm(8))
    x = torch.randn(64, 8)

    def pad(items: list[int], seed: int) -> Batch:
        return Batch({"x": x[items]}, {})

    feed = Feed(list(range(64)), pad, np.ones(64), max_examples=16)

    def objective(module: nn.Module, batch: Batch) -> Tensor:
        x = batch.inputs["x"]
        return (module(x) - x.flip(-1).relu()).square().mean()

    return model, feed, SelfGuided(objective, steps=10, calls=2)


def test_guided_training_resumes_and_ends_without_its_guide() -> None:
    model, feed, objective = world()
    twin = copy.deepcopy(model)
    settings = {"steps": 20, "lr": 0.01, "precision": "fp32", "accumulate": 2}
    guide(model)
    whole = fit(model, feed, objective, Settings(**settings))  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="already"):
        guide(model)
    release(model)
    assert not any("guide" in name or "share" in name for name in model.state_dict())
    assert model.state_dict().keys() == twin.state_dict().keys()

    guide(twin)  # half the way with guides, the rest without
    half = fit(twin, feed, objective, Settings(until=0.5, **settings))  # type: ignore[arg-type]
    assert half.state.step == 10 and twin[0].up.share < 0.1
    state = release(twin, half.state)
    rest = fit(twin, feed, objective.objective, Settings(**settings), state=state)  # type: ignore[arg-type]
    assert rest.steps == whole.steps == 20
    for name, p in model.named_parameters():
        torch.testing.assert_close(dict(twin.named_parameters())[name], p, msg=name)
    with pytest.raises(ModelError, match="no layer is guided"):
        release(twin)


def test_the_sparing_form_draws_with_the_share() -> None:
    model, _feed, objective = world()
    guide(model)
    seen = []
    sparing = SelfGuided(
        lambda module, batch: seen.append([module[0].up.active, module[0].down.active]) or torch.zeros(()),  # type: ignore[index]
        steps=400, sparing=True, fade="linear",
    )  # fmt: skip
    for position in range(500):
        sparing(model, Batch({}, {"position": position}))
    drawn = np.array(seen, dtype=float)
    assert not drawn[400:].any() and 0.4 < drawn[:400].mean() < 0.6 and drawn[:100].mean() > 0.8
    assert (drawn[:, 0] != drawn[:, 1]).any()
    with pytest.raises(UserError, match="Feed"):
        objective(model, Batch({}, {}))


def test_guides_help_where_the_factors_learn_slowly() -> None:
    """The paper's trouble, planted: the second factor starts too small; the dense path trains the layers behind it."""
    gains = []
    for seed in range(4):
        torch.manual_seed(seed)
        x = torch.randn(256, 16)
        goal = torch.tanh(x @ torch.randn(16, 16) / 4) @ torch.randn(16, 4)

        def pad(items: list[int], seed: int, x: Tensor = x, goal: Tensor = goal) -> Batch:
            return Batch({"x": x[items]}, {"y": goal[items]})

        def objective(module: nn.Module, batch: Batch) -> Tensor:
            return (module(batch.inputs["x"]) - batch.targets["y"]).square().mean()

        layer = structured("low_rank", 16, 32, 4)
        with torch.no_grad():
            layer.first.mul_(0.01)
            layer.second.mul_(0.01)
        plain = nn.Sequential(layer, nn.GELU(), nn.Linear(32, 4))
        guided = copy.deepcopy(plain)
        settings = Settings(steps=60, lr=0.01, precision="fp32", warmup=0.0)
        lost = []
        for model, guides in ((plain, False), (guided, True)):
            feed = Feed(list(range(256)), pad, np.ones(256), max_examples=64)
            if guides:
                guide(model)
            fit(model, feed, SelfGuided(objective, 30) if guides else objective, settings)
            if guides:
                release(model)
            lost.append(float((model(x) - goal).square().mean().detach()))
        gains.append(lost[0] - lost[1])
    assert sum(g > 0 for g in gains) >= 3


@pytest.mark.parametrize("name", LAYERS)
def test_merged_is_unmerged(name: str) -> None:
    torch.manual_seed(0)
    layer = LAYERS[name]()
    merged = Premerged(layer, most=4).eval()
    for n in (1, 4, 5):
        x = torch.randn(n, layer.in_features)
        torch.testing.assert_close(merged(x), layer(x), atol=1e-5, rtol=1e-4)
    assert "merged" not in merged.state_dict()
    before = merged.merged.clone()
    merged.load_state_dict({k: 2 * v for k, v in merged.state_dict().items()})
    torch.testing.assert_close(merged.merged, 4 * before, atol=1e-5, rtol=1e-4)
    few = torch.randn(1, 1, layer.in_features)
    with torch.no_grad():
        layer.first.zero_()
    assert merged(few).ne(layer(few)).any()  # merged before
    merged.train()
    assert torch.equal(merged(few), layer(few))
    merged.eval()
    torch.testing.assert_close(merged(few), layer(few))


def test_bad_input_is_refused() -> None:
    with pytest.raises(UserError, match="do not divide in_features"):
        structured("block_shuffle", 10, 12, blocks=3)
    with pytest.raises(UserError, match="do not divide rank"):
        structured("block_dense", 12, 12, 5, 2)
    with pytest.raises(UserError, match="not between"):
        structured("low_rank", 8, 16, 9)
    with pytest.raises(UserError, match="not one of"):
        structured("butterfly", 8, 8)  # type: ignore[arg-type]
    with pytest.warns(UserWarning, match="saves nothing"):
        structured("low_rank", 8, 8, 6)
    with pytest.raises(ModelError, match="no structured layer"):
        guide(nn.Linear(2, 2))
    with pytest.raises(UserError, match="at least 1"):
        SelfGuided(lambda m, b: torch.zeros(()), 0)
