import gc
import itertools

import numpy as np
import pytest
import torch
from distill_models import WORDS, World, bundle, cut, tokenizer

from lightformers.compress.distill import Recover, common, targets
from lightformers.errors import ModelError, UserError
from lightformers.steps import Run, Stage

TASKS = ["embedding", "text-classification", "token-classification", "causal-lm", "masked-lm"]


def distance(one, two, task):
    """Mean squared difference of outputs on sentences that training never saw, at real tokens."""
    batch = one.collate(World(task, 64, seed=9).training_examples(False))
    with torch.no_grad():
        a, b = one.module()(**batch.inputs), two.module()(**batch.inputs)
    name = "embedding" if task == "embedding" else "logits"
    a, b = a[name], b[name]
    if a.ndim == 3:
        mask = batch.inputs["attention_mask"].bool()
        a, b = a[mask].log_softmax(-1), b[mask].log_softmax(-1)
    return float((a - b).pow(2).mean())


@pytest.mark.parametrize("task", TASKS)
def test_recovers_what_the_cut_took_without_labels(task):
    teacher, world = bundle(task), World(task, 96)
    before_teacher = {k: v.clone() for k, v in teacher.model.state_dict().items()}
    student = cut(teacher)
    before = distance(student, teacher, task)
    run = Run(teacher=teacher, tokens=9_000, dtype="fp32")
    out = Recover(lr=3e-3, max_tokens=256).apply(student, world, run)
    assert out is student and not student.model.training
    assert distance(student, teacher, task) < 0.5 * before
    assert world.asked == [False] and world.scored == 0
    assert all(torch.equal(v, before_teacher[k]) for k, v in teacher.model.state_dict().items())
    assert student.origin.blocks and Recover.stage is Stage.RECOVER


def test_word_embeddings_stay_and_the_rest_learns():
    teacher = bundle("embedding")
    student = cut(teacher)
    before = {k: v.clone() for k, v in student.model.state_dict().items()}
    Recover().apply(student, World("embedding"), Run(teacher=teacher, tokens=500, dtype="fp32"))
    changed = {k for k, v in student.model.state_dict().items() if not torch.equal(v, before[k])}
    assert not any("word_embeddings" in k for k in changed)
    assert {k for k in before if ".layer." in k} <= changed
    Recover(train_embeddings=True).apply(
        student, World("embedding"), Run(teacher=teacher, tokens=500, dtype="fp32")
    )
    assert not torch.equal(
        student.model.embeddings.word_embeddings.weight, before["embeddings.word_embeddings.weight"]
    )


def test_similarities_to_other_examples_are_matched_beside_the_vectors():
    teacher = bundle("embedding")
    student = cut(teacher)
    before = distance(student, teacher, "embedding")
    run = Run(teacher=teacher, tokens=6_000, dtype="fp32")
    Recover(lr=3e-3, max_tokens=256, similarity=0.2).apply(student, World("embedding", 96), run)
    assert distance(student, teacher, "embedding") < 0.6 * before


def test_labels_are_used_only_if_the_run_says_so():
    teacher = bundle("text-classification")
    world = World("text-classification")
    Recover(labels=0.5).apply(cut(teacher), world, Run(teacher=teacher, tokens=300, dtype="fp32"))
    assert world.asked == [False] and world.scored == 0
    Recover(labels=0.5).apply(
        cut(teacher), world, Run(teacher=teacher, tokens=300, dtype="fp32", use_labels=True)
    )
    assert world.asked == [False, True] and world.scored > 0


def test_hidden_states_are_matched_across_the_gap():
    teacher, world = bundle("embedding"), World("embedding", 96)

    def apart(student):
        batch = student.collate(World("embedding", 32, seed=9).training_examples(False))
        with torch.no_grad():
            a = student.model(**batch.inputs, output_hidden_states=True).hidden_states
            b = teacher.model(**batch.inputs, output_hidden_states=True).hidden_states
        mask = batch.inputs["attention_mask"].bool()
        return float(
            (a[2] - b[3])[mask].pow(2).mean()
        )  # block 1, before the gap, against the source's block 2

    with_hidden, without = cut(teacher), cut(teacher)
    run = Run(teacher=teacher, tokens=9_000, dtype="fp32")
    Recover(lr=3e-3, max_tokens=256, hidden=3.0).apply(with_hidden, world, run)
    Recover(lr=3e-3, max_tokens=256).apply(without, world, run)
    assert apart(with_hidden) < 0.6 * apart(without)
    hooks = [
        h for m in (teacher.model, with_hidden.model) for x in m.modules() for h in x._forward_hooks.values()
    ]
    assert not [h for h in hooks if h.__module__.startswith("lightformers")]


def test_budgets_are_kept_and_progress_is_told():
    import time

    teacher, events = bundle("embedding"), []
    Recover().apply(
        cut(teacher), World("embedding"), Run(teacher=teacher, tokens=10**9, seconds=0.3, dtype="fp32")
    )
    start = time.monotonic()
    Recover(share=0.5).apply(
        cut(teacher),
        World("embedding"),
        Run(teacher=teacher, seconds=1.5, dtype="fp32", progress=events.append),
    )
    assert time.monotonic() - start < 2.5
    assert {"step", "loss", "tokens_per_second", "seconds_left"} <= set(events[-1])


def test_the_teacher_is_asked_once_for_each_example(monkeypatch):
    teacher, world = bundle("embedding"), World("embedding", 30)
    asked = []
    real = targets.runner

    def counting(*arguments):
        made = real(*arguments)
        run = made.run

        def counted(encoded, reduce):
            asked.append(len(encoded))
            return run(encoded, reduce)

        made.run = counted
        return made

    monkeypatch.setattr(targets, "runner", counting)
    for _ in range(2):
        Recover(epochs=4).apply(cut(teacher), world, Run(teacher=teacher, dtype="fp32"))
    assert sum(asked) == 30


def test_cache_is_saved_loaded_and_bound_to_its_teacher(tmp_path):
    teacher, world = bundle("embedding"), World("embedding", 20)
    Recover(epochs=1).apply(cut(teacher), world, Run(teacher=teacher, dtype="fp32"))
    targets.save(teacher, tmp_path / "targets.safetensors")
    twin = teacher.copy()
    assert targets.load(twin, tmp_path / "targets.safetensors") == 20
    kept = targets.Targets(twin, "embedding", precision="fp32")
    batch = twin.collate(world.training_examples(False))
    with torch.no_grad():
        right = twin.module()(**batch.inputs)["embedding"]
    np.testing.assert_allclose(kept.stacked(batch).numpy(), right.numpy(), atol=1e-5)
    assert kept._runner is None  # nothing had to be computed
    with pytest.raises(UserError, match="another model"):
        targets.load(bundle("embedding", seed=5), tmp_path / "targets.safetensors")


def test_the_cache_goes_with_its_teacher():
    teacher = bundle("embedding")
    Recover(epochs=1).apply(cut(teacher), World("embedding", 8), Run(teacher=teacher, dtype="fp32"))
    count = len(targets._MEMORY)
    del teacher
    gc.collect()
    assert len(targets._MEMORY) < count


def test_what_cannot_be_recovered_is_said():
    teacher = bundle("embedding")
    student = cut(teacher)
    with pytest.raises(ModelError, match="teacher"):
        Recover().apply(student, World("embedding"), Run())
    with pytest.raises(ModelError, match="one model"):
        Recover().apply(teacher, World("embedding"), Run(teacher=teacher))
    with pytest.raises(UserError, match="task"):
        Recover().apply(student, None, Run(teacher=teacher))
    with pytest.raises(UserError, match="negative"):
        Recover(hidden=-1.0).apply(student, World("embedding"), Run(teacher=teacher))
    narrow = bundle("embedding", hidden_size=16)
    with pytest.raises(ModelError, match="width"):
        Recover(hidden=1.0).apply(narrow, World("embedding"), Run(teacher=teacher))


def test_another_width_learns_the_similarities():
    teacher, narrow = bundle("embedding"), bundle("embedding", seed=1, hidden_size=24)
    world = World("embedding", 40)

    def alike():
        batch = teacher.collate(world.training_examples(False))
        with torch.no_grad():
            a, b = (x.module()(**batch.inputs)["embedding"] for x in (narrow, teacher))
        off = ~torch.eye(len(a), dtype=torch.bool)
        return float(torch.corrcoef(torch.stack([(a @ a.T)[off], (b @ b.T)[off]]))[0, 1])

    before = alike()
    Recover(lr=3e-3, max_tokens=256).apply(narrow, world, Run(teacher=teacher, tokens=9_000, dtype="fp32"))
    assert before < 0.5 < 0.65 < alike()


def test_a_diverging_recovery_says_so():
    from lightformers.train import Diverged

    teacher = bundle("embedding")
    student = cut(teacher)
    with torch.no_grad():
        student.model.encoder.layer[0].output.dense.weight.fill_(float("nan"))
    with pytest.raises(Diverged, match="loss became nan"):
        Recover().apply(student, World("embedding"), Run(teacher=teacher, tokens=500, dtype="fp32"))


@pytest.mark.parametrize("task", ["embedding", "causal-lm", "masked-lm"])
def test_a_trimmed_vocabulary_meets_the_right_rows_of_its_teacher(task):
    from lightformers.anatomy import surgery
    from lightformers.bundle import Origin

    teacher, world = bundle(task), World(task, 30)
    kept = [0, 1, 2, 3, 4, *range(6, 65)]  # without w0: every id after it moves by one
    student = teacher.copy()
    surgery.keep_vocabulary(student.model, kept)
    student.origin = Origin(vocabulary=tuple(kept))
    student.processor = tokenizer([w for w in WORDS if w != "w0"])
    world.training_examples = lambda labels: [
        e for e in World(task, 60).training_examples(labels) if "w0" not in e["text"].split()
    ]
    losses_seen = []
    run = Run(teacher=teacher, tokens=200, dtype="fp32", progress=lambda e: losses_seen.append(e["loss"]))
    Recover(lr=1e-9).apply(student, world, run)
    # nothing was cut but words that do not occur: the student is already the teacher
    assert abs(losses_seen[-1]) < 1e-3


@pytest.mark.parametrize("use_labels", [False, True])
def test_pairs_of_the_embedding_task(use_labels):
    from lightformers.tasks.embedding import Embedding

    teacher = bundle("embedding")
    rows = World("embedding", 90).training_examples(False)
    pairs = [{"query": a["text"] + " w1", "document": b["text"]} for a, b in itertools.pairwise(rows)]
    task = Embedding({"train": pairs, "search": [], "verify": []})
    student = cut(teacher)
    before = distance(student, teacher, "embedding")
    run = Run(teacher=teacher, tokens=4000, dtype="fp32", use_labels=use_labels)
    Recover(lr=3e-3, max_tokens=512, labels=0.02).apply(student, task, run)
    assert distance(student, teacher, "embedding") < 0.8 * before


def test_images_are_recovered():
    from transformers import ViTConfig, ViTForImageClassification

    from lightformers.bundle import Batch, Bundle

    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=32, num_hidden_layers=4, num_attention_heads=4, intermediate_size=48, image_size=8, patch_size=4,
        num_labels=3, initializer_range=0.15,
    )  # fmt: skip

    def processor(images, return_tensors):
        return {"pixel_values": np.stack([np.asarray(i, dtype=np.float32) for i in images])}

    teacher = Bundle(ViTForImageClassification(config).eval(), processor, "image-classification")

    class Pictures(World):
        def training_examples(self, use_labels):
            rng = np.random.default_rng(0)
            return [{"image": rng.standard_normal((3, 8, 8))} for _ in range(40)]

    student, world = cut(teacher), Pictures("image-classification")
    batch = Batch({"pixel_values": torch.randn(64, 3, 8, 8)}, {})

    def apart():
        with torch.no_grad():
            a, b = (x.model(**batch.inputs).logits.softmax(-1) for x in (student, teacher))
        return float((a - b).pow(2).mean())

    before = apart()
    Recover(lr=3e-3).apply(student, world, Run(teacher=teacher, tokens=1200, dtype="fp32"))
    assert apart() < 0.6 * before


def test_a_training_step_asks_the_teacher_through_openvino():
    """Autocast of the step once broke the conversion, and torch quietly did the work at a fraction of the speed."""
    pytest.importorskip("openvino")
    teacher = bundle("embedding")
    asked = targets.Targets(teacher, "embedding")
    batch = teacher.collate(World("embedding", 80).training_examples(False))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        asked.rows(batch)
    assert asked._runner.deploy.runtime == "openvino"
    asked.close()


def test_training_texts_are_cut_and_the_bundle_is_not():
    mine, world, run = bundle("embedding"), World("embedding"), Run(dtype="fp32")
    whole, short = common.feed(mine, world, run), common.feed(mine, world, run, length=4)
    assert short.lengths.max() == 4 < whole.lengths.max() <= (mine.max_length or 99)
    assert common.feed(mine, world, run, length=10_000).lengths.tolist() == whole.lengths.tolist()
