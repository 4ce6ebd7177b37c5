"""LightHuBERT: its spaces and counts, slicing against a forward by hand, masking, and what two stages must achieve."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as T
from torch import Tensor
from torch.nn import functional as F

import lightformers as lf
from lightformers.bundle import Bundle
from lightformers.compress.elastic import lighthubert, waves
from lightformers.compress.elastic.lighthubert import NESTING, LightHuBERT, default_size
from lightformers.compress.elastic.shared import Shared
from lightformers.compress.elastic.size import Size, cut, size_of
from lightformers.errors import DataError, ModelError, UserError
from lightformers.manifest import write_manifest
from lightformers.steps import Run

OWN = LightHuBERT(blocks=(2, 3), heads=(2, 3, 4), width=(16, 24, 32), ratios=(1.5, 4.0), span=4, lr=2e-3)
SMALL = Size(2, (2, 3), (24, 64), 16)


@pytest.fixture(autouse=True)
def fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lighthubert.common, "precision", lambda run: "fp32")


def encoder(seed: int = 0, **changes: Any) -> Bundle:
    """3 blocks, 4 heads of 8, width 32, 128 inner channels, positions by 2 groups; a frame is 4 samples."""
    torch.manual_seed(seed)
    fields: dict[str, Any] = {
        "vocab_size": 8, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 128,
        "conv_dim": (16, 16), "conv_stride": (2, 2), "conv_kernel": (3, 2),
        "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2, "feat_extract_norm": "layer",
        "initializer_range": 0.15,
    }  # fmt: skip
    return Bundle(T.HubertModel(T.HubertConfig(**{**fields, **changes})).eval())


class Clips:
    """As much of a task as training looks at: tones of random pitch in noise."""

    def __init__(self, count: int = 24, shortest: int = 150, longest: int = 260, seed: int = 0) -> None:
        random = np.random.default_rng(seed)
        self.examples = []
        for length in random.integers(shortest, longest, count):
            tone = np.sin(np.arange(length) * random.uniform(0.05, 1.5))
            self.examples.append({"audio": (tone + 0.1 * random.normal(size=length)).astype(np.float32)})

    def training_examples(self, labels: bool) -> list[dict[str, np.ndarray]]:
        assert not labels
        return self.examples


def batch(count: int = 4, seed: int = 9) -> lf.bundle.Batch:
    return waves.collate([e["audio"] for e in Clips(count, seed=seed).examples])


def hubert_base() -> Bundle:
    with torch.device("meta"):
        return Bundle(T.HubertModel(T.HubertConfig(feat_extract_norm="layer")))


def test_the_papers_spaces_and_counts() -> None:
    whole = hubert_base()
    base, small = LightHuBERT().space(whole), LightHuBERT(partition="small").space(whole)
    assert (base.count, small.count) == (6_530_347_008, 951_892_141_473)
    assert (base.blocks, base.heads, base.width, base.ratios) == (
        (12,),
        (8, 10, 12),
        (512, 640, 768),
        (3.5, 4),
    )
    made, counts = Shared(whole, NESTING), []
    for size in (base.smallest, base.largest, small.smallest, small.largest):
        model = copy.deepcopy(whole.model)
        cut(model, size, NESTING)
        counts.append(round(sum(p.numel() for p in model.parameters()) / 1e6, 1))
    assert counts == [41.2, 94.4, 11.4, 44.4]
    middle = default_size(base)
    assert (middle.width, middle.heads[0], middle.channels[0]) == (640, 10, 2560)
    model = copy.deepcopy(whole.model)
    cut(model, middle, NESTING)
    assert sum(p.numel() for p in model.parameters()) == 66_897_664
    assert made.whole == base.largest


def test_feed_forward_is_sliced_by_blocks() -> None:
    """Ratio 3.5 at width 512 of 768: the first 512 of three groups of 768, the first 256 of the fourth."""
    index = NESTING.inner(1792, 3072, 512, 768)
    assert index == [*range(512), *range(768, 1280), *range(1536, 2048), *range(2304, 2560)]
    assert NESTING.inner(3072, 3072, 768, 768) == list(range(3072))
    with pytest.raises(ModelError, match="no more channels"):
        NESTING.inner(2100, 3072, 512, 768)


def by_hand(model: Any, size: Size, values: Tensor) -> Tensor:
    """The sub-network's forward with weights sliced by hand (no padding)."""
    e, full = size.width, 32
    x = model.feature_extractor(values).transpose(1, 2)
    projection = model.feature_projection
    x = F.linear(projection.layer_norm(x), projection.projection.weight[:e], projection.projection.bias[:e])
    encoder = model.encoder
    conv = encoder.pos_conv_embed.conv
    weight = conv.weight[:e, : e // 2]  # composed of length and direction, then cut
    position = F.conv1d(x.transpose(1, 2), weight, conv.bias[:e], padding=2, groups=2)[:, :, :-1]
    x = x + F.gelu(position).transpose(1, 2)

    def norm(layer: Any, x: Tensor) -> Tensor:
        return F.layer_norm(x, (e,), layer.weight[:e], layer.bias[:e], layer.eps)

    x = norm(encoder.layer_norm, x)
    for layer, heads, channels in zip(encoder.layers, size.heads, size.channels):
        a, n = layer.attention, heads * 8
        q, k, v = (
            F.linear(x, p.weight[:n, :e], p.bias[:n]).unflatten(-1, (heads, 8)).transpose(1, 2)
            for p in (a.q_proj, a.k_proj, a.v_proj)
        )
        mixed = ((q @ k.transpose(-1, -2) * 8**-0.5).softmax(-1) @ v).transpose(1, 2).flatten(2)
        x = norm(layer.layer_norm, x + F.linear(mixed, a.out_proj.weight[:e, :n], a.out_proj.bias[:e]))
        index = [g * full + i for g in range(4) for i in range(e)][:channels]
        up, down = layer.feed_forward.intermediate_dense, layer.feed_forward.output_dense
        inner = F.gelu(F.linear(x, up.weight[index][:, :e], up.bias[index]))
        x = norm(layer.final_layer_norm, x + F.linear(inner, down.weight[:e][:, index], down.bias[:e]))
    return x


@pytest.mark.parametrize(
    "size", [SMALL, Size(3, (4, 2, 3), (32, 96, 40), 24), Size(3, (4,) * 3, (128,) * 3, 32)]
)
def test_slices_are_those_of_the_paper(size: Size) -> None:
    """On shared weights, extracted, and by hand: one and the same."""
    made = encoder()
    values = torch.randn(2, 120, generator=torch.Generator().manual_seed(0))
    extracted = made.copy()
    cut(extracted.model, size, NESTING)
    with torch.no_grad():
        wanted = by_hand(made.model, size, values)
        running = Shared(made, NESTING)(size, input_values=values).last_hidden_state
        alone = extracted.model(input_values=values).last_hidden_state
    assert torch.allclose(running, wanted, atol=1e-5) and torch.allclose(alone, wanted, atol=1e-5)


def test_gradients_reach_length_and_direction_of_the_convolution() -> None:
    made = encoder()
    Shared(made, NESTING)(SMALL, **batch().inputs).last_hidden_state.square().sum().backward()
    parts = made.model.encoder.pos_conv_embed.conv.parametrizations.weight
    assert parts.original0.grad.abs().sum() > 0 and parts.original1.grad[:16, :8].abs().sum() > 0
    last = made.model.encoder.layers[0].feed_forward.output_dense.weight.grad
    assert last[:16].abs().sum() > 0 and last[16:].abs().sum() == 0 == last[:, 16:32].abs().sum()


def test_spans() -> None:
    rng = np.random.default_rng(0)
    drawn = waves.spans([200] * 200 + [19, 20], 210, 0.65, 10, 2, rng)
    assert drawn.shape == (202, 210) and not drawn[:, 200:].any() and not drawn[200].any()
    assert 11 <= drawn[201].sum() <= 20  # two spans with different starts
    edges = np.diff(np.pad(drawn[:200].astype(int), ((0, 0), (1, 1))), axis=1)
    lengths = [
        stop - start for row in edges for start, stop in zip(*(np.flatnonzero(row == s) for s in (1, -1)))
    ]
    assert min(lengths) == 10  # spans overlap, none is shorter
    assert (
        0.45 < drawn[:200].mean() < 0.5
    )  # 13 spans of 200 frames, less their overlaps: 1 - (1 - 1/20)^13 = 0.49
    again = waves.spans([200] * 200 + [19, 20], 210, 0.65, 10, 2, np.random.default_rng(0))
    assert np.array_equal(drawn, again)


def test_frames_are_those_of_the_extractor() -> None:
    made, clips = encoder(), batch(6)
    found = made.model(**clips.inputs).last_hidden_state
    frames = waves.frames(made.model, clips)
    assert frames.max() == found.shape[1]
    mask = made.model._get_feature_vector_attention_mask(found.shape[1], clips.inputs["attention_mask"])
    assert frames.tolist() == mask.sum(-1).tolist()


def test_two_stages_teach_every_size() -> None:
    """A random student learns its teacher's states: the largest and small sizes explain more of them than before."""
    teacher, made = encoder(1), encoder(2)
    step = dataclasses.replace(
        OWN, blocks=(2,), heads=(2, 4), width=(16, 32), ratios=(4.0,), lr=5e-3, max_seconds=0.1
    )
    space, held_out = step.space(made), [batch(12)]
    sizes = [space.smallest, Size(2, (4, 2), (64, 64), 16)]
    with waves.Target(teacher, 1).open("cpu") as goal:
        goals = [goal(b) for b in held_out]

    def errors() -> list[float]:
        return [waves.unexplained(Shared(made, NESTING), s, held_out, goals) for s in sizes]

    before = errors()
    run = Run(teacher=teacher, tokens=48_000, dtype="fp32")
    assert step.train(made, Clips(), run) is made
    assert all(b < 0.95 * a for a, b in zip(before, errors()))
    assert "encoder.pos_conv_embed.conv.parametrizations.weight.original0" in made.model.state_dict()
    found = step.search(made, space, Clips(8, seed=5), run, parameters=12_000, candidates=5, batches=1)
    assert [c.loss for c in found] == sorted(c.loss for c in found)
    assert found and all(c.parameters <= 12_000 for c in found)
    with pytest.raises(UserError, match="the smallest has"):
        step.search(made, space, Clips(8), run, parameters=100, candidates=2)


def test_stage_one_trains_the_largest_alone_and_stage_two_draws() -> None:
    made = encoder()
    space, sizes = OWN.space(made), []
    lesson = lighthubert.Lesson(OWN, made, space, 32, 0)
    lesson.of = lambda size, batch, rng: sizes.append(size)  # type: ignore[method-assign, assignment, func-returns-value]
    given = batch()
    for stage in (1, 2):
        lesson.stage = stage
        for position in range(12):
            given.targets["position"] = position
            lesson(made.model, given)
    assert set(sizes[:12]) == {space.largest} and len(set(sizes[12:])) > 9
    assert all(s in space for s in sizes) and any(len(set(s.heads)) > 1 for s in sizes)


def test_options_train_in_place() -> None:
    """L1, two layers of a wider teacher, no mask, one stage, batches instead of a task; the teacher stays."""
    teacher, made = encoder(1, hidden_size=48, num_attention_heads=6), encoder(2)
    kept = copy.deepcopy(teacher.model.state_dict())
    before = copy.deepcopy(made.model.state_dict())
    step = dataclasses.replace(OWN, loss="l1", layers=2, mask=0.0, first=0.0, epochs=1.0)
    step.train(made, [batch(), batch(seed=3)], Run(teacher=teacher, dtype="fp32"))
    assert any(not torch.equal(before[k], v) for k, v in made.model.state_dict().items())
    assert all(torch.equal(kept[k], v) for k, v in teacher.model.state_dict().items())


def test_extracted_comes_back_through_the_front_door(tmp_path: Path) -> None:
    made = encoder()
    OWN.train(made, Clips(8), Run(tokens=2000, dtype="fp32"))  # the teacher is the bundle as it came
    assert size_of(made.model) == OWN.space(encoder()).largest
    shared, given = Shared(made, NESTING), batch()
    cut(made.model, SMALL, NESTING)
    made.model.config.save_pretrained(tmp_path)
    write_manifest(made, tmp_path)
    with torch.no_grad():
        wanted = made.model(**given.inputs).last_hidden_state
        assert torch.equal(lf.load(tmp_path).model(**given.inputs).last_hidden_state, wanted)
    assert shared.whole != size_of(made.model)


def test_refusals_come_before_anything_is_changed() -> None:
    made = encoder()
    before = copy.deepcopy(made.model.state_dict())
    for step, task, error, text in (
        (OWN, None, UserError, "needs audio"),
        (OWN, Clips(4, 20, 30), DataError, "longer audio"),
        (dataclasses.replace(OWN, width=(15, 31), ratios=(1.0,)), Clips(4), ModelError, "multiple of 2"),
        (dataclasses.replace(OWN, ratios=(5.0,)), Clips(4), ModelError, "does not fit"),
        (dataclasses.replace(OWN, layers=4), Clips(4), ModelError, "3 blocks"),
        (OWN, [], UserError, "give batches"),
    ):
        with pytest.raises(error, match=text):
            step.train(made, task, Run())
    assert all(torch.equal(before[k], v) for k, v in made.model.state_dict().items())
    with pytest.raises(ModelError, match="mask_time_prob"):
        OWN.train(encoder(mask_time_prob=0.0), Clips(4), Run())
    text_model = Bundle(T.BertModel(T.BertConfig(vocab_size=9, hidden_size=32, num_hidden_layers=3,
                                                 num_attention_heads=4, intermediate_size=128)))  # fmt: skip
    with pytest.raises(ModelError, match="speech encoder"):
        OWN.train(text_model, Clips(4), Run())
    for bad in ({"first": 1.0}, {"mask": 1.0}, {"loss": "cosine"}, {"spans": 0}):
        with pytest.raises(UserError):
            LightHuBERT(**bad)  # type: ignore[arg-type]
