"""The short convolution: tap by tap against PyTorch's, in outputs and gradients."""

from __future__ import annotations

import pytest
import torch

from lightformers.errors import UserError
from lightformers.kernels import causal_convolution as kernel
from lightformers.kernels.causal_convolution import causal_convolution, reference


@pytest.mark.parametrize("n", [1, 3, 63, 65, 1000])
@pytest.mark.parametrize("taps, bias", [(1, True), (4, True), (3, False)])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-9), (torch.float32, 1e-4)])
def test_equals_pytorch(n: int, taps: int, bias: bool, dtype: torch.dtype, tolerance: float, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.setattr(kernel, "CHUNK", 300)  # several chunks, the last one shorter
    g = torch.Generator().manual_seed(n)
    shapes = [(2, taps - 1 + n, 6), (6, taps), (6,)][: 3 if bias else 2]
    inputs = [torch.randn(*s, generator=g, dtype=dtype) for s in shapes]
    weight = torch.randn(2, n, 6, generator=g, dtype=dtype)
    both = []
    for fn in (causal_convolution, reference):
        held = [x.clone().requires_grad_() for x in inputs]
        y = fn(*held)
        (y * weight).sum().backward()
        both.append([y.detach(), *(x.grad for x in held)])
    for found, wanted in zip(*both, strict=True):
        assert (found - wanted).abs().max() <= tolerance * (1 + wanted.abs().max())


def test_half_precision_is_summed_in_float32() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(2, 40, 8).bfloat16(), torch.randn(8, 4).bfloat16()
    y = causal_convolution(x, weight)
    assert y.dtype == torch.bfloat16 and torch.equal(y, reference(x.float(), weight.float()).bfloat16())


def test_what_does_not_fit_is_refused() -> None:
    for shape in ((2, 3, 6), (2, 9, 5)):
        with pytest.raises(UserError, match="does not fit"):
            causal_convolution(torch.zeros(shape), torch.zeros(6, 4))
