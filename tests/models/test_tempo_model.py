"""TEMPO: what it computes, what of it is trained, what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, GPT2Model

import lightformers as lf
from lightformers.bundle import Bundle
from lightformers.errors import UserError
from lightformers.export import huggingface
from lightformers.models.forecasting import frozen_decoder
from lightformers.models.forecasting.tempo import GPT2_PROMPTS, Tempo, TempoConfig, sentences
from lightformers.models.language.convert import from_transformers
from lightformers.processors.series import SeriesProcessor

WORDS, WIDTH = 30, 16
PROMPTS = ((1, 2, 3), (1, 2, 4, 5), (1, 6))
GPT2 = {
    "model_type": "gpt2", "vocab_size": WORDS, "n_embd": WIDTH, "n_layer": 2, "n_head": 2, "n_positions": 64,
    "bos_token_id": 0, "eos_token_id": 0,
}  # fmt: skip
LAYER = {"mixer": {"kind": "attention", "heads": 2}, "ffn": {"kind": "swiglu", "hidden": 24}}
OURS = {"vocab_size": WORDS, "hidden_size": WIDTH, "layers": [LAYER] * 2}
SIZES: dict[str, Any] = {
    "context_length": 32, "prediction_length": 5, "patch_length": 8, "stride": 4, "kernel": 5, "lora_rank": 2,
    "prompt_tokens": PROMPTS,
}  # fmt: skip


def made(seed: int = 0, **fields: Any) -> Tempo:
    """A small model, every weight of which is drawn: the updates of LoRA too, which begin as 0."""
    torch.manual_seed(seed)
    model = Tempo(TempoConfig(**{**SIZES, "language_model": OURS, **fields})).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("second"):
                weight.normal_(std=0.3)
        model.scale.fill_(1.3)
        model.shift.fill_(0.2)
    return model


def series(batch: int = 3, channels: int = 2, length: int = 32, seed: int = 0) -> Tensor:
    return 5 + 2 * torch.randn(batch, length, channels, generator=torch.Generator().manual_seed(seed))


def test_forecasts_are_the_literal_equations() -> None:
    model, x = made(language_model=GPT2), series(2, 1)
    with torch.no_grad():
        mean, deviation = x.mean(1), (x.var(1, unbiased=False) + 1e-5).sqrt()
        z = ((x[..., 0] - mean) / deviation) * model.scale + model.shift
        average = torch.stack(
            [z[:, [min(max(i + d, 0), 31) for d in range(-2, 3)]].mean(1) for i in range(32)], 1
        )
        trend = model.decomposition.trend(average)
        season = model.decomposition.season(z - trend)
        line, places = [], []
        for i, part in enumerate((trend, season, z - trend - season)):
            long = torch.cat([part, part[:, -1:].expand(-1, 4)], 1)
            words = model.language_model.wte.weight[list(PROMPTS[i])]
            line += [model.prompts.maps[i](w).expand(2, -1) for w in words]
            places.append(len(line))
            line += [model.enter[i](long[:, at : at + 8]) for at in range(0, 29, 4)]
        states = model.language_model(inputs_embeds=torch.stack(line, 1)).last_hidden_state
        said = sum(head(states[:, at : at + 8].flatten(1)) for head, at in zip(model.leave, places))
        wanted = ((said - model.shift) / model.scale * deviation + mean)[..., None]
        torch.testing.assert_close(model(past_values=x).prediction, wanted)


def test_gpt2_as_it_is_and_as_a_decoder_say_the_same() -> None:
    torch.manual_seed(0)
    source = GPT2LMHeadModel(GPT2Config(**{k: v for k, v in GPT2.items() if k != "model_type"})).eval()
    one = Tempo.prompted(source, 1, **{**SIZES, "lora_rank": 0}).eval()
    two = Tempo.prompted(from_transformers(source), 1, **{**SIZES, "lora_rank": 0}).eval()
    rest = {k: v for k, v in one.state_dict().items() if not k.startswith("language_model.")}
    two.load_state_dict(rest, strict=False)
    x = series()
    torch.testing.assert_close(one(past_values=x).prediction, two(past_values=x).prediction)
    assert len(one.language_model.h) == len(two.language_model.layers) == 1
    source.transformer.h = source.transformer.h[:1]
    vectors = torch.randn(2, 7, WIDTH)
    expected = source.transformer(inputs_embeds=vectors).last_hidden_state
    torch.testing.assert_close(frozen_decoder.read(one.language_model, vectors), expected)
    assert isinstance(one.language_model, GPT2Model)


def test_weights_go_below_low_rank_updates_and_change_nothing_at_the_start() -> None:
    torch.manual_seed(0)
    source = lf.models.language.decoder.Decoder(lf.models.language.decoder.DecoderConfig(**OURS))
    model = Tempo.prompted(source, **{**SIZES, "lora_dropout": 0.0})
    vectors = torch.randn(2, 9, WIDTH)
    torch.testing.assert_close(
        frozen_decoder.read(model.language_model, vectors), source.features(inputs_embeds=vectors)[0]
    )
    with pytest.raises(UserError, match="has 2 layers: 3"):
        Tempo.prompted(source, 3, **SIZES)
    with pytest.raises(UserError, match="cannot be prompted"):
        Tempo.prompted(nn.Linear(2, 2), **SIZES)


def test_counts_of_the_paper() -> None:
    with torch.device("meta"):
        model = lf.create_model("tempo-gpt2-96")
    held = {name: p.numel() for name, p in model.language_model.named_parameters()}
    updates = sum(n for name, n in held.items() if name.endswith(("first", "second")))
    assert updates == 294_912 and sum(held.values()) - updates == 81_912_576
    assert model.config.patches == 42 and model.config.prompt_lengths == [9, 9, 9]
    trained = {n for n, p in model.language_model.named_parameters() if p.requires_grad}
    assert all(n.endswith(("first", "second")) or ".ln_" in n or n[:4] in ("ln_f", "wpe.") for n in trained)
    assert "h.0.ln_1.weight" in trained and "wpe.weight" in trained and "wte.weight" not in trained


@pytest.mark.parametrize(
    "fields",
    [{}, {"language_model": GPT2}, {"prompt": "pool", "pool_weight": 0.1}, {"prompt": None}, {"decompose": False}],
    ids=["ours", "gpt2", "pool", "no prompts", "whole"],
)  # fmt: skip
def test_what_is_trained_gets_gradients_and_folders_come_back(fields: dict[str, Any], tmp_path: Path) -> None:
    model, x = made(**fields).train(), series()
    loss = model.training_loss(
        {"past_values": x}, series(length=5, seed=1), torch.rand(3, 5, 2) > 0.3, torch.randn(3, 32, 2, 3)
    )
    loss.backward()
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert trained == {
        n for n, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0
    }
    assert not any(".base." in n or ".ffn." in n or ".mlp." in n or "embedding" in n for n in trained)
    processor = SeriesProcessor(("a", "b"), (0.0, 0.0), (1.0, 1.0), 32, 5)
    huggingface.save(Bundle(model.eval(), processor, "forecasting"), tmp_path)
    again = lf.load(tmp_path)
    assert isinstance(again.model, Tempo) and again.task == "forecasting" and again.processor == processor
    torch.testing.assert_close(again.model(past_values=x).prediction, model(past_values=x).prediction)
    assert {n for n, p in again.model.named_parameters() if p.requires_grad} == trained


def test_components_add_up_and_channels_are_series_for_themselves() -> None:
    model, x = made(), series()
    prediction, found, _ = model.parts(x)
    window = (x - x.mean(1, keepdim=True)) / (x.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(found.sum(1).unflatten(0, (3, 2)).transpose(1, 2), window * 1.3 + 0.2)
    for channel in range(2):
        alone = model(past_values=x[:1, :, channel : channel + 1]).prediction
        torch.testing.assert_close(prediction[:1, :, channel : channel + 1], alone)
    torch.testing.assert_close(
        model(past_values=10 * x + 3).prediction, 10 * prediction + 3, rtol=1e-4, atol=1e-3
    )


def test_values_that_were_not_seen_change_nothing() -> None:
    model, x = made(), series()
    seen = torch.rand(x.shape, generator=torch.Generator().manual_seed(1)) > 0.3
    first = model(past_values=x, past_observed_mask=seen).prediction
    hidden = torch.where(seen, x, torch.tensor(float("nan")))
    assert torch.equal(model(past_values=hidden, past_observed_mask=seen).prediction, first)
    full = torch.ones_like(seen)
    torch.testing.assert_close(
        model(past_values=x, past_observed_mask=full).prediction, model(past_values=x).prediction
    )
    future = torch.where(seen[:, :5], series(length=5), torch.tensor(float("nan")))
    assert model.training_loss({"past_values": x}, future, seen[:, :5]).isfinite()


def test_prompts_are_the_nearest_of_the_pool() -> None:
    model = made(prompt="pool", pool_size=6, pool_top=2, pool_length=3)
    pool, x = model.prompts, torch.randn(4, model.config.patches, WIDTH)
    prompt, like = pool(x)
    summary = torch.einsum("bnw,n->bw", x, pool.summary.weight[0]) + pool.summary.bias
    cosine = torch.nn.functional.cosine_similarity(summary[:, None], pool.keys[None], dim=2)
    for row in range(4):
        best = cosine[row].argsort(descending=True)[:2]
        torch.testing.assert_close(prompt[row], torch.cat([pool.values[i] for i in best]))
        torch.testing.assert_close(like[row], cosine[row, best])
    assert not pool.keys.requires_grad and not pool.summary.weight.requires_grad  # no loss pulls at them
    assert model.config.prompt_lengths == [6, 6, 6]


def test_a_component_is_read_before_the_next_one() -> None:
    """The language model is causal: what it says of the trend does not depend on the residual."""
    model, x = made(), series(1, 1)
    model.leave[1].requires_grad_(False).weight.zero_()
    model.leave[2].requires_grad_(False).weight.zero_()
    model(past_values=x).prediction.sum().backward()
    assert model.enter[0].weight.grad.abs().sum() > 0
    assert model.enter[1].weight.grad.abs().sum() == model.enter[2].weight.grad.abs().sum() == 0


def test_the_graph_can_be_exported() -> None:
    model, x = made(), series()
    graph = torch.export.export(model, (), {"past_values": x}, strict=False)
    torch.testing.assert_close(graph.module()(past_values=x).prediction, model(past_values=x).prediction)


def test_sentences_are_those_of_gpt2() -> None:
    class Spelled:
        def __call__(self, text: str, add_special_tokens: bool) -> dict[str, list[int]]:
            assert not add_special_tokens
            return {"input_ids": [len(w) for w in text.split()]}

    assert sentences(Spelled()) == [[7, 3, 6, 4, 4, 5, 3, n] for n in (5, 6, 8)]
    assert [len(s) for s in GPT2_PROMPTS] == [9] * 3 and len({s[:-1] for s in GPT2_PROMPTS}) == 1


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"prediction_length": 0}, "make no model"),
        ({"prompt": "hard"}, "'semi-soft', 'pool' or None"),
        ({"prompt_tokens": PROMPTS[:2]}, "one prompt for each"),
        ({"prompt_tokens": ((1,), (2,), (99,))}, "token 99"),
        ({"prompt_tokens": ((1,), (), (2,))}, "at least one token"),
        ({"context_length": 3}, "longer than a patch"),
        ({"kernel": 4}, "odd number of steps, not 4"),
        ({"lora_rank": 99}, "rank 99"),
        ({"language_model": {"model_type": "bert"}}, "not a bert"),
        ({"language_model": GPT2, "context_length": 96}, "more than the 64 positions"),
        ({"prompt": "pool", "pool_top": 31}, "chosen from a pool of 30"),
    ],
)
def test_refusals(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        made(**fields)


def test_windows_that_do_not_fit_are_refused() -> None:
    model = made(num_input_channels=2)
    with pytest.raises(UserError, match="exactly 32 steps"):
        model(past_values=series(length=31))
    with pytest.raises(UserError, match="2 channels"):
        model(past_values=series(channels=3))
    with pytest.raises(UserError, match="NaN"):
        model(past_values=torch.full((1, 32, 2), float("nan")))
