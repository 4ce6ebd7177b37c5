"""Reformer, Sinkhorn, Synthesizer, linear attention and Performer (long_range_arena) against their literal sums."""

from __future__ import annotations

import pytest
import torch
from attention_world import HEADS, SIZE, heads, made, right
from torch import nn

from lightformers.parts.attention.linear import feature_attention
from lightformers.parts.attention.performer import orthogonal
from lightformers.parts.attention.reformer import hashed
from lightformers.parts.attention.sinkhorn import balanced
from lightformers.parts.attention.table import make_core


def test_reformer_with_one_bucket_is_full_attention() -> None:
    core, (q, _, v) = made("reformer", buckets=1, chunk=16, rounds=1), heads(13)
    keys = q / q.norm(dim=-1, keepdim=True)
    scores = (q @ keys.transpose(-1, -2)).masked_fill(torch.eye(13, dtype=torch.bool), -torch.inf)
    torch.testing.assert_close(core(q, None, v), scores.softmax(-1) @ v, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        core(q[:, :, :1], None, v[:, :, :1]), v[:, :, :1]
    )  # itself where nothing else is


def test_reformer_round_by_round() -> None:
    """Same bucket, own chunk or the one before, rounds joined by their log-sum-exp."""
    n, core = 19, made("reformer", rounds=3)
    q, _, v = heads(n)
    buckets = hashed(q, core.rotations)
    out = torch.zeros_like(v)
    for b, h in torch.cartesian_prod(torch.arange(2), torch.arange(HEADS)).tolist():
        keys = q[b, h] * (q[b, h].square().mean(-1, keepdim=True) + 1e-6).rsqrt() * SIZE**-0.5
        for i in range(n):
            outs, totals = [], []
            for row in buckets[b, h]:
                order = sorted(range(n), key=lambda t, row=row: (int(row[t]), t))
                chunk = {t: place // 4 for place, t in enumerate(order)}
                seen = [j for j in range(n) if row[j] == row[i] and chunk[j] in (chunk[i], chunk[i] - 1)]
                scores = torch.stack([q[b, h, i] @ keys[j] if j != i else q.new_tensor(-1e4) for j in seen])
                outs.append(scores.softmax(0) @ v[b, h, seen])
                totals.append(scores.logsumexp(0))
            out[b, h, i] = torch.stack(totals).softmax(0) @ torch.stack(outs)
    torch.testing.assert_close(core(q, None, v), out)


def test_reformer_finds_a_far_twin() -> None:
    """Each vector stands twice, far apart: hashing brings the twins together, a window does not."""
    half, size = 64, 16
    x = 8 * torch.nn.functional.normalize(torch.randn(1, HEADS, half, size, generator=torch.Generator().manual_seed(1)), dim=-1)  # fmt: skip
    q = torch.cat([x, x], 2)
    v = torch.eye(half).repeat(2, 1).expand(1, HEADS, -1, -1) * torch.tensor([1.0, 2.0]).repeat_interleave(half)[:, None]  # fmt: skip
    core = make_core("reformer", HEADS, size, buckets=16, chunk=16, rounds=4)
    found = core(q, None, v)[:, :, :half].argmax(-1)
    near = make_core("local", HEADS, size, block=32)(q, q, v)
    hits = (found == torch.arange(half)).double().mean()
    assert hits > 0.9
    assert near[:, :, :half].amax() <= 1  # never a value of the second half
    assert core(q, None, v)[:, :, :half].amax() > 1.5


@pytest.mark.parametrize("padded", [False, True])
def test_reformer_is_transformers(padded: bool) -> None:
    from transformers import ReformerConfig
    from transformers.models.reformer.modeling_reformer import LSHSelfAttention

    torch.manual_seed(0)
    config = ReformerConfig(
        hidden_size=12, num_attention_heads=2, attention_head_size=6, lsh_attn_chunk_length=16,
        lsh_attention_probs_dropout_prob=0.0, is_decoder=False, num_hashes=1,
    )  # fmt: skip
    theirs = LSHSelfAttention(config).eval()
    x = torch.randn(2, 14, 12)
    mask = right(14, 14, 9) if padded else None
    with torch.no_grad():
        wanted = theirs(x, attention_mask=mask).hidden_states
        q, v = (f(x).unflatten(-1, (2, 6)).transpose(1, 2) for f in (theirs.query_key, theirs.value))
        out = make_core("reformer", 2, 6, buckets=1, chunk=16, rounds=1)(q, None, v, mask)
    out = out.transpose(1, 2).flatten(2)
    rows = torch.ones(2, 14, dtype=torch.bool) if mask is None else mask
    torch.testing.assert_close(out[rows], wanted[rows], atol=1e-5, rtol=1e-5)


def test_sinkhorn_sorts_blocks() -> None:
    """A matrix of scores that knows the right block moves it there, and attention finds what local cannot."""
    n, block, core = 10, 4, made("sinkhorn")
    q, k, v = heads(n)
    out = core(q, k, v)
    order = balanced(
        torch.stack([k[:, :, i : i + block].sum(2) for i in range(0, n, block)], 2) @ core.weight[:3].T,
        torch.ones(2, 1, 3, dtype=torch.bool), core.rounds,
    )  # fmt: skip
    torch.testing.assert_close(order.sum(-1), torch.ones(2, HEADS, 3, dtype=torch.float64))
    torch.testing.assert_close(order.sum(-2), torch.ones(2, HEADS, 3, dtype=torch.float64), atol=0.1, rtol=0)
    wide_k, wide_v = (nn.functional.pad(x, (0, 0, 0, 2)).unflatten(2, (3, 4)) for x in (k, v))
    for b, h, i in torch.cartesian_prod(torch.arange(2), torch.arange(HEADS), torch.arange(n)).tolist():
        at = i // block
        own = slice(at * block, min(n, at * block + block))
        sorted_k = sum(order[b, h, at, j] * wide_k[b, h, j] for j in range(3))
        sorted_v = sum(order[b, h, at, j] * wide_v[b, h, j] for j in range(3))
        want = (k[b, h, own] @ q[b, h, i] / SIZE**0.5).softmax(0) @ v[b, h, own]
        want = want + (sorted_k @ q[b, h, i] / SIZE**0.5).softmax(0) @ sorted_v
        torch.testing.assert_close(out[b, h, i], want)


def test_sinkhorn_balance_turns_into_a_permutation() -> None:
    wanted = torch.tensor([2, 0, 3, 1])
    scores = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
    scores[torch.arange(4), wanted] += 12
    order = balanced(scores, torch.ones(4, dtype=torch.bool), 8)
    torch.testing.assert_close(order, nn.functional.one_hot(wanted, 4).float(), atol=0.01, rtol=0)
    plain = balanced(scores, torch.ones(4, dtype=torch.bool), 0)
    torch.testing.assert_close(plain, scores.softmax(-1))


@pytest.mark.parametrize(
    "kind", ["random", "factorised", "dense", "dense+dot", "random+factorised+dense+dot"]
)
def test_synthesizer(kind: str) -> None:
    core, (q, k, v), mask = made("synthesizer", form=kind), heads(7), right(7, 7, 5)
    got = core(q if "q" in core.reads else None, k if "k" in core.reads else None, v, mask)
    for b, h, i in torch.cartesian_prod(torch.arange(2), torch.arange(HEADS), torch.arange(5)).tolist():
        n = (7, 5)[b]
        logits = torch.zeros(n, dtype=torch.float64)
        if "random" in kind:
            logits = logits + core.random[h, i, :n]
        if "factorised" in kind:
            logits = logits + core.left[h, i] @ core.right[h, :, :n]
        if "dense" in kind:
            logits = logits + q[b, h, i].clamp(min=0) @ core.dense[h, :, :n] + core.bias[h, 0, :n]
        if "dot" in kind:
            logits = logits + k[b, h, :n] @ q[b, h, i] / SIZE**0.5
        torch.testing.assert_close(got[b, h, i], logits.softmax(0) @ v[b, h, :n])
    assert {"random": "v", "factorised": "v", "dense": "qv"}.get(kind, "qkv") == core.reads


@pytest.mark.parametrize("n", (1, 63, 65, 1000))
def test_feature_attention_is_its_sum(n: int) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.rand(1, 1, n, 5, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(3)
    )
    weights = q @ k.transpose(-1, -2)
    for causal in (False, True):
        part = weights.tril() if causal else weights
        want = part @ v / (part.sum(-1, keepdim=True) + 1e-6)
        got = feature_attention(q, k, v, causal=causal)
        torch.testing.assert_close(got, want, atol=1e-9, rtol=1e-9)
        one, other = (torch.autograd.grad(x.sin().sum(), (q, k, v), retain_graph=True) for x in (got, want))
        torch.testing.assert_close(one, other, atol=1e-9, rtol=1e-9)


def test_linear_is_its_sum() -> None:
    q, k, v = heads(9)
    weights = (nn.functional.elu(q) + 1) @ (nn.functional.elu(k) + 1).transpose(-1, -2)
    torch.testing.assert_close(made("linear")(q, k, v), weights @ v / (weights.sum(-1, keepdim=True) + 1e-6))
    weights = (q.relu() + 1e-3) @ (k.relu() + 1e-3).transpose(-1, -2)
    out = made("performer", kernel="relu")(q, k, v)
    torch.testing.assert_close(out, weights @ v / (weights.sum(-1, keepdim=True) + 1e-6))


@pytest.mark.parametrize("causal", [False, True])
def test_performer_goes_to_softmax(causal: bool) -> None:
    q, k, v = heads(40, size=8)
    q, k = q / 2, k / 2
    plain = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal)

    def error(features: int) -> float:
        core = made("performer", size=8, features=features, causal=causal)
        return float((core(q, k, v) - plain).square().mean().sqrt())

    few, many = error(16), error(4096)
    assert many < 0.03 and many < few / 5


def test_performer_directions() -> None:
    drawn = orthogonal(20, 8)
    unit = drawn / drawn.norm(dim=1, keepdim=True)
    for start in (0, 8, 16):
        part = unit[start : start + 8]
        torch.testing.assert_close(part @ part.T, torch.eye(len(part)), atol=1e-5, rtol=0)
    assert 1.5 < float(drawn.norm(dim=1).mean()) < 4  # of Gaussian vectors of size 8: 2.74
    assert float(orthogonal(4096, 8).mean(0).abs().max()) < 0.1  # no side is preferred


def test_performer_does_not_overflow() -> None:
    q, k, v = (30 * x.float() for x in heads(9))
    assert torch.isfinite(made("performer").float()(q, k, v)).all()
