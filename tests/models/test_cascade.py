"""Cascades: which rows go where, what is refused, and that what was saved says the same again."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
import transformers as tf
from torch import Tensor

import lightformers as lf
from lightformers.bundle import Bundle
from lightformers.compress import Cascade, DropBlocks, PruneHeads, TrimVocabulary
from lightformers.errors import ModelError, UserError
from lightformers.models.cascade import CascadeConfig, unsure
from lightformers.steps import Recipe, Run

sys.path.insert(0, str(Path(__file__).parents[1] / "slim"))
import test_slim as texts


def original(seed: int = 0) -> Bundle:
    torch.manual_seed(seed)
    model = texts.bert()
    for parameter in model.parameters():  # transformers' start is so small that all rows are answered alike
        torch.nn.init.normal_(parameter, std=0.2)
    return Bundle(model, texts.tokenizer(), "text-classification", max_length=64)


def cascade(sure: float, *steps: object) -> tuple[Bundle, Bundle]:
    whole = original()
    task = lf.tasks.TextClassification.from_examples(texts.examples(200, 1))
    return whole, Recipe([DropBlocks(blocks=(0,)), *steps, Cascade(sure)]).apply(whole, task, Run())


def inputs(bundle: Bundle, n: int = 16) -> dict[str, Tensor]:
    return bundle.collate(texts.examples(n, 2)).inputs


def middle(bundle: Bundle, batch: dict[str, Tensor]) -> float:
    """A `sure` between the rows, with one half of them below."""
    with torch.no_grad():
        ordered = bundle.model.first(**batch).logits.softmax(-1).amax(-1).sort().values
        return float(ordered[len(ordered) // 2])


def test_every_row_is_answered_by_the_model_that_it_belongs_to() -> None:
    whole, made = cascade(0.5)
    batch = inputs(whole)
    made.model.config.sure = middle(made, batch)
    with torch.no_grad():
        first, second = (m(**batch).logits for m in (made.model.first, whole.model))
        rows = unsure(first, made.model.config.sure)
        assert 0 < len(rows) < 16
        wanted = first.index_copy(0, rows, second[rows])
        assert torch.allclose(made.model(**batch).logits, wanted, atol=1e-6)
        assert not torch.allclose(first, second, atol=1e-3)


def test_the_second_reads_only_what_it_is_asked() -> None:
    whole, made = cascade(0.5)
    batch: dict[str, Tensor] = inputs(whole)
    seen: list[int] = []
    made.model.config.sure = middle(made, batch)
    made.model.second.register_forward_pre_hook(
        lambda m, a, k: seen.append(len(k["input_ids"])), with_kwargs=True
    )
    with torch.no_grad():
        made.model(**batch)
        made.model.config.sure = 0.0
        made.model(**batch)
    assert seen == [8]


def test_the_original_stays_and_is_not_shared() -> None:
    whole, made = cascade(0.9)
    before = {n: p.clone() for n, p in whole.model.state_dict().items()}
    with torch.no_grad():
        for parameter in made.model.parameters():
            parameter.zero_()
    assert all(torch.equal(before[n], p) for n, p in whole.model.state_dict().items())


@pytest.mark.parametrize("steps", [(), (PruneHeads(keep=0.5),), (TrimVocabulary(),)])
def test_saved_and_loaded_alike(tmp_path: Path, steps: tuple) -> None:
    _, made = cascade(0.5, *steps)
    made.model.config.sure = middle(made, inputs(made))
    with pytest.raises(ModelError, match="one behind the other"):
        lf.export.save(made, tmp_path / "no")
    lf.export.save(made, tmp_path / "out", allow_custom=True)
    again = lf.load(tmp_path / "out")
    assert again.task == "text-classification" and again.model.config.sure == made.model.config.sure
    with torch.no_grad():
        one, other = (b.model(**inputs(b)).logits for b in (made, again))
    assert torch.equal(one, other)
    assert again.model.config.id2label == made.model.config.id2label


def test_a_trimmed_vocabulary_is_that_of_both() -> None:
    _, made = cascade(0.5, TrimVocabulary(size=50))
    assert {m.get_input_embeddings().num_embeddings for m in (made.model.first, made.model.second)} == {50}


def test_images(tmp_path: Path) -> None:
    config = tf.ViTConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=8,
                          patch_size=4, num_labels=3)  # fmt: skip
    whole = Bundle(tf.ViTForImageClassification(config), None, "image-classification")
    made = Recipe([DropBlocks(blocks=(0,)), Cascade(1.0)]).apply(whole, None, Run())
    pixels = torch.randn(4, 3, 8, 8)
    with torch.no_grad():
        wanted = whole.model.eval()(pixel_values=pixels).logits
        assert torch.allclose(made.model(pixel_values=pixels).logits, wanted, atol=1e-6)


def test_refusals() -> None:
    for wrong in (-0.1, 1.5):
        with pytest.raises(UserError, match=r"in \[0, 1\]"):
            Cascade(wrong)
        with pytest.raises(UserError, match=r"in \[0, 1\]"):
            CascadeConfig(sure=wrong)
    with pytest.raises(UserError, match="teacher"):
        Cascade().apply(original(), None, Run())
    other = original()
    other.processor = texts.tokenizer()
    with pytest.raises(ModelError, match="tokenizer of its own"):
        Cascade().apply(other, None, Run(teacher=original()))
    bare = Bundle(original().model.bert, original().processor, "embedding")
    with pytest.raises(ModelError, match="classes"):
        Cascade().apply(bare, None, Run(teacher=bare))
    with pytest.raises(UserError, match="cascade step"):
        Recipe([Cascade(), TrimVocabulary()])
    two, three = (
        {**original().model.config.to_dict(), "id2label": {i: str(i) for i in range(n)}} for n in (2, 3)
    )
    with pytest.raises(UserError, match="same classes"):
        CascadeConfig(two, three)
    _, made = cascade(0.5)
    with pytest.raises(ModelError, match="row by row"):
        torch.jit.trace(lambda **k: made.model(**k).logits, example_kwarg_inputs=inputs(made))
