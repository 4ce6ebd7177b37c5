"""RMSNorm with its own backward: the literal equation and torch's, in values, gradients and their gradients."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lightformers.kernels.rms_norm import reference, rms_norm
from lightformers.parts.norms import RMSNorm


@pytest.mark.parametrize(("dtype", "close"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
@pytest.mark.parametrize("n", [1, 63, 65, 1000])
def test_it_is_the_reference(n: int, dtype: torch.dtype, close: float) -> None:
    torch.manual_seed(n)
    x, w, pull = (
        torch.randn(2, n, 24, dtype=dtype) * 3,
        torch.randn(24, dtype=dtype),
        torch.randn(2, n, 24, dtype=dtype),
    )
    x.requires_grad_(), w.requires_grad_()
    found = []
    for f in (rms_norm, reference, lambda x, w, eps: nn.functional.rms_norm(x, (24,), w, eps)):
        y = f(x, w, 1e-5)
        found.append((y.detach(), *torch.autograd.grad(y, (x, w), pull)))
    for other in found[1:]:
        for mine, theirs in zip(found[0], other):
            assert (mine - theirs).abs().max() < close * max(1.0, float(theirs.abs().max()))


def test_it_can_be_differentiated_again() -> None:
    torch.manual_seed(0)
    x, w = (torch.randn(*s, dtype=torch.float64, requires_grad=True) for s in ((3, 2, 5), (5,)))
    torch.autograd.gradcheck(lambda x, w: rms_norm(x, w, 1e-5), (x, w))
    torch.autograd.gradgradcheck(lambda x, w: rms_norm(x, w, 1e-5), (x, w))


def test_the_module_is_torchs_in_every_dtype_and_under_autocast() -> None:
    torch.manual_seed(0)
    mine, theirs = RMSNorm(16, eps=1e-5), nn.RMSNorm(16, eps=1e-5)
    with torch.no_grad():
        mine.weight.normal_()
        theirs.weight.copy_(mine.weight)
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        x = torch.randn(2, 5, 16, dtype=dtype)
        for cast in (False, True):
            with torch.autocast("cpu", torch.bfloat16, enabled=cast):
                a, b = mine.to(dtype)(x), theirs.to(dtype)(x)
                assert a.dtype == b.dtype and torch.allclose(a, b, atol=1e-5)
                a.sum().backward()
                with torch.no_grad():
                    assert torch.allclose(mine(x), b, atol=1e-5)
    assert (
        isinstance(mine, nn.RMSNorm) and torch.export.export(mine.float(), (torch.randn(2, 16),)) is not None
    )
