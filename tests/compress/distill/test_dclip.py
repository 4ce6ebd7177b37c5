"""DCLIP: the contrast, regions, the teacher that reads both sides, and the student that needs neither."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as T
from torch import Tensor, nn

from lightformers.compress.distill.dclip import (
    DCLIP,
    MetaTeacher,
    embed_images,
    embed_texts,
    features,
    targets,
    zero_shot,
)
from lightformers.compress.distill.pairs import Pairs, Shuffled, alike, crop, info_nce
from lightformers.errors import DataError, ModelError, UserError
from lightformers.steps import Run
from lightformers.tasks.retrieval import average_precision

_LEVELS, _SIDE = 4, 16
_EOS = 2 + 4 * _LEVELS
RUN = Run(dtype="fp32")


def clip(seed: int = 0) -> Any:
    """A tiny random dual encoder whose outputs depend on all of their input."""
    text = {
        "vocab_size": _EOS + 1, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "max_position_embeddings": 8, "projection_dim": 16, "pad_token_id": 0,
        "bos_token_id": 1, "eos_token_id": _EOS, "initializer_range": 0.2,
    }  # fmt: skip
    vision = {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": _SIDE,
        "patch_size": 8, "num_channels": 1, "projection_dim": 16, "initializer_range": 0.2,
    }  # fmt: skip
    torch.manual_seed(seed)
    config = T.CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)
    made = T.CLIPModel(config)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if parameter.dim() > 1 and "embedding" not in name:
                parameter.normal_(0, parameter.shape[-1] ** -0.5)
            elif parameter.dim() > 1:
                parameter.normal_(0, 0.5)
    return made.eval()


def world(count: int, seed: int) -> Pairs:
    """Four quarters with one of four patterns each; the caption names all four. Regions: the quarters."""
    rng = np.random.default_rng(seed)
    patterns = np.random.default_rng(99).normal(size=(_LEVELS, 8, 8))
    chosen = rng.integers(0, _LEVELS, (count, 4))
    top = np.concatenate([patterns[chosen[:, 0]], patterns[chosen[:, 1]]], 2)
    bottom = np.concatenate([patterns[chosen[:, 2]], patterns[chosen[:, 3]]], 2)
    pixels = torch.tensor(np.concatenate([top, bottom], 1)[:, None], dtype=torch.float32)
    pixels = pixels + 0.3 * torch.tensor(rng.normal(size=pixels.shape), dtype=torch.float32)
    words = 2 + _LEVELS * np.arange(4) + chosen
    ids = np.concatenate([np.full((count, 1), 1), words, np.full((count, 1), _EOS), np.zeros((count, 1))], 1)
    mask = torch.ones(count, 7, dtype=torch.long)
    mask[:, 6] = 0
    boxes = torch.tensor([[0, 0, 8, 8], [8, 0, 16, 8], [0, 8, 8, 16], [8, 8, 16, 16]]).expand(count, 4, 4)
    regions, held = crop(pixels, boxes, None, (_SIDE, _SIDE))
    return Pairs(pixels, torch.tensor(ids).long(), mask, None, regions, held)


def found(model: nn.Module, pairs: Pairs) -> float:
    """Mean average precision of images by captions."""
    table = (
        embed_texts(model, pairs.input_ids, pairs.attention_mask) @ embed_images(model, pairs.pixel_values).T
    )
    own = torch.stack([(pairs.input_ids == row).all(1) for row in pairs.input_ids])
    return average_precision(table.numpy(), own.numpy()).value


def unit(*shape: int) -> Tensor:
    return nn.functional.normalize(torch.randn(*shape), dim=-1)


def test_contrast_against_loops_and_without_false_negatives() -> None:
    torch.manual_seed(0)
    images, texts = unit(5, 8).requires_grad_(), unit(5, 8)
    same = torch.zeros(5, 5, dtype=torch.bool)
    same[0, 3] = same[3, 0] = True
    total = 0.0
    for a, b in ((images, texts), (texts, images)):
        for i in range(5):
            others = [10 * float(a[i].detach() @ b[j].detach()) for j in range(5) if not same[i, j]]
            total -= 10 * float(a[i].detach() @ b[i].detach()) - float(np.log(np.exp(others).sum()))
    got = info_nce(images, texts, 10.0, same)
    assert float(got.detach()) == pytest.approx(total / 10, rel=1e-5)
    got.backward()
    assert images.grad is not None and torch.isfinite(images.grad).all()
    every = ~torch.eye(5, dtype=torch.bool)
    assert float(info_nce(images.detach(), texts, 10.0, every)) == pytest.approx(0.0, abs=1e-6)
    with pytest.raises(UserError, match="two"):
        info_nce(images[:1], texts[:1], 1.0)

    ids = torch.tensor([[5, 6, 0], [5, 6, 9], [5, 7, 0], [8, 8, 8]])
    mask = torch.tensor([[1, 1, 0], [1, 1, 0], [1, 1, 0], [1, 1, 1]])  # what padding holds does not count
    expected = torch.zeros(4, 4, dtype=torch.bool)
    expected[0, 1] = expected[1, 0] = expected[2, 3] = expected[3, 2] = True
    assert torch.equal(alike(ids, mask, torch.tensor([0, 1, 2, 2])), expected)


def test_crops_are_clipped_and_empty_ones_dropped() -> None:
    pixels = torch.arange(64.0).reshape(1, 1, 8, 8)
    boxes = torch.tensor([[[0.0, 0, 8, 8], [4, 2, 8, 6], [-9, -9, 20, 20], [9, 9, 12, 12], [3, 3, 3, 5]]])
    parts, held = crop(pixels, boxes, None, (8, 8))
    assert held.tolist() == [[True, True, True, False, False]]
    torch.testing.assert_close(parts[0, 0], pixels[0])
    torch.testing.assert_close(parts[0, 2], pixels[0])
    assert not parts[0, 3:].any()
    small, _ = crop(pixels, boxes[:, 1:2], None, (4, 4))
    torch.testing.assert_close(small[0, 0, 0], pixels[0, 0, 2:6, 4:8])
    boxes[0, 1, 0] = float("nan")
    with pytest.raises(DataError, match="NaN"):
        crop(pixels, boxes, None, (8, 8))
    assert crop(pixels, boxes, ~torch.isnan(boxes).any(-1), (8, 8))[1].tolist() == [[True, False, True, False, False]]  # fmt: skip


def test_a_teacher_begins_as_the_dual_encoder_and_reads_what_is_there() -> None:
    torch.manual_seed(0)
    model, pairs = clip(), world(6, 0)
    batch = pairs.batch(torch.arange(6))
    seen = features(model, batch.inputs)
    with torch.no_grad():
        whole = model(**{k: batch.inputs[k] for k in ("pixel_values", "input_ids", "attention_mask")})
        torch.testing.assert_close(seen[0], whole.image_embeds, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(seen[1], whole.text_embeds, rtol=1e-4, atol=1e-5)
        teacher = MetaTeacher(16, heads=2).eval()
        image, text = teacher(*seen)
        torch.testing.assert_close(image, seen[0], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(text, seen[1], rtol=1e-5, atol=1e-6)
        nn.init.normal_(teacher.image.weight)
        g, t, regions, held, words, mask = seen
        image, _ = teacher(*seen)
        held = held.clone()
        held[:, 2] = False
        less = teacher(g, t, regions, held, words, mask)[0]
        assert not torch.allclose(less, image)
        regions, words = regions.clone(), words.clone()
        regions[:, 2], words[:, 6] = 7.0, 7.0  # a missing region and a place of padding
        torch.testing.assert_close(teacher(g, t, regions, held, words, mask)[0], less)
        none = teacher(g, t, regions, torch.zeros_like(held), words, mask)[0]  # the whole image is left
        alone = teacher(*features(model, pairs.without_regions().batch(torch.arange(6)).inputs))[0]
        torch.testing.assert_close(none, alone)
        # the leak: with another caption the same image has another embedding
        other = teacher(g, t, regions, held, words.roll(1, 0), mask)[0]
        assert not torch.allclose(other, less)


def test_teacher_learns_to_match_and_is_decided_by_the_seed() -> None:
    model, pairs = clip(), world(64, 0)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    step = DCLIP(layers=1, heads=2, batch=32, teacher_steps=40, teacher_lr=3e-3)
    teacher = step.teach(model, pairs, RUN)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    fused = targets(model, teacher, pairs)
    texts = embed_texts(model, pairs.input_ids, pairs.attention_mask)
    batch = pairs.batch(torch.arange(64))
    with torch.no_grad():
        image, text = teacher(*features(model, batch.inputs))
        same, scale = batch.targets["same"], float(teacher.scale)
        learnt = float(info_nce(image, text, scale, same))
    torch.testing.assert_close(image, fused)
    assert (
        learnt
        < 0.75 * float(np.log(64))
        < info_nce(embed_images(model, pairs.pixel_values), texts, scale, same)
    )
    again = step.teach(model, pairs, RUN)
    assert all(torch.equal(a, b) for a, b in zip(teacher.state_dict().values(), again.state_dict().values()))


def test_a_teacher_that_sees_more_than_the_caption_says_is_worth_it() -> None:
    pairs, held = world(192, 0), world(64, 1)
    truths = embed_texts(clip(), pairs.input_ids, pairs.attention_mask)
    order = torch.arange(192)
    order[:144] = order[:144].roll(1)  # three captions in four belong to another image, and the teacher knows
    told = replace(pairs, input_ids=pairs.input_ids[order])
    step = DCLIP(batch=4, steps=80, lr=5e-3, cosine=10.0)
    both = step.distil(clip(), told, truths, RUN)
    contrast = replace(step, cosine=0.0).distil(clip(), told, None, RUN)
    assert found(both, held) > found(contrast, held) + 0.05


def test_a_student_learns_alone_what_the_teacher_saw(tmp_path: Path) -> None:
    base, pairs, held = clip(), world(64, 0), world(32, 1)
    step = DCLIP(layers=1, heads=2, lr=2e-3, steps=20, batch=16, teacher_steps=20, teacher_lr=3e-3)
    teacher = step.teach(base, pairs, RUN)
    goals = targets(base, teacher, pairs)
    original = embed_images(base, pairs.pixel_values)

    def made(**fields: Any) -> nn.Module:
        return replace(step, **fields).distil(clip(), pairs, goals, RUN)

    both, contrast, kept = made(), made(cosine=0.0), made(cosine=0.0, anchor=20.0)
    near = [embed_images(m, pairs.pixel_values) for m in (base, contrast, both, kept)]
    goal = [float((x * goals).sum(1).mean()) for x in near]
    assert goal[2] > goal[1] + 0.02
    stayed = [float((x * original).sum(1).mean()) for x in near]
    assert stayed[3] > stayed[1] + 0.02

    assert not both.training
    for (name, old), new in zip(base.named_parameters(), both.parameters()):
        assert torch.equal(old, new) == name.startswith(("text_", "logit_scale")), name
    both.save_pretrained(tmp_path)
    again = T.CLIPModel.from_pretrained(tmp_path)
    assert torch.equal(embed_images(again, held.pixel_values), embed_images(both, held.pixel_values))
    prompts = held.input_ids[:3], held.attention_mask[:3]
    close = embed_images(both, held.pixel_values) @ embed_texts(base, *prompts).T
    assert torch.equal(zero_shot(both, held.pixel_values, *prompts), close.argmax(1))


def test_batches_hold_each_caption_once_per_epoch() -> None:
    pairs = world(11, 0)
    feed = Shuffled(pairs, 4, seed=3)
    first = [feed.batch(i).targets["index"] for i in range(2)]
    assert len(torch.cat(first).unique()) == 8
    assert torch.equal(feed.batch(0).targets["index"], first[0])  # whatever was asked before
    assert not torch.equal(feed.batch(2).targets["index"], first[0])
    two = Pairs(
        pairs.pixel_values[:2], pairs.input_ids[:4], pairs.attention_mask[:4], torch.tensor([0, 0, 1, 1])
    )
    batch = two.batch(torch.tensor([1, 3]))
    assert torch.equal(batch.inputs["pixel_values"], pairs.pixel_values[:2])


def test_bad_input_is_refused() -> None:
    for fields, word in (
        ({"batch": 1}, "two"), ({"cosine": -1.0}, "negative"), ({"contrast": 0.0, "cosine": 0.0}, "nothing"),
        ({"layers": 0}, "least 1"), ({"lr": 0.0}, "positive"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=word):
            DCLIP(**fields)
    pairs = world(4, 0)
    for goals in (None, torch.zeros(4, 15)):
        with pytest.raises(UserError, match="teacher"):
            DCLIP().distil(clip(), pairs, goals)
    with pytest.raises(UserError, match="heads"):
        DCLIP(heads=3).teach(clip(), pairs)
    with pytest.raises(ModelError, match="vision_model"):
        DCLIP().teach(nn.Linear(2, 2), pairs)
    with pytest.raises(UserError, match="two"):
        DCLIP(cosine=0.0).distil(clip(), world(1, 0))
    for broken in (
        {"image": torch.tensor([0, 1, 2, 9])}, {"attention_mask": torch.zeros_like(pairs.attention_mask)},
        {"regions": pairs.regions}, {"pixel_values": pairs.pixel_values[0]},
        {"regions": pairs.regions[:, :, :, :4], "region_mask": pairs.region_mask},
    ):  # fmt: skip
        plain = {
            "pixel_values": pairs.pixel_values,
            "input_ids": pairs.input_ids,
            "attention_mask": pairs.attention_mask,
        }
        with pytest.raises(DataError):
            Pairs(**{**plain, **broken})
