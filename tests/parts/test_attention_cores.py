"""Attention cores of the Long Range Arena (long_range_arena): equal to literal sums and to maintained implementations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from attention_world import HEADS, LENGTHS, SIZE, SMALL, dense, heads, made, right
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lightformers.errors import UserError
from lightformers.parts.attention.bigbird import pattern
from lightformers.parts.attention.heads import run
from lightformers.parts.attention.table import CORES, make_core


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
