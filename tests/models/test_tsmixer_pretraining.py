"""Masked pre-training of TSMixer: what is hidden, that it is transformers', and what comes of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from forecasters_world import floats as drawn
from forecasters_world import shaken
from transformers import PatchTSMixerConfig, PatchTSMixerForPretraining
from tsmixer_world import SMALL, THEIRS

import lightformers as lf
from lightformers.bundle import Bundle
from lightformers.export import huggingface
from lightformers.models.forecasting.tsmixer import TSMixerConfig
from lightformers.models.forecasting.tsmixer_convert import from_transformers
from lightformers.models.forecasting.tsmixer_pretraining import TSMixerForPretraining, draw_hidden


@pytest.mark.parametrize("kind", ["random", "forecast"])
def test_masked_pretraining_is_that_of_transformers(kind: str) -> None:
    theirs = shaken(
        PatchTSMixerForPretraining(
            PatchTSMixerConfig(**THEIRS, mask_type=kind, random_mask_ratio=0.4, num_forecast_mask_patches=2)
        )
    ).eval()
    ours = from_transformers(theirs)
    past = drawn(5, 21, 3)
    torch.manual_seed(3)
    wanted = theirs(past_values=past)
    torch.manual_seed(3)
    found = ours(past_values=past)
    assert (found.reconstruction - wanted.prediction_outputs).abs().max() < 1e-5
    assert abs(found.loss - wanted.loss) < 1e-6
    assert found.hidden.float().mean() == pytest.approx({"random": 3 / 6, "forecast": 2 / 6}[kind])


def test_pretraining_hides_learns_and_becomes_a_forecaster(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = TSMixerForPretraining(TSMixerConfig(**{**SMALL, "dropout": 0.0, "head_dropout": 0.0}))
    wave = torch.sin(torch.arange(64)[:, None] * 0.7 + torch.arange(21) * 0.7)[..., None].expand(-1, -1, 3)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    losses = []
    for _ in range(80):
        loss = model.training_loss({"past_values": wave})
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.3 * sum(losses[:5])
    forecaster = model.forecaster(4, head_dropout=0.0)
    assert forecaster(past_values=wave).prediction.shape == (64, 4, 3)
    assert torch.equal(forecaster.mixer.embedding.weight, model.mixer.embedding.weight)
    huggingface.save(Bundle(model.eval()), tmp_path / "saved", allow_custom=True)
    again = lf.load(tmp_path / "saved").model
    hidden = draw_hidden(64, 3, 6, 0.5)
    whole, part = (m(past_values=wave, hidden=hidden) for m in (model, again))
    assert torch.equal(whole.loss, part.loss)


def test_gaps_do_not_count_in_pretraining() -> None:
    torch.manual_seed(0)
    model = shaken(TSMixerForPretraining(TSMixerConfig(**SMALL))).eval()
    past, mask = drawn(3, 21, 3), drawn(3, 21, 3, seed=2) > -0.5
    hidden = draw_hidden(3, 3, 6, 0.5)
    found = [
        model(past_values=torch.where(mask, past, filler), past_observed_mask=mask, hidden=hidden).loss
        for filler in (0.0, 50.0)
    ]
    assert torch.equal(found[0], found[1])


def test_hidden_patches_are_shared_by_channels() -> None:
    hidden = draw_hidden(7, 3, 8, 0.3)
    assert (hidden.sum(-1) == 3).all() and torch.equal(hidden[:, 0], hidden[:, 2])
    assert draw_hidden(2, 1, 5, 0.5, last=2)[0, 0].tolist() == [False, False, False, True, True]
