"""VTrans: gates, their budget, folding and cutting, and the step in its variants."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import steps_world as world
import torch

sys.path.insert(0, str(Path(__file__).parent / "distill"))
import distill_models as small

from lightformers import anatomy, manifest
from lightformers.bundle import Bundle
from lightformers.compress import VTrans
from lightformers.compress.prune import gates, vtrans
from lightformers.errors import ModelError, UserError
from lightformers.steps import Recipe, Run

FAMILIES = ("bert", "gpt2", "llama", "vit", "t5")


def test_the_equations() -> None:
    mean, log_var = torch.tensor([1.0, 0.1, 0.0]), torch.tensor([-9.0, 0.0, -9.0])
    assert (gates.log_alpha(mean, log_var) < 0).tolist() == [True, False, False]
    literal = sum(0.5 * torch.log(1 + m**2 / (v.exp() + 1e-8)) for m, v in zip(mean, log_var))
    assert float(gates.divergence(mean, log_var)) == pytest.approx(float(literal), rel=1e-5)
    assert gates.survival(mean, log_var).round().tolist() == [1.0, 0.0, 0.0]
    # below the goal the multipliers push up, above it down; both climb with the distance
    gone, multipliers = torch.tensor(0.2, requires_grad=True), torch.tensor([-2.0, 3.0], requires_grad=True)
    vtrans.budget_loss(gone, 0.5, multipliers).backward()
    assert float(gone.grad) < 0 and multipliers.grad.tolist() == pytest.approx([-0.3, 0.09])  # type: ignore[arg-type, union-attr]


def test_a_gate_draws_once_per_sequence_and_is_still_in_evaluation() -> None:
    gate = gates.Gate(5, 10.0, torch.Generator().manual_seed(0))
    assert float(gate.mean.mean()) == pytest.approx(1.0, abs=0.02)
    assert float(gate.log_var.mean()) == pytest.approx(-9.0, abs=0.02)
    assert gate(3).shape == (3, 5) and not torch.equal(gate(3)[0], gate(3)[1])
    gate.noisy = False
    assert torch.equal(gate(2)[0], gate.mean) and bool(gate.kept.all())
    with torch.no_grad():
        gate.raw_log_var[1] = 1.0
    assert gate.kept.tolist() == [True, False, True, True, True] and float(gate(1)[0, 1]) == 0.0


def shut(where: gates.Sites, learnt: torch.nn.ModuleDict, names: dict[str, list[int]], seed: int = 0) -> None:
    """Close some units; the others get means that differ from 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, gate in learnt.items():
            gate.noisy = False
            gate.raw_mean.copy_((1 + 0.3 * torch.rand(len(gate.mean), generator=generator)) / gate.rate)
            for unit in names.get(name, []):
                gate.raw_log_var[unit] = 3.0 / gate.rate


@pytest.mark.parametrize("family", FAMILIES)
def test_gated_folded_and_cut_models_are_one(family: str) -> None:
    bundle = world.bundle(family)
    where = gates.sites(bundle.model, False)
    learnt = gates.make(where, 100.0, 0)
    groups = where.heads[0][1]
    closed = {where.heads[i][0]: [0] for i in where.heads} | {
        f"neurons/{i}": list(range(8 * (i + 1))) for i in where.neurons
    }
    closed |= {"attention/1": [0], "ffn/2": [0]}
    shut(where, learnt, closed)
    with gates.installed(bundle.model, where, learnt):
        gated = world.outputs(bundle).detach()
    # the hard size says what is left
    expected = where.size(gates.alive(learnt, hard=True))
    folded = bundle.copy()
    gates.fold(folded.model, where, learnt)
    torch.testing.assert_close(world.outputs(folded), gated, rtol=1e-4, atol=1e-5)
    made = bundle.copy()
    vtrans.cut(made, None, Run(), where, learnt, 8)
    torch.testing.assert_close(world.outputs(made), gated, rtol=1e-4, atol=1e-5)
    found = anatomy.of(made.model)
    assert found.blocks[0].attention.kv_heads == groups - 1  # type: ignore[union-attr]
    assert found.blocks[0].feed_forward.width == 64 - 8  # type: ignore[union-attr]
    assert family == "t5" or found.blocks[1].attention.kv_heads == 1  # type: ignore[union-attr]
    assert found.blocks[2].feed_forward.width == 8  # type: ignore[union-attr]
    assert where.total > gates.left(where, learnt, 8) > float(expected)


@pytest.mark.parametrize("family", ["gpt2", "llama", "vit"])
def test_a_block_that_is_closed_altogether_goes(family: str) -> None:
    bundle = world.bundle(family)
    where = gates.sites(bundle.model, False)
    learnt = gates.make(where, 100.0, 0)
    shut(where, learnt, {"attention/1": [0], "ffn/1": [0]})
    with gates.installed(bundle.model, where, learnt):
        gated = world.outputs(bundle).detach()
    vtrans.cut(bundle, None, Run(), where, learnt, 8)
    torch.testing.assert_close(
        world.outputs(bundle), gated, rtol=1e-4, atol=1e-5
    )  # pre-norm: exactly the residual path
    assert len(anatomy.of(bundle.model).blocks) == 3 and next(iter(bundle.origin.blocks.values())) == (
        0,
        2,
        3,
    )


@pytest.mark.parametrize("family", ["bert", "llama", "vit"])
def test_the_hidden_size_folds_exactly_and_is_cut(family: str, tmp_path: Path) -> None:
    bundle = world.bundle(family)
    where = gates.sites(bundle.model, True)
    learnt = gates.make(where, 100.0, 0)
    shut(where, learnt, {"hidden": list(range(0, 32, 2))})
    with gates.installed(bundle.model, where, learnt):
        gated = world.outputs(bundle).detach()
    folded = bundle.copy()
    gates.fold(folded.model, where, learnt)
    torch.testing.assert_close(world.outputs(folded), gated, rtol=1e-4, atol=1e-5)
    vtrans.cut(bundle, None, Run(), where, learnt, 8)
    found = anatomy.of(bundle.model)
    assert found.width == 16 and found.blocks[0].attention.heads == (2 if family == "bert" else 4)  # type: ignore[union-attr]
    manifest.write_manifest(bundle, tmp_path)
    again = bundle.copy()
    again.model = manifest.build_from_manifest(tmp_path, bundle.model.config)
    assert torch.equal(world.outputs(again), world.outputs(bundle))


@pytest.mark.parametrize("keep", [1.0, 0.7, 0.4, 0.1])
def test_the_budget_is_held_whatever_the_gates_learnt(keep: float) -> None:
    bundle = world.bundle()
    where = gates.sites(bundle.model, False)
    learnt = gates.make(where, 100.0, 0)
    torch.manual_seed(0)
    with torch.no_grad():
        for gate in learnt.values():
            gate.raw_log_var.add_(torch.randn(len(gate.mean)) * 0.02)
    gates.hold_budget(where, learnt, keep, 4)
    said = gates.left(where, learnt, 4)
    assert said <= keep * where.total + 1 and said > keep * where.total - 2 * max(
        e for _, _, e in where.heads.values()
    )
    vtrans.cut(bundle, None, Run(), where, learnt, 4)
    found = anatomy.of(bundle.model)
    weights = [p for b in found.blocks for x in (b.attention, b.feed_forward) if x for p in x.projections]
    biases = sum(b.numel() for p in weights if (b := anatomy.linear(bundle.model, p)[1]) is not None)
    real = anatomy.parameters_of(bundle.model, weights) - biases
    # `where` counts biases too, which are few
    assert real <= keep * where.total + 1


def teacher_and_task() -> tuple[Bundle, small.World]:
    return small.bundle("embedding"), small.World("embedding", n=80)


@pytest.mark.parametrize("variant", ["full", "fast", "faster"])
def test_what_does_nothing_goes_first(variant: str) -> None:
    """A planted world: half of the heads and channels of each block write nothing."""
    teacher, task = small.bundle("embedding", num_hidden_layers=2), small.World("embedding", n=80)
    found = anatomy.of(teacher.model)
    with torch.no_grad():
        for block in found.blocks:
            anatomy.linear(teacher.model, block.attention.o)[0].view(32, 4, 8)[:, ::2] = 0.0  # type: ignore[union-attr]
            anatomy.linear(teacher.model, block.feed_forward.down)[0][:, ::2] = 0.0  # type: ignore[union-attr]
    run = Run(teacher=teacher, tokens=8_000, dtype="fp32")
    step = VTrans(0.5, variant, gate_lr=0.5, bottleneck=1e-7, share=1.0, max_tokens=128, lr=1e-4, round_to=4)
    made = Recipe([step]).apply(teacher, task, run)
    batch = teacher.collate(task.training_examples(False)[:16])
    goal, own = (b.module()(**batch.inputs)["embedding"].detach() for b in (teacher, made))
    distance = float((1 - (goal * own).sum(-1)).mean())
    assert distance < 0.02
    kept = [(b.attention.heads, b.feed_forward.width) for b in anatomy.of(made.model).blocks]  # type: ignore[union-attr]
    assert sum(h for h, _ in kept) <= 5 and sum(w for _, w in kept) <= 72
    if variant == "faster":  # what is left of the weights is the teacher's, scaled
        own_word = made.model.embeddings.word_embeddings.weight
        assert torch.equal(own_word, teacher.model.embeddings.word_embeddings.weight)


def test_fast_looks_at_a_part_of_the_data() -> None:
    _, task = teacher_and_task()
    assert len(vtrans._Part(task, 0.03).training_examples(False)) == 64
    assert len(vtrans._Part(task, 1.0).training_examples(False)) == 80


def test_bad_input_is_refused_before_anything_changes() -> None:
    teacher, task = teacher_and_task()
    student = teacher.copy()
    before = {k: v.clone() for k, v in student.model.state_dict().items()}
    for fields, word in (
        ({"sparsity": 1.0}, "sparsity"),
        ({"variant": "fastest"}, "variant"),
        ({"ramp": 1.0}, "ramp"),
    ):
        with pytest.raises(UserError, match=word):
            VTrans(**fields)
    with pytest.raises(ModelError, match="teacher"):
        VTrans().apply(student, task, Run())
    with pytest.raises(UserError, match="task"):
        VTrans().apply(student, None, Run(teacher=teacher))
    with pytest.raises(UserError, match="can go"):
        VTrans(0.99).apply(student, task, Run(teacher=teacher))
    with pytest.raises(ModelError, match="hidden=False"):
        gates.sites(world.model("t5"), True)
    assert all(torch.equal(v, before[k]) for k, v in student.model.state_dict().items())
