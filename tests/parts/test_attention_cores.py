"""Attention cores of the Long Range Arena (long_range_arena): equal to literal sums and to maintained implementations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lightformers.errors import UserError
from lightformers.parts.attention.bigbird import pattern
from lightformers.parts.attention.heads import run
from lightformers.parts.attention.linear import feature_attention
from lightformers.parts.attention.performer import orthogonal
from lightformers.parts.attention.reformer import hashed
from lightformers.parts.attention.sinkhorn import balanced
from lightformers.parts.attention.table import CORES, make_core

HEADS, SIZE = 2, 6
SMALL: dict[str, dict[str, Any]] = {
    "softmax": {},
    "local": {"block": 4},
    "sparse": {"block": 4, "columns": 2},
    "longformer": {"window": 4, "tokens": 2, "separate": False},
    "linformer": {"length": 40, "rank": 5},
    "reformer": {"buckets": 4, "chunk": 4},
    "sinkhorn": {"block": 4, "length": 40},
    "synthesizer": {"length": 40, "rank": 3},
    "bigbird": {"block": 2, "random": 1, "length": 40},
    "linear": {},
    "performer": {"features": 16},
}
LENGTHS = (1, 3, 16, 37)


def made(kind: str, heads: int = HEADS, size: int = SIZE, **options: Any) -> Any:
    torch.manual_seed(0)
    return make_core(kind, heads, size, **{**SMALL[kind], **options}).double()


def heads(n: int, batch: int = 2, seed: int = 0, size: int = SIZE) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = (3, batch, HEADS, n, size)
    return tuple(torch.randn(shape, generator=generator, dtype=torch.float64))  # type: ignore[return-value]


def right(n: int, *lengths: int) -> Tensor:
    return torch.tensor([[i < length for i in range(n)] for length in lengths])


def dense(q: Tensor, k: Tensor, v: Tensor, seen: Tensor) -> Tensor:
    """Masked softmax attention, one row after the other; a row without any key is 0."""
    out = torch.zeros_like(v)
    for b, h, i in torch.cartesian_prod(*(torch.arange(s) for s in q.shape[:3])).tolist():
        keys = seen[b, h, i].nonzero()[:, 0]
        if len(keys):
            weights = (k[b, h, keys] @ q[b, h, i] * q.shape[-1] ** -0.5).softmax(0)
            out[b, h, i] = weights @ v[b, h, keys]
    return out


def rule(n: int, allowed: Callable[[int, int], bool]) -> Tensor:
    return torch.tensor([[allowed(i, j) for j in range(n)] for i in range(n)])


RULES: dict[str, tuple[dict[str, Any], Callable[[int, int], bool]]] = {
    "local": ({}, lambda i, j: i // 4 == j // 4),
    "local causal": ({"causal": True}, lambda i, j: i // 4 == j // 4 and j <= i),
    "sparse": ({}, lambda i, j: i // 4 == j // 4 or j % 4 >= 2),
    "sparse causal": ({"causal": True}, lambda i, j: j <= i and (i // 4 == j // 4 or j % 4 >= 2)),
    "longformer": ({}, lambda i, j: abs(i - j) <= 2 or min(i, j) < 2),
    "longformer window": ({"tokens": 0}, lambda i, j: abs(i - j) <= 2),
    "longformer wide": ({"window": 40, "tokens": 0}, lambda i, j: abs(i - j) <= 20),
}


@pytest.mark.parametrize("n", LENGTHS)
@pytest.mark.parametrize("name", RULES)
def test_patterns_are_masked_softmax(name: str, n: int) -> None:
    options, allowed = RULES[name]
    core = made(name.split()[0], **options)
    q, k, v = heads(n)
    mask = right(n, n, max(1, n - 5))
    seen = (rule(n, allowed) & mask[:, None, :])[:, None].expand(-1, HEADS, -1, -1)
    torch.testing.assert_close(core(q, k, v), dense(q, k, v, rule(n, allowed).expand(2, HEADS, n, n)))
    out = core(q, k, v, mask)
    torch.testing.assert_close(out[mask[:, None].expand(-1, HEADS, -1)], dense(q, k, v, seen)[mask[:, None].expand(-1, HEADS, -1)])  # fmt: skip


@pytest.mark.parametrize("n", LENGTHS)
def test_bigbird_is_masked_softmax(n: int) -> None:
    core, (q, k, v) = made("bigbird"), heads(n)
    lengths = (n, max(1, n - 7))
    mask = right(n, *lengths)
    count = -(-n // 2)
    blocks = torch.stack([mask[:, i * 2] for i in range(count)], 1)
    index = pattern(core.order / core.order.shape[-1], blocks, 1)
    seen = torch.zeros(2, HEADS, n, n, dtype=torch.bool)
    for b, h, i in torch.cartesian_prod(torch.arange(2), torch.arange(HEADS), torch.arange(count)).tolist():
        there = -(-lengths[b] // 2)
        if i >= there:
            continue
        found = {j for j in index[b, h, i].tolist() if j < there}
        assert len(found) == min(6, there)
        assert {0, there - 1, i, max(i - 1, 0), min(i + 1, there - 1)} <= found
        if i in (0, there - 1):
            found = set(range(there))
        for j in found:
            seen[b, h, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2] = True
    seen = seen & mask[:, None, None, :] & mask[:, None, :, None]
    rows = mask[:, None].expand(-1, HEADS, -1)
    torch.testing.assert_close(core(q, k, v, mask)[rows], dense(q, k, v, seen)[rows])


def test_bigbird_heads_and_seeds_draw_differently() -> None:
    there = torch.ones(1, 20, dtype=torch.bool)
    one, same, other = (made("bigbird", seed=s).order / 20 for s in (0, 0, 1))
    first = pattern(one, there, 1)
    assert not torch.equal(first[:, 0], first[:, 1])
    assert torch.equal(first, pattern(same, there, 1))
    assert not torch.equal(first, pattern(other, there, 1))


@pytest.mark.parametrize("kind", SMALL)
def test_padding_and_evaluation(kind: str) -> None:
    """Padding anywhere changes nothing; what is drawn is saved with the weights."""
    core, (q, k, v), junk = made(kind), heads(13), heads(24, seed=1)
    place = torch.tensor([0, 2, 3, 4, 7, 8, 9, 12, 13, 14, 15, 20, 22])
    mask = torch.zeros(2, 24, dtype=torch.long)
    mask[:, place] = 1
    padded = [9 * x.clone() for x in junk]
    for wide, x in zip(padded, (q, k, v)):
        wide[:, :, place] = x
    alone = run(core, q, k, v)
    torch.testing.assert_close(run(core, *padded, mask)[:, :, place], alone, atol=1e-9, rtol=1e-9)
    other = make_core(kind, HEADS, SIZE, **SMALL[kind], **({"seed": 5} if kind in ("reformer", "bigbird", "performer") else {}))  # fmt: skip
    other.double().load_state_dict(core.state_dict())
    assert torch.equal(other.eval()(q, k, v), alone)
    nothing = run(core, q, k, v, torch.zeros(2, 13))
    assert torch.isfinite(nothing).all()


@pytest.mark.parametrize("n", (1, 5, 16))
def test_where_a_core_is_softmax_it_says_so(n: int) -> None:
    q, k, v = heads(n)
    plain = nn.functional.scaled_dot_product_attention(q, k, v)
    exact = {
        "local": {"block": 16},
        "sparse": {"block": 16},
        "longformer": {"window": 28, "tokens": 1},
        "bigbird": {"block": 2, "random": 3},
        "synthesizer": {"form": "random+dot", "std": 0.0},
        "linformer": {"length": n, "rank": n, "start": "pool"},
        "softmax": {},
    }
    for kind, options in exact.items():
        core = made(kind, **options)
        assert core.equals_softmax(n), kind
        torch.testing.assert_close(core(q, k, v), plain)
        if n == 16 and kind not in ("softmax", "synthesizer"):
            assert not core.equals_softmax(17)
    for kind, options in SMALL.items():  # and nowhere else
        core = make_core(kind, HEADS, SIZE, **options).double()
        near = (core(q, k, v) - plain).abs().max() < 1e-9
        assert near == core.equals_softmax(n) or (n < 16 and near), kind  # short ones may be so by chance


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


def test_longformer_is_transformers() -> None:
    from transformers import LongformerConfig
    from transformers.models.longformer.modeling_longformer import LongformerSelfAttention

    torch.manual_seed(0)
    config = LongformerConfig(
        hidden_size=12, num_attention_heads=2, attention_window=[4], attention_probs_dropout_prob=0.0, num_hidden_layers=1
    )  # fmt: skip
    theirs = LongformerSelfAttention(config, 0).eval()
    x, mask = torch.randn(2, 16, 12), right(16, 16, 11)
    first = torch.zeros(2, 16, dtype=torch.bool)
    first[:, :2] = True
    states = torch.where(first, 10000.0, torch.where(mask, 0.0, -10000.0))
    with torch.no_grad():
        wanted = theirs(
            x, attention_mask=states, is_index_masked=states < 0, is_index_global_attn=first, is_global_attn=True
        )[0]  # fmt: skip

        def heads_of(name: str) -> Tensor:
            return getattr(theirs, name)(x).unflatten(-1, (2, 6)).transpose(1, 2)

        core = make_core("longformer", 2, 6, window=4, tokens=2)
        out = core(
            *(heads_of(n) for n in ("query", "key", "value")), mask,
            second=tuple(heads_of(f"{n}_global") for n in ("query", "key", "value")),
        )  # fmt: skip
    torch.testing.assert_close(out.transpose(1, 2).flatten(2)[mask], wanted[mask], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("share_heads", [True, False])
def test_linformer(share_heads: bool) -> None:
    core, (q, k, v), mask = made("linformer", share_heads=share_heads), heads(7), right(7, 7, 5)
    got = core(q, k, v, mask)
    for b, n in enumerate((7, 5)):
        for h in range(HEADS):
            at = 0 if share_heads else h
            keys, values = core.keys[at, :, :n] @ k[b, h, :n], core.values[at, :, :n] @ v[b, h, :n]
            want = torch.softmax(q[b, h] @ keys.T / SIZE**0.5, -1) @ values
            torch.testing.assert_close(got[b, h, :n], want[:n])
    assert made("linformer", share_kv=True).values is None


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


class Largest(TorchDispatchMode):
    """The most numbers in any tensor that an operation gives."""

    most = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        for x in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(x, Tensor) and x.dim():  # views of nothing expanded count as they are stored
                self.most = max(self.most, x.untyped_storage().nbytes() // x.element_size())
        return out


@pytest.mark.parametrize("kind", [k for k in SMALL if k not in ("softmax", "sparse", "synthesizer")])
def test_no_square_of_the_length(kind: str) -> None:
    """At 8192 positions no tensor comes near n * n, and twice the length makes at most twice as large ones."""
    options = {"length": 8192} if "length" in SMALL[kind] else {}
    options |= {"longformer": {"window": 64, "tokens": 1, "separate": False}, "performer": {"features": 64}}.get(kind, {})  # fmt: skip
    core, seen = make_core(kind, 1, 4, **options), []
    for n in (2048, 4096, 8192):
        q, k, v = torch.randn(3, 1, 1, n, 4)
        with torch.no_grad(), Largest() as watch:
            assert core(q, k, v, right(n, n - 3)).shape == v.shape
        seen.append(watch.most)
    assert seen[2] < 8192**2 / 8
    assert seen[2] <= 2.1 * seen[1] and seen[1] <= 2.1 * seen[0] + 300_000  # parameters of fixed length


@pytest.mark.parametrize(
    ("kind", "options", "word"),
    [
        ("nothing", {}, "performer"),
        ("local", {"window": 3}, "block"),
        ("local", {"block": 0}, "at least 1"),
        ("sparse", {"block": 4, "columns": 5}, "columns"),
        ("longformer", {"window": 3}, "even"),
        ("linformer", {"length": 4, "rank": 5}, "rank"),
        ("reformer", {"buckets": 3}, "even"),
        ("sinkhorn", {"rounds": -1}, "rounds"),
        ("synthesizer", {"form": "dot"}, "form"),
        ("bigbird", {"random": -1}, "random"),
        ("performer", {"kernel": "cosine"}, "kernel"),
    ],
)
def test_bad_options_are_refused(kind: str, options: dict[str, Any], word: str) -> None:
    with pytest.raises(UserError, match=word):
        make_core(kind, 2, 4, **options)


def test_bad_inputs_are_refused() -> None:
    for kind in ("linformer", "sinkhorn", "synthesizer", "bigbird"):
        with pytest.raises(UserError, match="41 positions"):
            made(kind)(*heads(41))
    with pytest.raises(UserError, match="mask"):
        run(made("local"), *heads(5), torch.ones(2, 6))
    with pytest.raises(UserError, match="of their own"):
        made("longformer", separate=True)(*heads(5))
    assert set(CORES) == set(SMALL)
