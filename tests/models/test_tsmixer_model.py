"""TSMixer: transformers' PatchTSMixer with the same weights, heads, gaps, sizes, files, masked pre-training, refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from forecasters_world import floats as drawn
from forecasters_world import shaken
from transformers import PatchTSMixerConfig, PatchTSMixerForPrediction
from tsmixer_world import SMALL, THEIRS, made

import lightformers as lf
from lightformers.bundle import Bundle
from lightformers.errors import UserError
from lightformers.export import huggingface
from lightformers.models.forecasting.tsmixer import TSMixer, TSMixerConfig
from lightformers.models.forecasting.tsmixer_convert import from_transformers
from lightformers.models.forecasting.tsmixer_pretraining import TSMixerForPretraining
from lightformers.parts.reconciliation import patch_sums
from lightformers.processors.series import SeriesProcessor


@pytest.mark.parametrize("mode", ["common_channel", "mix_channel"])
@pytest.mark.parametrize(
    ("gated", "norm", "extra"),
    [
        (True, "LayerNorm", {}),
        (False, "LayerNorm", {"use_positional_encoding": True}),
        (True, "BatchNorm", {"scaling": None}),
        (False, "BatchNorm", {"use_positional_encoding": True, "positional_encoding_type": "random"}),
    ],
)  # fmt: skip
def test_outputs_and_gradients_are_those_of_transformers(
    mode: str, gated: bool, norm: str, extra: Any
) -> None:
    torch.manual_seed(0)
    theirs = shaken(
        PatchTSMixerForPrediction(
            PatchTSMixerConfig(**THEIRS, mode=mode, gated_attn=gated, norm_mlp=norm, loss="mse", **extra)
        )
    )
    theirs.eval()
    past, future = 5 + 3 * drawn(4, 21, 3), drawn(4, 6, 3, seed=1)
    if norm == "BatchNorm":  # statistics that are not those of the start
        theirs.train()
        theirs(past_values=past)
        theirs.eval()
    ours = from_transformers(theirs)
    wanted = theirs(past_values=past, future_values=future)
    found = ours(past_values=past).prediction
    assert (found - wanted.prediction_outputs).abs().max() < 1e-5
    loss = ours.training_loss({"past_values": past}, future)
    assert abs(loss - wanted.loss) < 1e-5
    loss.backward()
    wanted.loss.backward()
    gradients = [p.grad.flatten() for m in (theirs, ours) for p in (m.head.parameters())]
    assert all((a - b).abs().max() < 1e-4 for a, b in zip(gradients[:2], gradients[2:]))
    first = theirs.model.encoder.patcher.weight.grad - ours.mixer.embedding.weight.grad
    assert first.abs().max() < 1e-4


def test_chosen_channels_of_transformers_are_channels_of_ours() -> None:
    theirs = shaken(
        PatchTSMixerForPrediction(PatchTSMixerConfig(**THEIRS, loss="mse", prediction_channel_indices=[0, 2]))
    ).eval()
    past = 5 + drawn(2, 21, 3)
    found = from_transformers(theirs)(past_values=past).prediction
    assert (found[..., [0, 2]] - theirs(past_values=past).prediction_outputs).abs().max() < 1e-5


def test_what_has_no_counterpart_is_refused() -> None:
    for options, name in (({"self_attn": True, "d_model": 12}, "self_attn"), ({"loss": "nll"}, "loss")):
        with pytest.raises(UserError, match=name):
            from_transformers(PatchTSMixerForPrediction(PatchTSMixerConfig(**{**THEIRS, **options})))
    with pytest.raises(UserError, match="no PatchTSMixer"):
        from_transformers(torch.nn.Linear(1, 1))


FORMS: list[dict[str, Any]] = [
    {}, {"mode": "mix_channel", "norm": "batch"}, {"mode": "hybrid", "channel_context": 2}, {"hierarchy": 3},
    {"mode": "hybrid", "hierarchy": 2, "positions": "learned", "gated": False}, {"positions": "sinusoidal"},
]  # fmt: skip


@pytest.mark.parametrize("fields", FORMS)
def test_files_gradients_and_gaps(fields: dict[str, Any], tmp_path: Path) -> None:
    model = made(**fields)
    past, future = 4 + drawn(3, 21, 3), drawn(3, 6, 3, seed=1)
    processor = SeriesProcessor(("a", "b", "c"), (0.0,) * 3, (1.0,) * 3, 21, 6)
    huggingface.save(Bundle(model, processor, "forecasting"), tmp_path / "saved")
    again = lf.load(tmp_path / "saved")
    wanted = model(past_values=past).prediction
    assert again.task == "forecasting" and torch.equal(again.model(past_values=past).prediction, wanted)
    assert wanted.shape == (3, 6, 3)
    model.train()
    model.training_loss({"past_values": past}, future).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters() if p.requires_grad)
    model.eval()
    mask = drawn(3, 21, 3, seed=2) > -0.5
    gaps = [torch.where(mask, past, filler) for filler in (0.0, 99.0, float("nan"))]
    found = [model(past_values=x, past_observed_mask=mask).prediction for x in gaps]
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
    assert not torch.allclose(found[0], wanted)


def test_a_forecast_moves_with_its_window() -> None:
    """Scaling and shifting a channel does the same to its forecast, reconciliation included."""
    for fields in FORMS[2:5]:
        model = made(**fields).double()
        past = drawn(2, 21, 3).double()
        size, shift = torch.tensor([2.0, 0.5, 3.0]), torch.tensor([7.0, -1.0, 0.0])
        moved = model(past_values=past * size + shift).prediction
        assert torch.allclose(moved, model(past_values=past).prediction * size + shift, atol=1e-3)


def test_channels_are_apart_unless_mixed_or_reconciled() -> None:
    past = drawn(2, 21, 3)
    other = past.clone()
    other[..., 2] = drawn(2, 21, seed=5)
    for fields, apart in (({}, True), ({"mode": "mix_channel"}, False), ({"mode": "hybrid"}, False)):
        model = made(**fields)
        first, second = (model(past_values=x).prediction[..., :2] for x in (past, other))
        assert torch.equal(first, second) is apart
    assert made(num_input_channels=None)(past_values=drawn(2, 21, 5)).prediction.shape == (2, 6, 5)


def test_the_hierarchy_is_trained_on_three_errors() -> None:
    model = made(hierarchy=3)
    past, future = 4 + drawn(3, 21, 3), drawn(3, 6, 3, seed=1)
    prediction, sums = model._forecast(past, None)
    bottom, true = patch_sums(prediction, 3), patch_sums(future, 3)
    wanted = ((prediction - future) ** 2).mean()
    wanted = wanted + (((sums - true) ** 2).mean() + ((bottom - sums) ** 2).mean()) / 9
    loss = model.training_loss({"past_values": past}, future)
    assert torch.allclose(loss, wanted, rtol=1e-5)
    seen = torch.ones(3, 6, 3, dtype=torch.bool)
    assert torch.allclose(model.training_loss({"past_values": past}, future, seen), wanted, rtol=1e-5)
    seen[:, 1] = False  # the first sums are not known then
    partly = model.training_loss({"past_values": past}, future.masked_fill(~seen, float("nan")), seen)
    apart = torch.where(seen, prediction - future, 0.0).square().sum() / seen.sum()
    apart = apart + (((sums - true)[:, 1] ** 2).mean() + ((bottom - sums)[:, 1] ** 2).mean()) / 9
    assert torch.allclose(partly, apart, rtol=1e-5)


def test_a_planted_link_between_channels_is_found_by_reconciliation() -> None:
    """The second channel repeats the first, two steps later: apart they cannot know, reconciled they can."""
    torch.manual_seed(0)
    noise = torch.randn(600, 1)
    series = torch.cat([noise, noise.roll(2, 0)], 1)
    rows = torch.arange(560)[:, None] + torch.arange(24)
    past, future = series[rows[:, :20]], series[rows[:, 20:22]]
    errors = {}
    for mode in ("common_channel", "hybrid"):
        torch.manual_seed(0)
        config = TSMixerConfig(
            context_length=20, prediction_length=2, patch_length=4, hidden_size=8, num_hidden_layers=1, dropout=0.0,
            head_dropout=0.0, num_input_channels=2, mode=mode, channel_context=2, gated=False,
        )  # fmt: skip
        model = TSMixer(config)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        for _ in range(90):
            loss = model.training_loss({"past_values": past[:500]}, future[:500])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            apart = model.eval()(past_values=past[500:]).prediction - future[500:]
        errors[mode] = float(apart[..., 1].square().mean())
    assert errors["hybrid"] < 0.3 * errors["common_channel"]


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"mode": "mixed"}, "mode is one of"),
        ({"mode": "hybrid", "num_input_channels": None}, "give num_input_channels"),
        ({"hierarchy": 4}, "hierarchy divides"),
        ({"mask_ratio": 1.0}, "mask_ratio"),
        ({"mask_last": 6}, "mask_last"),
        ({"patch_stride": 0}, "positive size and stride"),
        ({"context_length": 4}, "longer than a patch"),
        ({"dropout": 1.0}, "dropout"),
    ],
)
def test_senseless_settings_are_refused(fields: dict[str, Any], match: str) -> None:
    with pytest.raises(UserError, match=match):
        TSMixerConfig(**{**SMALL, **fields})


def test_weights_start_as_asked() -> None:
    torch.manual_seed(0)
    small = TSMixer(TSMixerConfig(**SMALL, hierarchy=3))
    assert small.mixer.layers[0].patches.mlp.fc1.weight.std() < 0.03 and not small.head.bias.any()
    usual = TSMixer(TSMixerConfig(**SMALL, hierarchy=3, initializer_range=None))
    bound = 6**-0.5  # of torch's linear layer on six patches
    weight = usual.mixer.layers[0].patches.mlp.fc1.weight
    assert 0.8 * bound < weight.abs().max() <= bound and usual.head.bias.any()
    assert small.hierarchy is not None and small.hierarchy.fuse.weight.abs().max() < 0.1


def test_other_windows_are_refused() -> None:
    model = made()
    for past, match in (
        (drawn(2, 20, 3), "exactly 21"), (drawn(2, 21, 4), "3 channels"), (drawn(2, 21, 3) * float("nan"), "NaN"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=match):
            model(past_values=past)
    with pytest.raises(UserError, match="hidden is"):
        TSMixerForPretraining(TSMixerConfig(**SMALL))(past_values=drawn(2, 21, 3), hidden=torch.ones(2, 3, 5))


@pytest.mark.parametrize("fields", [FORMS[1], FORMS[4]])
def test_it_can_be_recorded_for_any_batch(fields: dict[str, Any]) -> None:
    model = made(**fields)
    batch = torch.export.Dim("batch", min=2, max=64)
    recorded = torch.export.export(
        model, (), {"past_values": drawn(2, 21, 3)}, dynamic_shapes={"past_values": {0: batch}}, strict=False
    )
    past = drawn(5, 21, 3)
    found = recorded.module()(past_values=past)
    assert torch.allclose(found.prediction, model(past_values=past).prediction, atol=1e-5)
