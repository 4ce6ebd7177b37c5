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
from lightformers.parts.adaptive import AdaptiveModule, PassThrough
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


def chain(least: int = 0, activation: str = "gelu") -> AdaptiveModule:
    torch.manual_seed(0)
    part = AdaptiveModule(6, 5, learners=3, width=4, least=least, activation=activation)
    nn.init.normal_(part.bias)
    return part


def literal(part: AdaptiveModule, x: Tensor, count: int) -> Tensor:
    """The sum of the first learners, one by one."""
    out = torch.zeros(*x.shape[:-1], part.out_features)
    for n in range(count):
        units = slice(n * part.width, (n + 1) * part.width)
        inner = x @ part.first[units].T + part.bias[units]
        out = (
            out
            + (nn.functional.gelu(inner) if part.activation == "gelu" else inner) @ part.second[:, units].T
        )
    return out


@pytest.mark.parametrize(("least", "activation"), [(0, "gelu"), (1, "identity")])
def test_every_choice_is_a_sum_of_learners(least: int, activation: str) -> None:
    part, x = chain(least, activation), torch.randn(2, 7, 6)
    sums = part.partial_sums(x)
    assert sums.shape == (part.choices, 2, 7, 5) and part.choices == 4 - least
    for k in range(least, 4):  # the last learner takes part, too
        goal = literal(part, x, k)
        torch.testing.assert_close(part.run(x, torch.full((2, 7), k)), goal)
        torch.testing.assert_close(sums[k - least], goal)
        hard = nn.functional.one_hot(torch.full((2, 7), k - least), part.choices).float()
        torch.testing.assert_close(part.mixed(x, hard), goal)
    weights = torch.rand(2, 7, part.choices, requires_grad=True)
    whole = weights / weights.sum(-1, keepdim=True)
    expected = sum(whole[..., k - least, None] * literal(part, x, k) for k in range(least, 4))
    got = part.mixed(x, whole)
    torch.testing.assert_close(got, expected)
    grads = [torch.autograd.grad(o.square().sum(), [weights, part.first], retain_graph=True) for o in (got, expected)]  # fmt: skip
    for a, b in zip(*grads):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_tokens_are_routed_one_by_one() -> None:
    part, x = chain(), torch.randn(3, 9, 6)
    count = torch.randint(0, 4, (3, 9))
    together = part.run(x, count)
    for b in range(3):
        for s in range(9):
            torch.testing.assert_close(together[b, s], literal(part, x[b, s], int(count[b, s])))
    assert torch.equal(part.run(x, torch.zeros(3, 9)), torch.zeros(3, 9, 5))
    nn.init.normal_(part.gate[4].weight, std=3.0)
    alone = torch.cat([part(x[b : b + 1]) for b in range(3)])
    torch.testing.assert_close(part(x), alone)  # a result does not depend on the batch
    assert part.count(x).unique().numel() > 1
    torch.testing.assert_close(part(x), part.run(x, part.gate(x).argmax(-1)))
    few = x[0][part.count(x[0]) < 2][
        None
    ]  # a graph traced where nobody needs the last learners still holds them
    traced = torch.jit.trace(part.eval(), few)
    torch.testing.assert_close(traced(x), part(x))


def test_a_gate_is_taught_the_first_choice_that_is_enough() -> None:
    error = torch.tensor([[9.0, 9.0, 1.0, 0.0, 4.0], [3.0, 8.5, 1.0, 0.0, 0.0], [1.0, 1.0, 1.0, 0.0, 0.0]])
    # 9/3 and 3/1 are worth it; 9/8.5 is not; equal errors stop at once; nought over nought stops; 4/0 goes on
    assert gating.enough(error).tolist() == [2, 0, 0, 0, 1]
    assert gating.enough(error, threshold=4.0).tolist() == [0, 0, 0, 0, 1]
    x, y = torch.randn(5, 6), torch.randn(5, 5)
    got = gating.errors(chain().partial_sums(x), y)
    torch.testing.assert_close(got[0], y.norm(dim=-1))
    assert got.shape == (4, 5)


def test_choices_are_drawn_by_their_probability_and_pass_gradients() -> None:
    logits = torch.tensor([0.0, 1.0, 2.0]).repeat(20000, 1).requires_grad_()
    drawn = gating.straight_through(logits, 0.8, torch.Generator().manual_seed(0))
    assert set(drawn.detach().unique().round(decimals=5).tolist()) == {0.0, 1.0}
    torch.testing.assert_close(drawn.mean(0), torch.tensor([0.0, 1.0, 2.0]).softmax(0), atol=0.02, rtol=0)
    (drawn * torch.tensor([0.0, 1.0, 2.0])).sum().backward()
    assert logits.grad is not None and float(logits.grad[:, 2].sum()) > 0 > float(logits.grad[:, 0].sum())


def test_losses_count_no_padding_and_have_known_extremes() -> None:
    torch.manual_seed(0)
    weights = gating.one_hot(torch.randn(2, 6, 4))
    mask = torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]])
    short = [weights[:1, :4], weights[1:]]
    share = torch.stack([s[0].mean(0) for s in short])
    entropy = -(share * (share + 1e-20).log()).sum(-1).mean() / torch.tensor(4.0).log()
    torch.testing.assert_close(gating.entropy_loss([weights], [mask]), -entropy)
    counts = gating.learners(weights, 0)
    torch.testing.assert_close(counts, weights.argmax(-1).float())
    mean = [c.argmax(-1).float().mean() / 3 for c in short]
    torch.testing.assert_close(gating.diversity_loss([counts], [mask], [3]), -(mean[0] - mean[1]).abs())
    used = sum(float(s.argmax(-1).sum()) for s in short) / 10 / 3
    assert float(gating.spent([counts], [mask], [7.0], [3])) == pytest.approx(used)
    both = gating.spent([counts, torch.full((2, 6), 3.0)], [mask, mask], [1.0, 3.0], [3, 3])
    assert float(both) == pytest.approx((used + 3) / 4)

    ones = torch.ones(2, 4)
    every = torch.eye(4).expand(2, 4, 4)
    assert float(gating.entropy_loss([every], [ones])) == pytest.approx(-1)
    assert float(gating.entropy_loss([every[:, :1].expand(2, 4, 4)], [ones])) == pytest.approx(0, abs=1e-6)
    halves = torch.tensor([[3.0] * 4, [0.0] * 4])
    assert float(gating.diversity_loss([halves], [ones], [3])) == pytest.approx(-1)
    states = torch.randn(2, 6, 3)
    assert torch.equal(valid(states, mask), valid(states.reshape(12, 3), mask))
    shaped, fitting = by_sample(states.reshape(12, 3), mask)
    assert torch.equal(shaped, states) and torch.equal(fitting, mask.float())


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
