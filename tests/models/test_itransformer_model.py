"""iTransformer: the card's equations in loops, torch's own layer, order of variates, marks, gaps, sizes, files, refusals."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from forecasters_world import drawn, shaken
from torch import Tensor, nn

import lightformers as lf
from lightformers.bundle import Bundle
from lightformers.errors import UserError
from lightformers.export import huggingface
from lightformers.models.forecasting.itransformer import RECIPE, ITransformer, ITransformerConfig
from lightformers.models.presets import PRESETS
from lightformers.parts.encoder_layer import EncoderLayer
from lightformers.processors.series import SeriesProcessor
from lightformers.tasks.forecasting import Forecasting
from lightformers.train.forecasting import Epochs, evaluate, train

SMALL: dict[str, Any] = {
    "context_length": 12, "prediction_length": 5, "hidden_size": 16, "intermediate_size": 20, "num_attention_heads": 4,
    "dropout": 0.0,
}  # fmt: skip


def made(seed: int = 0, **fields: Any) -> ITransformer:
    torch.manual_seed(seed)
    return shaken(ITransformer(ITransformerConfig(**{**SMALL, **fields})).double().eval())


def literal(model: ITransformer, past: Tensor, marks: Tensor | None) -> Tensor:
    """The official code's forward as the paper's equations, token by token and head by head."""
    weights = model.state_dict()
    config = model.config
    size = config.hidden_size // config.num_attention_heads

    def linear(name: str, x: Tensor) -> Tensor:
        return weights[f"{name}.weight"] @ x + weights[f"{name}.bias"]

    def norm(name: str, x: Tensor) -> Tensor:
        centred = x - x.mean()
        scaled = centred / torch.sqrt((centred**2).mean() + 1e-5)
        return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def gelu(x: Tensor) -> Tensor:
        return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))

    windows = []
    for sample in range(len(past)):
        tokens, scales = [], []
        for variate in range(past.shape[2]):
            series = past[sample, :, variate]
            mean = series.mean().detach()
            deviation = torch.sqrt(((series - mean) ** 2).mean() + 1e-5)
            scales.append((mean, deviation))
            tokens.append(linear("embedding", (series - mean) / deviation))
        for mark in range(0 if marks is None else marks.shape[2]):
            tokens.append(linear("embedding", marks[sample, :, mark]))
        for number in range(config.num_hidden_layers):
            at = f"layers.{number}"
            q, k, v = ([linear(f"{at}.attention.{p}", x) for x in tokens] for p in ("query", "key", "value"))
            mixed = []
            for one in range(len(tokens)):
                heads = []
                for head in range(config.num_attention_heads):
                    part = slice(head * size, (head + 1) * size)
                    scores = torch.stack([q[one][part] @ other[part] for other in k]) / math.sqrt(size)
                    shares = scores.exp() / scores.exp().sum()
                    heads.append(sum(share * other[part] for share, other in zip(shares, v)))
                mixed.append(linear(f"{at}.attention.out", torch.cat(heads)))
            tokens = [norm(f"{at}.attention_norm", x + y) for x, y in zip(tokens, mixed)]
            tokens = [
                norm(f"{at}.ffn_norm", x + linear(f"{at}.down", gelu(linear(f"{at}.up", x)))) for x in tokens
            ]
        said = [linear("projector", norm("norm", x)) for x in tokens[: past.shape[2]]]
        windows.append(torch.stack([y * deviation + mean for y, (mean, deviation) in zip(said, scales)], 1))
    return torch.stack(windows)


@pytest.mark.parametrize("marks", [0, 2])
def test_it_is_the_official_forward(marks: int) -> None:
    """Outputs, and gradients to inputs and parameters; the mean carries none, the deviation does."""
    model = made(num_time_features=marks)
    past = (3 + 2 * drawn(2, 12, 3)).requires_grad_()
    calendar = drawn(2, 12, marks, seed=1) if marks else None
    found = model(past, past_time_features=calendar).prediction
    wanted = literal(model, past, calendar)
    torch.testing.assert_close(found, wanted, atol=1e-10, rtol=0)
    pull = drawn(*found.shape, seed=2)
    for got, expected in zip(torch.autograd.grad(found, past, pull), torch.autograd.grad(wanted, past, pull)):
        torch.testing.assert_close(got, expected, atol=1e-9, rtol=0)


@pytest.mark.parametrize("causal", [False, True])
def test_a_layer_is_torchs_own(causal: bool) -> None:
    torch.manual_seed(0)
    ours = EncoderLayer(12, 3, 20, causal=causal).double()
    theirs = nn.TransformerEncoderLayer(
        12, 3, 20, 0.0, "gelu", batch_first=True, norm_first=False, dtype=torch.float64
    )
    pairs = {
        "self_attn.out_proj": ours.attention.out, "linear1": ours.up, "linear2": ours.down,
        "norm1": ours.attention_norm, "norm2": ours.ffn_norm,
    }  # fmt: skip
    with torch.no_grad():
        for name, module in pairs.items():
            theirs.get_submodule(name).load_state_dict(module.state_dict())
        projections = (ours.attention.query, ours.attention.key, ours.attention.value)
        theirs.self_attn.in_proj_weight.copy_(torch.cat([p.weight for p in projections]))
        theirs.self_attn.in_proj_bias.copy_(torch.cat([p.bias for p in projections]))
    x = drawn(2, 7, 12)
    mask = nn.Transformer.generate_square_subsequent_mask(7, dtype=torch.float64) if causal else None
    torch.testing.assert_close(ours(x), theirs(x, src_mask=mask, is_causal=causal))
    assert ours.attention.query.bias.abs().max() > 0  # torch's start, not that of language models


def test_variates_may_come_in_any_order_and_number() -> None:
    model, past = made(num_time_features=2), drawn(2, 12, 6)
    marks, order = drawn(2, 12, 2, seed=3), [4, 0, 5, 2, 1, 3]
    whole = model(past, past_time_features=marks).prediction
    mixed = model(past[..., order], past_time_features=marks).prediction
    torch.testing.assert_close(mixed, whole[..., order], atol=1e-12, rtol=0)
    fewer = model(past[..., :2], past_time_features=marks).prediction
    assert fewer.shape == (2, 5, 2) and not torch.allclose(fewer, whole[..., :2])  # the others were read


def test_identity_reads_no_other_variate() -> None:
    model, past = made(attention="identity"), drawn(2, 12, 6)
    torch.testing.assert_close(model(past[..., :1]).prediction, model(past).prediction[..., :1])
    other = past.clone()
    other[..., 0] += drawn(2, 12)
    torch.testing.assert_close(model(other).prediction[..., 1:], model(past).prediction[..., 1:])


@pytest.mark.parametrize("normal", [True, False])
def test_missing_values_never_count(normal: bool) -> None:
    model, past = made(instance_norm=normal), drawn(2, 12, 3)
    mask = torch.rand(2, 12, 3, generator=torch.Generator().manual_seed(1)) > 0.3
    mask[0, :, 1] = False  # never seen at all
    holes = past.masked_fill(~mask, float("nan"))
    found = model(holes, past_observed_mask=mask).prediction
    assert torch.isfinite(found).all()
    torch.testing.assert_close(model(torch.where(mask, past, 1e6), past_observed_mask=mask).prediction, found)
    seen = torch.ones_like(mask)
    torch.testing.assert_close(model(past, past_observed_mask=seen).prediction, model(past).prediction)


def test_scale_and_level_pass_through() -> None:
    model, past = made(), drawn(2, 12, 3)
    torch.testing.assert_close(
        model(5 + 1000 * past).prediction, 5 + 1000 * model(past).prediction, rtol=1e-3, atol=1
    )
    constant = model(torch.full((1, 12, 2), 7.0, dtype=torch.float64)).prediction
    assert (constant - 7).abs().max() < 0.02  # its deviation is the root of 1e-5
    assert not torch.allclose(made(instance_norm=False)(past).prediction, model(past).prediction)


@pytest.mark.parametrize("name", [n for n in PRESETS if n.startswith("itransformer")])
def test_the_cards_sizes(name: str) -> None:
    counted = {"itransformer-etth1-96": 841_568, "itransformer-etth1-192": 866_240}
    assert PRESETS[name].parameters == counted.get(name, PRESETS[name].parameters)
    with torch.device("meta"):
        model = lf.create_model(name)
    assert sum(p.numel() for p in model.parameters()) == PRESETS[name].parameters
    recipe = dict(RECIPE[model.config.prediction_length])
    assert recipe.pop("preset") == name and recipe.pop("context") == model.config.context_length
    assert Epochs(**recipe).schedule == "halve"


def test_every_parameter_learns_and_dropout_is_of_training_alone() -> None:
    model, past = made(dropout=0.5), drawn(4, 12, 3)
    assert torch.equal(model(past).prediction, model(past).prediction)
    model.train()
    assert not torch.equal(model(past).prediction, model(past).prediction)
    model(past).prediction.square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())


def test_saved_and_loaded(tmp_path: Path) -> None:
    model = made(num_time_features=2).float()
    processor = SeriesProcessor(
        ("a", "b"), (1.0, 2.0), (3.0, 0.5), context_length=12, prediction_length=5, marks=2
    )
    bundle = Bundle(model, processor, "forecasting")
    huggingface.save(bundle, tmp_path)
    again = lf.load(tmp_path)
    assert again.task == "forecasting" and type(again.model) is ITransformer and again.processor == processor
    batch = again.collate(processor.samples(3))
    torch.testing.assert_close(again.model(**batch.inputs), model(**batch.inputs))
    assert again.model(**batch.inputs).prediction.shape == (3, 5, 2)


def test_it_can_be_written_down_as_a_graph() -> None:
    model, past = made().float(), drawn(2, 12, 3).float()
    batch = torch.export.Dim("batch", min=2, max=64)
    graph = torch.export.export(model, (past,), dynamic_shapes={"past_values": {0: batch}}, strict=False)
    more = drawn(5, 12, 3, seed=4).float()
    torch.testing.assert_close(graph.module()(more).prediction, model(more).prediction)


def test_it_is_trained_on_a_task_with_a_calendar() -> None:
    """The task makes the processor that the configuration asks for."""
    hours = np.arange("2024-01-01", "2024-02-01", dtype="datetime64[h]")
    waves = np.stack([np.sin(np.arange(len(hours)) / 3 + phase) for phase in (0, 1, 2)], 1)
    task = Forecasting.from_values(waves, ["a", "b", "c"], 5, 12, stamps=hours)
    bundle = Bundle(made(num_time_features=4).float(), None, "forecasting")
    found = train(bundle, task, Epochs(epochs=2, lr=3e-3, windows=200))
    assert bundle.processor.marks == 4 and found.history[-1]["mse"] < found.history[0]["mse"]
    assert evaluate(bundle, task)["mse"] < 0.9


def test_attention_wins_where_one_variate_leads_another() -> None:
    """Noise, and the same noise four steps later: who reads the first knows the future of the second."""
    errors = {}
    for attention in ("softmax", "identity"):
        torch.manual_seed(0)
        config = ITransformerConfig(
            **{**SMALL, "prediction_length": 4, "num_hidden_layers": 1}, attention=attention
        )
        model, drawing = ITransformer(config), torch.Generator().manual_seed(1)
        optimizer, seen = torch.optim.Adam(model.parameters(), 1e-2), []
        for _ in range(150):
            noise = torch.randn(64, 20, generator=drawing)
            past = torch.stack([noise[:, 4:16], noise[:, :12]], 2)
            future = torch.stack([noise[:, 16:], noise[:, 12:16]], 2)
            loss = (model(past).prediction - future).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            seen.append(float(loss.detach()))
        errors[attention] = sum(seen[-20:]) / 20
    assert errors["softmax"] < 0.9 < 0.95 < errors["identity"], errors


def test_what_does_not_fit_is_refused() -> None:
    model, past = made(num_time_features=2), drawn(2, 12, 3)
    for call, text in (
        (lambda: model(past), "2 marks of the calendar.*not none"),
        (lambda: model(past, past_time_features=drawn(2, 12, 3)), r"not \(2, 12, 3\)"),
        (lambda: made()(past[:, 1:]), "exactly 12 steps, got 11"),
        (lambda: made()(past.masked_fill(past > 1, float("nan"))), "NaN or infinity"),
        (lambda: made(num_input_channels=2)(past), "2 channels, got 3"),
        (lambda: made(hidden_size=18), "do not divide a width of 18"),
        (lambda: ITransformerConfig(attention="full"), "softmax, identity"),
        (lambda: ITransformerConfig(prediction_length=0), "do not make a forecaster"),
        (lambda: made(dropout=1.0), r"in \[0, 1\)"),
        (lambda: made(intermediate_size=0), "positive widths"),
        (lambda: made(hidden_act="tanh"), "is not one of"),
    ):
        with pytest.raises(UserError, match=text):
            call()
