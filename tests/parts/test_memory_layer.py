"""Memory layers: the literal sum, gradients, costs, the paper's counts, a linear map learnt from tables."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from lightformers.errors import UserError
from lightformers.parts.ffn.memory_layer import (
    MemoryFeedForward,
    MemoryLayer,
    address,
    operations,
    read,
)


def literal(layer: MemoryLayer, x: Tensor) -> Tensor:
    rows = []
    for row in x:
        y = layer.bias.clone() if layer.bias is not None else torch.zeros(layer.out_features)
        for k, z in enumerate(row.split(layer.bits)):
            code, size, below = 0, 0.0, 1.0
            for i, v in enumerate(z.tolist()):
                code += (v >= 0) * 2 ** (layer.bits - 1 - i)
                size += abs(v)
                below *= 1 + math.exp(-2 * abs(v))
            score = size / below if layer.score == "projected" else 1 / below
            y = y + score * layer.tables[k, code]
        rows.append(y)
    return torch.stack(rows)


@pytest.mark.parametrize("score", ["projected", "corner"])
@pytest.mark.parametrize("bits, width", [(1, 3), (3, 12), (8, 16)])
def test_it_is_the_literal_sum(score: str, bits: int, width: int) -> None:
    torch.manual_seed(0)
    layer = MemoryLayer(width, 5, bits, score).double()  # type: ignore[arg-type]
    x = torch.randn(6, width, dtype=torch.float64)
    x[0] = 0  # zero counts as positive
    torch.testing.assert_close(layer(x), literal(layer, x))
    torch.testing.assert_close(layer(x.view(2, 3, width)), literal(layer, x).view(2, 3, 5))


def test_corners_are_a_softmax_over_all_sign_vectors() -> None:
    z = torch.randn(1, 3, dtype=torch.float64)
    corners = torch.tensor(
        [[2.0 * (c >> i & 1) - 1 for i in (2, 1, 0)] for c in range(8)], dtype=torch.float64
    )
    code, score = address(z, 3, "corner")
    shares = (corners @ z[0]).softmax(0)
    torch.testing.assert_close(score[0, 0], shares[code[0, 0]])
    assert int(code) == int(shares.argmax())


def test_gradients_reach_the_chosen_rows_and_the_input_through_the_score() -> None:
    torch.manual_seed(0)
    layer = MemoryLayer(8, 4, 4).double()
    x = torch.randn(3, 8, dtype=torch.float64, requires_grad=True)
    along = torch.randn(3, 4, dtype=torch.float64)
    (layer(x) * along).sum().backward()
    codes, scores = address(x, 4)
    wanted = torch.zeros_like(layer.tables)
    for n in range(3):
        for k in range(2):
            wanted[k, codes[n, k]] += scores[n, k].detach() * along[n]
    assert layer.tables.grad is not None and x.grad is not None
    torch.testing.assert_close(layer.tables.grad, wanted)
    rows = layer.tables.detach()[torch.arange(2), codes]  # (3, 2, 4), fixed
    (again,) = torch.autograd.grad(((scores[..., None] * rows).sum(1) * along).sum(), x)
    torch.testing.assert_close(x.grad, again)
    torch.autograd.gradcheck(lambda s, t: read(codes, s, t), (scores.detach().requires_grad_(), layer.tables))


def test_the_papers_counts_and_costs() -> None:
    """tiny: width 512, 64 tables of 8 bits for q, k and v, 8 and 10 bits in the feed-forward."""
    with torch.device("meta"):
        projections = [MemoryLayer(512, 512) for _ in range(3)]
        ffn = MemoryFeedForward(512)
    count = sum(p.numel() for part in (*projections, ffn) for p in part.parameters())
    whole = count + 2 * 512  # two RMS norms
    assert (
        whole == 69_211_008 and ffn.first.out_features == 640 and ffn.second.tables.shape == (64, 1024, 512)
    )
    assert 466.7e6 < 6 * whole + 2 * 50304 * 512 + 512 < 466.9e6
    layer = projections[0]
    assert layer.operations == 512 + 64 * 512 and layer.touched == 64 * 512
    assert layer.tables.numel() == 32 * 512 * 512
    assert operations(nn.Sequential(layer, nn.Linear(512, 10))) == layer.operations + 5120


def test_layers_of_one_input_may_share_their_address() -> None:
    q, k, x = MemoryLayer(8, 4, 4), MemoryLayer(8, 6, 4), torch.randn(5, 8)
    found = address(x, 4)
    torch.testing.assert_close(q.read(*found), q(x))
    torch.testing.assert_close(k.read(*found), k(x))


def test_half_precision_keeps_the_score_exact() -> None:
    layer, x = MemoryLayer(16, 8, 8).bfloat16(), torch.randn(4, 16).bfloat16()
    assert address(x, 8)[1].dtype == torch.float32 and layer(x).dtype == torch.bfloat16
    assert torch.isfinite(layer(1e4 * x)).all()


def test_tables_hold_what_no_linear_layer_can() -> None:
    """Planted: the parity of the signs of each four inputs. Codes of four bits see it, shorter ones and products do not."""
    torch.manual_seed(0)
    x = torch.randn(3000, 8, dtype=torch.float64)
    goal = x.sign().unflatten(1, (2, 4)).prod(-1).sum(-1, keepdim=True)

    def unexplained(design: Tensor) -> float:
        best = torch.linalg.lstsq(design[:2000], goal[:2000], driver="gelsd").solution
        return float((design[2000:] @ best - goal[2000:]).square().mean() / goal[2000:].square().mean())

    def looked_up(bits: int) -> Tensor:
        codes, scores = address(x, bits)
        design = torch.zeros(len(x), 8 // bits, 2**bits, dtype=torch.float64)
        return design.scatter_(2, codes[..., None], scores[..., None]).flatten(1)

    assert unexplained(looked_up(4)) < 0.5
    assert min(unexplained(looked_up(1)), unexplained(looked_up(2)), unexplained(x)) > 0.9


def test_bad_input_is_refused() -> None:
    with pytest.raises(UserError, match="do not divide"):
        MemoryLayer(10, 4, 4)
    with pytest.raises(UserError, match="1 to 16"):
        MemoryLayer(34, 4, 17)
    with pytest.raises(UserError, match="floating-point"):
        MemoryLayer(8, 4, 4)(torch.ones(2, 8, dtype=torch.long))
    with pytest.raises(UserError, match="not one of"):
        MemoryLayer(8, 4, 4, "cosine")  # type: ignore[arg-type]
