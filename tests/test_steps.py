"""Recipes: order, one copy, the record of what was done, and YAML that can run nothing."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import nn

from lightformers.bundle import Bundle
from lightformers.errors import UserError
from lightformers.steps import Deploy, Recipe, Run, Stage, Step, fields_of


@dataclass(frozen=True)
class Scale:
    factor: float = 2.0
    stage: ClassVar[Stage] = Stage.WIDTH

    def apply(self, bundle, task, run):
        with torch.no_grad():
            bundle.model.weight.mul_(self.factor)
        return bundle


@dataclass(frozen=True)
class DropBias:
    names: tuple[str, ...] = ("bias",)
    stage: ClassVar[Stage] = Stage.DEPTH

    def apply(self, bundle, task, run):
        bundle.model.bias = None
        return bundle


@dataclass(frozen=True)
class Learn:
    stage: ClassVar[Stage] = Stage.RECOVER

    def apply(self, bundle, task, run):
        with torch.no_grad():
            bundle.model.weight.copy_(run.teacher.model.weight)
        return bundle


@dataclass(frozen=True)
class Round:
    stage: ClassVar[Stage] = Stage.QUANTIZE

    def apply(self, bundle, task, run):
        raise RuntimeError("cannot round")


@pytest.fixture
def bundle():
    torch.manual_seed(0)
    return Bundle(nn.Linear(3, 2))


def test_steps_are_steps_and_other_things_are_not():
    assert isinstance(Scale(), Step)
    with pytest.raises(UserError, match="is no step"):
        Recipe([object()])


def test_apply_edits_a_copy_and_records_each_step(bundle):
    before = {k: v.clone() for k, v in bundle.model.state_dict().items()}
    recipe = Recipe([DropBias(), Scale(3.0)], Deploy(batch_size=4))
    small = recipe.apply(bundle)
    assert all(torch.equal(v, before[k]) for k, v in bundle.model.state_dict().items())
    assert bundle.history == [] and bundle.deploy is None
    assert torch.equal(small.model.weight, before["weight"] * 3)
    assert small.deploy == recipe.deploy
    assert [(h["step"], h["parameters"], h["size_before"], h["size_after"]) for h in small.history] == [
        ("DropBias", {"names": ["bias"]}, 8, 6),
        ("Scale", {"factor": 3.0}, 6, 6),
    ]
    again = recipe.apply(small)
    assert len(again.history) == 4 and len(small.history) == 2


def test_the_teacher_is_the_recipes_input_unless_given(bundle):
    recipe, run = Recipe([Scale(5.0), Learn()]), Run()
    assert torch.equal(recipe.apply(bundle, run=run).model.weight, bundle.model.weight)
    assert run.teacher is None  # the caller's run is not written to
    other = Bundle(nn.Linear(3, 2))
    assert torch.equal(recipe.apply(bundle, run=Run(teacher=other)).model.weight, other.model.weight)


def test_a_failing_step_leaves_the_original_alone(bundle):
    weight = bundle.model.weight.clone()
    with pytest.raises(RuntimeError, match="cannot round"):
        Recipe([Scale(), Round()]).apply(bundle)
    assert torch.equal(bundle.model.weight, weight) and bundle.history == []


def test_an_empty_recipe_changes_no_weight(bundle):
    same = Recipe(deploy=Deploy(precision="bf16")).apply(bundle)
    assert torch.equal(same.model.weight, bundle.model.weight) and same.model is not bundle.model


def test_order_is_checked_and_recovery_goes_anywhere():
    Recipe([DropBias(), Learn(), Scale(), Learn(), Round(), Learn()])
    with pytest.raises(UserError, match=r"DropBias \(depth\) comes after a width step.*depth < width"):
        Recipe([Scale(), Learn(), DropBias()])


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"runtime": "tensorrt"}, "torch, openvino, onnxruntime"),
        ({"precision": "int4"}, "int8-weights"),
        ({"batching": "random"}, "packed"),
        ({"batch_size": 0}, "at least 1"),
        ({"streams": 0}, "at least 1"),
        ({"batching": "packed", "runtime": "openvino"}, "sorted"),
        ({"precision": "int8-weights"}, "openvino"),
        ({"precision": "bf16", "runtime": "onnxruntime"}, "fp32 or int8"),
    ],
)
def test_deploys_that_cannot_be_are_refused_with_the_way_out(fields, said):
    with pytest.raises(UserError, match=said):
        Deploy(**fields)


def test_a_deploy_says_what_it_is():
    text = str(Deploy("openvino", "int8", "sorted", 16, max_tokens=4096, streams=2))
    assert all(piece in text for piece in ("openvino int8", "sorted", "16", "4096", "2 streams"))


def test_yaml_round_trip(monkeypatch, tmp_path):
    room = _room(monkeypatch)
    recipe = Recipe(
        [DropBias(("bias",)), Scale(0.5), Learn()], Deploy("openvino", "int8", "sorted", max_tokens=512)
    )
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    assert Recipe.from_yaml(tmp_path / "recipe.yaml") == recipe
    assert Recipe.from_yaml("lightformers: 1\nsteps: [Scale]\n") == Recipe([Scale()])
    assert set(room.__all__) == {"DropBias", "Scale", "Learn"}


def _room(monkeypatch):
    """A stand-in for `lightformers.compress` with this file's steps."""
    import sys
    import types

    room = types.ModuleType("lightformers.compress")
    room.__all__ = ["DropBias", "Scale", "Learn"]
    room.DropBias, room.Scale, room.Learn, room.os = DropBias, Scale, Learn, None
    monkeypatch.setitem(sys.modules, "lightformers.compress", room)
    return room


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("steps: []", "lightformers: 1"),
        ("- 1", "lightformers: 1"),
        ("lightformers: 1\nsteps: [{Nothing: {}}]", "unknown step 'Nothing'.*DropBias"),
        ("lightformers: 1\nsteps: [{os: {}}]", "unknown step 'os'"),
        ("lightformers: 1\nsteps: [{Scale: {speed: 1}}]", "no field speed; it has factor"),
        ("lightformers: 1\nsteps: [{Scale: {}, Learn: {}}]", "one `Name"),
        ("lightformers: 1\ndeploy: {gpu: 1}", "no field gpu"),
        ("lightformers: 1\nsteps: [", "not valid YAML"),
        ("!!python/object/apply:os.getcwd []", "not valid YAML"),
    ],
)
def test_bad_recipes_are_refused(text, said, monkeypatch):
    _room(monkeypatch)
    with pytest.raises(UserError, match=said):
        Recipe.from_yaml(text)


def test_a_missing_recipe_file_is_said(tmp_path):
    with pytest.raises(UserError, match="no recipe at"):
        Recipe.from_yaml(tmp_path / "none.yaml")


def test_steps_and_deploys_are_frozen_and_plain():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Scale().factor = 1.0  # type: ignore[misc]
    assert fields_of(DropBias(("a", "b"))) == {"names": ["a", "b"]}
    assert "stage" not in fields_of(Scale())
