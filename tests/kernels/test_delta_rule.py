"""The chunked delta rule and chunked linear attention are the literal recurrences, in outputs and gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from lightformers.errors import UserError
from lightformers.kernels import delta_rule as delta
from lightformers.kernels import linear_attention as linear
from lightformers.kernels.chunks import affine, documents

EXACT = {torch.float64: 1e-9, torch.float32: 1e-4}


def drawn(
    n: int, dtype: torch.dtype, strong: float = 1.0, rule: str = "delta", seed: int = 0
) -> list[Tensor]:
    """q, k, v, beta, state with keys of length 1; the additive rule takes no beta."""
    g = torch.Generator().manual_seed(seed)
    q, k = (torch.randn(2, 2, n, 6, generator=g, dtype=torch.float64) for _ in range(2))
    v = torch.randn(2, 2, n, 5, generator=g, dtype=torch.float64)
    beta = strong * torch.rand(2, 2, n, generator=g, dtype=torch.float64)
    state = torch.randn(2, 2, 6, 5, generator=g, dtype=torch.float64)
    k = torch.nn.functional.normalize(k, dim=-1)
    made = [q, k, v, beta, state] if rule == "delta" else [q, k, v / n**0.5, state]
    return [x.to(dtype).requires_grad_() for x in made]


def same(
    literal: Callable[..., Any], fast: Callable[..., Any], given: list[Tensor], tolerance: float
) -> None:
    found = []
    for form in (literal, fast):
        out, last = form(*given)
        weight = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
        grads = torch.autograd.grad((out * weight).sum() + last.square().sum(), given)
        found.append([out, last, *grads])
    for a, b in zip(*found):
        assert (a - b).abs().max() <= tolerance * (1 + a.abs().max())


@pytest.mark.parametrize("dtype", EXACT)
@pytest.mark.parametrize("n", [1, 2, 63, 65, 1000])
def test_chunks_are_the_delta_rule(n: int, dtype: torch.dtype) -> None:
    same(delta.reference, delta.delta_rule, drawn(n, dtype), EXACT[dtype])


@pytest.mark.parametrize("chunk", [1, 7, 65, 100])
def test_the_chunk_changes_nothing(chunk: int) -> None:
    same(delta.reference, lambda *x: delta.delta_rule(*x, chunk=chunk), drawn(65, torch.float64, 2.0), 1e-9)
    same(linear.reference, lambda *x: linear.linear_attention(*x, chunk=chunk), drawn(65, torch.float64, rule="add"), 1e-9)  # fmt: skip


@pytest.mark.parametrize("dtype", EXACT)
@pytest.mark.parametrize("n", [1, 63, 65, 1000])
def test_chunks_are_linear_attention(n: int, dtype: torch.dtype) -> None:
    same(linear.reference, linear.linear_attention, drawn(n, dtype, rule="add"), EXACT[dtype])


@pytest.mark.parametrize("chunk", [4, 16, 64])
def test_documents_start_from_nothing(chunk: int) -> None:
    starts = torch.zeros(2, 50, dtype=torch.bool)
    starts[0, [0, 1, 16, 17, 40]] = True
    starts[1, [23, 32]] = True
    given = drawn(50, torch.float64)
    same(
        lambda *x: delta.reference(*x, starts=starts),
        lambda *x: delta.delta_rule(*x, starts=starts, chunk=chunk),
        given,
        1e-9,
    )
    q, k, v, _, state = given
    same(
        lambda *x: linear.reference(*x, starts=starts),
        lambda *x: linear.linear_attention(*x, starts=starts, chunk=chunk),
        [q, k, v, state],
        1e-9,
    )
    y, _ = delta.delta_rule(*given[:4], starts=starts, chunk=chunk)
    alone, _ = delta.delta_rule(*(x[:1, :, 17:40] for x in given[:4]))
    torch.testing.assert_close(y[:1, :, 17:40], alone)


def test_long_float32_stays_exact() -> None:
    """Also where all keys are one and every write replaces: the triangular system is then as hard as it can be."""
    q, k, v, beta, _ = (x.detach() for x in drawn(1000, torch.float32))
    k, beta = k[:, :, :1].expand_as(k), torch.full_like(beta, 1.0)
    with torch.no_grad():
        slow, _ = delta.reference(q, k, v, beta)
        fast, _ = delta.delta_rule(q, k, v, beta)
    torch.testing.assert_close(fast, slow, atol=1e-4, rtol=1e-4)


def test_it_is_the_rule_of_qwen3_next_without_its_decay() -> None:
    oracle = pytest.importorskip("transformers.models.qwen3_next.modeling_qwen3_next")
    q, k, v, beta, _ = (x.detach() for x in drawn(130, torch.float32))
    wanted, last = oracle.torch_chunk_gated_delta_rule(
        *(x.transpose(1, 2) for x in (q, k, v)), torch.zeros(2, 130, 2), beta.transpose(1, 2),
        output_final_state=True,
    )  # fmt: skip
    found, state = delta.delta_rule(q, k, v, beta)
    torch.testing.assert_close(found, wanted.transpose(1, 2), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(state, last, atol=1e-5, rtol=1e-4)


def test_a_key_written_twice_holds_the_last_value() -> None:
    k = torch.eye(4)[[0, 1, 0]][None, None]
    v, beta = torch.randn(1, 1, 3, 5, generator=torch.Generator().manual_seed(0)), torch.ones(1, 1, 3)
    y, state = delta.delta_rule(k * 2, k, v, beta)
    torch.testing.assert_close(y[0, 0, 2], v[0, 0, 2])  # 2 / sqrt(4) = 1
    torch.testing.assert_close(state[0, 0, 1], v[0, 0, 1])
    summed, _ = linear.linear_attention(k, k, v)
    torch.testing.assert_close(summed[0, 0, 2], v[0, 0, 0] + v[0, 0, 2])


def test_half_inputs_are_computed_in_float32_even_under_autocast() -> None:
    q, k, v, beta = (x.detach().bfloat16() for x in drawn(70, torch.float32)[:4])
    wanted, state = delta.delta_rule(*(x.float() for x in (q, k, v, beta)))
    wanted = wanted.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        found, held = delta.delta_rule(q, k, v, beta)
        added, _ = linear.linear_attention(q, k, v)
    assert found.dtype == torch.bfloat16 and held.dtype == torch.float32
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(held, state, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(added, linear.linear_attention(q.float(), k.float(), v.float())[0].bfloat16())


def test_the_scan_over_chunks_has_the_gradient_of_its_loop() -> None:
    g = torch.Generator().manual_seed(0)
    given = [torch.randn(*s, generator=g, dtype=torch.float64, requires_grad=True) for s in ((3, 2, 3, 3), (3, 2, 3, 2), (2, 3, 2))]  # fmt: skip
    assert torch.autograd.gradcheck(affine, given)


def test_documents_of_chunks() -> None:
    known = documents(torch.tensor([[1, 0, 0, 1, 0, 0, 0]]).bool(), 3)
    assert known.carried[0, 0].int().tolist() == [[0, 0, 0], [0, 0, 0], [1, 1, 1]]
    assert known.kept[0, 0].int().tolist() == [[1, 1, 1], [1, 1, 1], [1, 1, 1]]
    assert known.whole[0, 0].tolist() == [False, False, True]


def test_wrong_shapes_are_refused() -> None:
    q, k, v, beta, state = drawn(5, torch.float32)
    with pytest.raises(UserError, match="at least 1 token"):
        delta.delta_rule(q, k, v, beta, chunk=0)
    with pytest.raises(UserError, match="another model"):
        delta.delta_rule(q, k, v, beta, state[:, :, :3])
    with pytest.raises(UserError, match="of the same tokens"):
        delta.delta_rule(q, k[:, :, :4], v, beta)
    with pytest.raises(UserError, match="strengths"):
        delta.delta_rule(q, k, v, beta[:, :1])
    with pytest.raises(UserError, match=r"\(batch, n\)"):
        linear.linear_attention(q, k, v, starts=torch.zeros(2, 4, dtype=torch.bool))
