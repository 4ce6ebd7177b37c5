"""Mamba's scan: chunked with recomputation against the equation, in outputs and gradients."""

from __future__ import annotations

import pytest
import torch
from scan_world import LENGTHS, PRECISIONS, results, same
from torch import Tensor

from lightformers.errors import UserError
from lightformers.kernels import selective_scan as kernel
from lightformers.kernels.selective_scan import reference, selective_scan


def world(n: int, width: int = 6, state: int = 3, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(n)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=dtype)

    return {
        "u": drawn(2, n, width),
        "delta": torch.nn.functional.softplus(drawn(2, n, width) - 2),
        "a": -torch.exp(drawn(width, state)),
        "b": drawn(2, n, state),
        "c": drawn(2, n, state),
        "initial": drawn(2, state, width),
    }


def resets(n: int) -> Tensor:
    return torch.rand(2, n, generator=torch.Generator().manual_seed(n)) < 0.1


@pytest.mark.parametrize("n", LENGTHS)
@pytest.mark.parametrize("dtype, tolerance", PRECISIONS)
def test_equals_the_equation(n: int, dtype: torch.dtype, tolerance: float) -> None:
    inputs = world(n, dtype=dtype)
    same(results(selective_scan, inputs), results(reference, inputs), tolerance)


@pytest.mark.parametrize("size", [1, 1000, 10**9])
def test_chunks_documents_and_no_first_state(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of 16 tokens, of 27 that do not divide the length, and one."""
    monkeypatch.setattr(kernel, "CHUNK", size)
    inputs = world(100)
    same(
        results(selective_scan, inputs, resets=resets(100)),
        results(reference, inputs, resets=resets(100)),
        1e-9,
    )
    del inputs["initial"]
    same(results(selective_scan, inputs), results(reference, inputs), 1e-9)


def test_no_step_leaves_the_state() -> None:
    inputs = world(20)
    inputs["delta"][:, 10:] = 0
    _, last = selective_scan(**inputs)
    _, middle = selective_scan(**{k: v if k in ("a", "initial") else v[:, :10] for k, v in inputs.items()})
    assert torch.allclose(last, middle, atol=1e-12)


def test_in_float32_under_autocast() -> None:
    inputs = world(70, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        found = results(selective_scan, inputs)
    same(found, results(reference, inputs), 1e-4)
    half = {k: v.bfloat16() for k, v in inputs.items()}
    assert selective_scan(**half)[0].dtype == torch.float32


def test_a_state_is_kept_per_chunk_and_not_per_token() -> None:
    """What autograd holds grows with the length as the inputs do, by the states of the chunks' beginnings."""

    def held(n: int) -> int:
        inputs = {k: v.requires_grad_() for k, v in world(n, 64, 16, torch.float32).items()}
        sizes: dict[int, int] = {}

        def pack(x: Tensor) -> Tensor:
            sizes[x.data_ptr()] = x.numel()
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            selective_scan(**inputs)
        return sum(sizes.values())

    short, long = held(1000), held(4000)
    assert (
        long < 4.1 * short and long < 2 * 4000 * 64 * 16 / 2
    )  # the states of all tokens alone: 2 * 4000 * 64 * 16


def test_shapes_that_do_not_fit_are_refused() -> None:
    inputs = world(10)
    for name in ("delta", "b", "a", "initial"):
        with pytest.raises(UserError):
            selective_scan(**{**inputs, name: inputs[name][:1]})
