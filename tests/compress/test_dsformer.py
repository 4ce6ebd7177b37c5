"""DSFormer: bits, dictionary learning, the straight-through layer, the step."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import pytest
import steps_world as world
import torch
from torch import Tensor, nn

from lightformers import anatomy
from lightformers.bundle import Bundle
from lightformers.compress import DenseSparse
from lightformers.compress.factorize import dictionary
from lightformers.compress.factorize.dictionary import (
    Factors,
    factorize,
    pursue,
    refit,
    split,
    unlike,
)
from lightformers.compress.factorize.dsformer import StraightThroughLinear
from lightformers.compress.factorize.low_rank import factors as thin
from lightformers.compress.layers import linears
from lightformers.errors import ModelError, UserError
from lightformers.manifest import WEIGHTS, build_from_manifest, write_manifest
from lightformers.parts.dense_sparse import DenseSparseLinear, pack_bits, stored_bits, unpack_bits
from lightformers.steps import Recipe, Run

sys.path.insert(0, str(Path(__file__).parent / "distill"))
import distill_models


def planted(
    rows: int = 64, columns: int = 32, block: int = 16, atoms: int = 12, nonzeros: int = 2, seed: int = 0
) -> Tensor:
    """Every row of a block is a mixture of a few of many atoms: no low rank says it."""
    random = torch.Generator().manual_seed(seed)
    count = columns // block
    basis = torch.randn(count, atoms, block, generator=random)
    index = torch.rand(count, rows, atoms, generator=random).topk(nonzeros).indices
    values = torch.randn(count, rows, nonzeros, generator=random)
    values = values.sign() * (values.abs() + 0.5)
    return Factors(basis, index, values).dense(columns)


def error(weight: Tensor, found: Factors) -> float:
    return float((found.dense(weight.shape[1]) - weight).norm() / weight.norm())


@pytest.mark.parametrize("bits", [0, 1, 3, 6, 8, 11])
@pytest.mark.parametrize("count", [1, 7, 16])
def test_bits(bits: int, count: int) -> None:
    numbers = torch.randint(2**bits, (count,), generator=torch.Generator().manual_seed(0))
    packed = pack_bits(numbers, bits)
    assert packed.dtype == torch.uint8 and len(packed) == -(-count * bits // 8)
    assert torch.equal(unpack_bits(packed, bits, count), numbers)


def test_storage_of_the_card() -> None:
    assert stored_bits(768, 64, 64, 64, 16) == 32 * (4096 + 12288 + 2304)
    assert 49152 / (stored_bits(768, 64, 64, 64, 16) / 32) == pytest.approx(2.63, abs=0.005)
    assert DenseSparse(2.63, block=64, atoms=64).count(768, 64) == 16
    assert DenseSparse(2.64, block=64, atoms=64).count(768, 64) == 15
    # a ragged block counts whole
    assert stored_bits(8, 5, 4, 2, 1) == stored_bits(8, 8, 4, 2, 1)


def test_the_layer_is_the_literal_sum() -> None:
    torch.manual_seed(0)
    atoms, index = torch.randn(3, 5, 4), torch.rand(3, 6, 5).topk(2).indices
    values, bias, x = torch.randn(3, 6, 2), torch.randn(6), torch.randn(2, 7, 10)
    layer = DenseSparseLinear.from_factors(atoms, index, values, bias, 10)
    weight = torch.zeros(6, 12)
    for t, o, s in itertools.product(range(3), range(6), range(2)):
        weight[o, 4 * t : 4 * t + 4] += values[t, o, s] * atoms[t, index[t, o, s]]
    torch.testing.assert_close(layer(x), nn.functional.linear(x, weight[:, :10], bias))
    order = torch.tensor([3, 1, 4, 0, 2])
    place = order.argsort()
    other = DenseSparseLinear.from_factors(atoms[:, order], place[index], values, bias, 10)
    torch.testing.assert_close(other(x), layer(x))
    again = DenseSparseLinear(**layer.args)
    assert not torch.equal(again(x), layer(x))  # unpacks, and must notice what is loaded next
    again.load_state_dict(layer.state_dict())
    assert torch.equal(again(x), layer(x))
    again.load_state_dict(layer.state_dict(), assign=True)
    layer(x).square().sum().backward()
    assert layer.atoms.grad is not None and layer.values.grad is not None
    held = 8 * sum(t.numel() * t.element_size() for n, t in layer.state_dict().items() if n != "bias")
    assert 0 <= held - stored_bits(6, 10, 4, 5, 2) < 8


def test_full_codes_are_the_matrix() -> None:
    torch.manual_seed(0)
    weight = torch.randn(20, 10)
    for atoms, nonzeros in ((4, 4), (7, 7)):
        assert error(weight, factorize(weight, 4, atoms, nonzeros, 3)) < 1e-3
    zeros = factorize(torch.zeros(6, 8), 4, 3, 2)
    assert float(zeros.dense(8).abs().max()) == 0 and torch.isfinite(zeros.atoms).all()


def test_codes_of_orthonormal_atoms_are_the_best() -> None:
    torch.manual_seed(0)
    atoms = torch.linalg.qr(torch.randn(1, 5, 5))[0]
    targets = torch.randn(1, 9, 5)
    start = Factors(atoms, torch.tensor([0, 1]).expand(1, 9, 2), torch.zeros(1, 9, 2))
    found = pursue(targets, start)
    for row in range(9):
        gaps = {}
        for support in itertools.combinations(range(5), 2):
            basis = atoms[0, list(support)]
            gaps[support] = float((targets[0, row] @ basis.T @ basis - targets[0, row]).norm())
        assert tuple(found.support[0, row].tolist()) == min(gaps, key=gaps.__getitem__)
        got = found.values[0, row] @ atoms[0, found.support[0, row]]
        assert float((got - targets[0, row]).norm()) == pytest.approx(min(gaps.values()), abs=1e-4)


def test_pursuit_is_the_literal_algorithm() -> None:
    torch.manual_seed(0)
    atoms, targets = nn.functional.normalize(torch.randn(1, 6, 4), dim=-1), torch.randn(1, 8, 4)
    found = pursue(targets, Factors(atoms, torch.tensor([4, 5]).expand(1, 8, 2), torch.zeros(1, 8, 2)))
    for row in range(8):
        target, support, rest = targets[0, row], [], targets[0, row]
        for _ in range(2):
            likeness = [abs(float(rest @ a)) if i not in support else -1 for i, a in enumerate(atoms[0])]
            support.append(likeness.index(max(likeness)))
            values = torch.linalg.lstsq(atoms[0, support].T, target[:, None]).solution[:, 0]
            rest = target - values @ atoms[0, support]
        old = torch.linalg.lstsq(atoms[0, [4, 5]].T, target[:, None]).solution[:, 0] @ atoms[0, [4, 5]]
        want = sorted(support) if float(rest.norm()) < float((target - old).norm()) else [4, 5]
        assert found.support[0, row].tolist() == want
    rows = unlike(torch.tensor([[[3.0, 0.0], [2.9, 0.1], [0.0, 1.0], [0.0, 0.5]]]), 2)
    torch.testing.assert_close(rows, torch.eye(2)[None])


def test_errors_never_grow_and_end_below_truncation() -> None:
    torch.manual_seed(0)
    weight = torch.randn(40, 24)
    errors = [error(weight, factorize(weight, 12, 12, 3, n)) for n in (0, 1, 2, 5, 10)]
    assert all(b <= a + 1e-6 for a, b in itertools.pairwise(errors)) and errors[-1] < errors[0] - 0.01
    truncated = [b @ a for a, b in (thin(part, 3) for part in split(weight, 12))]
    assert errors[-1] < float((torch.cat(truncated, 1) - weight).norm() / weight.norm())
    found, targets = factorize(weight, 12, 12, 3, 0), split(weight, 12)
    for _ in range(3):
        for improve in (pursue, refit):
            before = error(weight, found)
            found = improve(targets, found)
            assert error(weight, found) <= before + 1e-6


def test_unused_atoms_are_put_to_use() -> None:
    weight = planted(nonzeros=1)
    targets = split(weight, 16)
    found = Factors(torch.randn(2, 12, 16), torch.zeros(2, 64, 1, dtype=torch.long), torch.ones(2, 64, 1))
    for _ in range(15):
        found = pursue(targets, refit(targets, found))
    assert len(found.support.unique()) > 6


def test_planted_atoms_beat_low_rank_at_equal_bytes() -> None:
    weight = planted()
    bits = stored_bits(64, 32, 16, 12, 2)
    rank = bits // 32 // (64 + 32)
    first, second = thin(weight, rank)
    low_rank = float((second @ first - weight).norm() / weight.norm())
    assert (
        bits < 0.4 * 32 * weight.numel() and error(weight, factorize(weight, 16, 12, 2, 40)) < 0.5 * low_rank
    )
    one, two = factorize(weight, 16, 12, 2), factorize(weight, 16, 12, 2)
    assert all(torch.equal(a, b) for a, b in zip(one, two))


def test_the_gradient_goes_straight_through() -> None:
    torch.manual_seed(0)
    weight, bias, x = torch.randn(8, 6), torch.randn(8), torch.randn(5, 6)
    layer = StraightThroughLinear(weight, bias, factorize(weight, 3, 3, 1))
    plain = nn.functional.linear(x, factorize(weight, 3, 3, 1).dense(6), bias)
    torch.testing.assert_close(layer(x), plain)
    layer(x).square().sum().backward()
    dense = factorize(weight, 3, 3, 1).dense(6).requires_grad_()
    nn.functional.linear(x, dense, bias).square().sum().backward()
    torch.testing.assert_close(layer.weight.grad, dense.grad)
    before = layer.matrix().clone()
    torch.optim.AdamW(layer.parameters(), lr=0.5).step()
    assert layer.changes == 0
    after = layer(x)
    assert layer.changes == 1 and not torch.equal(layer.matrix(), before) and layer.changes == 1
    assert not any(t.requires_grad for t in layer.factors) and after.requires_grad
    assert set(layer.state_dict()) == {"weight", "bias"} and 0 < layer.drift() < 1


def test_straight_through_finds_the_supports_that_fixed_ones_lack() -> None:
    """The task wants rows that mix other atoms than the weights did that training begins with."""
    goal, start, random = planted(seed=0), planted(seed=1), torch.Generator().manual_seed(1)
    found = factorize(start, 16, 12, 2, 20)
    x = torch.randn(400, 32, generator=random)
    lost = {}
    for name, layer, lr in (
        ("straight-through", StraightThroughLinear(start, None, found), 0.05),
        ("fixed", DenseSparseLinear.from_factors(*found, None, 32), 0.05),
    ):
        optimizer = torch.optim.Adam(layer.parameters(), lr=lr)
        for _ in range(200):
            optimizer.zero_grad()
            (layer(x) - x @ goal.T).square().mean().backward()
            optimizer.step()
        with torch.no_grad():
            lost[name] = float((layer(x) - x @ goal.T).square().mean() / (x @ goal.T).square().mean())
    assert lost["straight-through"] < 0.8 * lost["fixed"]


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama", "t5", "vit"])
def test_every_family_is_stored_packed(family: str, tmp_path: Path) -> None:
    original = world.bundle(family)
    step = DenseSparse(1.4, block=16, atoms=8, method="once")
    edited = Recipe([step]).apply(original, None, Run())
    held = {n: m for n, m in edited.model.named_modules() if isinstance(m, DenseSparseLinear)}
    assert held and set(held) <= set(linears(anatomy.of(original.model)))
    saved = [original.copy(), edited]
    for place, one in enumerate(saved):
        (tmp_path / str(place)).mkdir()
        write_manifest(one, tmp_path / str(place))
    dense = sum(4 * anatomy.linear(original.model, p)[0].numel() for p in held)
    sizes = [(tmp_path / str(place) / WEIGHTS).stat().st_size for place in (0, 1)]
    assert sizes[0] - sizes[1] > dense * (1 - 1 / 1.4) - 200 * len(held)
    again = edited.copy()
    again.model = build_from_manifest(tmp_path / "1", edited.model.config)
    assert torch.equal(world.outputs(again), world.outputs(edited))


def test_layers_that_would_grow_stay() -> None:
    original = world.bundle("llama")  # keys and values have 16 rows only
    edited = Recipe([DenseSparse(1.2, block=16, atoms=16, method="once")]).apply(original)
    kept = [
        p for p in linears(anatomy.of(original.model)) if isinstance(anatomy.get(edited.model, p), nn.Linear)
    ]
    assert kept and all(p.endswith(("k_proj", "v_proj")) for p in kept)


@pytest.mark.parametrize("method", ["straight-through", "fixed"])
def test_training_brings_outputs_back(method: str) -> None:
    teacher = distill_models.bundle("embedding")
    task = distill_models.World("embedding", 64)
    fields = {"ratio": 1.8, "block": 16, "atoms": 8, "lr": 2e-3, "iterations": 3}
    batch = teacher.collate(distill_models.World("embedding", 24, seed=9).training_examples(False))

    def gap(other: Bundle) -> float:
        with torch.no_grad():
            a, b = (m.module()(**batch.inputs)["embedding"] for m in (teacher, other))
        return float((1 - nn.functional.cosine_similarity(a, b)).mean())

    once = Recipe([DenseSparse(**fields, method="once")]).apply(teacher, task, Run())  # type: ignore[arg-type]
    run = Run(dtype="fp32", tokens=6000)
    trained = Recipe([DenseSparse(**fields, method=method)]).apply(teacher, task, run)  # type: ignore[arg-type]
    assert gap(trained) < 0.8 * gap(once)
    assert any(isinstance(m, DenseSparseLinear) for m in trained.model.modules())
    assert not any(isinstance(m, StraightThroughLinear) for m in trained.model.modules())
    assert trained.parameters == once.parameters


def test_bad_input_is_refused_untouched() -> None:
    for fields, word in (
        ({"ratio": 1.0}, "ratio"), ({"nonzeros": 65}, "coefficients"), ({"nonzeros": 0}, "coefficients"),
        ({"block": 0}, "block"), ({"method": "never"}, "method"), ({"where": ()}, "where"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=word):
            DenseSparse(**fields)  # type: ignore[arg-type]
    bundle = world.bundle()
    before = {k: v.clone() for k, v in bundle.model.state_dict().items()}
    with pytest.raises(ModelError, match="none of the 24 matrices"):
        DenseSparse(method="once").apply(bundle, None, Run())  # 64 atoms for matrices of 32 rows
    with pytest.raises(UserError, match="task"):
        DenseSparse(1.4, block=16, atoms=8).apply(bundle, None, Run())
    with pytest.raises(ModelError, match="teacher"):
        DenseSparse(1.4, block=16, atoms=8).apply(bundle, world.task(), Run())
    assert all(torch.equal(v, before[k]) for k, v in bundle.model.state_dict().items())
    with pytest.raises(ValueError, match="atoms"):
        DenseSparseLinear(8, 8, 4, 2, 3)
    assert dictionary.best(torch.tensor([[1.0, -1.0, 1.0]]), 2).tolist() == [[0, 1]]
