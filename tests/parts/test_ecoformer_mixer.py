"""EcoFormer: kernelized hashing, and attention by codes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lightformers.errors import UserError
from lightformers.parts.attention import hashing
from lightformers.parts.attention.ecoformer import (
    EcoFormerAttention,
    code_operations,
    linear_operations,
    softmax_operations,
    unit,
)
from lightformers.parts.mixers.ecoformer import EcoFormer
from lightformers.parts.mixers.table import MIXERS, make
from mixer_contract import check_masked, inputs
from sequence_cost import growth


def clustered(batch: int = 2, heads: int = 2, n: int = 48, size: int = 8, seed: int = 0) -> Tensor:
    """Unit vectors around six directions."""
    generator = torch.Generator().manual_seed(seed)
    middle = torch.randn(heads, 6, size, generator=generator, dtype=torch.float64)
    which = torch.randint(6, (batch, heads, n), generator=generator)
    points = middle[torch.arange(heads)[:, None], which]
    return unit(points + 0.15 * torch.randn(points.shape, generator=generator, dtype=torch.float64))


def random_codes(n: int, bits: int = 5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(n)
    h = hashing.hard(torch.randn(2, 2, n, bits, generator=generator, dtype=torch.float64))
    return h, torch.randn(2, 2, n, 4, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("n", (1, 63, 65, 1000))
def test_attention_by_the_letter(n: int) -> None:
    h, v = random_codes(n)
    h, v = h.requires_grad_(), v.requires_grad_()
    alike = h @ h.transpose(-1, -2) + 6
    assert alike.min() >= 1  # so every weight is positive
    wanted = alike / alike.sum(-1, keepdim=True) @ v
    found = hashing.code_attention(h, v)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-9)
    grads = [torch.autograd.grad(y.square().sum(), (h, v), retain_graph=True) for y in (found, wanted)]
    for a, b in zip(*grads):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)
    released = (h @ h.transpose(-1, -2) @ v + 6 * v) / alike.sum(-1, keepdim=True)
    torch.testing.assert_close(hashing.code_attention(h, v, value_bias="self"), released, rtol=0, atol=1e-9)


def test_padding_is_in_no_sum() -> None:
    h, v = random_codes(12)
    there = torch.ones(2, 12, dtype=torch.bool)
    there[0, 7:] = False
    found = hashing.code_attention(h, v, there)
    torch.testing.assert_close(
        found[:1, :, :7], hashing.code_attention(h[:1, :, :7], v[:1, :, :7]), rtol=0, atol=1e-12
    )
    u = clustered(n=30)
    made = hashing.fit(u, bits=4, anchors=10, near=5, steps=3)
    there = torch.ones(2, 30, dtype=torch.bool)
    there[1, 20:] = False
    assert torch.equal(hashing.codes(u, made, there)[1, :, :20], hashing.codes(u[1:, :, :20], made)[0])
    assert torch.equal(hashing.codes(u, made)[0], hashing.codes(u[:1], made)[0])  # the width is of one sample


def test_kernel_and_signs_by_the_letter() -> None:
    u = clustered(n=9)
    anchors = u[0, :, :4]
    distance = (u[:, :, :, None] - anchors[:, None]).square().sum(-1)
    wanted = (-distance / (2 * distance.mean((2, 3), keepdim=True))).exp()
    torch.testing.assert_close(hashing.kernel(u, anchors), wanted, rtol=0, atol=1e-9)
    x = torch.tensor([-2.0, -0.5, 0.0, 0.5, 2.0], requires_grad=True)
    y = hashing.signs(x)
    y.sum().backward()
    assert y.tolist() == [-1, -1, 1, 1, 1] and x.grad is not None and x.grad.tolist() == [0, 1, 1, 1, 0]


def test_learning_by_the_letter() -> None:
    """Bit after bit by autograd, and the matrix of labels written out; the second sample ends in padding."""
    u, near, bits, lr = clustered(n=24), 5, 4, 0.3
    there = torch.ones(2, 24, dtype=torch.bool)
    there[1, 20:] = False
    made = hashing.fit(u, there, bits=bits, anchors=7, near=near, steps=5, lr=lr, seed=3)
    generator = torch.Generator().manual_seed(3)
    assert torch.equal(made.anchors, u[0, :, torch.randperm(24, generator=generator)[:7]])
    reach = hashing.kernel(u, made.anchors, there)
    mean = torch.cat([reach[0], reach[1, :, :20]], 1).mean(1)
    torch.testing.assert_close(made.mean, mean, rtol=0, atol=1e-9)
    tokens = (24, 20)
    matrices = []
    for b, n in enumerate(tokens):
        alike = u[b, :, :n] @ u[b, :, :n].transpose(-1, -2)
        one = torch.zeros_like(alike)
        one.scatter_(-1, alike.topk(near).indices, 1.0)
        one.scatter_(-1, alike.topk(near, largest=False).indices, -1.0)
        matrices.append(bits * one)

    def loss(planes: Tensor, bit: Callable[[Tensor], Tensor]) -> Tensor:
        """Per head, mean over samples."""
        parts = []
        for b, n in enumerate(tokens):
            y = bit((reach - mean[:, None])[b, :, :n] @ planes[..., None])
            parts.append(-(y.transpose(-1, -2) @ matrices[b] @ y)[:, 0, 0] / (n * bits))
        return torch.stack(parts).mean(0)

    for r in range(bits):
        start = torch.randn(2, 7, generator=generator, dtype=torch.float64)
        plane = nn.Parameter(start.clone())
        optimizer = torch.optim.SGD([plane], lr=lr, momentum=0.9, nesterov=True)
        for _ in range(5):
            optimizer.zero_grad()
            loss(plane, lambda x: 2 * x.sigmoid() - 1).mean().backward()
            optimizer.step()
        with torch.no_grad():
            better = loss(plane, hashing.hard) < loss(start, hashing.hard)
            kept = torch.where(better[:, None], plane, start)
            torch.testing.assert_close(made.planes[:, r], kept, rtol=0, atol=1e-9)
            for b, n in enumerate(tokens):
                y = hashing.hard((reach - mean[:, None])[b, :, :n] @ kept[..., None])
                matrices[b] = matrices[b] - y @ y.transpose(-1, -2)


def test_long_samples_teach_by_some_of_their_tokens() -> None:
    u = clustered(1, n=700)
    made = hashing.fit(u, bits=2, anchors=5, near=4, steps=1)
    assert made.planes.shape == (2, 2, 5) and torch.isfinite(made.planes).all()


def correlation(u: Tensor, made: hashing.Hash) -> float:
    """Of ranks: how alike codes are, and how alike tokens are."""
    h = hashing.codes(u, made)
    pairs = torch.stack([(h @ h.transpose(-1, -2)).flatten(), (u @ u.transpose(-1, -2)).flatten()])
    return float(torch.corrcoef(pairs.argsort(-1).argsort(-1).double())[0, 1])


def test_learned_codes_tell_neighbours_better_than_random_ones() -> None:
    """Six clusters: learned planes follow them more closely, on tokens that were not seen."""
    gains = []
    for seed in range(3):
        u = clustered(4, seed=seed)
        learned, random = (hashing.fit(u[:2], bits=8, anchors=12, near=6, steps=s, seed=seed, lr=0.05) for s in (40, 0))  # fmt: skip
        assert torch.equal(learned.anchors, random.anchors) and not torch.equal(learned.planes, random.planes)
        gains.append(correlation(u[2:], learned) - correlation(u[2:], random))
    assert sum(gains) > 0 and max(gains) > 0.02


def test_moves_that_do_not_pay_are_not_kept() -> None:
    u = clustered()
    random = hashing.fit(u, bits=4, anchors=12, near=6, steps=0)
    wild = hashing.fit(u, bits=4, anchors=12, near=6, steps=2, lr=1e-12)  # signs cannot change
    torch.testing.assert_close(wild.planes, random.planes)


def ready(**options: int) -> EcoFormer:
    torch.manual_seed(0)
    mixer = EcoFormer(12, 2, **{"bits": 6, "anchors": 7, "near": 4, "steps": 5} | options).double()
    mixer.train()(inputs(12, 16))
    return mixer.eval()


def test_contract_of_the_mixer() -> None:
    mixer = ready()
    check_masked(mixer, 12)
    x, junk = inputs(12, 9), inputs(12, 3, seed=1)
    mask = torch.tensor([[0] * 3 + [1] * 9] * 2)
    torch.testing.assert_close(mixer(torch.cat([junk, x], 1), mask)[:, 3:], mixer(x), rtol=0, atol=1e-9)


def test_an_unlearned_hash_is_refused_and_a_learned_one_is_saved() -> None:
    fresh = EcoFormer(12, 2, bits=6, anchors=7, near=4, steps=5).double().eval()
    x = inputs(12, 16)
    with pytest.raises(UserError, match="has not been learned"):
        fresh(x)
    mixer = ready()
    fresh.load_state_dict(mixer.state_dict())
    assert torch.equal(fresh(x), mixer(x))
    kept = mixer.core.planes.clone()
    mixer.train()(inputs(12, 16, seed=5))
    assert torch.equal(mixer.core.planes, kept)  # learned once
    assert {n for n, _ in mixer.named_parameters()} == {f"{a}.{b}" for a in ("query_key", "value", "out") for b in ("weight", "bias")}  # fmt: skip


def test_autocast_does_not_touch_sums() -> None:
    mixer = ready().float()
    x = inputs(12, 40).float()
    with torch.autocast("cpu", torch.bfloat16):
        low = mixer(x)
    assert (low - mixer(x)).abs().max() < 0.1


def test_operations() -> None:
    """PVTv2's claim in small: additions stay, multiplications go."""
    plain, eco = softmax_operations(196, 2, 32), code_operations(196, 2, 32)
    assert plain.multiplications == plain.additions == 2 * 196**2 * 64
    assert eco.multiplications == 196 * 2 * 25 * (32 + 16) and eco.picojoules < 0.3 * plain.picojoules
    assert code_operations(392, 2, 32).picojoules == 2 * eco.picojoules  # linear in the length
    assert linear_operations(196, 2, 32, 16).multiplications > 0
    assert abs(plain.picojoules - 4.6 * plain.additions) < 1e-3 * plain.picojoules


def test_memory_is_linear_in_length() -> None:
    core = EcoFormerAttention(2, 8, bits=6, anchors=7, near=4, steps=2)
    core.fit(torch.randn(1, 2, 64, 8))

    def run(n: int) -> Callable[[], Tensor]:
        q, v = (torch.randn(1, 2, n, 8, requires_grad=True) for _ in range(2))
        return lambda: core(q, None, v)

    assert growth(run, 2048, 8192) < 1.1


def test_rows_of_the_table_and_bad_settings() -> None:
    mixer: nn.Module = make(MIXERS, "ecoformer", 64, layer=3, layers=4, heads=4)
    assert sum(p.numel() for p in mixer.parameters()) == 3 * (
        64**2 + 64
    )  # one projection less than softmax attention
    for wrong in ({"bits": 0}, {"anchors": 0}, {"value_bias": "none"}, {"heads": 5}):
        with pytest.raises(UserError):
            EcoFormer(16, **wrong)
    few = EcoFormer(8, 2)
    with pytest.raises(UserError, match="25 anchors"):
        few(torch.randn(1, 20, 8))
    with pytest.raises(UserError, match="no sample has 60 tokens"):
        EcoFormer(8, 2, near=30)(torch.randn(1, 40, 8))
