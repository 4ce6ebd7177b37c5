"""Sorted fine-tuning: exits are the cut models, one forward serves them all, and answers alone are learnt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import elastic_world
import pytest
import steps_world as world
import torch
import transformers as T

import lightformers as lf
from lightformers import anatomy
from lightformers.bundle import Batch, Bundle
from lightformers.compress.elastic import sorted_llama
from lightformers.compress.elastic.exits import Exits, Given
from lightformers.compress.elastic.shared import Shared
from lightformers.compress.elastic.size import Nesting, Size, cut
from lightformers.compress.elastic.sorted_llama import SortedLlama, answer_loss, answer_mask
from lightformers.elastic import Elastic
from lightformers.errors import ModelError, UserError
from lightformers.runners.named import named
from lightformers.steps import Run
from lightformers.tasks.causal_lm import CausalLM


def sub(bundle: Bundle, depth: int) -> Bundle:
    small = bundle.copy()
    cut(small.model, Size(depth, (4,) * depth, (64,) * depth, 32), Nesting())
    return small


def batch_of(family: str, bundle: Bundle) -> Batch:
    return bundle.collate(world.task(family).splits["verify"][:3])


@pytest.mark.parametrize("family", elastic_world.FAMILIES)
def test_exits_are_the_models_cut_there(family: str) -> None:
    """Outputs and gradients; and every block runs once, however many exits there are."""
    bundle, same = world.bundle(family), world.bundle(family)
    inputs = batch_of(family, bundle).inputs
    exits, ran = Exits(bundle, (1, 2, 4)), []
    exits.check(inputs)
    for i, block in enumerate(anatomy.of(bundle.model).blocks):
        module = anatomy.get(bundle.model, block.path)
        module.register_forward_hook(lambda *_, i=i: ran.append(i))  # type: ignore[misc]
    total: Any = 0.0
    parameters = dict(bundle.module().named_parameters())
    goal = {name: torch.zeros_like(p) for name, p in parameters.items()}
    for depth, outputs in exits(bundle.module(), inputs):
        small = sub(same, depth)
        wanted = named(small.module()(**inputs))
        (name,) = wanted
        assert torch.allclose(outputs[name], wanted[name], atol=1e-5)
        (wanted[name].square().sum() * depth).backward()
        total = total + outputs[name].square().sum() * depth
        for path, p in small.module().named_parameters():  # the first blocks have their names in the whole
            if p.grad is not None:
                goal[path] += p.grad
    total.backward()
    assert ran == [0, 1, 2, 3]
    for name, p in parameters.items():
        assert torch.allclose(goal[name] if p.grad is None else p.grad, goal[name], rtol=1e-3, atol=1e-3), (
            name
        )


def test_the_loss_is_the_weighted_mean_over_exits() -> None:
    bundle = world.bundle("llama")
    batch = batch_of("llama", bundle)
    lesson = sorted_llama.answers(bundle)
    each = [float(lesson(sub(bundle, depth).model, batch).detach()) for depth in (1, 3, 4)]
    for weights in (None, (1.0, 2.0, 5.0)):
        objective = sorted_llama.Sorted(Exits(bundle, (1, 3, 4)), lesson, weights)
        share = [1 / 3] * 3 if weights is None else [0.125, 0.25, 0.625]
        wanted = sum(w * e for w, e in zip(share, each))
        assert float(objective(bundle.module(), batch).detach()) == pytest.approx(wanted, rel=1e-4)


def test_only_what_follows_the_prompt_is_learnt() -> None:
    bundle = world.bundle("gpt2", kind="bpe")
    letters = T.PreTrainedTokenizerFast(tokenizer_object=bundle.processor._tokenizer, pad_token="[PAD]")
    letters.backend_tokenizer.post_processor = None  # no [CLS] and [SEP]: as language models have it
    bundle.processor = letters
    rows = [
        {"text": "json = string", "prompt": "json ="},
        {"text": "object", "prompt": "object"},
        {"text": "a b"},
    ]
    for side in ("right", "left"):
        letters.padding_side = side
        batch = bundle.collate(rows)
        mask = answer_mask(bundle, batch)
        ids, real = batch.inputs["input_ids"], batch.inputs["attention_mask"].bool()
        assert letters.decode(ids[0][mask[0]]).strip() == "string"
        assert not mask[1].any() and torch.equal(mask[2], real[2])
        logits = bundle.model(**batch.inputs)["logits"]
        wanted = [-logits[i, t - 1].log_softmax(-1)[ids[i, t]] for i, t in mask.nonzero().tolist() if t > 0]
        found = answer_loss(logits, ids, mask)
        assert float(found.detach()) == pytest.approx(float(torch.stack(wanted).mean().detach()), rel=1e-5)
    empty = bundle.collate([rows[1], rows[1]])
    loss = sorted_llama.Sorted(Exits(bundle, (2, 4)), sorted_llama.answers(bundle))(bundle.module(), empty)
    loss.backward()
    assert float(loss.detach()) == 0
    assert all(p.grad is None or not p.grad.any() for p in bundle.model.parameters())


def test_sorted_tuning_makes_exits_work_where_plain_tuning_does_not() -> None:
    """Planted: a class that one block can see. Tuned plainly, only the last block says it where the head looks."""
    task = elastic_world.classification()
    losses: dict[tuple[str, int], float] = {}
    for name in ("sorted", "plain"):
        bundle = elastic_world.two_blocks()
        task.check(bundle)
        if name == "plain":
            elastic_world.plainly(bundle, task, tokens=16_000)
        else:
            run = Run(dtype="fp32", tokens=16_000, use_labels=True)
            SortedLlama((1, 2), lr=3e-3, max_tokens=400).train(bundle, task, run)
        batch = bundle.collate(task.splits["verify"])
        for depth in (1, 2):
            with torch.no_grad():
                losses[name, depth] = float(task.loss(sub(bundle, depth).model(**batch.inputs), batch))
    assert losses["plain", 2] < 0.1 and losses["sorted", 2] < 0.1
    assert losses["sorted", 1] < 0.3 * losses["plain", 1]


@pytest.mark.parametrize("family", elastic_world.FAMILIES)
def test_families_learn_from_the_teacher_without_labels(family: str) -> None:
    original, task = world.bundle(family), elastic_world.lessons(family)
    work = original.copy()
    rows = task.training_examples(False)[:6]
    goal = world.outputs(original, rows)
    far = (world.outputs(sub(original, 2), rows) - goal).norm()
    tokens = (24 if family == "bert-classifier" else 10) * sum(
        original.length(e) for e in original.encode(task.training_examples(False))
    )
    mode: Any = "sample" if family == "bert" else "sum"
    SortedLlama((2, 4), mode, lr=1e-3).train(work, task, Run(teacher=original, dtype="fp32", tokens=tokens))
    near = (world.outputs(sub(work, 2), rows) - goal).norm()
    assert near < 0.9 * far and not work.model.training


def test_a_language_model_learns_its_answers_and_is_extracted_by_depth(tmp_path: Path) -> None:
    bundle = world.bundle("llama")
    rows = [{"text": f"{mark} is {'json' if i % 2 else 'string'}", "prompt": f"{mark} is"}
            for i, mark in enumerate(("the object", "a dict", "the type", "an array"))]  # fmt: skip
    task = CausalLM.from_examples({"train": rows * 4, "valid": rows[:1], "test": rows[1:2]})
    batch = bundle.collate(rows)
    lesson = sorted_llama.answers(bundle)
    before = float(lesson(sub(bundle, 1).model, batch).detach())
    method = SortedLlama((1, 2, 4), lr=5e-3)
    made = Elastic.train(bundle, task, method, Run(dtype="fp32", tokens=2000, use_labels=True))
    assert made.space.blocks == (1, 2, 4) and made.space.count == 3
    assert float(lesson(sub(made.bundle, 1).model, batch).detach()) < 0.3 * before
    small = made.extract(made.space.smallest)
    lf.export.save(small, tmp_path)
    again = lf.load(tmp_path, "causal-lm")
    with torch.no_grad():
        wanted = made.outputs(made.space.smallest, **batch.inputs)["logits"]
        assert torch.allclose(again.model(**batch.inputs)["logits"], wanted, atol=1e-5)


def test_weights_are_those_that_were_counted() -> None:
    """The shape of LLaMA-2-13B, whole and at half its depth; nothing is allocated."""
    config = T.LlamaConfig(
        vocab_size=32_000,
        hidden_size=5120,
        num_hidden_layers=40,
        num_attention_heads=40,
        intermediate_size=13_824,
    )
    with torch.device("meta"):
        bundle = Bundle(T.LlamaForCausalLM(config), task="causal-lm")
    space = SortedLlama(tuple(range(12, 41, 4))).space(bundle)
    sizes = {size.blocks: size for size in space}
    shared = Shared(bundle)
    assert len(sizes) == 8
    assert shared.parameters_of(sizes[40]) == bundle.parameters == 13_015_864_320
    assert shared.parameters_of(sizes[20]) == 6_671_774_720


def test_an_exit_drafts_for_the_whole_without_changing_what_it_says() -> None:
    bundle = world.bundle("llama")
    ids = batch_of("llama", bundle).inputs["input_ids"][:1, :6]
    settings = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    plain = bundle.model.generate(ids, **settings)
    drafted = bundle.model.generate(ids, assistant_early_exit=2, **settings)
    assert plain.shape[1] == 14 and torch.equal(plain, drafted)


class Scaled(T.GPT2LMHeadModel):
    """What it says depends on how many blocks there are."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        out = super().forward(*args, **kwargs)
        out["logits"] = out["logits"] * len(self.transformer.h)
        return out


def test_bad_input() -> None:
    for fields, why in (
        ({"exits": (2, 1, 4)}, "rise"),
        ({"exits": (0, 4)}, "rise"),
        ({"exits": ()}, "rise"),
        ({"mode": "both"}, "sum, sample"),
        ({"weights": ()}, "weights"),
        ({"weights": (0.0, 0.0)}, "weights"),
    ):
        with pytest.raises(UserError, match=why):
            SortedLlama(**fields)  # type: ignore[arg-type]
    bundle = world.bundle("gpt2")
    assert SortedLlama().space(bundle).blocks == (1, 2, 3, 4)
    for method, why in (
        (SortedLlama((1, 3)), "up to all 4 blocks"),
        (SortedLlama((2, 4, 5)), "up to all 4 blocks"),
        (SortedLlama((2, 4), weights=(1.0,)), "2 exits and 1 weights"),
    ):
        with pytest.raises(UserError, match=why):
            method.space(bundle)
    with pytest.raises(UserError, match="needs a task"):
        SortedLlama().train(bundle, None, Run())
    model = T.T5ForConditionalGeneration(
        T.T5Config(d_model=32, num_layers=2, num_heads=4, d_kv=8, d_ff=64, vocab_size=50)
    )
    with pytest.raises(ModelError, match="several stacks"):
        Exits(Bundle(model), (1, 4))
    odd = world.bundle("gpt2")
    odd.model = Scaled(odd.model.config).eval()
    exits = Exits(odd, (2, 4))
    with pytest.raises(ModelError, match="no natural exits"):
        exits.check(batch_of("gpt2", odd).inputs)
    assert Given({"logits": torch.ones(1)})(input_ids=None)["logits"] == 1
