"""Mamba-2's scan: chunked matrix products against the equation, in outputs and gradients."""

from __future__ import annotations

import pytest
import torch
from scan_world import LENGTHS, PRECISIONS, results, same
from torch import Tensor

from lightformers.errors import UserError
from lightformers.kernels import ssd as kernel
from lightformers.kernels.ssd import reference, ssd


def world(n: int, heads: int = 4, groups: int = 2, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(n)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=dtype)

    return {
        "x": drawn(2, n, heads, 3),
        "log_decay": -torch.exp(drawn(2, n, heads) - 2),
        "b": drawn(2, n, groups, 5),
        "c": drawn(2, n, groups, 5),
        "step": torch.nn.functional.softplus(drawn(2, n, heads)),
        "initial": drawn(2, heads, 5, 3),
    }


def resets(n: int) -> Tensor:
    return torch.rand(2, n, generator=torch.Generator().manual_seed(n)) < 0.1


@pytest.mark.parametrize("n", LENGTHS)
@pytest.mark.parametrize("dtype, tolerance", PRECISIONS)
def test_equals_the_equation(n: int, dtype: torch.dtype, tolerance: float) -> None:
    inputs = world(n, dtype=dtype)
    same(results(ssd, inputs), results(reference, inputs), tolerance)


@pytest.mark.parametrize("chunk", [1, 7, 16, 64, 1000])
@pytest.mark.parametrize("block", [1, 10**9])
def test_any_chunk_documents_and_no_first_state(
    chunk: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel, "BLOCK", block)
    inputs = world(100)
    found = results(ssd, inputs, chunk=chunk, resets=resets(100))
    same(found, results(reference, inputs, resets=resets(100)), 1e-9)
    del inputs["initial"]
    same(results(ssd, inputs, chunk=chunk), results(reference, inputs), 1e-9)
    del inputs["step"]
    same(results(ssd, inputs, chunk=chunk), results(reference, inputs), 1e-9)


@pytest.mark.parametrize("groups", [1, 4])
def test_groups(groups: int) -> None:
    inputs = world(40, 4, groups)
    same(results(ssd, inputs, chunk=16), results(reference, inputs), 1e-9)


def test_decays_that_underflow_stay_finite() -> None:
    inputs = world(200, dtype=torch.float32)
    inputs["log_decay"] = inputs["log_decay"] * 1000
    found = results(ssd, inputs)
    assert all(torch.isfinite(x).all() for x in found.values())
    same(found, results(reference, inputs), 1e-4)


def test_without_decay_it_is_linear_attention() -> None:
    """With d = 0, y is the causal sum of (C_i' B_j) x_j."""
    inputs = world(50, 2, 2)
    y, _ = ssd(inputs["x"], torch.zeros(2, 50, 2, dtype=torch.float64), inputs["b"], inputs["c"])
    scores = torch.einsum("bihn,bjhn->bhij", inputs["c"], inputs["b"]).tril()
    assert torch.allclose(y, torch.einsum("bhij,bjhp->bihp", scores, inputs["x"]))


def test_in_float32_under_autocast() -> None:
    inputs = world(70, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        found = results(ssd, inputs)
    same(found, results(reference, inputs), 1e-4)


def test_what_does_not_fit_is_refused() -> None:
    inputs = world(10)
    for name in ("log_decay", "step", "b", "initial"):
        with pytest.raises(UserError):
            ssd(**{**inputs, name: inputs[name][:1]})
    with pytest.raises(UserError, match="chunk"):
        ssd(**inputs, chunk=0)
    three = {**inputs, "b": inputs["b"][:, :, [0, 0, 0]], "c": inputs["c"][:, :, [0, 0, 0]]}
    with pytest.raises(UserError, match="divide 4"):
        ssd(**three)
