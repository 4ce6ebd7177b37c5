"""Forecasters made of plain layers: found, cut and reloaded like any other family."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import zoo
from torch import Tensor

import lightformers as lf
from lightformers import anatomy, compress
from lightformers.bundle import Bundle
from lightformers.errors import ModelError
from lightformers.export import huggingface
from lightformers.models.forecasting.gpht import GPHT, GPHTConfig
from lightformers.models.forecasting.itransformer import ITransformer, ITransformerConfig
from lightformers.processors.series import SeriesProcessor
from lightformers.steps import Recipe, Run
from lightformers.tasks.forecasting import Forecasting

SIZES: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_hidden_layers": 3, "context_length": 24,
    "prediction_length": 8,
}  # fmt: skip
KINDS: dict[str, Any] = {
    "itransformer": lambda: ITransformer(ITransformerConfig(**SIZES)),
    "gpht": lambda: GPHT(GPHTConfig(**SIZES, token_length=8, pooling=(2, 1))),
}
CUTS = {"itransformer": ("blocks", "heads", "channels", "width"), "gpht": ("blocks", "heads", "channels")}


def make(name: str) -> Any:
    torch.manual_seed(0)
    model = KINDS[name]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def past() -> Tensor:
    return torch.randn(2, 24, 3, generator=torch.Generator().manual_seed(1))


def said(model: Any) -> Tensor:
    with torch.no_grad():
        return model(past_values=past()).prediction


def cut_it(model: Any, cut: str) -> None:
    found = anatomy.of(model)
    if cut == "blocks":
        for stack in found.stacks:
            anatomy.surgery.keep_blocks(model, [0, 2], stack.name)
    elif cut == "heads":
        anatomy.surgery.keep_heads(model, {i: [1, 2, 3] for i in range(len(found.blocks))})
    elif cut == "channels":
        anatomy.surgery.keep_channels(model, {i: range(1, 33) for i in range(len(found.blocks))})
    else:
        anatomy.surgery.keep_width(model, range(3, 23))


def bundled(model: Any) -> Bundle:
    processor = SeriesProcessor(
        ("a", "b", "c"), (0.0,) * 3, (1.0,) * 3, context_length=24, prediction_length=8
    )
    return Bundle(model, processor, "forecasting")


@pytest.mark.parametrize("name", KINDS)
def test_everything_is_found(name: str) -> None:
    model = make(name)
    found = anatomy.of(model)
    assert found.family == name and found.width == 32 and found.embeddings is None
    assert [s.name for s in found.stacks] == (["encoder"] if name == "itransformer" else ["stage0", "stage1"])
    assert all(s.depth == 3 and s.final_norm == f"{s.path[: -len('layers')]}norm" for s in found.stacks)
    for block in found.blocks:
        assert block.attention is not None and block.feed_forward is not None and len(block.norms) == 2
        assert (block.attention.heads, block.attention.head_dim, block.feed_forward.width) == (4, 8, 48)
        assert block.feed_forward.activation == "gelu" and not block.others
    assert anatomy.native_reasons(model) == []
    assert huggingface.native_reasons(model) == []


@pytest.mark.parametrize("name,cut", [(name, cut) for name in KINDS for cut in CUTS[name]])
def test_every_cut_reloads(name: str, cut: str, tmp_path: Path) -> None:
    model = make(name)
    size = model.num_parameters()
    assert anatomy.native(model, cut) is None
    cut_it(model, cut)
    assert anatomy.native_reasons(model) == [] and model.num_parameters() < size
    assert huggingface.save(bundled(model), tmp_path) == []
    again = lf.load(tmp_path).model
    assert type(again) is type(model) and torch.equal(said(again), said(model))
    model.train()
    model(past_values=past()).prediction.square().mean().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("name", KINDS)
def test_heads_and_channels_are_what_they_are_called(name: str) -> None:
    """Zeroing what a head or channel gives equals removing it."""
    model, cut = make(name), make(name)
    before = said(model)
    for block in anatomy.of(model).blocks:
        with torch.no_grad():
            anatomy.linear(model, block.attention.o)[0][:, 8:16] = 0
            anatomy.linear(model, block.feed_forward.down)[0][:, 1::2] = 0
    assert (said(model) - before).abs().max() > 1e-3
    count = len(anatomy.of(cut).blocks)
    anatomy.surgery.keep_heads(cut, {i: [0, 2, 3] for i in range(count)})
    anatomy.surgery.keep_channels(cut, {i: range(0, 48, 2) for i in range(count)})
    torch.testing.assert_close(said(cut), said(model), atol=1e-5, rtol=0)
    assert (cut.config.num_attention_heads, cut.config.head_dim, cut.config.intermediate_size) == (3, 8, 24)


def test_cuts_one_after_the_other_are_said_in_the_config() -> None:
    model = make("itransformer")
    for cut in CUTS["itransformer"]:
        cut_it(model, cut)
    config = model.config
    assert (config.num_hidden_layers, config.num_attention_heads, config.head_dim) == (2, 3, 8)
    assert (config.intermediate_size, config.hidden_size) == (32, 20)
    assert zoo.difference([said(model)], [said(zoo.reloaded(model))]) == 0


@pytest.mark.parametrize("name", KINDS)
def test_steps_that_need_no_data(name: str, tmp_path: Path) -> None:
    drop = (
        [compress.DropBlocks(blocks=(0, 2))]
        if name == "itransformer"
        else [compress.DropBlocks(blocks=(0, 2), stack=f"stage{i}") for i in range(2)]
    )
    narrow = compress.PruneChannels(keep=0.5, round_to=8, score="magnitude", compensate=False, reconstruct=False)  # fmt: skip
    thin = compress.LowRank(rank=4, weighted=False)
    model = make(name)
    small = Recipe([*drop, narrow, thin]).apply(bundled(model))
    assert small.parameters < 0.5 * model.num_parameters() and said(model).shape == said(small.model).shape
    assert huggingface.save(small, tmp_path, allow_custom=True)  # two factors need lightformers
    torch.testing.assert_close(said(lf.load(tmp_path).model), said(small.model))


@pytest.mark.parametrize("name", KINDS)
def test_steps_that_look_at_data(name: str) -> None:
    """All of them choose by what windows of the task do to the model; the config says the result but for low ranks."""
    rows = torch.randn(400, 3, generator=torch.Generator().manual_seed(2)).cumsum(0).numpy()
    task = Forecasting.from_values(rows, ["a", "b", "c"], 8, 24)
    model = make(name)
    cut = [
        compress.DropBlocks(keep=2, examples=8),
        compress.PruneHeads(keep=0.5, examples=8),
        compress.PruneChannels(keep=0.5, round_to=8, examples=8),
    ]
    small = Recipe(cut).apply(Bundle(model, task.processor(), "forecasting"), task)
    config = small.model.config
    assert (config.num_hidden_layers, config.num_attention_heads, config.head_dim) == (2, 2, 8)
    assert config.intermediate_size == 24 and anatomy.native_reasons(small.model) == []
    assert model.config.num_hidden_layers == 3
    thin = Recipe([compress.LowRank(rank=3, examples=8)]).apply(small, task)
    assert thin.parameters < small.parameters and said(thin.model).shape == (2, 8, 3)


def test_blocks_are_left_out_of_every_run_of_a_stage() -> None:
    """GPHT runs its stages once for each segment; the distance must be that of the model without the block."""
    rows = torch.randn(400, 3, generator=torch.Generator().manual_seed(2)).cumsum(0).numpy()
    torch.manual_seed(0)
    config = GPHTConfig(**{**SIZES, "prediction_length": 20, "dropout": 0.0}, token_length=8, pooling=(1,))
    task = Forecasting.from_values(rows, ["a", "b", "c"], 20, 24)
    bundle = Bundle(GPHT(config).eval(), task.processor(), "forecasting")
    with torch.no_grad():
        for parameter in bundle.model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    batch = bundle.collate(task.calibration(8))
    with torch.no_grad():
        whole = bundle.model(**batch.inputs).prediction
        moved = []
        for gone in range(3):
            less = bundle.copy()
            anatomy.surgery.keep_blocks(less.model, [i for i in range(3) if i != gone])
            now = less.model(**batch.inputs).prediction
            moved.append(float(1 - torch.cosine_similarity(now.flatten(1), whole.flatten(1)).mean()))
    dropped = Recipe([compress.DropBlocks(keep=2, examples=8)]).apply(bundle, task, Run(dtype="fp32"))
    kept = dropped.origin.blocks["stage0"]
    assert kept == tuple(i for i in range(3) if i != moved.index(min(moved)))


def test_what_is_not_cut() -> None:
    model = make("gpht")
    before = said(model)
    with pytest.raises(ModelError, match="stages share one hidden size"):
        anatomy.surgery.keep_width(model, range(16))
    with pytest.raises(ModelError, match="say which: stage0, stage1"):
        anatomy.surgery.keep_blocks(model, [0])
    assert torch.equal(said(model), before)
    anatomy.surgery.keep_blocks(model, [0], "stage1")
    assert anatomy.native_reasons(model)  # one number of layers for all stages
    assert "vocabulary" in str(anatomy.native(make("itransformer"), "vocabulary"))
