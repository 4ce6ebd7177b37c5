"""Tiny Time Mixers: transformers' mixer layers on views, prefix, known channels, sizes, frozen parts, files, refusals."""

from __future__ import annotations

from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import torch
from forecasters_world import floats as drawn
from forecasters_world import shaken
from torch import Tensor, nn
from transformers import PatchTSMixerConfig
from transformers.models.patchtsmixer.modeling_patchtsmixer import PatchTSMixerLayer

import lightformers as lf
from lightformers.bundle import Bundle
from lightformers.errors import UserError
from lightformers.export import huggingface
from lightformers.models.forecasting.ttm import BACKBONE, TinyTimeMixer, TinyTimeMixerConfig
from lightformers.parts.patch_mixer import MixerBlock
from lightformers.processors.series import SeriesProcessor

SMALL: dict[str, Any] = {
    "context_length": 24, "prediction_length": 6, "patch_length": 6, "hidden_size": 24, "num_hidden_layers": 2,
    "levels": 3, "decoder_hidden_size": 10, "decoder_num_layers": 1, "dropout": 0.1, "head_dropout": 0.1,
}  # fmt: skip
FORMS: list[dict[str, Any]] = [
    {}, {"levels": 0, "decoder_hidden_size": 24}, {"resolution_prefix": True}, {"head_length": 9},
    {"decoder_mode": "mix_channel", "num_input_channels": 3}, {"num_input_channels": 3, "channel_context": 2},
    {"num_input_channels": 3, "channel_context": 1, "known_channels": [1]},
]  # fmt: skip


def made(**fields: Any) -> TinyTimeMixer:
    torch.manual_seed(0)
    return shaken(TinyTimeMixer(TinyTimeMixerConfig(**{**SMALL, **fields}))).eval()


def inputs(model: TinyTimeMixer, batch: int = 3) -> dict[str, Tensor]:
    given = {"past_values": 4 + drawn(batch, 24, 3)}
    if model.config.known_channels:
        given["future_values"] = drawn(batch, 6, 3, seed=1)
    return given


def theirs(block: MixerBlock, patches: int, width: int, channels: int | None = None) -> nn.Module:
    """transformers' layer with the weights of ours; it takes (batch, channels, patches, width)."""
    layer = PatchTSMixerLayer(
        PatchTSMixerConfig(
            context_length=patches, patch_length=1, patch_stride=1, d_model=width, expansion_factor=2, dropout=0.0,
            num_input_channels=channels or 1, mode="mix_channel" if channels else "common_channel",
        )
    )  # fmt: skip
    names = {"patches.": "patch_mixer.", "features.": "feature_mixer.", "channels.": "channel_feature_mixer."}
    state = {}
    for name, value in block.state_dict().items():
        for old, new in names.items():
            if name.startswith(old):
                name = new + name[len(old) :]
        name = name.replace("gate.linear", "gating_block.attn_layer").replace(".norm.", ".norm.norm.")
        state[name] = value
    layer.load_state_dict(state)
    return layer.eval()


@pytest.mark.parametrize("prefix", [False, True])
@pytest.mark.parametrize("mode", ["common_channel", "mix_channel"])
def test_it_is_transformers_layers_on_reshaped_states(prefix: bool, mode: str) -> None:
    """The card's steps, with states as the official code holds them: (batch, channels, patches, width)."""
    model = made(resolution_prefix=prefix, decoder_mode=mode, num_input_channels=3)
    past, codes = 4 + drawn(2, 24, 3), torch.tensor([3, 99])
    mean, deviation = past.mean(1, keepdim=True), (past.var(1, keepdim=True, correction=0) + 1e-5).sqrt()
    x = ((past - mean) / deviation).transpose(1, 2).reshape(2, 3, 4, 6)
    backbone = model.backbone
    x = backbone.embedding(x)
    count = 4
    if prefix:
        table = backbone.prefix.embedding.weight[[3, 0]]  # a code that is not in the table counts as 0
        first = backbone.prefix.fc2(nn.functional.gelu(backbone.prefix.fc1(table)))
        x, count = torch.cat([first[:, None, None].expand(2, 3, 1, 24), x], 2), 5
    assert [level.factor for level in backbone.levels] == [4, 2, 1]
    for level in backbone.levels:
        x = x.reshape(2, 3, count * level.factor, 24 // level.factor)
        for block in level.layers:
            x = theirs(block, count * level.factor, 24 // level.factor)(x)
        x = x.reshape(2, 3, count, 24)
    x = model.adapter(x)
    for block in model.decoder:
        x = theirs(block, count, 10, 3 if mode == "mix_channel" else None)(x)
    wanted = model.head(x.flatten(2)).transpose(1, 2) * deviation + mean
    found = model(past_values=past, frequency=codes if prefix else None).prediction
    assert (found - wanted).abs().max() < 1e-4


@pytest.mark.parametrize("fields", FORMS)
def test_files_gradients_and_gaps(fields: dict[str, Any], tmp_path: Path) -> None:
    model = made(**fields)
    given, future = inputs(model), drawn(3, 6, 3, seed=1)
    known = tuple(model.config.known_channels)
    processor = SeriesProcessor(("a", "b", "c"), (0.0,) * 3, (1.0,) * 3, 24, 6, known=known)
    huggingface.save(Bundle(model, processor, "forecasting"), tmp_path / "saved")
    again = lf.load(tmp_path / "saved").model
    wanted = model(**given).prediction
    assert torch.equal(again(**given).prediction, wanted) and wanted.shape == (3, 6, 3)
    model.train()
    model.training_loss(given, future, torch.ones(3, 6, 3, dtype=torch.bool)).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
    model.eval()
    mask = drawn(3, 24, 3, seed=2) > -0.5
    found = [
        model(**{**given, "past_values": torch.where(mask, given["past_values"], filler)}, past_observed_mask=mask)
        for filler in (0.0, float("nan"))
    ]  # fmt: skip
    assert torch.equal(found[0].prediction, found[1].prediction)


def test_sizes_of_the_release() -> None:
    with torch.device("meta"):
        model = lf.create_model("ttm-512-96")
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    frozen = sum(n for name, n in sizes.items() if any(fnmatch(name, pattern) for pattern in BACKBONE))
    assert sum(sizes.values()) == 805_280 and sum(sizes.values()) - frozen == 289_696


def test_longer_windows_are_cut_and_shorter_refused() -> None:
    model = made()
    past = drawn(2, 30, 3)
    assert torch.equal(model(past_values=past).prediction, model(past_values=past[:, 6:]).prediction)
    with pytest.raises(UserError, match="exactly 24"):
        model(past_values=past[:, :20])


def test_a_longer_head_gives_its_first_steps() -> None:
    long, short = made(head_length=9), made(head_length=9)
    long.config.prediction_length = 9
    past = drawn(2, 24, 3)
    assert torch.equal(long(past_values=past).prediction[:, :6], short(past_values=past).prediction)


def test_channels_are_apart_until_they_are_mixed() -> None:
    past = drawn(2, 24, 3)
    other = past.clone()
    other[..., 2] = drawn(2, 24, seed=5)
    for fields, apart in ((FORMS[0], True), (FORMS[4], False), (FORMS[5], False)):
        model = made(**fields)
        first, second = (model(past_values=x).prediction[..., :2] for x in (past, other))
        assert torch.equal(first, second) is apart


def test_known_channels_are_read_and_given_back() -> None:
    model = made(**FORMS[6])
    given = inputs(model)
    found = model(**given).prediction
    assert torch.equal(found[..., 1], given["future_values"][..., 1])
    hidden = given["future_values"].clone()
    hidden[..., [0, 2]] = 1e6  # the future of what is forecast is never read
    assert torch.equal(model(**{**given, "future_values": hidden}).prediction, found)
    moved = given["future_values"].clone()
    moved[:, 3, 1] += 1.0
    apart = (model(**{**given, "future_values": moved}).prediction - found)[..., [0, 2]].abs().amax((0, 2))
    assert (apart[2:5] > 0).all() and (apart[[0, 1, 5]] == 0).all()  # a step sees its neighbours
    with pytest.raises(UserError, match="future_values is"):
        model(past_values=given["past_values"])


def test_the_prefix_tells_rates_apart() -> None:
    model = made(resolution_prefix=True)
    past = drawn(2, 24, 3)
    unknown, hourly = (model(past_values=past, frequency=torch.tensor([c, c])).prediction for c in (0, 6))
    assert torch.equal(unknown, model(past_values=past).prediction) and not torch.allclose(unknown, hourly)
    assert model.config.num_patches == 5 and model.head.in_features == 5 * 10


def test_a_level_that_would_be_too_thin_stays_whole() -> None:
    model = TinyTimeMixer(TinyTimeMixerConfig(**{**SMALL, "hidden_size": 12, "levels": 3}))
    assert [level.factor for level in model.backbone.levels] == [1, 2, 1]


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"hidden_size": 26}, "no multiple of 4"),
        ({"head_length": 3}, "head of 3 steps"),
        ({"decoder_mode": "mix_channel"}, "give num_input_channels"),
        ({"known_channels": [0], "num_input_channels": 3}, "give channel_context"),
        ({"known_channels": [0, 1, 2], "num_input_channels": 3, "channel_context": 1}, "some, not all"),
        ({"decoder_mode": "else"}, "decoder_mode is"),
        ({"head_dropout": 1.0}, "head_dropout"),
    ],
)
def test_senseless_settings_are_refused(fields: dict[str, Any], match: str) -> None:
    with pytest.raises(UserError, match=match):
        TinyTimeMixerConfig(**{**SMALL, **fields})
