"""What every sequence mixer owes (`lightformers.parts.mixers`); a mixer's own test calls what applies to it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightformers.parts.mixers import State

Maker = type[nn.Module]
LENGTHS = (1, 2, 3, 17, 65)


def inputs(width: int, n: int, batch: int = 2, seed: int = 0) -> Tensor:
    return torch.randn(batch, n, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def check_causal(mixer: nn.Module, width: int, tolerance: float = 1e-9) -> None:
    """All of the contract of a causal mixer, in float64 (so call it with a mixer made in any dtype)."""
    mixer = mixer.double().eval()
    for n in LENGTHS:
        x = inputs(width, n)
        whole = mixer(x)
        assert whole.shape == x.shape and torch.isfinite(whole).all()
        _same(stepwise(mixer, x)[0], whole, tolerance, f"step by step, length {n}")
        if n > 1:
            _same(split(mixer, x, n // 2), whole, tolerance, f"continued after {n // 2} of {n}")
    _future(mixer, width, tolerance)
    _padding(mixer, width, tolerance)
    _documents(mixer, width, tolerance)
    _extended_padding(mixer, width, tolerance)
    check_gradients(mixer, width)


def check_masked(mixer: nn.Module, width: int, n: int = 16, tolerance: float = 1e-9) -> None:
    """The contract of a mixer that looks both ways: padding on either side changes nothing, every parameter learns."""
    mixer = mixer.double().eval()
    x = inputs(width, n)
    whole = mixer(x)
    assert whole.shape == x.shape and torch.isfinite(whole).all()
    junk = 7 * inputs(width, 5, seed=1)
    ones, nothing = torch.ones(2, n, dtype=torch.long), torch.zeros(2, 5, dtype=torch.long)
    _same(
        mixer(torch.cat([x, junk], 1), torch.cat([ones, nothing], 1))[:, :n],
        whole,
        tolerance,
        "padded on the right",
    )
    _same(mixer(x, ones), whole, tolerance, "a mask of ones")
    check_gradients(mixer, width, n)


def check_gradients(mixer: nn.Module, width: int, n: int = 17) -> None:
    x = inputs(width, n).to(next(mixer.parameters()).dtype).requires_grad_()
    mixer(x).square().sum().backward()
    assert x.grad is not None and torch.isfinite(x.grad).all()
    for name, p in mixer.named_parameters():
        assert p.grad is not None and torch.isfinite(p.grad).all() and p.grad.abs().sum() > 0, name
    mixer.zero_grad()


def stepwise(mixer: nn.Module, x: Tensor) -> tuple[Tensor, State]:
    state, out = mixer.begin(len(x), x.device, x.dtype), []
    for t in range(x.shape[1]):
        y, state = mixer.step(x[:, t], state)
        out.append(y)
    assert all(len(held) == len(x) for held in state.values()), (
        "the batch is the first dimension of every state"
    )
    return torch.stack(out, 1), state


def split(mixer: nn.Module, x: Tensor, at: int) -> Tensor:
    first, state = mixer.extend(x[:, :at], mixer.begin(len(x), x.device, x.dtype))
    kept = {name: held.clone() for name, held in state.items()}
    second, _ = mixer.extend(x[:, at:], state)
    assert all(torch.equal(kept[name], state[name]) for name in kept), "extend changed the state that came"
    return torch.cat([first, second], 1)


def _future(mixer: nn.Module, width: int, tolerance: float) -> None:
    x, other = inputs(width, 23), inputs(width, 23, seed=1)
    other[:, :11] = x[:, :11]
    _same(mixer(other)[:, :11], mixer(x)[:, :11], tolerance, "a later token reached an earlier one")
    assert (mixer(other)[:, 11:] - mixer(x)[:, 11:]).abs().max() > 1e-6


def _padding(mixer: nn.Module, width: int, tolerance: float) -> None:
    x, junk = inputs(width, 13), 7 * inputs(width, 6, seed=1)
    ones, nothing = torch.ones(2, 13, dtype=torch.long), torch.zeros(2, 6, dtype=torch.long)
    alone = mixer(x)
    left = mixer(torch.cat([junk, x], 1), torch.cat([nothing, ones], 1))[:, 6:]
    _same(left, alone, tolerance, "padded on the left")
    right = mixer(torch.cat([x, junk], 1), torch.cat([ones, nothing], 1))[:, :13]
    _same(right, alone, tolerance, "padded on the right")


def _documents(mixer: nn.Module, width: int, tolerance: float) -> None:
    a, b, c = inputs(width, 9), inputs(width, 1, seed=1), inputs(width, 12, seed=2)
    mask = torch.tensor([[1] * 9 + [2] + [3] * 12 + [0] * 2] * 2)
    packed = mixer(torch.cat([a, b, c, a[:, :2]], 1), mask)
    alone = torch.cat([mixer(a), mixer(b), mixer(c)], 1)
    _same(packed[:, :22], alone, tolerance, "documents packed in one row")


def _extended_padding(mixer: nn.Module, width: int, tolerance: float) -> None:
    """A prompt padded on the left, then tokens, of which one row's are padding: as each row alone."""
    x, more = inputs(width, 12), inputs(width, 4, seed=3)
    mask = torch.ones(2, 12, dtype=torch.long)
    mask[1, :5] = 0
    then = torch.ones(2, 4, dtype=torch.long)
    then[0, 2:] = 0
    first, state = mixer.extend(x, mixer.begin(2, x.device, x.dtype), mask)
    second, state = mixer.extend(more, state, then)
    last, _ = mixer.step(more[:, 0], state)
    rows = [
        torch.cat([x[:1], more[:1, :2], more[:1, :1]], 1),
        torch.cat([x[1:, 5:], more[1:], more[1:, :1]], 1),
    ]
    found = [
        torch.cat([first[:1], second[:1, :2], last[:1, None]], 1),
        torch.cat([first[1:, 5:], second[1:], last[1:, None]], 1),
    ]
    for row, got in zip(rows, found, strict=True):
        _same(got, mixer(row), tolerance, "ragged prompts continued")


def _same(found: Tensor, wanted: Tensor, tolerance: float, what: str) -> None:
    worst = (found - wanted).abs().max().item()
    assert worst <= tolerance * (1 + wanted.abs().max().item()), f"{what}: differs by {worst:.2e}"
