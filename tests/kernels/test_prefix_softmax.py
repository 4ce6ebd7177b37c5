"""Prefix softmax: token by token = in blocks = masked softmax with one query."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lightformers.errors import UserError
from lightformers.kernels.prefix_softmax import NOTHING, Segment, join, nothing, prefix_softmax, reference

EXACT = {torch.float64: 1e-9, torch.float32: 1e-4}


def drawn(n: int, dtype: torch.dtype = torch.float64, spread: float = 3.0) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    scores = spread * torch.randn(2, 3, n, generator=g, dtype=torch.float64)
    values = torch.randn(2, 3, n, 5, generator=g, dtype=torch.float64)
    return scores.to(dtype).requires_grad_(), values.to(dtype).requires_grad_()


def close(a: Tensor, b: Tensor, tolerance: float) -> None:
    assert (a - b).abs().max() <= tolerance * (1 + b.abs().max())


@pytest.mark.parametrize("dtype", EXACT)
@pytest.mark.parametrize("n", [1, 2, 33, 63, 65, 1000])
def test_blocks_are_the_recurrence_and_masked_softmax(n: int, dtype: torch.dtype) -> None:
    given = drawn(n, dtype)
    shut = torch.full((n, n), -torch.inf, dtype=dtype).triu(1)
    forms = [
        prefix_softmax(*given)[0],
        reference(*given)[0],
        (given[0][..., None, :] + shut).softmax(-1) @ given[1],
    ]
    weight = torch.linspace(-1, 1, forms[0].numel(), dtype=dtype).view_as(forms[0])
    grads = [torch.autograd.grad((form * weight).sum(), given) for form in forms]
    for form, grad in zip(forms[1:], grads[1:]):
        close(forms[0], form, EXACT[dtype])
        for a, b in zip(grads[0], grad):
            close(a, b, EXACT[dtype])


@pytest.mark.parametrize("block", [2, 3, 7, 64, 100])
def test_blocks_of_any_size_with_documents_padding_and_a_state(block: int) -> None:
    scores, values = drawn(50)
    mask = torch.ones(2, 50, dtype=torch.long)
    mask[0, :9], mask[1, 20:23], mask[1, 40:] = 0, 0, 0
    starts = torch.zeros(2, 50, dtype=torch.bool)
    starts[0, [9, 10, 30]] = True
    starts[1, [23, 24]] = True
    _, state = reference(*(x.detach() for x in drawn(4)))
    wanted, held = reference(scores, values, mask, state, starts)
    found, last = prefix_softmax(scores, values, mask, state, starts, block)
    close(found, wanted, 1e-9)
    close(last.mean, held.mean, 1e-9)
    a, b = (torch.autograd.grad(x.square().sum(), (scores, values)) for x in (found, wanted))
    close(a[0], b[0], 1e-9)
    close(a[1], b[1], 1e-9)


def test_a_later_score_far_above_all_others_and_far_below() -> None:
    """What breaks a plain cumulative sum with one maximum: prefixes a thousand below it."""
    scores, values = (x.detach().clone() for x in drawn(130, torch.float32))
    scores[..., 100] += 1000
    scores[..., :40] -= 1000
    scores.requires_grad_()
    y, _ = prefix_softmax(scores, values)
    shut = torch.full((130, 130), -torch.inf).triu(1)
    close(y, (scores[..., None, :] + shut).softmax(-1) @ values, 1e-4)
    (grad,) = torch.autograd.grad(y.sum(), scores)
    assert torch.isfinite(grad).all()


def test_nothing_is_nothing() -> None:
    empty = nothing(2, 3, 5)
    both = join(empty, empty)
    assert (both.mean == 0).all() and (both.m == NOTHING).all()
    scores, values = (x.detach().float() for x in drawn(6))
    y, state = prefix_softmax(scores, values, torch.zeros(2, 6, dtype=torch.long))
    assert (y == 0).all() and (state.u == 0).all()
    one = Segment(scores[..., 0], torch.ones(2, 3), values[:, :, 0])
    for pair in ((empty, one), (one, empty)):
        torch.testing.assert_close(join(*pair).mean, one.mean)


def test_half_inputs_are_computed_in_float32_even_under_autocast() -> None:
    scores, values = (x.detach().bfloat16() for x in drawn(70))
    with torch.autocast("cpu", torch.bfloat16):
        y, state = prefix_softmax(scores, values)
    wanted, _ = prefix_softmax(scores.float(), values.float())
    assert y.dtype == torch.bfloat16 and state.w.dtype == torch.float32
    torch.testing.assert_close(y, wanted.bfloat16())


def test_wrong_shapes_are_refused() -> None:
    scores, values = drawn(5)
    with pytest.raises(UserError, match="at least 2"):
        prefix_softmax(scores, values, block=1)
    with pytest.raises(UserError, match="scores must be"):
        prefix_softmax(scores[:, :, :4], values)
    with pytest.raises(UserError, match=r"\(batch, n\)"):
        prefix_softmax(scores, values, torch.ones(2, 4))
    with pytest.raises(UserError, match="another model"):
        prefix_softmax(scores, values, state=nothing(2, 3, 4))
