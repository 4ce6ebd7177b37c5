"""AutoDistil: the paper's spaces and counts, its loss against the literal one, and what training must achieve."""

from __future__ import annotations

import copy
import dataclasses
import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import steps_world as world
import torch
import transformers as T
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn

import lightformers as lf
from lightformers.bundle import Bundle, Pooling
from lightformers.compress.elastic import autodistil, relations
from lightformers.compress.elastic.autodistil import PARTITIONS, AutoDistil
from lightformers.compress.elastic.shared import Shared
from lightformers.compress.elastic.size import Size, cut, size_of
from lightformers.errors import ModelError, UserError
from lightformers.manifest import build_from_manifest, write_manifest
from lightformers.steps import Run
from lightformers.tasks.embedding import Embedding

#: Of the tiny models here: 4 blocks, 4 heads of 8, width 32, 64 inner channels.
OWN = AutoDistil(
    blocks=(2, 4), heads=(2, 3, 4), width=(16, 24, 32), ratios=(1.0, 2.0), relation_heads=4, lr=3e-3
)


@pytest.fixture(autouse=True)
def fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autodistil.common, "precision", lambda run: "fp32")


def texts() -> Embedding:
    rows = [{"text": t} for t in world.TEXTS]
    return Embedding.from_examples({"train": rows[:60], "valid": rows[60:90], "test": rows[90:]})


def words() -> Bundle:
    """A bert with a tokenizer of whole words: one that is trained differs from run to run, and so would training."""
    known = sorted({w for t in world.TEXTS for w in t.split()})
    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(["[PAD]", "[UNK]", *known])}, "[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = T.PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="[PAD]", unk_token="[UNK]")
    return Bundle(world.model("bert", len(tokenizer)), tokenizer, "embedding", Pooling(), max_length=48)


def bert_base() -> nn.Module:
    with torch.device("meta"):
        return T.BertModel(T.BertConfig(), add_pooling_layer=True)


def test_the_papers_spaces_on_bert_base() -> None:
    whole, spaces = Bundle(bert_base()), []
    table = {"base": (38.5, 79.3), "small": (12.3, 27.8), "tiny": (4.4, 10.6)}
    for name, preset in PARTITIONS.items():
        space = AutoDistil(partition=name).space(whole)  # type: ignore[arg-type]
        spaces.append(space)
        assert (space.blocks, space.heads, space.width, space.ratios) == (
            preset.blocks, preset.heads, preset.width, preset.ratios,
        )  # fmt: skip
        assert space.count == 256 and len(set(space)) == 256
        counts = [autodistil.paper_parameters(size) / 1e6 for size in (space.smallest, space.largest)]
        assert counts == pytest.approx(table[name], rel=0.03)
    assert autodistil.paper_parameters(spaces[0].smallest) == 39_211_248  # by hand
    assert not any(autodistil.overlap(a, b) for a in spaces for b in spaces if a is not b)
    assert autodistil.overlap(spaces[0], dataclasses.replace(spaces[0], blocks=(12,)))
    assert not autodistil.overlap(spaces[0], dataclasses.replace(spaces[0], ratios=(1.0,)))


def test_real_count_of_a_cut_bert_base() -> None:
    """7 blocks of 7 heads at width 128, ratio 2: counted by hand, heads keeping 64 columns each."""
    model, size = bert_base(), Size(7, (7,) * 7, (256,) * 7, 128)
    cut(model, size, autodistil.NESTING)
    h, a, f = 128, 448, 256
    block = 3 * (h * a + a) + a * h + h + 2 * h * f + f + h + 4 * h
    assert sum(p.numel() for p in model.parameters()) == h * (30522 + 512 + 2) + 2 * h + 7 * block + h * h + h
    assert model.encoder.layer[0].attention.self.attention_head_size == 64


def test_spaces_follow_any_model() -> None:
    for family in ("bert", "gpt2", "llama", "vit"):
        made = world.bundle(family)
        space = AutoDistil().space(made)
        assert space.blocks == (3, 4) and set(space.width) == {24}
        assert all(h % (2 if family == "llama" else 1) == 0 for h in space.heads)


def test_spread_blocks_by_integers() -> None:
    """Floors of i * N / D without floats: 7 of 12 as by exact fractions, nothing twice."""
    for kept in range(1, 49):
        blocks = autodistil.NESTING.blocks(kept, 48)
        assert blocks == [math.floor(Fraction(i) / Fraction(kept, 48)) for i in range(kept)]
        assert len(set(blocks)) == kept
    assert autodistil.NESTING.blocks(7, 12) == [0, 1, 3, 5, 6, 8, 10]


def literal(student: Tensor, teacher: Tensor, real: list[int], heads: int) -> float:
    """The loss by loops: (B, S, width) each, rows of `real` tokens."""
    total, count = 0.0, 0
    for s, t, n in zip(student, teacher, real):
        for i in range(n):
            for j in range(n):
                for r in range(heads):
                    values = []
                    for x in (s, t):
                        size = x.shape[-1] // heads
                        part = x[:, r * size : (r + 1) * size]
                        values.append(float(part[i] @ part[j]) / size**0.5)
                    total += (values[0] - values[1]) ** 2 / heads
                count += 1
    return total / count


def test_relation_loss_is_the_literal_one_and_padding_does_not_count() -> None:
    """7 heads of 8 against 12 heads of 8, cut anew into 12: 56 columns leave 8 over."""
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 5, 56), torch.randn(2, 5, 96)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])

    def heads(x: Tensor) -> Tensor:
        return relations.relation_heads(x.unflatten(-1, (-1, 8)).transpose(1, 2), 12)

    assert heads(student).shape == (2, 12, 5, 4) and heads(teacher).shape == (2, 12, 5, 8)
    loss = relations.relation_mse(heads(student), heads(teacher), mask)
    assert float(loss) == pytest.approx(literal(student, teacher, [5, 3], 12), rel=1e-5)
    student[1, 3:] = 1e4
    assert float(relations.relation_mse(heads(student), heads(teacher), mask)) == pytest.approx(float(loss))
    assert float(relations.relation_mse(heads(teacher), heads(teacher), mask)) == 0


def test_the_whole_against_itself_has_no_loss() -> None:
    """The largest size of a space that is the whole model: both losses 0; a smaller one: above 0."""
    made = world.bundle()
    space = dataclasses.replace(OWN.space(made), ratios=(2.0,), blocks=(4,))
    shared, batch = Shared(made, space.nesting), made.collate(texts().texts("train")[:4])
    for kind in ("mse", "kl"):
        lesson = relations.Relations(made, made.copy(), kind, 4)  # type: ignore[arg-type]
        with lesson.of_teacher("cpu") as goal:
            theirs = goal(batch)
            assert lesson(shared, space.largest, batch, theirs).item() < 1e-6
            assert lesson(shared, space.smallest, batch, theirs).item() > 1e-3


def test_sub_networks_follow_the_attention_that_training_chooses() -> None:
    made = world.bundle()
    shared, given = Shared(made), made.collate(texts().texts("train")[:2]).inputs
    skeleton: Any = shared.network(shared.whole).skeleton
    for name in ("eager", "sdpa"):
        made.model.set_attn_implementation(name)
        shared(shared.whole, **given)
        assert skeleton.backbone.config._attn_implementation == name


def test_sandwich_and_uniform_draws() -> None:
    space, rng = OWN.space(world.bundle()), np.random.default_rng(0)
    drawn = [autodistil.draw(space, "sandwich", 4, rng) for _ in range(20)]
    assert all(d[:2] == [space.largest, space.smallest] and len(d) == 4 for d in drawn)
    free = {s for _ in range(60) for s in autodistil.draw(space, "uniform", 4, rng)}
    assert len(free) == space.count == 36
    assert all(len(set(s.heads)) == len(set(s.channels)) == 1 for s in free)


def test_training_teaches_sub_networks_and_the_search_ranks_them() -> None:
    """Every looked-at size is nearer to the teacher than its slice was; the ranking respects the budget."""
    made, task = words(), texts()
    step = dataclasses.replace(OWN, heads=(2, 4), width=(16, 32), lr=1e-2)  # 16 sizes
    teacher, space = made.copy(), step.space(made)
    sizes = [space.largest, space.smallest, Size(4, (2,) * 4, (32,) * 4, 32)]
    rows = made.encode(task.texts("search"))
    lesson = relations.Relations(made, teacher, "mse", 4)
    before = lesson.mean(Shared(made, space.nesting), sizes, [made.pad(rows)])
    run = Run(teacher=teacher, tokens=4500, dtype="fp32")
    assert step.train(made, task, run) is made
    after = lesson.mean(Shared(made, space.nesting), sizes, [made.pad(rows)])
    assert after[1] < 0.8 * before[1] and after[2] < before[2] and after[0] < after[1], (before, after)
    limit = Shared(made, space.nesting).parameters_of(sizes[2])
    found = step.search(made, space, task, run, parameters=limit, candidates=4, examples=8)
    assert found and [c.loss for c in found] == sorted(c.loss for c in found)
    assert all(c.parameters <= limit and c.size in space for c in found)
    with pytest.raises(UserError, match="the smallest has"):
        step.search(made, space, task, run, parameters=100, candidates=2)


def test_kl_and_uniform_train_too() -> None:
    made = world.bundle()
    step = dataclasses.replace(OWN, loss="kl", sampling="uniform", networks=1)
    before = copy.deepcopy(made.model.state_dict())
    step.train(made, texts(), Run(tokens=600, dtype="fp32"))  # the teacher is the bundle as it came
    assert any(not torch.equal(before[k], v) for k, v in made.model.state_dict().items())
    assert all(torch.isfinite(v).all() for v in made.model.state_dict().values())


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama", "vit"])
def test_extracted_equals_shared_and_comes_back(family: str, tmp_path: Any) -> None:
    """After training, a sub-network run on the shared weights gives what the cut model gives; it saves and reloads."""
    made = world.bundle(family)
    heads = (2, 4)
    step = AutoDistil(
        blocks=(2, 3), heads=heads, width=(16, 24), ratios=(1.0, 1.5), relation_heads=2, lr=1e-3
    )
    task: Any = world.task(family)
    if family == "vit":
        task.training_examples = lambda labels: task.splits["train"]
        task.collate = lambda bundle, items, seed: bundle.collate(items)
    elif family == "bert":
        task = texts()
    else:
        task = lf.tasks.CausalLM.from_examples({"train": [{"text": t} for t in world.TEXTS[:40]],
                                                "test": [{"text": t} for t in world.TEXTS[40:60]]})  # fmt: skip
    space = step.space(made)
    step.train(made, task, Run(tokens=40 if family == "vit" else 400, dtype="fp32"))
    assert size_of(made.model) == space.largest
    if family == "bert":
        assert made.origin.blocks == {"encoder": (0, 1, 2)}  # 3 of 4
    small = Size(2, (2,) * 2, (16,) * 2, 16)
    assert small in space
    shared = Shared(made, space.nesting)
    given = made.collate(world.task(family).splits["verify"][:3]).inputs
    extracted = made.copy()
    cut(extracted.model, small, space.nesting)
    with torch.no_grad():
        running = shared(small, **given)
        alone = extracted.module()(**given)
        assert torch.allclose(running[0] if not isinstance(running, dict) else next(iter(running.values())),
                              alone[0] if not isinstance(alone, dict) else next(iter(alone.values())), atol=1e-6)  # fmt: skip
    assert shared.parameters_of(small) == extracted.parameters
    extracted.model.config.save_pretrained(tmp_path)
    write_manifest(extracted, tmp_path)
    again = extracted.copy()
    again.model = build_from_manifest(tmp_path, type(extracted.model.config).from_pretrained(tmp_path))
    rows = world.task(family).splits["verify"][:3]
    with torch.no_grad():
        assert torch.equal(world.outputs(extracted, rows), world.outputs(again, rows))


def test_refusals_come_before_anything_is_changed() -> None:
    made = world.bundle()
    before = copy.deepcopy(made.model.state_dict())
    for step, task, error, text in (
        (OWN, None, UserError, "needs a task"),
        (dataclasses.replace(OWN, heads=(4, 5)), texts(), ModelError, "does not fit"),
        (dataclasses.replace(OWN, relation_heads=33), texts(), ModelError, "relation heads"),
        (dataclasses.replace(OWN, relation_heads=20), texts(), ModelError, "16 columns"),
        (dataclasses.replace(OWN, width=(15, 30), ratios=(0.5,)), texts(), UserError, "no whole number"),
    ):
        with pytest.raises(error, match=text):
            step.train(made, task, Run())
    with pytest.raises(ModelError, match="hidden size"):
        OWN.train(world.bundle("t5"), texts(), Run())
    assert all(torch.equal(before[k], v) for k, v in made.model.state_dict().items())
    for bad in ({"partition": "huge"}, {"networks": 1}, {"lr": 0.0}, {"relation_heads": 0}):
        with pytest.raises(UserError):
            AutoDistil(**bad)  # type: ignore[arg-type]
