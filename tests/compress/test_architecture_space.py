"""Spaces of unlike layers: graphs, distances, learned points, weights handed on between neighbours."""

from __future__ import annotations

import pytest
import torch

from lightformers.compress.elastic.architecture_graph import (
    distance,
    embed,
    graph,
    learned_points,
    operations,
    some_pairs,
)
from lightformers.compress.elastic.flexibert import (
    FlexiSpace,
    between,
    homogeneous,
    refined,
    share,
    transfer,
)
from lightformers.errors import ModelError, UserError
from lightformers.models.language.flexibert import FlexiBERT, FlexiBERTConfig, Layer

SMALL = FlexiSpace(
    (2, 3), (16, 32), (2,), {"sa": ("sdp",), "l": ("dct",), "c": (5,)}, (1,), (32, 64), stack=1
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- graphs and points


def sa(width: int = 16, hidden: tuple[int, ...] = (32,)) -> Layer:
    return Layer("sa", "sdp", width, 2, hidden)


def test_the_graph_of_a_layer() -> None:
    made = graph((sa(hidden=(32, 64)),))
    op = "sa_h16_p-sdp"
    assert made.labels == ("input", op, op, "add_norm", "f32", "f64", "add_norm", "output")
    residual = {(0, 3), (3, 6)}
    assert set(made.edges) == {(0, 1), (0, 2), (1, 3), (2, 3), (3, 4), (4, 5), (5, 6), (6, 7)} | residual


def test_distances_cost_what_the_order_says() -> None:
    every = list(SMALL)
    order = operations(every)
    assert order[:6] == ("input", "output", "add_norm", "", "f32", "f64")
    linear, attention, convolution = (next(i for i, x in enumerate(order) if x.startswith(k)) for k in ("l_", "sa_", "c_"))  # fmt: skip
    assert linear < attention < convolution
    one = graph((sa(), sa()))
    assert distance(one, one, order) == 0
    wider = graph((sa(), sa(hidden=(64,))))
    assert distance(one, wider, order) == pytest.approx(1)
    other = graph((sa(), Layer("c", 5, 16, 2, (32,))))
    assert distance(one, other, order) == pytest.approx(
        2 * (order.index("c_h16_p-5") - order.index("sa_h16_p-sdp"))
    )
    assert distance(one, graph((sa(),)), order) > distance(one, wider, order)
    with pytest.raises(UserError, match="lacks f128"):
        distance(one, graph((sa(hidden=(128,)),)), order)


def test_points_keep_planted_distances() -> None:
    planted = torch.randn(24, 3, generator=generator(3))
    pairs = some_pairs(24, 0.6)
    assert {i for pair in pairs for i in pair} == set(range(24)) and all(a < b for a, b in pairs)
    assert len(some_pairs(24, 1.0)) == 24 * 23 // 2 and len(some_pairs(24, 0.01)) >= 23
    wanted = torch.cdist(planted, planted)
    found = embed(pairs, [float(wanted[a, b]) for a, b in pairs], 24, width=8, steps=600, rate=2e-2)
    held = [(a, b) for a, b in some_pairs(24, 1.0) if (a, b) not in set(pairs)]
    rows = torch.tensor(held).unbind(-1)
    seen = torch.corrcoef(torch.stack([wanted[rows], torch.cdist(found, found)[rows]]))[0, 1]
    assert float(seen) > 0.85


def test_alike_architectures_lie_near() -> None:
    library = [(sa(), sa()), (sa(), sa(hidden=(64,))), (Layer("c", 5, 32, 2, (64,)),) * 3]
    points = learned_points(library, 1.0)
    assert points.shape == (3, 16)
    assert float((points[0] - points[1]).norm()) < 0.5 * float((points[0] - points[2]).norm())


# --- the space, and weights handed on


def test_counts_samples_and_finer_levels() -> None:
    assert SMALL.count == 12**2 + 12**3 == len(list(SMALL))
    paper = FlexiSpace()
    assert len(paper.layers()) == 2 * 2 * 6 * 4 and paper.count == 96 + 96**2
    drawn = paper.sample(50, seed=1)
    assert len(set(drawn)) == 50 and drawn == paper.sample(50, seed=1)
    assert all(a[i] == a[i + 1] for a in drawn for i in range(0, len(a), 2))
    a, b, c = (sa(), sa()), (sa(32), Layer("c", 5, 16, 2, (32,))), (sa(),) * 3
    finer = between([a, b, c])
    assert set(finer) == {a, b, c, (a[0], b[1]), (b[0], a[1])} and finer[:3] == [a, b, c]
    assert set(refined([(sa(hidden=(32, 32)),)], (32, 64))) == {(sa(hidden=h),) for h in ((32, 32), (32, 64), (64, 32), (64, 64))}  # fmt: skip
    assert homogeneous(a) and not homogeneous(b)


def model(architecture: tuple[Layer, ...], seed: int) -> FlexiBERT:
    torch.manual_seed(seed)
    return FlexiBERT(FlexiBERTConfig(architecture, words=30, length=12)).eval()


def test_weights_are_handed_on_from_the_bottom() -> None:
    ids = torch.arange(1, 9)[None]
    top = Layer("l", "dct", 16, 2, (32,))
    same, other = model((sa(), sa(), top), 0), model((sa(), sa(), top), 1)
    assert transfer(other, same) == 1.0 == share((sa(), sa(), top), (sa(), sa(), top))
    pooled = other.pooler.weight.clone()  # type: ignore[union-attr]
    assert torch.equal(other(ids).last_hidden_state, same(ids).last_hidden_state)
    assert torch.equal(other.pooler.weight, pooled)  # type: ignore[union-attr]

    changed = (sa(), sa(hidden=(64,)), top)
    last = model(changed, 2)
    part = transfer(last, same)
    assert part == share(changed, (sa(), sa(), top)) and 0.4 < part < 0.9
    assert torch.equal(last.blocks[1].mixer.query.weight, same.blocks[1].mixer.query.weight)
    assert not torch.equal(last.blocks[2].mixer.out.weight, same.blocks[2].mixer.out.weight)

    wide = model((sa(32),), 3)
    assert transfer(wide, same) == 0.0
    assert torch.equal(wide.words.weight[:, :16], same.words.weight)
    with pytest.raises(ModelError, match="equal words"):
        transfer(FlexiBERT(FlexiBERTConfig((sa(),), words=31, length=12)), same)


def test_senseless_spaces_are_refused() -> None:
    with pytest.raises(UserError, match="stacks of 2"):
        FlexiSpace(depths=(3,))
    with pytest.raises(UserError, match="do not divide"):
        FlexiSpace(widths=(130,), heads=(4,)).layers()
