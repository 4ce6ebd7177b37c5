"""Every mixer and feed-forward of the tables, in a model: it generates, learns, packs, is saved and runs in bfloat16.

A new row of `MIXERS` or `FEED_FORWARDS` adds its smallest options here.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lightformers.models.language.decoder import Decoder, DecoderConfig
from lightformers.models.language.encoder import Encoder, EncoderConfig
from lightformers.parts.ffn.table import FEED_FORWARDS
from lightformers.parts.mixers.table import MIXERS, check

WIDTH, WORDS = 16, 24
#: kind -> options of the smallest one of width 16. Several variants of a kind: "kind, what differs".
MIXER_OPTIONS: dict[str, dict[str, Any]] = {
    "aaren": {"heads": 2, "block": 4},
    "attention": {"heads": 2},
    "attention, grouped in a window": {
        "heads": 4,
        "kv_heads": 2,
        "window": 3,
        "rotary": 0.5,
        "qk_norm": True,
    },
    "bigbird": {"heads": 2, "block": 2, "random": 1, "length": 48},
    "linear": {"heads": 2},
    "linformer": {"heads": 2, "length": 48, "rank": 5},
    "local": {"heads": 2, "block": 4},
    "longformer": {"heads": 2, "window": 4, "tokens": 1},
    "performer": {"heads": 2, "features": 16},
    "reformer": {"heads": 2, "buckets": 4, "chunk": 4},
    "sinkhorn": {"heads": 2, "block": 4, "length": 48},
    "softmax": {"heads": 2},
    "sparse": {"heads": 2, "block": 4, "columns": 2},
    "synthesizer": {"heads": 2, "length": 48, "rank": 3},
    "block-attention": {"heads": 4, "kv_heads": 2, "block": 3},
    "combiner": {"heads": 2, "span": 3},
    "combiner, sparse": {"heads": 2, "span": 3, "pool": "last", "bias": True},
    "combiner-axial": {"heads": 2, "span": 3},
    "combiner-logsparse": {"heads": 2, "pool": "mean"},
    "ecoformer": {"heads": 2, "bits": 4, "anchors": 6, "near": 3, "steps": 2},
    "deltanet": {"heads": 2, "chunk": 4},
    "deltanet, gated and negative": {"heads": 2, "gate": True, "negative": True, "convolution": 0},
    "fourier": {"heads": 2},
    "linear-attention": {"heads": 2, "chunk": 4},
    "linear-attention, weighted mean": {"heads": 2, "features": "elu"},
    "mamba": {"state": 4},
    "mamba, constant rates": {"state": 4, "selective": False},
    "mamba2": {"state": 4, "head": 8, "groups": 2, "chunk": 4},
    "memory": {"heads": 2, "bits": 4},
    "mixed": {"heads": 2, "kernel": 3},
    "mlgru": {},
    "mlgru, full": {"ternary": False, "gate": "paper"},
    "multiplicative": {"heads": 2, "weighted": True},
    "primer": {"heads": 2},
    "primer, shared in a window": {"heads": 2, "shared": True, "window": 3},
    "quantizable": {"heads": 2, "low": -0.02},
    "quantizable, gated": {"heads": 2, "gate": "linear", "opening": 0.25},
    "tokenformer": {"heads": 2, "tokens": 12},
}
FFN_OPTIONS: dict[str, dict[str, Any]] = {
    "bit-swiglu": {"hidden": 20},
    "memory, a layer": {"bits": 4},  # there is a mixer of that name
    "mlp": {"hidden": 24, "activation": "squared_relu", "bias": True},
    "mlp, polynomial": {"hidden": 24, "activation": "poly_norm"},
    "pattention": {"tokens": 24},
    "structured": {"hidden": 24, "rank": 4, "activation": "poly_relu"},
    "swiglu": {"hidden": 20},
    "thor": {"hidden": 24, "experts": 1},  # a second expert would learn from other batches
}
PLAIN = {"kind": "attention", "heads": 2}


def _kind(name: str) -> str:
    return name.split(",")[0]


def _causal(name: str) -> bool:
    return hasattr(check(MIXERS, _kind(name), **MIXER_OPTIONS[name]), "begin")


CAUSAL = [name for name in MIXER_OPTIONS if _causal(name)]
LAYERS = {name: {"mixer": {"kind": _kind(name), **MIXER_OPTIONS[name]}} for name in CAUSAL} | {
    name: {"mixer": PLAIN, "ffn": {"kind": _kind(name), **options}} for name, options in FFN_OPTIONS.items()
}


def model(name: str) -> Decoder:
    torch.manual_seed(0)
    made = Decoder(DecoderConfig(WORDS, WIDTH, [LAYERS[name]] * 2)).eval()
    with torch.no_grad():
        made.embedding.weight.mul_(50)  # as drawn, so small a model says the same everywhere
    return made


def tokens(batch: int, n: int) -> Tensor:
    return torch.randint(1, WORDS, (batch, n), generator=torch.Generator().manual_seed(n))


def test_every_row_is_tried() -> None:
    for table, options in ((MIXERS, MIXER_OPTIONS), (FEED_FORWARDS, FFN_OPTIONS)):
        missing = set(table) - {_kind(name) for name in options}
        assert not missing, (
            f"say how to build {', '.join(sorted(missing))}: a row in MIXER_OPTIONS or FFN_OPTIONS"
        )


@torch.no_grad()
@pytest.mark.parametrize("name", LAYERS)
def test_it_generates_what_a_full_forward_says(name: str) -> None:
    made, ids = model(name).double(), tokens(2, 6)
    mask = torch.ones_like(ids)
    mask[0, :2] = 0
    found = made.generate(
        input_ids=ids, attention_mask=mask, max_new_tokens=7, do_sample=False, pad_token_id=0
    )
    for row, start in enumerate((2, 0)):
        alone = ids[row : row + 1, start:]
        for _ in range(7):
            alone = torch.cat([alone, made(input_ids=alone).logits[:, -1:].argmax(-1)], 1)
        assert torch.equal(found[row : row + 1, start:], alone)


@pytest.mark.parametrize("name", LAYERS)
def test_every_parameter_learns(name: str) -> None:
    made = model(name).train()
    made(input_ids=tokens(4, 33)).logits.square().mean().backward()
    for key, p in made.named_parameters():
        assert p.grad is not None and torch.isfinite(p.grad).all() and p.grad.abs().sum() > 0, key


@torch.no_grad()
@pytest.mark.parametrize("name", LAYERS)
def test_packed_is_apart(name: str) -> None:
    made, a, b = model(name).double(), tokens(1, 5), tokens(1, 8)
    mask = torch.tensor([[1] * 5 + [2] * 8 + [0] * 2])
    packed = made(input_ids=torch.cat([a, b, a[:, :2]], 1), attention_mask=mask).logits[:, :13]
    apart = torch.cat([made(input_ids=a).logits, made(input_ids=b).logits], 1)
    torch.testing.assert_close(packed, apart, atol=1e-8, rtol=1e-8)


@torch.no_grad()
@pytest.mark.parametrize("name", LAYERS)
def test_saved_and_loaded_it_is_the_same(name: str, tmp_path: Path) -> None:
    made, ids = model(name), tokens(2, 9)
    made.save_pretrained(tmp_path)
    again = Decoder.from_pretrained(tmp_path).eval()
    assert again.config.layers == made.config.layers
    assert torch.equal(again(input_ids=ids).logits, made(input_ids=ids).logits)
    assert torch.equal(copy.deepcopy(made)(input_ids=ids).logits, made(input_ids=ids).logits)


@pytest.mark.parametrize("name", LAYERS)
def test_bfloat16_is_finite_and_near(name: str) -> None:
    made, ids = model(name), tokens(2, 17)
    wanted = made(input_ids=ids).logits
    half = copy.deepcopy(made).bfloat16()
    found = half(input_ids=ids).logits
    assert found.dtype == torch.bfloat16 and torch.isfinite(found).all()
    assert (found.float() - wanted).abs().mean() < 0.1 * wanted.abs().mean() + 0.02
    with torch.no_grad():
        out = half.generate(input_ids=ids, max_new_tokens=3, do_sample=False, pad_token_id=0)
    assert out.shape == (2, 20)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = made.train()(input_ids=ids).logits
    mixed.float().square().mean().backward()
    assert all(torch.isfinite(p.grad).all() for p in made.parameters())


@pytest.mark.parametrize("name", MIXER_OPTIONS)
def test_it_stands_in_an_encoder(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    options = {"kind": _kind(name), **MIXER_OPTIONS[name]}
    made = Encoder(EncoderConfig(WORDS, WIDTH, [{"mixer": options}], max_position_embeddings=64)).eval()
    ids = tokens(2, 16)
    made.train()(ids)  # what is learned from a first batch (the hash of ecoformer)
    made.eval()
    out = made(ids)
    assert torch.isfinite(out.pooler_output).all()
    mask = torch.nn.functional.pad(torch.ones_like(ids), (0, 4))
    padded = made(torch.nn.functional.pad(ids, (0, 4), value=1), mask)
    torch.testing.assert_close(padded.pooler_output, out.pooler_output, atol=1e-4, rtol=1e-4)
    made.save_pretrained(tmp_path)
    assert torch.equal(Encoder.from_pretrained(tmp_path).eval()(ids).pooler_output, out.pooler_output)
