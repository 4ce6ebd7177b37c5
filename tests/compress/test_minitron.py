"""Minitron: scores from activations, cuts along every axis, search, retraining."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import steps_world as world
import torch

sys.path.insert(0, str(Path(__file__).parent / "distill"))
import distill_models as small

from lightformers import anatomy, manifest
from lightformers.compress import Minitron, MinitronRetrain
from lightformers.compress.prune import importance
from lightformers.compress.prune.minitron import TOLERANCE, query_heads
from lightformers.compress.prune.minitron_retrain import balance
from lightformers.errors import ModelError, UserError
from lightformers.steps import Recipe, Run
from lightformers.train import losses

QUIET = Run(dtype="fp32")


def test_means_are_of_magnitudes_and_leave_padding_out() -> None:
    a = torch.tensor([[[1.0, -2.0], [-3.0, 2.0], [100.0, 100.0]], [[1.0, 1.0], [1.0, 1.0], [1.0, 1.0]]])
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    assert importance.sequence_means(a, mask).tolist() == [[2.0, 2.0], [1.0, 1.0]]
    assert importance.sequence_means(a[1:], None).tolist() == [[1.0, 1.0]]
    assert importance.head_scores(torch.tensor([3.0, 4.0, 0.0, 1.0]), 2).tolist() == [5.0, 1.0]


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama", "vit"])
def test_scores_are_the_literal_ones_whatever_the_batching(family: str) -> None:
    bundle, task = world.bundle(family), world.task(family)
    known = importance.measure(bundle, task, QUIET, 10)
    found = anatomy.of(bundle.model)
    # sequence by sequence, without padding or batches
    seen: dict[str, list[torch.Tensor]] = {}
    block = found.blocks[1]
    assert block.attention and block.feed_forward
    readers = [p for b in found.blocks for p in (b.attention.q or b.attention.qkv, b.feed_forward.gate or b.feed_forward.up)]  # type: ignore[union-attr]  # fmt: skip
    paths = [block.feed_forward.down, block.attention.o, *readers]
    for path in paths:
        anatomy.get(bundle.model, path).register_forward_pre_hook(
            lambda m, args, path=path: seen.setdefault(path, []).append(args[0].detach()[0].abs().mean(0))
        )
    for row in task.calibration(10):
        bundle.module()(**bundle.collate([row]).inputs)
    score = {p: torch.stack(rows).square().sum(0).sqrt() for p, rows in seen.items()}
    torch.testing.assert_close(known.channels[1], score[paths[0]], rtol=1e-4, atol=1e-5)
    heads = score[paths[1]].reshape(block.attention.heads, -1).norm(dim=1)
    torch.testing.assert_close(known.heads[1, True], heads, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(known.hidden, sum(score[p] for p in readers), rtol=1e-4, atol=1e-4)


def test_grouped_queries_keep_as_many_in_each_group() -> None:
    scores = torch.tensor([5.0, 4.0, 3.0, 2.0, 0.1, 0.2, 0.3, 0.4])
    assert query_heads(scores, 2, 0.5) == [0, 1, 6, 7]
    assert query_heads(scores, 8, 0.5) == [0, 1, 2, 3]
    made = Recipe([Minitron(heads=0.5, examples=8)]).apply(world.bundle("llama"), world.task(), QUIET)
    attention = anatomy.of(made.model).blocks[0].attention
    assert attention and (attention.heads, attention.kv_heads) == (2, 2)


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama", "vit"])
def test_what_is_cut_is_what_does_nothing(family: str) -> None:
    """A planted world: half of the channels and some heads write nothing. Cutting them changes nothing."""
    original, task = world.bundle(family), world.task(family)
    found = anatomy.of(original.model)
    torch.manual_seed(1)
    with torch.no_grad():
        for block in found.blocks:
            forward, attention = block.feed_forward, block.attention
            assert forward and attention
            gone = torch.randperm(forward.width)[: forward.width // 2]
            for path in (forward.up, forward.gate):
                if path:
                    weight, bias = anatomy.linear(original.model, path)
                    weight[gone] = 0.0
                    if bias is not None:
                        bias[gone] = 0.0
            lost = list(range(0, attention.heads, 2))  # one of each group, where queries share keys
            size = attention.heads // attention.kv_heads
            if size == 1:  # values of nothing; shared values serve the heads that stay
                path, rows = anatomy.rows(attention, "v", lost)
                weight, bias = anatomy.linear(original.model, path)
                weight[rows] = 0.0
                if bias is not None:
                    bias[rows] = 0.0
    heads = 0.5 if found.blocks[0].attention.heads == found.blocks[0].attention.kv_heads else 1.0  # type: ignore[union-attr]
    made = Recipe([Minitron(heads=heads, channels=0.5, round_to=1, examples=16)]).apply(original, task, QUIET)
    torch.testing.assert_close(world.outputs(made), world.outputs(original), rtol=1e-4, atol=1e-5)
    assert made.parameters < original.parameters


@pytest.mark.parametrize("family", ["bert-classifier", "gpt2", "llama", "vit", "t5"])
def test_every_axis_is_cut_and_reloads(family: str, tmp_path: Path) -> None:
    original, task = world.bundle(family), world.task(family)
    fields = {"blocks": 0.5, "channels": 0.5, "examples": 8}
    fields |= {"width": 0.5} if family != "t5" else {"heads": 0.5}
    made = Recipe([Minitron(**fields)]).apply(original, task, QUIET)
    found = anatomy.of(made.model)
    assert len(found.blocks) == 2 and found.blocks[0].feed_forward.width == 32  # type: ignore[union-attr]
    assert family == "t5" or found.width == 16
    assert made.origin.blocks and torch.isfinite(world.outputs(made)).all()
    manifest.write_manifest(made, tmp_path)
    again = made.copy()
    again.model = manifest.build_from_manifest(tmp_path, made.model.config)
    assert torch.equal(world.outputs(again), world.outputs(made))


@pytest.mark.parametrize("family", ["gpt2", "bert"])
def test_search_meets_the_target(family: str) -> None:
    original, task = world.bundle(family), world.task(family)
    step = Minitron(blocks=0.5, channels=0.25, target=0.75, examples=8, round_to=4)
    shapes = list(step.shapes(original, importance.measure(original, task, QUIET, 8)))
    assert len(shapes) > 1 and len(set(shapes)) == len(shapes)
    made = Recipe([step]).apply(original, task, QUIET)
    assert abs(made.parameters / original.parameters - 0.75) <= TOLERANCE * 0.75
    # the search takes the shape whose outputs stay nearest; a worse one is farther
    rows = task.splits["train"][:8]
    old = world.outputs(original, rows)

    def distance(shape: object) -> float:
        b = Recipe([Minitron(**vars(shape), examples=8, round_to=4)]).apply(original, task, QUIET)
        new = world.outputs(b, rows).detach()
        if family == "gpt2":
            return float(losses.logits_kl(new, old.detach()))
        return float(losses.embedding_cosine(new, old.detach()))

    assert min(distance(s) for s in shapes) == pytest.approx(
        float(losses.logits_kl(world.outputs(made, rows), old)) if family == "gpt2"
        else float(losses.embedding_cosine(world.outputs(made, rows), old)), rel=0.3
    )  # fmt: skip


def test_balance_counts_both_terms_alike() -> None:
    a, b = torch.tensor(2.0, requires_grad=True), torch.tensor(8.0, requires_grad=True)
    value = balance(a, b)
    value.backward()
    assert float(value) == 4.0 and float(a.grad) == 1.0 and float(b.grad) == 0.25  # type: ignore[arg-type]


@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize("width", [1.0, 0.5])
def test_retraining_comes_nearer_to_the_uncut_model(hidden: bool, width: float) -> None:
    teacher, task = small.bundle("causal-lm"), small.World("causal-lm")
    task.calibration = lambda n, seed=0: task.training_examples(False)[:n]  # type: ignore[attr-defined]
    run = Run(teacher=teacher, tokens=4_000, dtype="fp32")
    cut = Minitron(blocks=0.75, channels=0.5, width=width, examples=16)
    bare = Recipe([cut]).apply(teacher, task, run)
    trained = Recipe([cut, MinitronRetrain(hidden=hidden, lr=3e-3, max_tokens=128)]).apply(teacher, task, run)
    batch = teacher.collate(task.training_examples(False)[:24])

    def distance(b: object) -> float:
        own, goal = (m.model(**batch.inputs).logits.detach() for m in (b, teacher))  # type: ignore[attr-defined]
        return float(losses.logits_kl(own, goal, 1.0, batch.inputs["attention_mask"]))

    assert distance(trained) < 0.8 * distance(bare)


def test_candidates_are_trained_and_compared_where_asked() -> None:
    teacher, task = small.bundle("causal-lm"), small.World("causal-lm")
    task.calibration = lambda n, seed=0: task.training_examples(False)[:n]  # type: ignore[attr-defined]
    events: list[object] = []
    run = Run(teacher=teacher, tokens=2_000, dtype="fp32", progress=events.append)
    step = Minitron(blocks=0.5, channels=0.25, target=0.7, candidates=2, trial=0.5, examples=8, round_to=4)
    made = Recipe([step]).apply(teacher, task, run)
    assert len(events) >= 2 and abs(made.parameters / teacher.parameters - 0.7) <= 0.7 * TOLERANCE


def test_bad_input_is_refused_before_anything_changes() -> None:
    bundle, task = world.bundle(), world.task()
    before = world.outputs(bundle)
    for fields, word in (
        ({}, "cuts nothing"), ({"heads": 0.0}, "share"), ({"channels": 1.5}, "share"), ({"target": 1.0}, "target"),
        ({"target": 0.5, "trial": 1.0}, "trial"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=word):
            Minitron(**fields)
    with pytest.raises(ModelError, match="heads follow the width"):
        Minitron(width=0.5, heads=0.5, examples=4).apply(bundle, task, QUIET)
    with pytest.raises(ModelError, match="no shape within"):
        Minitron(target=0.05, channels=0.5, examples=4).apply(bundle, task, QUIET)
    with pytest.raises(UserError, match="task"):
        Minitron(channels=0.5).apply(bundle, None, QUIET)
    with pytest.raises(ModelError, match="logits"):
        MinitronRetrain().apply(bundle, task, Run(teacher=world.bundle(seed=1)))
    with pytest.raises(ModelError, match="fp16"):
        Minitron(channels=0.5).apply(world_half(), task, QUIET)
    assert torch.equal(world.outputs(bundle), before)


def world_half() -> object:
    bundle = world.bundle()
    bundle.model.half()
    return bundle
