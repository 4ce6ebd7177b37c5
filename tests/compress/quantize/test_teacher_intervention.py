"""Teacher intervention: ternary weights, what each intervention shields, and the step."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import steps_world as world
import torch
from torch import Tensor, nn

from lightformers import anatomy, manifest
from lightformers.bundle import Batch, Bundle
from lightformers.compress import TeacherIntervention
from lightformers.compress.quantize import qat
from lightformers.compress.quantize.formats import relative_error
from lightformers.compress.quantize.intervention import Watch, kind_at, layer_losses
from lightformers.compress.quantize.qat import LatentEmbedding, LatentLinear
from lightformers.errors import ModelError, UserError
from lightformers.parts.packed_layers import PackedEmbedding, PackedLinear
from lightformers.steps import Recipe, Run


class Task(world.World):
    """The world's texts or images, to train on."""

    def training_examples(self, use_labels: bool) -> list[dict[str, Any]]:
        assert not use_labels
        return self.splits["train"]

    def collate(self, bundle: Bundle, examples: list[Any], seed: int = 0) -> Batch:
        return bundle.collate(examples)


def literal(weight: Tensor) -> Tensor:
    """The card's ternary rule, number by number."""
    numbers = [float(v) for v in weight.flatten()]
    mean = sum(map(abs, numbers)) / len(numbers)
    large = [abs(v) for v in numbers if abs(v) > 0.7 * mean]
    alpha = sum(large) / len(large) if large else 0.0
    signs = [0.0 if abs(v) <= 0.7 * mean else (alpha if v > 0 else -alpha) for v in numbers]
    return torch.tensor(signs).view_as(weight)


def test_ternary_and_binary_are_the_literal_rules() -> None:
    torch.manual_seed(0)
    weight = torch.randn(5, 9)
    weight[2] = 0  # a padding row
    levels, step = qat.ternary(weight)
    torch.testing.assert_close(levels * step, literal(weight))
    levels, step = qat.ternary(weight, "row")
    torch.testing.assert_close(levels * step, torch.cat([literal(r[None]) for r in weight]))
    assert step[2] == 0 and not levels[2].any()
    levels, step = qat.binary(weight)
    assert set(levels.unique().tolist()) == {-1, 1} and float(step) == pytest.approx(
        float(weight.abs().mean())
    )
    # of all steps for these signs, alpha and the mean are those of least squared error
    for fn in (qat.ternary, qat.binary):
        levels, step = fn(weight)
        errors = [float((levels * step * f - weight).square().sum()) for f in (0.99, 1.0, 1.01)]
        assert errors[1] < errors[0] and errors[1] < errors[2]


@pytest.mark.parametrize("form", ["ternary", "binary", "int4"])
def test_latent_layers_train_straight_through_and_pack_equal(form: str) -> None:
    torch.manual_seed(0)
    weight, bias, x = torch.randn(6, 11).clamp(-2, 2), torch.randn(6), torch.randn(4, 11)
    weight[0, 0], weight[1, 1] = 3.0, -2.6
    layer = LatentLinear(weight, bias, form)
    upstream = torch.randn(4, 6)
    layer(x).backward(upstream)
    expected = upstream.T @ x
    expected[0, 0] = expected[1, 1] = 0  # beyond the clip
    torch.testing.assert_close(layer.weight.grad, expected)
    torch.testing.assert_close(layer.packed()(x), layer(x), rtol=1e-5, atol=1e-5)
    table = LatentEmbedding(weight, form)
    ids = torch.tensor([[0, 5], [5, 2]])
    out = table(ids)
    out.sum().backward()
    assert torch.equal(table.packed()(ids), out)
    assert table.weight.grad is not None
    assert table.weight.grad[5, 0] == 2 and table.weight.grad[1].eq(0).all() and table.weight.grad[0, 0] == 0
    assert qat.pack_all(nn.ModuleDict({"a": layer, "b": table})) == 2


def test_orders() -> None:
    def run(order: str) -> list[str]:
        return [kind_at(i / 12, order)[0] for i in range(12)]  # type: ignore[arg-type]

    assert run("gradual") == list("oo") + list("cc") + list("mmmmmmmm")
    assert run("inverted") == list("mmmmccccoooo")
    assert run("context") == ["c"] * 12 and run("none") == ["n"] * 12
    assert {kind_at(0.5, "stochastic", i / 30) for i in range(30)} == {"map", "context", "output"}


def _pair(family: str = "bert") -> tuple[Bundle, Bundle, dict[str, Any]]:
    teacher = world.bundle(family)
    examples = world.task(family).splits["verify"][:4]
    return teacher, teacher.copy(), teacher.collate(examples).inputs


@pytest.mark.parametrize("family", ["bert", "bert-classifier", "llama", "t5", "vit"])
@pytest.mark.parametrize(("kind", "shielded"), [("map", "qk"), ("context", "qkv"), ("output", "qkvo")])
def test_an_intervention_shields_from_everything_before_it(family: str, kind: Any, shielded: str) -> None:
    teacher, student, inputs = _pair(family)
    found = anatomy.of(student.model)

    def outputs(spoil: str) -> Tensor:
        spoilt = copy.deepcopy(student)
        for block in found.blocks:
            for piece in spoil:
                anatomy.get(spoilt.model, getattr(block.attention, piece)).weight.data.mul_(-2)
        with (
            torch.no_grad(),
            Watch(teacher.model, teacher.module()) as theirs,
            Watch(spoilt.model, spoilt.module()) as own,
        ):
            _, goal = theirs.forward(inputs)
            out, trace = own.forward(inputs, kind, goal)
        assert float(layer_losses(trace, goal, kind)["scores"]) > 0 or not spoil
        return next(v for v in out.values() if isinstance(v, Tensor))

    plain = teacher.module()(**inputs)
    wanted = next(v for v in plain.values() if isinstance(v, Tensor))
    torch.testing.assert_close(outputs(shielded), wanted, rtol=1e-3, atol=1e-4)
    if kind == "map":
        assert relative_error(outputs("v"), wanted) > 0.01


def test_the_attention_generator_learns_from_local_losses_only() -> None:
    teacher, student, inputs = _pair()
    student.model.requires_grad_(True)
    with torch.no_grad():
        for p in student.model.parameters():
            p.add_(0.05 * torch.randn_like(p))
    attention = anatomy.of(student.model).blocks[2].attention
    earlier = anatomy.get(student.model, anatomy.of(student.model).blocks[0].feed_forward.down).weight

    def gradient(kind: Any, name: str) -> tuple[bool, bool]:
        """Whether the loss of block 2's scores reaches its queries, and the block 0 before it."""
        student.model.zero_grad()
        with Watch(teacher.model, teacher.module()) as theirs, Watch(student.model, student.module()) as own:
            with torch.no_grad():
                _, goal = theirs.forward(inputs)
            _, trace = own.forward(inputs, kind, goal)
            gap = getattr(trace, name)[2] - getattr(goal, name)[2]
            gap.masked_fill(gap.abs() > 1e4, 0).square().mean().backward()
        query = anatomy.get(student.model, attention.q).weight.grad
        return query is not None and bool(query.any()), earlier.grad is not None and bool(earlier.grad.any())

    assert gradient("none", "scores") == (True, True)
    assert gradient("map", "scores") == (True, False)
    assert gradient("context", "scores") == (True, False)
    # the projection's own output still has a loss while the teacher's goes on
    assert layer_losses_reach_output(teacher, student, inputs)


def layer_losses_reach_output(teacher: Bundle, student: Bundle, inputs: Any) -> bool:
    student.model.zero_grad()
    with Watch(teacher.model, teacher.module()) as theirs, Watch(student.model, student.module()) as own:
        with torch.no_grad():
            _, goal = theirs.forward(inputs)
        _, trace = own.forward(inputs, "output", goal)
        layer_losses(trace, goal, "output")["attention"].backward()
    o = anatomy.get(student.model, anatomy.of(student.model).blocks[1].attention.o).weight.grad
    return o is not None and bool(o.any())


def test_watching_changes_nothing_and_leaves_nothing() -> None:
    teacher, student, inputs = _pair()
    before = teacher.module()(**inputs)["embedding"]
    old = teacher.model.config._attn_implementation
    with Watch(teacher.model, teacher.module()) as theirs:
        out, trace = theirs.forward(inputs)
    torch.testing.assert_close(out["embedding"], before, rtol=1e-4, atol=1e-5)
    assert teacher.model.config._attn_implementation == old
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in teacher.model.modules())
    with Watch(student.model, student.module()) as own:
        _, same = own.forward(inputs)
        with pytest.raises(ValueError, match="trace"):
            own.forward(inputs, "map")
    assert all(float(v) < 1e-8 for v in layer_losses(same, trace).values())
    assert len(trace.hidden) == len(trace.after) + 1 == 5


@pytest.mark.parametrize("family", ["bert", "bert-classifier", "llama", "t5", "vit"])
def test_step_trains_packs_and_reloads_equal(family: str, tmp_path: Path) -> None:
    original = world.bundle(family)
    task = Task(images=family == "vit")
    run = Run(tokens=300 if family != "vit" else 30, dtype="fp32")
    edited = Recipe([TeacherIntervention(lr=1e-3, max_tokens=128)]).apply(original, task, run)
    linears = [m for m in edited.model.modules() if isinstance(m, PackedLinear)]
    assert linears and all(m.matrix.form.name == "ternary" and m.input is not None for m in linears)
    assert linears[0].matrix.bytes < linears[0].in_features * linears[0].out_features / 4 + 4
    tables = [m for m in edited.model.modules() if isinstance(m, PackedEmbedding)]
    assert len(tables) == (family not in ("vit", "t5"))
    out = world.outputs(edited).detach()
    assert torch.isfinite(out).all() and not torch.equal(out, world.outputs(original))
    manifest.write_manifest(edited, tmp_path)
    again = edited.copy()
    again.model = manifest.build_from_manifest(tmp_path, edited.model.config)
    torch.testing.assert_close(world.outputs(again), out, rtol=0, atol=0)


def test_training_recovers_what_rounding_took() -> None:
    """A teacher that is far from ternary: trained weights come nearer than rounded ones at the same format."""
    original, task = world.bundle("bert-classifier"), Task()
    wanted = world.outputs(original).detach()

    def distance(tokens: int, order: Any) -> float:
        step = TeacherIntervention(lr=1e-3, max_tokens=256, activations=None, order=order)
        edited = Recipe([step]).apply(original, task, Run(tokens=tokens, dtype="fp32"))
        return relative_error(world.outputs(edited).detach(), wanted)

    untrained = distance(1, "none")
    assert distance(6000, "gradual") < 0.6 * untrained


def test_step_refuses() -> None:
    for fields in (
        {"weights": "int9"},
        {"order": "random"},
        {"first": 1.0},
        {"clip": 0.0},
        {"activations": "x"},
    ):
        with pytest.raises(UserError):
            TeacherIntervention(**fields)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="task"):
        TeacherIntervention().apply(world.bundle(), None, Run())
    gpt = world.bundle("gpt2")
    with pytest.raises(ModelError, match="in one"):
        TeacherIntervention().apply(gpt, Task(), Run(tokens=10))
    assert not [m for m in gpt.model.modules() if isinstance(m, LatentLinear)]
