"""PELA: ranks, the perturbation, and the repair."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import steps_world as world
import torch
import transformers as T
from torch import nn

from lightformers import anatomy
from lightformers.bundle import Batch, Bundle
from lightformers.compress import Pela
from lightformers.compress.factorize.pela import perturbation, rank_of
from lightformers.compress.layers import linears
from lightformers.errors import ModelError, UserError
from lightformers.manifest import build_from_manifest, write_manifest
from lightformers.parts.low_rank import LowRankLinear
from lightformers.steps import Recipe, Run
from lightformers.train.capture import Capture

sys.path.insert(0, str(Path(__file__).parent / "distill"))
import distill_models


class Trained(world.World):
    """The small world as a task to train on."""

    def training_examples(self, use_labels: bool) -> list[dict[str, Any]]:
        return [dict(e, label=i % 3) if use_labels else e for i, e in enumerate(self.splits["train"])]

    def collate(self, bundle: Bundle, examples: Any, seed: int = 0) -> Batch:
        return bundle.collate(examples)

    def loss(self, outputs: Any, batch: Batch) -> torch.Tensor:
        return nn.functional.cross_entropy(outputs["logits"], batch.targets["label"])


def features(bundle: Bundle, teacher: Bundle) -> float:
    """Mean squared difference of block outputs on sentences that training never saw."""
    batch = teacher.collate(distill_models.World("embedding", 32, seed=9).training_examples(False))
    seen = []
    for one in (bundle, teacher):
        found = anatomy.of(one.model)
        with Capture(one.model, found, hidden=range(len(found.blocks))) as caught, torch.no_grad():
            one.model(**batch.inputs)
            seen.append([caught.hidden(i) for i in range(len(found.blocks))])
    return sum(float((a - b).square().mean()) for a, b in zip(*seen)) / len(seen[0])


def apart(bundle: Bundle, teacher: Bundle) -> float:
    """Largest deviation of an entry of the factorised matrices, mean over layers."""
    gaps = []
    for path in linears(anatomy.of(teacher.model)):
        layer: Any = anatomy.get(bundle.model, path)
        difference = layer.second @ layer.first - anatomy.linear(teacher.model, path)[0]
        gaps.append(float(difference.detach().abs().max()))
    return sum(gaps) / len(gaps)


def test_ranks_and_parameters_of_deit_base() -> None:
    assert [rank_of(o, i, 2) for o, i in ((2304, 768), (768, 768), (3072, 768), (768, 3072))] == [
        288,
        192,
        307,
        307,
    ]
    with torch.device("meta"):
        model = T.ViTForImageClassification(T.ViTConfig(num_labels=1000))
    whole = sum(p.numel() for p in model.parameters())
    assert whole == 86_567_656
    shapes = [anatomy.linear(model, p)[0].shape for p in linears(anatomy.of(model))]
    saved = sum(o * i - rank_of(o, i, 2) * (o + i) for o, i in shapes)
    assert (
        whole - saved == 44_081_896
    )  # three separate projections of rank 192 hold what a fused one of 288 does


def test_perturbation_is_the_largest_entry() -> None:
    torch.manual_seed(0)
    first, second, weight = torch.randn(2, 5), torch.randn(4, 2), torch.randn(4, 5)
    first.requires_grad_()
    literal = max(
        abs(float(second[o] @ first.detach()[:, i] - weight[o, i])) for o in range(4) for i in range(5)
    )
    got = perturbation(first, second, weight, 0.1)
    assert float(got.detach()) == pytest.approx((literal - 0.1) ** 2, rel=1e-5)
    got.backward()
    assert first.grad is not None and int((first.grad.abs().sum(0) > 0).sum()) == 1  # one column of one entry
    mean = perturbation(first.detach(), second, weight, 0.0, "rms")
    torch.testing.assert_close(mean, (second @ first.detach() - weight).square().mean())


@pytest.mark.parametrize("family", ["bert", "bert-classifier", "gpt2", "llama", "t5", "vit"])
def test_every_family(family: str, tmp_path: Path) -> None:
    original = world.bundle(family)
    task = Trained(images=family == "vit")
    edited = Recipe([Pela(2.0, max_tokens=256)]).apply(original, task, Run(dtype="fp32", tokens=300))
    for path in linears(anatomy.of(original.model)):
        rows, columns = anatomy.linear(original.model, path)[0].shape
        layer = anatomy.get(edited.model, path)
        assert isinstance(layer, LowRankLinear) and layer.rank == rank_of(rows, columns, 2)
        assert 2 * layer.rank * (rows + columns) <= rows * columns
    assert torch.isfinite(world.outputs(edited)).all() and not edited.model.training
    write_manifest(edited, tmp_path)
    again = edited.copy()
    again.model = build_from_manifest(tmp_path, edited.model.config)
    assert torch.equal(world.outputs(again), world.outputs(edited))


def test_planted_low_rank_is_kept_and_held() -> None:
    teacher = distill_models.bundle("embedding")
    with torch.no_grad():
        for path in linears(anatomy.of(teacher.model)):
            weight = anatomy.linear(teacher.model, path)[0]
            weight.copy_(torch.randn(len(weight), 4) @ torch.randn(4, weight.shape[1]) * 0.05)
    student = teacher.copy()
    originals = Pela(2.0).compress(student.model)
    assert features(student, teacher) < 1e-8 and set(originals) == set(linears(anatomy.of(teacher.model)))
    trained = Recipe([Pela(2.0, epsilon=0.0, lr=1e-5)]).apply(
        teacher, distill_models.World("embedding"), Run(dtype="fp32", tokens=1000)
    )
    assert features(trained, teacher) < 1e-4


def test_repair_beats_truncation_and_a_random_start() -> None:
    teacher = distill_models.bundle("embedding")
    task, run = distill_models.World("embedding", 96), Run(dtype="fp32", tokens=6000)

    def made(**fields: Any) -> Bundle:
        return Recipe([Pela(2.0, lr=2e-3, max_tokens=512, **fields)]).apply(teacher, task, run)

    cut = teacher.copy()
    Pela(2.0).compress(cut.model)
    repaired, held, loose = (
        made(perturbation=0.0),
        made(perturbation=30.0, epsilon=0.0),
        made(perturbation=0.0),
    )
    assert torch.equal(next(repaired.model.parameters()), next(loose.model.parameters()))  # nothing is random
    assert features(repaired, teacher) < 0.6 * features(cut, teacher)
    assert apart(held, teacher) < 0.95 * apart(repaired, teacher)
    assert features(held, teacher) < features(cut, teacher)


def test_labels_count_where_the_run_uses_them() -> None:
    original, task = world.bundle("bert-classifier"), Trained()
    plain, taught = (
        Recipe([Pela(labels=5.0, lr=2e-3, max_tokens=256)]).apply(
            original, task, Run(dtype="fp32", tokens=4000, use_labels=labels)
        )
        for labels in (False, True)
    )
    batch = original.collate(task.training_examples(True))
    loss = [float(task.loss(b.model(**batch.inputs), batch).detach()) for b in (plain, taught)]
    assert loss[1] < loss[0]
    close = Recipe([Pela(features=0.0, perturbation=0.0, logits=1.0, lr=2e-3, max_tokens=256)]).apply(
        original, task, Run(dtype="fp32", tokens=4000)
    )
    cut = original.copy()
    Pela().compress(cut.model)
    gaps = [float((world.outputs(b) - world.outputs(original)).detach().norm()) for b in (close, cut)]
    assert gaps[0] < 0.7 * gaps[1]


def test_bad_input_is_refused_untouched() -> None:
    for fields, word in (
        ({"ratio": 0.5}, "ratio"), ({"ratio": float("nan")}, "ratio"), ({"features": -1.0}, "negative"),
        ({"norm": "l1"}, "norm"), ({"where": ("head",)}, "where"),
        ({"features": 0.0, "perturbation": 0.0}, "nothing to train on"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=word):
            Pela(**fields)  # type: ignore[arg-type]
    bundle, task = world.bundle(), Trained()
    before = {k: v.clone() for k, v in bundle.model.state_dict().items()}
    with pytest.raises(UserError, match="task"):
        Pela().apply(bundle, None, Run(teacher=bundle.copy()))
    with pytest.raises(ModelError, match="teacher"):
        Pela().apply(bundle, task, Run())
    with pytest.raises(ModelError, match="no rank"):
        Pela(50.0).apply(bundle, task, Run(teacher=bundle.copy()))
    other = world.bundle()
    anatomy.surgery.keep_width(other.model, range(16))
    with pytest.raises(ModelError, match="width"):
        Pela().apply(bundle, task, Run(teacher=other))
    assert all(torch.equal(v, before[k]) for k, v in bundle.model.state_dict().items())
    with pytest.raises(ModelError, match="plain linear"):
        Pela().apply(Recipe([Pela()]).apply(bundle, task, Run(tokens=100)), task, Run(teacher=bundle))
