import pytest
import torch
from distill_models import World, bundle, cut

from lightformers import anatomy
from lightformers.compress.distill import MiniLM
from lightformers.compress.distill.assistant import assistant
from lightformers.compress.distill.common import block_map
from lightformers.errors import ModelError, UserError
from lightformers.steps import Run, Stage
from lightformers.train import losses
from lightformers.train.capture import Capture


def relation_distance(student, teacher, task="embedding"):
    """Attention and value relations of the last blocks, v1's loss, on sentences that training never saw."""
    batch = student.collate(World(task, 48, seed=9).training_examples(False))
    mask, kept = batch.inputs["attention_mask"], []
    for one in (student, teacher):
        found = anatomy.of(one.model)
        last = len(found.blocks) - 1
        with Capture(one.model, found, relations=[last]) as caught, torch.no_grad():
            one.model(**batch.inputs)
            kept.append([caught.qkv(last, piece) for piece in "qkv"])
    (q, k, v), (tq, tk, tv) = kept
    causal = task == "causal-lm"
    return float(
        losses.attention_kl((q, k), (tq, tk), mask, causal) + losses.self_relation_kl(v, tv, mask, causal)
    )


@pytest.mark.parametrize(("version", "task"), [("v1", "embedding"), ("v2", "embedding"), ("v1", "causal-lm")])
def test_relations_come_back(version, task):
    teacher = bundle(task)
    student = cut(teacher)
    before = relation_distance(student, teacher, task)
    step = MiniLM(version=version, lr=3e-3, max_tokens=256)
    step.apply(student, World(task, 96), Run(teacher=teacher, tokens=10_000, dtype="fp32"))
    assert relation_distance(student, teacher, task) < 0.6 * before
    assert MiniLM.stage is Stage.RECOVER


def test_only_what_lies_below_the_relations_learns():
    teacher = bundle("embedding")
    student = cut(teacher)
    before = {k: v.clone() for k, v in student.model.state_dict().items()}
    MiniLM(version="v1").apply(student, World("embedding"), Run(teacher=teacher, tokens=600, dtype="fp32"))
    changed = {k for k, v in student.model.state_dict().items() if not torch.equal(v, before[k])}
    last = {k for k in before if k.startswith("encoder.layer.2.")}
    assert {k for k in changed if k in last} <= {k for k in last if ".attention.self." in k}
    assert "encoder.layer.2.attention.self.value.weight" in changed
    assert {k for k in before if k.startswith("encoder.layer.1.")} <= changed
    assert "embeddings.word_embeddings.weight" not in changed


def test_v2_takes_other_head_counts_and_widths_and_v1_refuses_them():
    teacher, student = bundle("embedding"), bundle("embedding", seed=1, hidden_size=16, num_attention_heads=2)
    world, run = World("embedding", 40), Run(teacher=teacher, tokens=6_000, dtype="fp32")
    words = student.model.embeddings.word_embeddings.weight.detach().clone()
    events = []
    run.progress = events.append
    MiniLM(lr=3e-3, max_tokens=256).apply(student, world, run)
    assert not torch.equal(
        student.model.embeddings.word_embeddings.weight, words
    )  # another width: not frozen
    assert events[-1]["loss"] < 1.0
    with pytest.raises(ModelError, match="equal head counts"):
        MiniLM(version="v1", assistant=False).apply(student, world, run)
    with pytest.raises(ModelError, match="relation heads"):
        MiniLM(relation_heads=5).apply(student, world, run)


def test_weights_choose_the_relations():
    teacher, world = bundle("embedding"), World("embedding")
    student = cut(teacher)
    before = {k: v.clone() for k, v in student.model.state_dict().items()}
    MiniLM(version="v1", attention=0.0).apply(student, world, Run(teacher=teacher, tokens=400, dtype="fp32"))
    after = student.model.state_dict()
    assert torch.equal(
        after["encoder.layer.2.attention.self.query.weight"],
        before["encoder.layer.2.attention.self.query.weight"],
    )
    assert not torch.equal(
        after["encoder.layer.2.attention.self.value.weight"],
        before["encoder.layer.2.attention.self.value.weight"],
    )
    with pytest.raises(UserError, match="positive"):
        MiniLM(relations=(0.0, 0.0, 0.0)).apply(student, world, Run(teacher=teacher))
    with pytest.raises(UserError, match="does not exist"):
        MiniLM(teacher_block=7).apply(student, world, Run(teacher=teacher))


def test_assistant_has_the_teachers_depth_and_the_students_width():
    teacher, small = bundle("embedding"), bundle("embedding", seed=1, hidden_size=16, num_hidden_layers=2)
    made = assistant(small, teacher)
    assert len(anatomy.of(made.model).blocks) == 4 and anatomy.of(made.model).width == 16
    assert made.model.config.num_hidden_layers == 4 and small.model.config.num_hidden_layers == 2
    theirs, own = made.model.state_dict(), small.model.state_dict()
    for new, old in enumerate((0, 0, 1, 1)):
        key = "attention.self.query.weight"
        assert torch.equal(theirs[f"encoder.layer.{new}.{key}"], own[f"encoder.layer.{old}.{key}"])
    batch = small.collate([{"text": "w1 w2 w3"}])
    assert made.module()(**batch.inputs)["embedding"].shape == (1, 16)


def test_v1_asks_an_assistant_where_the_paper_does(monkeypatch):
    from lightformers.compress.distill import minilm

    teacher, small = bundle("embedding"), bundle("embedding", seed=1, hidden_size=16, num_hidden_layers=2)
    made = []
    monkeypatch.setattr(minilm, "assistant", lambda s, t: made.append(assistant(s, t)) or made[-1])
    run = Run(teacher=teacher, tokens=600, dtype="fp32")
    before = relation_distance(small, teacher)
    MiniLM(version="v1", lr=3e-3, max_tokens=256).apply(small, World("embedding"), run)
    assert len(made) == 1 and relation_distance(small, teacher) < before
    MiniLM(version="v1").apply(cut(teacher), World("embedding"), run)
    MiniLM(version="v2").apply(small, World("embedding"), run)
    assert len(made) == 1


def test_blocks_are_mapped_across_gaps():
    teacher = bundle("embedding")
    assert block_map(cut(teacher, (0, 1, 3)), teacher) == [(0, 0), (1, 2), (2, 3)]
    assert block_map(cut(teacher, (0, 3)), teacher) == [(0, 2), (1, 3)]
    assert block_map(cut(teacher, (0, 1)), teacher) == [(0, 0), (1, 3)]
    student = cut(teacher, (0, 1, 3))
    smaller = student.copy()
    anatomy.surgery.keep_blocks(smaller.model, [0, 2])
    from lightformers.bundle import Origin

    smaller.origin = Origin({next(iter(student.origin.blocks)): (0, 3)})
    assert block_map(smaller, student) == [(0, 1), (1, 2)]
    smaller.origin = Origin({next(iter(student.origin.blocks)): (0, 2)})
    with pytest.raises(ModelError, match="cannot be found"):
        block_map(smaller, student)
