"""Combiner: near tokens one by one, spans by summaries, one softmax over both."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lightformers.errors import UserError
from lightformers.parts.attention import combiner
from lightformers.parts.documents import alone
from lightformers.parts.mixers.combiner import Combiner, CombinerAxial, CombinerLogsparse
from lightformers.parts.mixers.table import MIXERS, make
from mixer_contract import check_causal, check_masked, inputs
from sequence_cost import growth

LENGTHS = (1, 2, 7, 16, 21, 63, 65)


def heads(n: int, size: int = 6, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    q, k, v = torch.randn(3, 2, 2, n, size, generator=generator, dtype=torch.float64)
    return q, k, v


def summary(q: Tensor, k: Tensor, v: Tensor, span: list[int]) -> tuple[Tensor, Tensor]:
    """Key and value of the tokens `span` of one head, by the letter."""
    top, key = q[span].amax(0), k[span].amax(0)
    return key, (k[span] @ top).softmax(0) @ v[span]


def literal(q: Tensor, k: Tensor, v: Tensor, near: Callable[[int], list[int]], spans: Callable[[int], list[list[int]]]) -> Tensor:  # fmt: skip
    """Token by token: a joint softmax over near tokens and summaries of spans."""
    out = torch.zeros_like(v)
    for b in range(len(q)):
        for h in range(q.shape[1]):
            a, c, d = q[b, h], k[b, h], v[b, h]
            for i in range(q.shape[2]):
                parts = [(c[j], d[j]) for j in near(i)] + [summary(a, c, d, s) for s in spans(i)]
                weights = torch.stack([a[i] @ key for key, _ in parts]).softmax(0)
                out[b, h, i] = sum(w * value for w, (_, value) in zip(weights, parts))
    return out


def pieces(n: int, span: int) -> list[list[int]]:
    return [list(range(a, min(a + span, n))) for a in range(0, n, span)]


def log_spans(i: int) -> list[list[int]]:
    """The spans that tile [0, i): one for each bit of i."""
    found, end = [], i
    for level in range(i.bit_length()):
        if i >> level & 1:
            found.append(list(range(end - (1 << level), end)))
            end -= 1 << level
    assert sum(map(len, found)) == i and end == 0
    return found


def same(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-9)


@pytest.mark.parametrize("n", LENGTHS[:5])
def test_fixed_by_the_letter(n: int) -> None:
    q, k, v = heads(n)
    causal = literal(
        q,
        k,
        v,
        lambda i: list(range(i // 4 * 4, i + 1)),
        lambda i: [s for s in pieces(n, 4) if s[-1] < i // 4 * 4],
    )
    same(combiner.fixed(q, k, v, 4), causal)
    both = literal(
        q, k, v, lambda i: [j for j in range(n) if j // 4 == i // 4], lambda i: [s for s in pieces(n, 4) if s[0] // 4 != i // 4]
    )  # fmt: skip
    same(combiner.fixed(q, k, v, 4, causal=False), both)
    ends = literal(q, k, v, lambda i: [*range(3, i // 4 * 4, 4), *range(i // 4 * 4, i + 1)], lambda i: [])
    same(combiner.fixed(q, k, v, 4, pool="last"), ends)


@pytest.mark.parametrize("n", LENGTHS[:5])
def test_logsparse_by_the_letter(n: int) -> None:
    q, k, v = heads(n)
    same(combiner.logsparse(q, k, v), literal(q, k, v, lambda i: [i], log_spans))
    ends = literal(q, k, v, lambda i: [i, *(s[-1] for s in log_spans(i))], lambda i: [])
    same(combiner.logsparse(q, k, v, pool="last"), ends)


@pytest.mark.parametrize("n", (1, 63, 65, 1000))
def test_weights_sum_to_one_and_gradients_are_finite(n: int) -> None:
    q, k, v = (x.requires_grad_() for x in heads(n))
    ones = torch.ones_like(v)
    for found in (combiner.fixed(q, k, ones, 8), combiner.fixed(q, k, ones, 8, causal=False), combiner.logsparse(q, k, ones)):  # fmt: skip
        same(found, ones)
    for found in (combiner.fixed(q, k, v, 8), combiner.logsparse(q, k, v)):
        grads = torch.autograd.grad(found.square().sum(), (q, k, v))
        assert all(torch.isfinite(g).all() and g.abs().sum() > 0 for g in grads[2:])


def test_spans_of_one_token_are_softmax_attention() -> None:
    q, k, v = heads(21)
    attend = torch.nn.functional.scaled_dot_product_attention
    same(combiner.fixed(q, k, v, 1), attend(q, k, v, is_causal=True, scale=1.0))
    same(combiner.fixed(q, k, v, 1, causal=False), attend(q, k, v, scale=1.0))
    same(combiner.fixed(q, k, v, 32), attend(q, k, v, is_causal=True, scale=1.0))  # one segment
    wide = Combiner(12, 2, span=1).double()
    x = inputs(12, 9)
    made = wide.projections
    a, b, c = (t.unflatten(-1, (2, 6)).transpose(1, 2) for t in (made.query(x), made.key(x), made.value(x)))
    same(wide(x), made.out(attend(a, b, c, is_causal=True).transpose(1, 2).flatten(2)))  # scaled once


def test_mean_pooling_leaves_padding_out() -> None:
    q, k, v = heads(8)
    there = torch.ones(2, 8, dtype=torch.bool)
    there[:, 6:] = False
    for pool in ("max", "mean", "last"):
        short = combiner.fixed(q[:, :, :6], k[:, :, :6], v[:, :, :6], 4, causal=False, pool=pool)
        same(combiner.fixed(q, k, v, 4, causal=False, there=there, pool=pool)[:, :, :6], short)
    assert not torch.allclose(combiner.fixed(q, k, v, 4, pool="mean"), combiner.fixed(q, k, v, 4))


def test_axial_by_the_letter() -> None:
    """Rows of 4: what later rows meet is a context from attention both ways, in their own column."""
    torch.manual_seed(0)
    mixer, x, n, s = CombinerAxial(8, 2, span=4).double(), inputs(8, 14), 14, 4
    q, k, v = mixer.projections.split(x)
    out = torch.zeros_like(v)
    context = torch.zeros_like(v)
    for r in pieces(n, s):
        context[:, :, r] = (q[:, :, r] @ k[:, :, r].transpose(-1, -2)).softmax(-1) @ v[:, :, r]
    inner = mixer.inner(context.transpose(1, 2).flatten(2))
    kappa = mixer.summary(mixer.norm(x + inner)).unflatten(-1, (2, 4)).transpose(1, 2)
    for i in range(n):
        row, column = divmod(i, s)
        own, above = list(range(row * s, i + 1)), [r * s + column for r in range(row)]
        keys = torch.cat([k[:, :, own], kappa[:, :, above]], 2)
        values = torch.cat([v[:, :, own], context[:, :, above]], 2)
        out[:, :, i] = ((q[:, :, i, None] @ keys.transpose(-1, -2)).softmax(-1) @ values)[:, :, 0]
    same(mixer(x), mixer.projections.join(out))


@pytest.mark.parametrize(
    "mixer",
    [
        lambda: Combiner(12, 2, span=4),
        lambda: Combiner(12, 2, span=3, pool="mean", bias=True),
        lambda: CombinerAxial(12, 2, span=4),
        lambda: CombinerLogsparse(12, 3),
        lambda: CombinerLogsparse(12, 3, pool="mean"),
        lambda: CombinerLogsparse(12, 3, pool="last"),
        lambda: Combiner(12, 2, span=4, pool="last"),
    ],
)
def test_contract_of_causal_mixers(mixer: Callable[[], torch.nn.Module]) -> None:
    torch.manual_seed(1)
    check_causal(mixer(), 12)


def test_contract_of_the_mixer_that_looks_both_ways() -> None:
    torch.manual_seed(1)
    mixer = Combiner(12, 2, span=4, causal=False).double()
    check_masked(mixer, 12)
    x, junk = inputs(12, 9), inputs(12, 3, seed=1)
    mask = torch.tensor([[0] * 3 + [1] * 9] * 2)
    same(mixer(torch.cat([junk, x], 1), mask)[:, 3:], mixer(x))  # padding on the left
    with pytest.raises(UserError, match="causal=True"):
        mixer.begin(1, "cpu", torch.float32)


def test_a_far_token_is_found_where_the_parents_are_blind() -> None:
    """One token carries a sign that the last query asks for, and lies neither in its segment nor at the end of a span."""
    q, k, v = torch.zeros(3, 1, 1, 64, 4, dtype=torch.float64)
    v[..., 0] = 1
    q[0, 0, 21, 1] = k[0, 0, 21, 1] = q[0, 0, 63, 1] = 12
    v[0, 0, 21] = torch.tensor([0.0, 0, 0, 5])
    for whole, parent in (
        (combiner.fixed(q, k, v, 8), combiner.fixed(q, k, v, 8, pool="last")),
        (combiner.logsparse(q, k, v), combiner.logsparse(q, k, v, pool="last")),
    ):
        assert whole[0, 0, 63, 3] > 4.9 and parent[0, 0, 63, 3] == 0


def test_documents_are_run_alone() -> None:
    mask = torch.tensor([[0, 1, 1, 2, 2, 2, 0, 1], [1] * 8, [0] * 8])
    x = torch.arange(24.0).view(3, 8, 1)
    got = alone(lambda t: t.cumsum(1), mask, x)[..., 0]
    assert got.tolist() == [
        [0, 1, 3, 3, 7, 12, 0, 7], x[1, :, 0].cumsum(0).tolist(), [0] * 8,
    ]  # fmt: skip
    assert not alone(lambda t: t + 1, torch.zeros(2, 3, dtype=torch.long), x[:2, :3]).any()


def test_memory_at_8192_tokens() -> None:
    def root(n: int) -> Callable[[], Tensor]:
        mixer, x = Combiner(16, 2, span=int(n**0.5)), torch.randn(1, n, 16, requires_grad=True)
        return lambda: mixer(x)

    def log(n: int) -> Callable[[], Tensor]:
        mixer, x = CombinerLogsparse(16, 2), torch.randn(1, n, 16, requires_grad=True)
        return lambda: mixer(x)

    # four times the length: softmax attention would take sixteen times the memory, the root of it eight times
    assert growth(root, 2048, 8192) < 2.3
    assert growth(log, 2048, 8192) < 1.4


def test_rows_of_the_table_and_bad_settings() -> None:
    for kind in ("combiner", "combiner-axial", "combiner-logsparse"):
        assert kind in MIXERS and make(MIXERS, kind, 16, heads=2)(torch.randn(1, 5, 16)).shape == (1, 5, 16)
    plain = sum(p.numel() for p in Combiner(64, 4).parameters())
    assert plain == 4 * 64**2  # as many as softmax attention without biases
    assert sum(p.numel() for p in CombinerAxial(64, 4).parameters()) == plain + 2 * 64**2 + 2 * 64
    for wrong in ({"heads": 3}, {"span": 0}, {"pool": "sum"}):
        with pytest.raises(UserError):
            Combiner(16, **wrong)
