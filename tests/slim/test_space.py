"""The space of cuts and the model of their cost."""

from __future__ import annotations

import numpy as np
import pytest
from transformers import BertConfig, BertModel

from lightformers.bundle import Bundle, Pooling
from lightformers.errors import UserError
from lightformers.slim import space
from lightformers.slim.settings import Settings
from lightformers.slim.space import CostModel, Cut


def bert() -> Bundle:
    config = BertConfig(
        hidden_size=32, num_hidden_layers=6, num_attention_heads=4, intermediate_size=64, vocab_size=50
    )
    return Bundle(BertModel(config), task="embedding", pooling=Pooling())


def test_what_the_family_does_not_reload_is_closed_with_a_reason():
    found = space.draw(bert(), Settings())
    assert found.heads == (1.0,) and found.rank == (1.0,)
    assert found.blocks == (6, 5, 4, 3, 2)
    assert any(reason.startswith("PruneHeads") for reason in found.closed)
    assert space.draw(bert(), Settings(allow_custom=True)).heads == space.HEADS


def test_an_embedding_keeps_its_size():
    found = space.draw(bert(), Settings(allow_custom=True))
    assert found.width == (1.0,)


def test_the_user_chooses_steps():
    assert space.draw(bert(), Settings(exclude=("drop-blocks",))).blocks == (6,)
    only = space.draw(bert(), Settings(only=("PruneChannels",)))
    assert only.blocks == (6,) and len(only.channels) > 1


def test_cost_model_finds_back_a_planted_law():
    def law(cut: Cut) -> float:
        return float(np.array([0.1, 0.02, 0.05, 0.11]) @ cut.work())

    found = space.draw(bert(), Settings(allow_custom=True))
    cuts = space.grid(found)
    model = CostModel.fit(cuts, [law(c) for c in cuts])
    for cut in found:
        assert model.seconds(cut.work()) == pytest.approx(law(cut), rel=0.25)
    assert model.seconds(Cut(6).work()) == pytest.approx(law(Cut(6)), rel=1e-6)


def test_cost_is_never_negative_under_noise():
    cuts = [Cut(6), Cut(4), Cut(6, channels=0.25)]
    model = CostModel.fit(cuts, [1.0, 1.1, 1.2])  # nonsense: less work takes longer
    assert min(model.weights) >= 0 and model.seconds(Cut(2).work()) >= 0


@pytest.mark.parametrize(
    "wrong",
    [
        {"floor": 0},
        {"floor": 1.2},
        {"goal": "speed"},
        {"confidence": 1.0},
        {"budget": 5},
        {"batch": 0},
        {"lengths": (5, 2)},
        {"max_drop": -1},
    ],
)
def test_wrong_settings_say_which_option(wrong):
    with pytest.raises(UserError, match="--"):
        Settings(**wrong)
