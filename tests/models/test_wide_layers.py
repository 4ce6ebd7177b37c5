"""Wide attention: the same heads in fewer layers."""

from __future__ import annotations

import pytest
import torch

from lightformers.errors import UserError
from lightformers.models import create_model
from lightformers.models.language import wide_attention as wide
from lightformers.models.language.encoder import EncoderConfig, EncoderForSequenceClassification
from lightformers.models.matching import match, parameters
from lightformers.models.presets import PRESETS
from lightformers.parts.mixers.attention import Attention
from lightformers.parts.mixers.table import MIXERS

WIDE = [name for name in PRESETS if name.startswith("wide-")]


def encoder(
    shape: wide.Aspect, hidden: int = 128, kind: str = "attention", **options: object
) -> torch.nn.Module:
    rows = wide.layers(shape, 16, hidden, kind, **options)
    config = EncoderConfig(50, 64, rows, max_position_embeddings=32, classifier_hidden=64, num_labels=3)
    return EncoderForSequenceClassification(config)


def test_heads_are_shared_equally() -> None:
    assert [str(a) for a in wide.aspects(6)] == ["6x1", "3x2", "2x3", "1x6"]
    assert all(a.layers * a.heads == 48 for a in wide.aspects(48)) and str(wide.aspect(48, 6)) == "6x8"
    with pytest.raises(UserError, match="48 heads cannot be shared equally by 5"):
        wide.aspect(48, 5)
    with pytest.raises(UserError):
        wide.aspect(0, 1)


def test_attention_keeps_its_weights_and_feed_forwards_come_once_per_layer() -> None:
    """The card's example: at width 512, 32 heads of 64 and 1,024 inner channels one layer has 62.5 % of four."""
    deep, flat = (sum(wide.weights(wide.aspect(32, n), 512, 64, 1024)) for n in (4, 1))
    assert (deep, flat) == (8_388_608, 5_242_880) and flat / deep == 0.625
    with torch.device("meta"):
        for shape in wide.aspects(16):
            rows = wide.layers(shape, 64, 1024)
            made = EncoderForSequenceClassification(EncoderConfig(20, 512, rows, num_labels=10)).encoder
            matrices = {n: p.numel() for n, p in made.layers.named_parameters() if p.ndim == 2}
            attention = sum(v for n, v in matrices.items() if ".mixer." in n)
            assert (attention, sum(matrices.values()) - attention) == wide.weights(shape, 512, 64, 1024)


@pytest.mark.parametrize("name", WIDE)
def test_presets_have_the_papers_aspects(name: str) -> None:
    with torch.device("meta"):
        model = create_model(name)
    assert parameters(model) == PRESETS[name].parameters
    rows = model.config.layers
    assert name.endswith(f"-{len(rows)}x{rows[0]['mixer']['heads']}")


def test_presets_of_one_task_have_the_same_heads() -> None:
    assert len(WIDE) >= 3
    for name in WIDE:
        shape = [int(n) for n in name.rsplit("-", 1)[1].split("x")]
        assert shape[0] * shape[1] == PRESETS[name].fields["layers"][0]["mixer"]["heads"] * len(
            PRESETS[name].fields["layers"]
        )


@pytest.mark.parametrize(
    "kind", ["attention", "local", "linear", "performer", "linformer", "synthesizer", "bigbird"]
)
def test_every_attention_can_be_wide(kind: str) -> None:
    """More heads than fit into the width; all of them learn. Another head size changes the model, so it is not derived."""
    assert kind in MIXERS
    options = {"length": 16, "rank": 4} if kind in ("linformer", "synthesizer") else {}
    torch.manual_seed(0)
    model = encoder(wide.aspect(16, 1), 128, kind, **options)
    x = torch.randint(1, 50, (2, 16))
    model(input_ids=x).logits.square().sum().backward()
    mixer = {n: p for n, p in model.named_parameters() if ".mixer." in n}
    assert mixer and all(p.grad is not None and p.grad.abs().sum() > 0 for p in mixer.values())
    assert parameters(model) != parameters(encoder(wide.aspect(4, 1), 128, kind, **options))


def test_the_same_size_by_a_wider_feed_forward() -> None:
    target = parameters(encoder(wide.aspect(16, 4)))
    flat = parameters(encoder(wide.aspect(16, 1)))
    found = match(lambda hidden: encoder(wide.aspect(16, 1), hidden), target)
    assert flat < 0.75 * target and abs(found.ratio - 1) < 0.01 and found.width > 4 * 128


def test_contributions_add_up_to_what_attention_says() -> None:
    torch.manual_seed(0)
    mixer = Attention(
        24, heads=6, head_size=8, kv_heads=3, rotary=False, causal=False, out_bias=True
    ).double()
    torch.nn.init.normal_(mixer.out.bias)
    x = torch.randn(2, 9, 24, dtype=torch.float64)
    mask = torch.ones(2, 9, dtype=torch.long)
    mask[1, 5:] = 0
    for given, lengths in ((None, (9, 9)), (mask, (9, 5))):
        out, found = mixer(x, given), wide.contributions(mixer, x, given)
        assert found.shape == x.shape
        for row, n in enumerate(lengths):
            wanted = out[row, :n].mean(0) - mixer.out.bias
            assert torch.allclose(found[row].sum(0), wanted, atol=1e-10)
            assert (found[row, n:] == 0).all()


def test_contributions_are_refused_where_they_would_be_wrong() -> None:
    for options in (
        {"causal": True},
        {"causal": False, "rotary": True},
        {"causal": False, "rotary": False, "window": 3},
    ):
        with pytest.raises(UserError, match="looks both ways"):
            wide.contributions(Attention(8, heads=2, **options), torch.ones(1, 3, 8))
