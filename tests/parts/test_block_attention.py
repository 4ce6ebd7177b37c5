"""MASFormer: which layers are full, blocks in the others."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lightformers.errors import UserError
from lightformers.models.language.decoder import Decoder, DecoderConfig
from lightformers.parts.attention import masformer
from lightformers.parts.mixers.block_attention import BlockAttention
from lightformers.parts.mixers.table import MIXERS, make
from mixer_contract import check_causal, inputs
from sequence_cost import growth


def reach(n: int, block: int) -> Tensor:
    """Which key each query sees, by the letter."""
    i = torch.arange(n)
    return (i[None] <= i[:, None]) & ((i // block)[None] >= (i // block)[:, None] - 1)


@pytest.mark.parametrize("n", (1, 3, 63, 65, 1000))
@pytest.mark.parametrize("block", (1, 8, 64))
def test_blocks_equal_masked_attention(n: int, block: int) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 2, 2, n, 4, generator=generator, dtype=torch.float64).requires_grad_()
    found = masformer.block_causal(q, k, v, block)
    wanted = torch.nn.functional.scaled_dot_product_attention(q, k, v, reach(n, block))
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-9)
    grads = [torch.autograd.grad(y.square().sum(), (q, k, v)) for y in (found, wanted)]
    for a, b in zip(*grads):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    "mixer", [lambda: BlockAttention(12, 2, block=4), lambda: BlockAttention(12, 3, block=3, kv_heads=1, rotary=False, bias=True)]
)  # fmt: skip
def test_contract(mixer: Callable[[], BlockAttention]) -> None:
    torch.manual_seed(0)
    check_causal(mixer(), 12)


def test_the_state_does_not_grow() -> None:
    mixer = BlockAttention(12, 2, block=4)
    state = mixer.begin(1, "cpu", torch.float32)
    sizes = []
    for length in (3, 50):
        _, state = mixer.extend(torch.randn(1, length, 12), state)
        sizes.append(state["keys"].shape)
    assert sizes[0] == sizes[1] == (1, 2, 8, 6)


def test_places() -> None:
    assert masformer.full_layers(2, 8) == (0, 1)
    assert masformer.full_layers(2, 8, "top") == (6, 7)
    assert masformer.full_layers(2, 8, "spread") == (2, 6)
    assert masformer.full_layers([5, 1], 8) == (1, 5)
    for place in masformer.PLACES:
        assert masformer.full_layers(0, 8, place) == ()
        assert masformer.full_layers(8, 8, place) == tuple(range(8))
        for count in range(9):
            assert len(set(masformer.full_layers(count, 8, place))) == count
    for wrong in (9, -1, [1, 1], [8], [-1]):
        with pytest.raises(UserError):
            masformer.full_layers(wrong, 8)
    with pytest.raises(UserError, match="one of bottom, top, spread"):
        masformer.full_layers(1, 8, "middle")  # type: ignore[arg-type]


@pytest.mark.parametrize("n", (1, 7, 64, 100))
def test_costs_are_counted(n: int) -> None:
    assert masformer.pairs(n) == n * (n + 1) // 2
    for size in (1, 8, 64, 200):
        assert masformer.pairs(n, block=size) == int(reach(n, size).sum())
        i = torch.arange(n)
        seen = (i[None] <= i[:, None]) & (i[:, None] - i[None] < size)
        assert masformer.pairs(n, window=size) == int(seen.sum())


def test_what_the_paper_saves() -> None:
    assert masformer.relative_cost(24, 24, 8192, block=1024) == masformer.relative_cache(24, 24, 8192) == 1
    # eight full layers of 24 with blocks of 1024 leave 56 % of the scores at 8192 tokens; with four and 256 a quarter
    assert 0.56 < masformer.relative_cost(24, 8, 8192, block=1024) < 0.57
    assert masformer.relative_cost(24, 4, 8192, block=256) < 0.25
    assert masformer.relative_cache(24, 8, 8192, block=1024) == (8 + 16 / 4) / 24


FFN = {"kind": "mlp", "hidden": 32, "activation": "gelu"}


def decoder(full: int, block: int = 4, place: masformer.Place = "bottom") -> Decoder:
    torch.manual_seed(0)
    layers = masformer.mixed_spans(
        4, full, {"kind": "block-attention", "heads": 2, "block": block}, FFN, {"kind": "attention", "heads": 2}, place
    )  # fmt: skip
    return Decoder(DecoderConfig(vocab_size=20, hidden_size=16, layers=layers)).double().eval()


@torch.no_grad()
def test_a_trained_decoder_is_converted_by_its_weights() -> None:
    """Within two blocks nothing changes; beyond, only what full layers carry arrives."""
    whole, mixed, blind = decoder(4), decoder(1, place="top"), decoder(0)
    for other in (mixed, blind):
        other.load_state_dict(whole.state_dict())
    ids = torch.randint(20, (2, 60), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(mixed(ids[:, :8]).logits, whole(ids[:, :8]).logits, rtol=0, atol=1e-9)
    changed = ids.clone()
    changed[:, 3] = (ids[:, 3] + 1) % 20
    # four layers of blocks of 4 reach 4 * 4 + 3 tokens back: token 3 is out of sight of the last one
    moved = [float((m(ids).logits - m(changed).logits)[:, -1].abs().max()) for m in (whole, mixed, blind)]
    assert moved[0] > 1e-9 and moved[1] > 1e-9 and moved[2] == 0


@torch.no_grad()
def test_windows_instead_of_blocks_take_the_same_weights() -> None:
    window = {"kind": "attention", "heads": 2, "window": 6}
    layers = masformer.mixed_spans(4, [1], window, FFN, {"kind": "attention", "heads": 2})
    assert [row["mixer"].get("window") for row in layers] == [6, None, 6, 6]
    mixed = Decoder(DecoderConfig(vocab_size=20, hidden_size=16, layers=layers)).double().eval()
    whole = decoder(4)
    mixed.load_state_dict(whole.state_dict())
    ids = torch.randint(20, (2, 30), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(mixed(ids[:, :6]).logits, whole(ids[:, :6]).logits, rtol=0, atol=1e-9)
    assert not torch.allclose(mixed(ids).logits[:, -1], whole(ids).logits[:, -1])


@torch.no_grad()
def test_generation_with_mixed_caches_equals_the_whole() -> None:
    model = decoder(2, place="spread")
    prompt = torch.randint(20, (2, 13), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(prompt)
    mask[1, :4] = 0
    made = model.generate(
        input_ids=prompt, attention_mask=mask, max_new_tokens=12, do_sample=False, pad_token_id=0
    )
    assert made.shape == (2, 25)
    text = made.clone()
    seen = torch.cat([mask, torch.ones(2, 12, dtype=torch.long)], 1)
    logits = model(input_ids=text, attention_mask=seen).logits
    assert torch.equal(logits[:, 12:-1].argmax(-1), made[:, 13:])


def test_memory_is_linear_in_length() -> None:
    mixer = BlockAttention(16, 2, block=64)

    def run(n: int) -> Callable[[], Tensor]:
        x = torch.randn(1, n, 16, requires_grad=True)
        return lambda: mixer(x)

    assert growth(run, 2048, 8192) < 1.1


def test_rows_of_the_table_and_bad_settings() -> None:
    mixer = make(MIXERS, "block-attention", 16, layer=1, layers=2, heads=2, block=8)
    assert mixer(inputs(16, 20).float()).shape == (2, 20, 16)
    assert sum(p.numel() for p in mixer.parameters()) == 4 * 16**2
    for wrong in ({"heads": 3}, {"heads": 2, "block": 0}, {"heads": 4, "kv_heads": 3}):
        with pytest.raises(UserError):
            BlockAttention(16, **wrong)
