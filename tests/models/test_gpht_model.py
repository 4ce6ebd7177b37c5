"""GPHT: the card's equations in loops, causality, the shift by one segment, horizons, its loss, sizes, files, refusals."""

from __future__ import annotations

import fnmatch
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from forecasters_world import drawn, shaken
from torch import Tensor

import lightformers as lf
from lightformers.bundle import Bundle
from lightformers.errors import UserError
from lightformers.export import huggingface
from lightformers.models.forecasting.gpht import BACKBONE, GPHT, GPHTConfig, shifted
from lightformers.processors.series import SeriesProcessor

SMALL: dict[str, Any] = {
    "context_length": 20, "prediction_length": 7, "token_length": 4, "pooling": (4, 2, 1), "hidden_size": 12,
    "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 3, "dropout": 0.0,
}  # fmt: skip


def made(seed: int = 0, **fields: Any) -> GPHT:
    torch.manual_seed(seed)
    return shaken(GPHT(GPHTConfig(**{**SMALL, **fields})).double().eval())


def literal_stage(model: GPHT, number: int, x: list[Tensor]) -> list[Tensor]:
    """One series of scalars through one stage, segment by segment and head by head."""
    config, weights = model.config, model.state_dict()
    rate, token, width = config.pooling[number], config.token_length, config.hidden_size
    size = width // config.num_attention_heads

    def linear(name: str, y: Tensor) -> Tensor:
        bias = weights.get(f"stages.{number}.{name}.bias")
        product = weights[f"stages.{number}.{name}.weight"] @ y
        return product if bias is None else product + bias

    def norm(name: str, y: Tensor) -> Tensor:
        scaled = (y - y.mean()) / torch.sqrt(((y - y.mean()) ** 2).mean() + 1e-5)
        return scaled * weights[f"stages.{number}.{name}.weight"] + weights[f"stages.{number}.{name}.bias"]

    pooled = [max(x[i : i + rate]) for i in range(0, len(x), rate)]
    each = token // rate
    tokens = []
    for place in range(len(x) // token):
        angles = [place / 10000 ** (2 * (i // 2) / width) for i in range(width)]
        position = torch.tensor(
            [math.cos(a) if i % 2 else math.sin(a) for i, a in enumerate(angles)], dtype=torch.float64
        )
        tokens.append(linear("embedding", torch.stack(pooled[place * each : (place + 1) * each])) + position)
    for layer in range(config.num_hidden_layers):
        at = f"layers.{layer}"
        q, k, v = ([linear(f"{at}.attention.{p}", y) for y in tokens] for p in ("query", "key", "value"))
        mixed = []
        for one in range(len(tokens)):
            heads = []
            for head in range(config.num_attention_heads):
                part = slice(head * size, (head + 1) * size)
                scores = torch.stack([q[one][part] @ k[past][part] for past in range(one + 1)]) / size**0.5
                shares = scores.exp() / scores.exp().sum()
                heads.append(sum(share * v[past][part] for past, share in enumerate(shares)))
            mixed.append(linear(f"{at}.attention.out", torch.cat(heads)))
        tokens = [norm(f"{at}.attention_norm", y + m) for y, m in zip(tokens, mixed)]
        tokens = [
            norm(
                f"{at}.ffn_norm",
                y + linear(f"{at}.down", torch.nn.functional.gelu(linear(f"{at}.up", y))),
            )
            for y in tokens
        ]
    return [value for y in tokens for value in linear("head", norm("norm", y))]


def literal(model: GPHT, series: Tensor) -> Tensor:
    """(length,) -> (length,): place k holds the forecast of place k + token_length."""
    token, mean = model.config.token_length, series.mean()
    deviation = torch.sqrt(((series - mean) ** 2).mean() + 1e-5)
    rest = [(value - mean) / deviation for value in series]
    total = [torch.zeros(()).double()] * len(rest)
    for number in range(len(model.config.pooling)):
        said = literal_stage(model, number, rest)
        total = [a + b for a, b in zip(total, said)]
        rest = [x if i < token else x - said[i - token] for i, x in enumerate(rest)]
    return torch.stack(total) * deviation + mean


def test_it_is_the_official_forward() -> None:
    """Every position of every channel, and the autoregressive forecast over two segments, normalised anew."""
    model, past = made(), 2 + drawn(2, 20, 3)
    wanted = torch.stack([torch.stack([literal(model, s) for s in one.T], 1) for one in past])
    torch.testing.assert_close(model.next_segments(past), wanted, atol=1e-6, rtol=0)
    first = wanted[:, -4:]
    again = torch.cat([past[:, 4:], first], 1)
    second = torch.stack([torch.stack([literal(model, s)[-4:] for s in one.T], 1) for one in again])
    torch.testing.assert_close(
        model(past).prediction, torch.cat([first, second], 1)[:, :7], atol=1e-6, rtol=0
    )


def test_no_segment_sees_a_later_one() -> None:
    """Without the statistics of the window, what is said at a segment depends on it and those before alone."""
    model, past = made(instance_norm=False), drawn(1, 20, 1)
    said = model.next_segments(past)
    for segment in range(5):
        other = past.clone()
        other[:, 4 * segment] += 3.0
        moved = (model.next_segments(other) - said).abs()[0, :, 0]
        assert moved[: 4 * segment].max() < 1e-12 if segment else True
        assert moved[4 * segment :].reshape(-1, 4).amax(1).min() > 1e-9  # itself and all after it
    assert (made().next_segments(other) - made().next_segments(past)).abs()[0, 0, 0] > 1e-9


def test_the_shift_is_one_segment() -> None:
    x = torch.arange(1.0, 9.0)
    assert shifted(x, 2).tolist() == [0, 0, 1, 2, 3, 4, 5, 6]
    assert shifted(x.expand(3, 8), 8).abs().sum() == 0


def test_a_stage_reads_what_the_last_one_got_wrong() -> None:
    """A first stage that forecasts perfectly leaves nothing but the first segment to the second."""
    model = made(instance_norm=False, pooling=(1, 1))
    read: list[Tensor] = []
    past = drawn(2, 20, 1)
    ahead = torch.cat([past[:, 4:], torch.zeros(2, 4, 1).double()], 1)[..., 0]
    model.stages[0].register_forward_hook(lambda *_: ahead)
    model.stages[1].register_forward_pre_hook(lambda _, given: read.append(given[0]))
    model.next_segments(past)
    assert torch.equal(read[0][:, :4], past[:, :4, 0]) and read[0][:, 4:].abs().max() == 0


def test_one_model_serves_every_horizon() -> None:
    model, past = made(), drawn(2, 20, 3)
    long = model.forecast(past, 13)
    assert long.shape == (2, 13, 3)
    for horizon in (1, 4, 5, 12):
        assert torch.equal(model.forecast(past, horizon), long[:, :horizon])
    assert torch.equal(model(past).prediction, long[:, :7])
    alone = torch.cat([model.forecast(past[..., i : i + 1], 13) for i in range(3)], 2)
    torch.testing.assert_close(alone, long)  # a channel is read for itself


def test_the_loss_is_of_the_next_segment_everywhere() -> None:
    model, past, future = made(), drawn(2, 20, 3), drawn(2, 7, 3, seed=1)
    series = torch.cat([past, future], 1)
    said = model.next_segments(past)
    wanted = sum((said[:, k] - series[:, k + 4]).square().sum() for k in range(20)) / (2 * 20 * 3)
    found = model.training_loss({"past_values": past}, future)
    torch.testing.assert_close(found, wanted)
    everything = {"past_values": past, "past_observed_mask": torch.ones_like(past).bool()}
    torch.testing.assert_close(model.training_loss(everything, future, torch.ones_like(future).bool()), found)
    later = future.clone()
    later[:, 4:] += 1  # beyond the next segment
    assert torch.equal(model.training_loss({"past_values": past}, later), found)
    short = model.training_loss({"past_values": past}, future[:, :1])
    error = (said[:, :17] - series[:, 4:21]).square()
    torch.testing.assert_close(short, error.mean())


def test_missing_values_never_count() -> None:
    for normal in (True, False):
        model, past, future = made(instance_norm=normal), drawn(2, 20, 3), drawn(2, 7, 3, seed=1)
        generator = torch.Generator().manual_seed(1)
        mask, there = (torch.rand(2, n, 3, generator=generator) > 0.3 for n in (20, 7))
        mask[0, :, 1] = False
        found = []
        for junk in (float("nan"), 1e6):
            inputs = {"past_values": past.masked_fill(~mask, junk), "past_observed_mask": mask}
            loss = model.training_loss(inputs, future.masked_fill(~there, junk), there)
            found.append((model(**inputs).prediction, loss))
        assert all(torch.isfinite(x).all() for x in found[0])
        torch.testing.assert_close(found[0], found[1])
    said = model.next_segments(past.masked_fill(~mask, 0.0), mask)  # the loss counts what was observed
    error = (said - torch.cat([past[:, 4:], future[:, :4]], 1)).square()
    kept = error[torch.cat([mask[:, 4:], there[:, :4]], 1)]
    torch.testing.assert_close(found[0][1], kept.mean())


def test_the_papers_sizes() -> None:
    with torch.device("meta"):
        model = lf.create_model("gpht")
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    assert sum(sizes.values()) == 37_977_280
    heads = [n for n in sizes if not any(fnmatch.fnmatch(n, pattern) for pattern in BACKBONE)]
    assert sum(sizes[n] for n in heads) == 98_496 and len(heads) == 8 and all("head" in n for n in heads)


def test_every_parameter_learns() -> None:
    model, past, future = made(dropout=0.3).train(), drawn(4, 20, 3), drawn(4, 7, 3, seed=1)
    model.training_loss({"past_values": past}, future).backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())
    once, again = (model(past).prediction for _ in range(2))
    assert not torch.equal(once, again)


def test_saved_and_loaded(tmp_path: Path) -> None:
    model = made().float()
    processor = SeriesProcessor(
        ("a", "b"), (1.0, 2.0), (3.0, 0.5), context_length=20, prediction_length=7, masked=True
    )
    huggingface.save(Bundle(model, processor, "forecasting"), tmp_path)
    again = lf.load(tmp_path)
    assert again.task == "forecasting" and type(again.model) is GPHT
    batch = again.collate(processor.samples(3))
    torch.testing.assert_close(again.model(**batch.inputs), model(**batch.inputs))


def test_it_can_be_written_down_as_a_graph() -> None:
    model, past = made(num_hidden_layers=1, pooling=(2,)).float(), drawn(2, 20, 3).float()
    batch = torch.export.Dim("batch", min=2, max=64)
    graph = torch.export.export(model, (past,), dynamic_shapes={"past_values": {0: batch}}, strict=False)
    more = drawn(5, 20, 3, seed=4).float()
    torch.testing.assert_close(graph.module()(more).prediction, model(more).prediction)


def test_a_finer_stage_learns_what_pooling_hid() -> None:
    """A slow wave that carries a fast one: the coarse stage alone leaves the fast one's part."""
    errors = {}
    for pooling in ((4, 1), (4,)):
        torch.manual_seed(0)
        model = GPHT(
            GPHTConfig(**{**SMALL, "num_hidden_layers": 1, "pooling": pooling, "prediction_length": 4})
        )
        optimizer, drawing, seen = (
            torch.optim.Adam(model.parameters(), 5e-3),
            torch.Generator().manual_seed(1),
            [],
        )
        for _ in range(80):
            start = 6.3 * torch.rand(2, 64, 1, generator=drawing)
            time = torch.arange(24.0)
            x = (torch.sin(time / 6 + start[0]) + 0.7 * torch.sin(1.7 * time + start[1]))[..., None]
            loss = model.training_loss({"past_values": x[:, :20]}, x[:, 20:])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            seen.append(float(loss.detach()))
        errors[pooling] = sum(seen[-10:]) / 10
    assert errors[(4, 1)] < 0.8 * errors[(4,)], errors


def test_what_does_not_fit_is_refused() -> None:
    past = drawn(2, 20, 3)
    for call, text in (
        (lambda: made(context_length=21), "whole segments of 4"),
        (lambda: made(pooling=(3, 1)), "divisor of the 4 steps"),
        (lambda: made(pooling=()), "one to 8 stages"),
        (lambda: made(num_hidden_layers=0), "at least one layer"),
        (lambda: GPHTConfig(prediction_length=0), "at least one step, not 0"),
        (lambda: made().forecast(past, 0), "at least one step, not 0"),
        (lambda: made()(past[:, 4:]), "exactly 20 steps, got 16"),
        (lambda: made()(past.masked_fill(past > 1, float("nan"))), "NaN or infinity"),
    ):
        with pytest.raises(UserError, match=text):
            call()
