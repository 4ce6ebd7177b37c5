"""Models by name: every row has the parameters that its paper counts."""

from __future__ import annotations

import pytest
import torch

import lightformers as lf
from lightformers.errors import UserError
from lightformers.models.presets import PRESETS


@pytest.mark.parametrize("name", PRESETS)
def test_parameters_are_the_published_ones(name: str) -> None:
    with torch.device("meta"):
        model = lf.create_model(name)
    assert sum(p.numel() for p in model.parameters()) == PRESETS[name].parameters


def test_fields_can_be_overridden() -> None:
    layer = {"mixer": {"kind": "attention", "heads": 2}}
    model = lf.create_model("transformer-llama-135m", vocab_size=65, hidden_size=32, layers=[layer] * 3)
    assert model.config.vocab_size == 65 and len(model.layers) == 3
    assert model(input_ids=torch.arange(9)[None]).logits.shape == (1, 9, 65)
    assert set(lf.list_models()) == set(PRESETS) and all(
        n.startswith("transf") for n in lf.list_models("transf")
    )


def test_unknown_names_and_fields_are_refused() -> None:
    with pytest.raises(UserError, match="near it: transformer-gpt2-124m"):
        lf.create_model("transformer-gpt2")
    with pytest.raises(UserError, match="there are"):
        lf.create_model("bert")
    with pytest.raises(UserError, match="no field vocabulary; it has"):
        lf.create_model("transformer-gpt2-124m", vocabulary=65)
