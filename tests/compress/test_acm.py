"""Adaptive computation modules: the chain, the gate's lessons, the three phases, and what is spent."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import steps_world as world
import torch
import transformers as T
from torch import Tensor, nn

from lightformers import anatomy
from lightformers.bundle import Batch, Bundle
from lightformers.compress import AdaptiveModules, Recover
from lightformers.compress.adaptive import gating
from lightformers.compress.adaptive.acm import tapped
from lightformers.compress.adaptive.sites import by_sample, install, sites, valid
from lightformers.compress.adaptive.usage import modules, recording, usage
from lightformers.compress.distill import common
from lightformers.errors import ModelError, UserError
from lightformers.manifest import build_from_manifest, write_manifest
from lightformers.parts.adaptive import PassThrough
from lightformers.steps import Recipe, Run

sys.path.insert(0, str(Path(__file__).parent / "distill"))
import distill_models


class Trained(world.World):
    """The small world as a task to train on."""

    def training_examples(self, use_labels: bool) -> list[dict[str, Any]]:
        return [dict(e, label=i % 3) if use_labels else e for i, e in enumerate(self.splits["train"])]

    def collate(self, bundle: Bundle, examples: Any, seed: int = 0) -> Batch:
        return bundle.collate(examples)

    def loss(self, outputs: Any, batch: Batch) -> Tensor:
        return nn.functional.cross_entropy(outputs["logits"], batch.targets["label"])


def test_sizes_of_vit_base() -> None:
    with torch.device("meta"):
        model = T.ViTForImageClassification(T.ViTConfig(num_labels=1000))
    assert sum(p.numel() for p in model.parameters()) == 86_567_656
    found = sites(model, ("attention", "ffn"))
    assert len(found) == 12 * 5
    assert {s.width(4) for s in found if s.residual} == {768}
    assert {s.width(4) for s in found if not s.residual} == {96}
    assert sum(s.macs for s in found) == 12 * 12 * 768**2


def test_gated_feed_forwards_get_learners_of_equal_cost() -> None:
    model = world.model("llama")
    assert {(s.width(4), s.macs) for s in sites(model, ("ffn",))} == {(24, 3 * 32 * 64)}


@pytest.mark.parametrize("family", ["bert", "bert-classifier", "gpt2", "llama", "t5", "vit"])
def test_every_family(family: str, tmp_path: Path) -> None:
    original, task = world.bundle(family), Trained(images=family == "vit")
    step = AdaptiveModules(0.5, ("ffn", "attention"), max_tokens=256)
    steps = [step, Recover(max_tokens=256)] if family == "bert-classifier" else [step]
    edited = Recipe(steps).apply(original, task, Run(dtype="fp32", tokens=300))
    found = modules(edited.model)
    each = {"gpt2": 3}.get(family, 5)  # queries, keys and values of gpt2 are one projection
    assert len(found) == each * world.DEPTH
    assert {p.least for p in found.values()} == {0, 1} and all(p.router is None for p in found.values())
    gone = sum(isinstance(m, PassThrough) for m in edited.model.modules())
    assert gone == (world.DEPTH if family.startswith("bert") else 0)
    anatomy.of(edited.model)
    out = world.outputs(edited)
    assert torch.isfinite(out).all() and not edited.model.training
    write_manifest(edited, tmp_path)
    again = edited.copy()
    again.model = build_from_manifest(tmp_path, edited.model.config)
    assert torch.equal(world.outputs(again), out)
    with pytest.raises(ModelError, match="already"):
        step.apply(edited, task, Run(teacher=original, tokens=10))


def planted() -> Bundle:
    """A classifier whose feed-forwards leave the words w0 to w29 alone, and change the others."""
    made = distill_models.bundle("text-classification", num_hidden_layers=1)
    inner = made.model.bert
    with torch.no_grad():
        embeddings = inner.embeddings
        for table in (embeddings.position_embeddings, embeddings.token_type_embeddings):
            table.weight.zero_()
        words = embeddings.word_embeddings.weight
        words.normal_(0, 0.5, generator=torch.Generator().manual_seed(1))
        words[:, 0] = 3.0
        words[:35, 0] = -3.0
        layer = inner.encoder.layer[0]
        layer.attention.output.dense.weight.zero_()
        layer.attention.output.dense.bias.zero_()
        layer.intermediate.dense.weight.normal_(0, 0.7, generator=torch.Generator().manual_seed(2))
        layer.intermediate.dense.weight[:, 0] = 5.0
        layer.intermediate.dense.bias.fill_(-18.0)
        layer.output.dense.weight.normal_(0, 0.3, generator=torch.Generator().manual_seed(3))
        layer.output.dense.bias.zero_()
    return made


def test_tokens_that_need_it_get_more_learners() -> None:
    teacher, run = planted(), Run(dtype="fp32", tokens=16000)
    step, task = (
        AdaptiveModules(lr=1e-2, shares=(0.8, 0.2, 1e-9)),
        distill_models.World("text-classification"),
    )
    places = sites(teacher.model, ("ffn",))
    parts = step.build(teacher.model, places)
    batches = common.feed(teacher, task, run, 160)
    step.learn(teacher, places, parts, batches, run, 0.0)
    step.choose(teacher, places, parts, batches, run, 0.0)
    batch = teacher.collate(task.training_examples(False))
    with tapped(teacher, places, "cpu") as tap, torch.no_grad():
        ((x, y),) = tap(batch)
        count, sums = parts[0].count(x), parts[0].partial_sums(x)
    hard = batch.inputs["input_ids"][batch.inputs["attention_mask"].bool()] >= 35
    assert float(y[~hard].norm(dim=-1).mean()) < 0.1 * float(y[hard].norm(dim=-1).mean())
    assert float(count[hard].float().mean()) > float(count[~hard].float().mean()) + 0.9
    # at the same cost, learners dealt out blindly leave far more of an error, and all of them are not needed
    error = gating.errors(sums, y).square()
    blind = count[torch.randperm(len(count), generator=torch.Generator().manual_seed(0))]
    assert float(error.gather(0, count[None]).mean()) < 0.75 * float(error.gather(0, blind[None]).mean())
    assert float(count.float().mean()) < 3


def test_the_budget_is_approached_from_both_sides() -> None:
    original, task = world.bundle("bert-classifier"), Trained()
    batch = original.collate(task.splits["verify"][:20])
    mask = batch.inputs["attention_mask"]
    for budget in (0.2, 0.8):
        step = AdaptiveModules(
            budget, spend=20.0, tune_lr=1e-2, diversity=0.0, shares=(0.1, 0.1, 0.8), max_tokens=192
        )
        run = Run(dtype="fp32", tokens=6000, use_labels=True)
        edited = Recipe([step]).apply(original, task, run)
        parts = list(modules(edited.model).values())
        with recording(parts, step.temperature, run) as record, torch.no_grad():
            edited.model(**batch.inputs)
            counts = [gating.learners(by_sample(record[i], mask)[0], 0) for i in range(len(parts))]
        cost, most = [p.learner_macs for p in parts], [p.learners for p in parts]
        drawn = gating.spent(counts, [mask] * len(parts), cost, most)
        assert float(drawn) == pytest.approx(budget, abs=0.12)
        found = usage(edited, task.splits["verify"][:20])
        assert all(sum(shares) == pytest.approx(1) and len(shares) == 5 for shares in found.shares.values())
        gates = sum(p.gate_macs for p in parts)
        assert found.full == sum(4 * p.learner_macs for p in parts) + gates
        assert found.macs == pytest.approx(found.spent * (found.full - gates) + gates)


def test_the_seed_decides() -> None:
    original, step = world.bundle("bert-classifier"), AdaptiveModules(max_tokens=256)
    outs = [
        world.outputs(Recipe([step]).apply(original, Trained(), Run(dtype="fp32", tokens=600, seed=seed)))
        for seed in (0, 0, 1)
    ]
    assert torch.equal(outs[0], outs[1]) and not torch.equal(outs[0], outs[2])


def test_usage_counts_no_padding() -> None:
    made = world.bundle("bert-classifier")
    step = AdaptiveModules()
    places = sites(made.model, ("ffn",))
    for site, part in zip(places, step.build(made.model, places)):
        nn.init.normal_(part.gate[4].weight, std=5.0)
        install(made.model, site, part.eval())
    rows = [{"text": "a"}, {"text": world.TEXTS[5]}]
    batch = made.collate(rows)
    with recording(list(modules(made.model).values()), None, Run()) as record, torch.no_grad():
        made.model(**batch.inputs)
        first = valid(record[0], batch.inputs["attention_mask"]).mean(0)
    assert usage(made, rows).shares[places[0].path] == pytest.approx(first.tolist())
    with pytest.raises(ModelError, match="no adaptive modules"):
        usage(world.bundle("bert"), rows)


def test_bad_input_is_refused_untouched() -> None:
    for fields, word in (
        ({"budget": 0.0}, "budget"), ({"budget": 1.5}, "budget"), ({"learners": 0}, "learners"),
        ({"threshold": 0.5}, "threshold"), ({"epochs": (1.0,)}, "three"), ({"spend": -1.0}, "negative"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=word):
            AdaptiveModules(**fields)
    original, task = world.bundle("bert"), Trained()
    before = {k: v.clone() for k, v in original.model.state_dict().items()}
    run = Run(teacher=world.bundle("bert", seed=1), tokens=10, dtype="fp32")
    with pytest.raises(ModelError, match="too small"):
        AdaptiveModules(learners=200).apply(original, task, run)
    with pytest.raises(UserError, match="where"):
        AdaptiveModules(where=("head",)).apply(original, task, run)
    with pytest.raises(UserError, match="task"):
        AdaptiveModules().apply(original, None, run)
    with pytest.raises(ModelError, match="teacher"):
        AdaptiveModules().apply(original, task, Run(tokens=10))
    albert = T.AlbertModel(T.AlbertConfig(vocab_size=40, embedding_size=8, hidden_size=16, num_attention_heads=2, intermediate_size=32, num_hidden_layers=2))  # fmt: skip
    with pytest.raises(ModelError, match="one block serves all"):
        sites(albert, ("ffn",))
    after = original.model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(v, after[k]) for k, v in before.items())
