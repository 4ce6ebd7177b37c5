"""Attention as a mixer: the contract, transformers' own models, the literal sum, windows, the memory of decoding."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lightformers.errors import UserError
from lightformers.parts.attention import softmax
from lightformers.parts.attention.softmax import attend, documents, visible
from lightformers.parts.ffn.plain import MLP, SwiGLU
from lightformers.parts.mixers import keys
from lightformers.parts.mixers.attention import Attention
from lightformers.parts.positions import rotary_size, sinusoids, turn, turns
from mixer_contract import check_causal, check_masked, inputs, stepwise

VARIANTS = {
    "plain": {"heads": 4, "rotary": False},
    "rotary": {"heads": 4},
    "partial": {"heads": 2, "rotary": 0.5, "theta": 500.0},
    "grouped": {"heads": 4, "kv_heads": 2, "bias": True, "qk_norm": True, "head_size": 6},
    "window": {"heads": 2, "window": 5},
    "grouped window": {"heads": 4, "kv_heads": 1, "window": 3},
    "alone": {"heads": 2, "window": 1},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_it_keeps_the_contract_of_mixers(name: str) -> None:
    if name == "alone":  # sees itself: what the query and key hold cannot matter
        mixer = Attention(16, **VARIANTS[name]).double()
        torch.testing.assert_close(mixer(inputs(16, 9)), mixer.out(mixer.value(inputs(16, 9))))
        return
    check_causal(Attention(16, **VARIANTS[name]), 16)


@pytest.mark.parametrize("options", [{"heads": 4}, {"heads": 4, "window": 3, "kv_heads": 2}])
def test_both_ways_it_keeps_the_contract(options: dict[str, int]) -> None:
    mixer = Attention(16, causal=False, **options)
    check_masked(mixer, 16)
    with pytest.raises(UserError, match="both ways"):
        mixer.begin(1, "cpu", torch.float32)


def literal(mixer: Attention, x: Tensor) -> Tensor:
    """One row, (n, width), by sums over single tokens."""
    n, size, group = len(x), mixer.head_size, mixer.heads // mixer.kv_heads

    def turned(vector: Tensor, place: int) -> Tensor:
        half, out = mixer.turned // 2, vector.clone()
        for i in range(half):
            angle = place * mixer.theta ** (-2 * i / mixer.turned)
            a, b = vector[i], vector[i + half]
            out[i] = a * math.cos(angle) - b * math.sin(angle)
            out[i + half] = b * math.cos(angle) + a * math.sin(angle)
        return out

    q, k, v = (f(x).unflatten(-1, (-1, size)) for f in (mixer.query, mixer.key, mixer.value))
    rows = []
    for i in range(n):
        heads = []
        for h in range(mixer.heads):
            first = 0 if mixer.window is None else max(0, i - mixer.window + 1)
            scores = torch.stack(
                [turned(q[i, h], i) @ turned(k[j, h // group], j) for j in range(first, i + 1)]
            )
            shares = (scores / math.sqrt(size)).softmax(0)
            heads.append(sum(s * v[j, h // group] for s, j in zip(shares, range(first, i + 1))))
        rows.append(torch.cat(heads))
    return mixer.out(torch.stack(rows))


@pytest.mark.parametrize(
    "options", [{"heads": 4, "kv_heads": 2}, {"heads": 2, "window": 3, "rotary": 0.5}, {"heads": 1, "rotary": False}]
)  # fmt: skip
def test_it_is_the_literal_sum(options: dict[str, float]) -> None:
    mixer, x = Attention(16, **options).double(), inputs(16, 9)
    torch.testing.assert_close(mixer(x)[0], literal(mixer, x[0]), atol=1e-12, rtol=1e-9)


def test_it_is_the_attention_of_llama() -> None:
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaAttention, LlamaRotaryEmbedding

    config = LlamaConfig(hidden_size=24, num_attention_heads=4, num_key_value_heads=2, head_dim=8, max_position_embeddings=64)  # fmt: skip
    config._attn_implementation = "eager"
    theirs = LlamaAttention(config, 0).eval()
    ours = Attention(24, 4, kv_heads=2, head_size=8)
    for mine, name in (("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj"), ("out", "o_proj")):
        getattr(ours, mine).load_state_dict(getattr(theirs, name).state_dict())
    x = torch.randn(2, 11, 24)
    shut = torch.full((11, 11), -torch.inf).triu(1)[None, None]
    wanted = theirs(x, LlamaRotaryEmbedding(config)(x, torch.arange(11)[None]), shut)[0]
    torch.testing.assert_close(ours(x), wanted, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("window, n", [(5, 200), (64, 200), (70, 500), (150, 301)])
@pytest.mark.parametrize("packed", [False, True])
def test_a_window_by_blocks_is_the_masked_window(window: int, n: int, packed: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(2, 2, n, 4, generator=generator, dtype=torch.float64, requires_grad=True)
        for _ in range(3)
    )
    mask = torch.ones(2, n, dtype=torch.long)
    mask[0, :7], mask[1, 40:], mask[1, -30:] = 0, 2, 0
    owner = documents(mask) if packed else None
    seen = visible(n, owner, window, True, q.device)
    wanted = torch.nn.functional.scaled_dot_product_attention(q, k, v, seen)
    found = attend(q, k, v, owner, window)
    torch.testing.assert_close(found, wanted, atol=1e-10, rtol=1e-9)
    weights = torch.randn(found.shape, generator=generator, dtype=torch.float64)
    for a, b in zip(
        torch.autograd.grad((found * weights).sum(), (q, k, v), retain_graph=True),
        torch.autograd.grad((wanted * weights).sum(), (q, k, v)),
        strict=True,
    ):
        torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-8)


@torch.no_grad()
def test_a_window_bounds_the_state_and_growth_is_by_blocks() -> None:
    mixer, x = Attention(8, 2, window=20), torch.randn(1, 600, 8)
    state = mixer.begin(1, "cpu", torch.float32)
    for t in range(50):
        _, state = mixer.step(x[:, t], state)
    assert state["keys"].shape[2] == 20
    _, state = mixer.extend(x, mixer.begin(1, "cpu", torch.float32))
    assert state["keys"].shape[2] == 20 and state["count"].tolist() == [600]
    full, grown = Attention(8, 2), set()
    state = full.begin(1, "cpu", torch.float32)
    for t in range(600):
        _, state = full.step(x[:, t], state)
        grown.add(state["keys"].data_ptr())
    assert len(grown) == 3 and state["keys"].shape[2] == 3 * keys.BLOCK


def test_steps_that_learn_do_not_write_into_the_past() -> None:
    mixer, x = Attention(8, 2).double(), inputs(8, 6)
    stepwise(mixer, x)[0].square().sum().backward()
    by_steps = mixer.key.weight.grad.clone()
    mixer.zero_grad()
    mixer(x).square().sum().backward()
    torch.testing.assert_close(by_steps, mixer.key.weight.grad)


@torch.no_grad()
@pytest.mark.parametrize("window", [None, 4])
def test_rows_of_a_state_can_be_picked(window: int | None) -> None:
    mixer, x = Attention(8, 2, window=window).double(), inputs(8, 9, batch=3)
    _, state = mixer.extend(x, mixer.begin(3, "cpu", torch.float64))
    rows = torch.tensor([2, 0, 2])
    picked = {k: v.index_select(0, rows) for k, v in state.items()}
    y, _ = mixer.step(x[rows, 0], picked)
    wanted = mixer(torch.cat([x[rows], x[rows, :1]], 1))[:, -1]
    torch.testing.assert_close(y, wanted)


def test_half_precision_decodes() -> None:
    mixer, x = Attention(16, 4, kv_heads=2).bfloat16(), torch.randn(2, 7, 16).bfloat16()
    with torch.no_grad():
        found, _ = stepwise(mixer, x)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, mixer(x), atol=2e-2, rtol=5e-2)


def test_sinusoids_and_turns() -> None:
    table = sinusoids(5, 6)
    assert table[0].tolist() == [0, 1, 0, 1, 0, 1]
    assert table[3, 2].item() == pytest.approx(math.sin(3 * 10000 ** (-2 / 6)))
    cos, sin = turns(torch.arange(4)[None], 8, 10000.0, torch.float64)
    x = torch.randn(1, 2, 4, 8, dtype=torch.float64)
    torch.testing.assert_close(turn(x, cos, sin).norm(dim=-1), x.norm(dim=-1))
    assert rotary_size(10, 0.4) == 4 and rotary_size(8, True) == 8 and rotary_size(8, False) == 0


def test_feed_forwards_are_their_formulas() -> None:
    x = torch.randn(3, 5, 8)
    plain, gated = MLP(8, 12, "squared_relu", bias=True, layers=8), SwiGLU(8, 12)
    torch.testing.assert_close(plain(x), plain.down(plain.up(x).clamp(min=0) ** 2))
    torch.testing.assert_close(gated(x), gated.down(torch.nn.functional.silu(gated.gate(x)) * gated.up(x)))
    big = MLP(256, 512, layers=8)
    assert big.up.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert big.down.weight.std().item() == pytest.approx(0.005, rel=0.02)


def test_what_does_not_fit_is_refused() -> None:
    for options, words in (
        ({"heads": 3}, "do not divide"),
        ({"heads": 4, "kv_heads": 3}, "shared equally"),
        ({"heads": 4, "window": 0}, "at least the token"),
        ({"heads": 16}, "odd"),
        ({"heads": 4, "rotary": 1.5}, "share"),
    ):
        with pytest.raises(UserError, match=words):
            Attention(16, **options)
    with pytest.raises(UserError, match="not one of gelu"):
        MLP(8, 12, "gelo")
    with pytest.raises(UserError, match="at least 1"):
        SwiGLU(8, 0)
    with pytest.raises(UserError, match="even"):
        sinusoids(4, 3)


@pytest.mark.parametrize("owned", [False, True])
def test_products_that_learn_are_the_fused_attention(owned: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    exact = [torch.randn(2, 3, 9, 4).bfloat16().float().requires_grad_() for _ in range(3)]
    short = [x.detach().bfloat16().requires_grad_() for x in exact]
    owner = torch.tensor([[1] * 4 + [2] * 5, [1] * 9]) if owned else None
    taken: list[object] = []
    products = softmax._products
    monkeypatch.setattr(softmax, "_products", lambda *given: taken.append(given) or products(*given))
    for causal in (False, True):
        found = [attend(*x, owner, None, causal) for x in (short, exact)]
        assert (found[0] - found[1]).abs().max() < 0.03
        grads = [torch.autograd.grad(y.float().square().sum(), x) for y, x in zip(found, (short, exact))]
        assert max(float((a - b).abs().max()) for a, b in zip(*grads)) < 0.1
    assert len(taken) == 2  # in bfloat16 alone
    with torch.no_grad():
        attend(*short, owner)
    assert len(taken) == 2
