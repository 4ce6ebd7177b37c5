"""The Optimal BERT Surgeon: the inverse Fisher matrix, scores, corrections, and the step."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import steps_world as world
import torch

sys.path.insert(0, str(Path(__file__).parent / "distill"))
import distill_models as small

from lightformers import anatomy
from lightformers.compress import GradualMagnitude, OptimalBertSurgeon
from lightformers.compress.layers import linears
from lightformers.compress.prune import fisher, masks
from lightformers.compress.prune.essential_sparsity import shares
from lightformers.errors import DataError, ModelError, UserError
from lightformers.steps import Recipe, Run
from lightformers.train import losses

QUIET = Run(dtype="fp32")


def rank_one(gradients: torch.Tensor, size: int, damp: float) -> torch.Tensor:
    """The paper's way: one Sherman-Morrison update per gradient. gradients (m, d), d a multiple of `size`."""
    count = len(gradients)
    found = torch.eye(size, dtype=torch.float64).repeat(gradients.shape[1] // size, 1, 1) / damp
    for g in gradients.double().reshape(count, -1, size):
        v = torch.einsum("bij,bj->bi", found, g)
        found -= v[:, :, None] * v[:, None, :] / (count + (g * v).sum(-1))[:, None, None]
    return found


@pytest.mark.parametrize("count", [3, 20])
def test_inverse_is_that_of_rank_one_updates(count: int) -> None:
    torch.manual_seed(0)
    gradients = torch.randn(count, 4, 6) * 1e-2
    found = fisher.estimate(iter({"a": g} for g in gradients), {"a": 24}, 6, 1e-4)["a"]
    torch.testing.assert_close(
        found.double(), rank_one(gradients.reshape(count, 24), 6, 1e-4), rtol=1e-4, atol=1e-2
    )
    direct = 1e-4 * torch.eye(6) + torch.einsum("mbi,mbj->bij", *[gradients.reshape(count, 4, 6)] * 2) / count
    torch.testing.assert_close(found @ direct, torch.eye(6).expand(4, 6, 6), rtol=1e-3, atol=1e-3)


def test_a_tail_that_does_not_fill_a_block_is_independent() -> None:
    torch.manual_seed(0)
    gradients = torch.randn(9, 3, 5)
    found = fisher.estimate(iter({"a": g} for g in gradients), {"a": 15}, 4, 0.1)["a"]
    assert found.shape == (4, 4, 4)
    assert float(found[3, 3, 3]) == pytest.approx(10.0) and not found[3, 3, :3].any()
    matrix = torch.randn(3, 5)
    assert torch.equal(fisher.from_blocks(fisher.to_blocks(matrix, 4), (3, 5)), matrix)


@pytest.mark.parametrize("group", [1, 2])
def test_scores_and_corrections_are_the_equations(group: int) -> None:
    torch.manual_seed(0)
    a = torch.randn(2, 4, 4)
    inverse, w = a @ a.transpose(1, 2) + torch.eye(4), torch.randn(2, 4)
    scores = fisher.saliency(w, inverse, group)
    removed = torch.zeros(2, 4, dtype=torch.bool)
    removed[0, :group] = True
    new = fisher.compensated(w, inverse, removed, group)
    q = slice(0, group)
    own = torch.linalg.inv(inverse[0, q, q])
    assert float(scores[0, 0]) == pytest.approx(float(0.5 * w[0, q] @ own @ w[0, q]), rel=1e-4)
    literal = w[0] - inverse[0, :, q] @ own @ w[0, q]
    torch.testing.assert_close(new[0, group:], literal[group:], rtol=1e-4, atol=1e-5)
    assert not new[0, :group].any() and torch.equal(new[1], w[1])
    # the rise of the quadratic loss that the score foretells is the one that comes about
    hessian = torch.linalg.inv(inverse[0])
    change = new[0] - w[0]
    assert float(0.5 * change @ hessian @ change) == pytest.approx(float(scores[0, 0]), rel=1e-3)


def test_a_correlated_input_takes_over() -> None:
    """A planted world: inputs 0 and 1 are nearly the same, input 2 is small and alone."""
    torch.manual_seed(0)
    x = torch.randn(400, 1) * torch.tensor([1.0, 1.0, 0.0]) + torch.randn(400, 3) * torch.tensor(
        [0.05, 0.05, 1.0]
    )
    w = torch.tensor([[1.0, 0.9, 0.5]])
    noise = torch.randn(400)
    inverse = fisher.estimate(iter({"a": (e * row)[None]} for e, row in zip(noise, x)), {"a": 3}, 3, 1e-6)[
        "a"
    ]
    scores = fisher.saliency(w, inverse)[0]
    assert int(scores.argmin()) == 1 and int(w.abs().argmin()) == 2
    removed = torch.tensor([[False, True, False]])
    new = fisher.compensated(w, inverse, removed)
    assert float(new[0, 0]) == pytest.approx(1.9, abs=0.1)

    def error(v: torch.Tensor) -> float:
        return float((x @ (v - w)[0]).square().mean())

    assert error(new) < 0.1 * error(torch.tensor([[1.0, 0.9, 0.0]])) < error(torch.tensor([[1.0, 0.0, 0.5]]))


def test_diagonal_blocks_correct_nothing_and_large_damp_is_magnitude() -> None:
    original, task = world.bundle(), world.task()
    step = OptimalBertSurgeon(0.5, gradients=20, batch=2, fisher_block=1)
    made = Recipe([step]).apply(original, task, QUIET)
    for path in linears(anatomy.of(original.model)):
        old, new = (anatomy.linear(b.model, path)[0] for b in (original, made))
        assert torch.equal(new[new != 0], old[new != 0])
    heavy = Recipe([OptimalBertSurgeon(0.5, gradients=20, batch=2, damp=1e6)]).apply(original, task, QUIET)
    plain = Recipe([GradualMagnitude(0.5)]).apply(original)
    torch.testing.assert_close(world.outputs(heavy), world.outputs(plain), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("family", ["bert", "gpt2"])
@pytest.mark.parametrize("block", [1, 4])
def test_second_order_is_closer_than_magnitude(family: str, block: int) -> None:
    original, task = world.bundle(family), world.task(family)
    rows = task.splits["verify"][:20]
    old = world.outputs(original, rows)

    def error(step: object) -> float:
        made = Recipe([step]).apply(original, task, QUIET)
        assert shares(made.model)["prunable"] == pytest.approx(0.5, abs=2e-3)
        return float((world.outputs(made, rows) - old).detach().norm())

    surgeon = OptimalBertSurgeon(0.5, block, gradients=60, batch=1, damp=1e-6, fisher_block=16)
    assert error(surgeon) < 0.95 * error(GradualMagnitude(0.5, block))


def test_groups_of_layers_give_the_same_model() -> None:
    original, task = world.bundle(), world.task()
    whole = OptimalBertSurgeon(0.6, gradients=4, batch=2, fisher_block=8)
    parts = OptimalBertSurgeon(0.6, gradients=4, batch=2, fisher_block=8, memory=1e-4)
    assert (
        len(whole._groups(dict.fromkeys("ab", 1000))) == 1
        and len(parts._groups(dict.fromkeys("abc", 1500))) == 2
    )
    pieces = OptimalBertSurgeon(0.6, gradients=4, batch=2, fisher_block=8, memory=4e-5)
    cut = [part["a"] for part in pieces._groups({"a": 3001, "b": 80}) if "a" in part]
    assert len(cut) == 3 and [c.start for c in cut] == [0, *(c.stop for c in cut[:-1])]
    assert cut[-1].stop == 376  # the last block is not full
    a, *others = (Recipe([s]).apply(original, task, QUIET) for s in (whole, parts, pieces))
    for b in others:
        torch.testing.assert_close(world.outputs(a), world.outputs(b), rtol=1e-4, atol=1e-5)


def test_gradual_pruning_distils_and_keeps_old_zeros() -> None:
    teacher = small.bundle("text-classification")
    task = small.World("text-classification", n=48)
    task.calibration = lambda n, seed=0: task.training_examples(False)[:n]  # type: ignore[attr-defined]
    step = OptimalBertSurgeon(
        0.8, gradients=12, batch=4, fisher_block=16, rounds=2, initial=0.4, recompute=2, epochs=2.0, lr=1e-3
    )
    student = teacher.copy()
    events: list[dict[str, float]] = []
    run = Run(teacher=teacher, dtype="fp32", tokens=12_000, progress=events.append)
    step.apply(student, task, run)
    assert shares(student.model)["prunable"] == pytest.approx(0.8, abs=2e-3)
    assert len(events) >= 2  # training was told of in each round
    rows = task.training_examples(False)
    goal, kept = (b.model(**b.collate(rows).inputs).logits.detach() for b in (teacher, student))
    bare = Recipe([OptimalBertSurgeon(0.8, gradients=12, batch=4, fisher_block=16)]).apply(teacher, task, run)
    untrained = bare.model(**teacher.collate(rows).inputs).logits.detach()
    assert losses.logits_kl(kept, goal) < 0.5 * losses.logits_kl(untrained, goal)
    # labels: the gradients of the task's own loss
    labelled = OptimalBertSurgeon(0.5, gradients=12, batch=4, fisher_block=16, labels=True)
    task.scored = 0
    Recipe([labelled]).apply(teacher, task, run)
    assert task.scored == 12


def test_already_pruned_weights_stay_pruned() -> None:
    task = world.task()
    half = Recipe([GradualMagnitude(0.5)]).apply(world.bundle())
    gone = {p: ~m for p, m in masks.zeros(half.model, linears(anatomy.of(half.model))).items()}
    more = OptimalBertSurgeon(0.7, gradients=20, batch=2, fisher_block=16).apply(half, task, QUIET)
    assert shares(more.model)["prunable"] == pytest.approx(0.7, abs=2e-3)
    assert not any(anatomy.linear(more.model, p)[0][m].any() for p, m in gone.items())


def test_sampled_gradients_have_the_fisher_matrix_as_second_moment() -> None:
    logits = torch.tensor([[0.3, -0.2, 1.0]], requires_grad=True)
    generator = torch.Generator().manual_seed(0)
    total = torch.zeros(3, 3)
    for _ in range(4000):
        (g,) = torch.autograd.grad(fisher.sampled_loss({"logits": logits}, None, generator), logits)
        total += g.T @ g / 4000
    p = logits.detach().softmax(-1)[0]
    torch.testing.assert_close(total, torch.diag(p) - p[:, None] * p[None], rtol=0, atol=0.02)


def test_bad_input_is_refused_before_anything_changes() -> None:
    bundle, task = world.bundle(), world.task()
    before = world.outputs(bundle)
    for fields, word in (
        ({"sparsity": 1.0}, "sparsity"), ({"sparsity": -0.1}, "sparsity"), ({"damp": 0.0}, "damp"),
        ({"gradients": 0}, "gradients"), ({"block": 4, "fisher_block": 6}, "whole blocks"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=word):
            OptimalBertSurgeon(**fields)
    with pytest.raises(DataError, match="the task has 60"):
        OptimalBertSurgeon(gradients=16, batch=4).apply(bundle, task, QUIET)
    with pytest.raises(UserError, match="blocks of 3"):
        OptimalBertSurgeon(block=3, gradients=4, batch=2).apply(bundle, task, QUIET)
    with pytest.raises(UserError, match="give a task"):
        OptimalBertSurgeon().apply(bundle, None, QUIET)
    with pytest.raises(ModelError, match="teacher"):
        OptimalBertSurgeon(gradients=4, batch=2, epochs=1.0).apply(bundle, task, QUIET)
    assert torch.equal(world.outputs(bundle), before)
