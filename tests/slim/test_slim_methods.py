"""Named methods in the search: who takes part, what is refused, and how candidates of theirs are made."""

from __future__ import annotations

import pytest
import torch
from transformers import BartConfig, BartForSequenceClassification, BertConfig, BertModel

from lightformers import anatomy, compress
from lightformers.bundle import Bundle, Pooling
from lightformers.errors import UserError
from lightformers.slim import candidates, methods, plan, space
from lightformers.slim.settings import Settings
from lightformers.slim.space import Cut
from lightformers.steps import Deploy


@pytest.fixture(scope="module")
def bert() -> Bundle:
    config = BertConfig(
        hidden_size=32, num_hidden_layers=4, num_attention_heads=4, intermediate_size=64, vocab_size=50
    )
    return Bundle(BertModel(config, add_pooling_layer=False), task="embedding", pooling=Pooling())


def drawn(bundle: Bundle, runtime: str = "openvino", brief: bool = False, **settings) -> methods.Menu:
    return methods.draw(bundle, None, Settings(**settings), runtime, brief)


def test_unnamed_methods_take_part_where_they_can_pay(bert: Bundle) -> None:
    assert {name for name, _ in drawn(bert).points} == {"minitron"}  # faster, native, no training
    assert not drawn(bert, brief=True).points and not drawn(bert).finishes
    custom = drawn(bert, allow_custom=True)
    assert {"minitron", "greenformers"} <= {name for name, _ in custom.points} and not custom.finishes
    small = drawn(bert, allow_custom=True, goal="size")
    assert "obert" in {name for name, _ in small.points} and {"llm-int8", "llm-fp4", "bct"} <= set(
        small.finishes
    )
    assert "llm-int8" in drawn(bert, runtime="torch", allow_custom=True).finishes
    assert not {name for name, _ in small.points} & set(methods.ELSEWHERE)


def test_named_methods_take_part_even_if_they_train(bert: Bundle) -> None:
    menu = drawn(bert, only=("minitron", "minilm", "llm-int8", "VTrans"), allow_custom=True, brief=True)
    assert {name for name, _ in menu.points} == {"minitron", "vtrans"}
    assert menu.finishes == ("llm-int8",) and menu.relations
    assert space.draw(bert, Settings(only=("minitron",))).blocks == (4,)  # the grid is not asked for
    assert "minitron" not in {n for n, _ in drawn(bert, exclude=("minitron",)).points}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"only": ("pruning",)}, "known are"),
        ({"exclude": ("int4",)}, "--exclude names int4"),
        ({"only": ("llm-int8",)}, "--allow-custom"),
        ({"only": ("pre-crmsnorm",), "allow_custom": True}, "refuses"),
    ],
)
def test_names_that_cannot_be_served(bert: Bundle, settings: dict, said: str) -> None:
    with pytest.raises(UserError, match=said):
        drawn(bert, **settings)


def test_steps_of_a_cut_in_order(bert: Bundle) -> None:
    steps = candidates.steps_of(Cut(2, channels=0.5), bert, (3, 1, 0, 2))
    assert steps[0].blocks == (0, 2) and steps[1].keep == 0.5
    sparse, packing = candidates.split(
        candidates.steps_of(Cut(4, method="obert", ratio=0.5), bert, (3, 1, 0, 2))
    )
    assert [type(s).__name__ for s in (*sparse, *packing)] == ["OptimalBertSurgeon", "PackSparse"]


def test_two_stacks_are_shortened_in_turn() -> None:
    config = BartConfig(
        d_model=32, encoder_layers=6, decoder_layers=3, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=64, decoder_ffn_dim=64, vocab_size=50, max_position_embeddings=32,
    )  # fmt: skip
    bart = Bundle(BartForSequenceClassification(config).eval(), task="text-classification")
    drawn_space = space.draw(bart, Settings())
    assert drawn_space.blocks == (9, 8, 7, 6, 5, 4, 3)
    order = tuple(candidates.in_turn(anatomy.of(bart.model), [[1, 4, 2, 0], [2, 0]]))
    assert order == (1, 4, 8, 2, 0, 6, 3, 5, 7)  # a decoder block goes with every two of the encoder
    for blocks, left in ((9, (6, 3)), (6, (4, 2)), (3, (2, 1))):
        small = bart.copy()
        for step in candidates.steps_of(Cut(blocks), bart, order):
            small = step.apply(small, None, None)
        assert (small.model.config.encoder_layers, small.model.config.decoder_layers) == left
        ids = torch.tensor([[0, 5, 7, 2]])
        assert torch.isfinite(small.model(input_ids=ids).logits).all()
    assert candidates.in_turn(anatomy.of(bart.model), []) == [5, 4, 8, 3, 2, 7, 0, 1, 6]


def test_trimming_stands_before_what_comes_after_it() -> None:
    steps = [compress.EssentialSparsity(0.5), compress.Recover(), compress.PackSparse()]
    placed = candidates.placed(steps, compress.TrimVocabulary())
    assert [type(s).__name__ for s in placed] == [
        "TrimVocabulary",
        "EssentialSparsity",
        "Recover",
        "PackSparse",
    ]
    cut = [compress.DropBlocks(keep=2), compress.Recover()]
    assert type(candidates.placed(cut, compress.TrimVocabulary())[-1]) is compress.TrimVocabulary


def test_packed_forms_run_in_torch() -> None:
    deploy = Deploy("openvino", "int8", "sorted", 64, 1024, 1, 2)
    assert (
        candidates.deployed(Cut(4), deploy)
        == deploy
        == candidates.deployed(Cut(4, method="minitron"), deploy)
    )
    packed = candidates.deployed(Cut(4, method="obert", ratio=0.5), deploy)
    assert (packed.runtime, packed.precision, packed.streams, packed.max_tokens) == ("torch", "fp32", 1, 1024)


def test_work_is_counted_on_the_model(bert: Bundle) -> None:
    small = bert.copy()
    steps = candidates.steps_of(Cut(2, channels=0.5), bert, (3, 1, 0, 2))
    for step in steps:
        small = step.apply(small, None, None) if type(step) is compress.DropBlocks else small
    assert space.work_of(small.model, bert.model) == pytest.approx(Cut(2).work())
    assert space.work_of(bert.model, bert.model) == pytest.approx(Cut(4).work())


def test_methods_that_train_take_turns() -> None:
    points = [{"cut": {"method": m, "ratio": r}} for m in ("vtrans", "pela") for r in methods.RATIOS]
    first = plan.blind(points, 2)
    assert [p["cut"] for p in first] == [{"method": "vtrans", "ratio": 0.5}, {"method": "pela", "ratio": 0.5}]
