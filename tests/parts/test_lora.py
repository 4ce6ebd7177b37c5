"""Low-rank updates beside frozen layers."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from lightformers.errors import UserError
from lightformers.parts.lora import LoraLinear, adapt, merge


@pytest.mark.parametrize("base", [nn.Linear(6, 9), nn.Linear(6, 9, bias=False), Conv1D(9, 6)])
def test_equal_at_first_then_the_literal_equation_then_merged(base: nn.Module) -> None:
    x = torch.randn(4, 5, 6)
    before = base(x)
    layer = LoraLinear(base, 2, alpha=8.0)
    assert torch.equal(layer(x), before)
    with torch.no_grad():
        layer.second.normal_()
    expected = before + 8.0 / 2 * (x @ layer.first.T @ layer.second.T)
    torch.testing.assert_close(layer(x), expected)
    layer(x).sum().backward()
    assert [n for n, p in layer.named_parameters() if p.grad is not None] == ["first", "second"]
    merged = layer.merged()
    assert merged is base
    torch.testing.assert_close(merged(x), expected)


def test_named_layers_are_adapted_and_merged_back() -> None:
    torch.manual_seed(0)
    model = nn.ModuleDict({"a": nn.ModuleDict({"query": nn.Linear(4, 4), "key": nn.Linear(4, 2)}), "out": nn.Linear(4, 4)})  # fmt: skip
    names = set(model.state_dict())
    assert adapt(model, ("query", "key"), 2) == ["a.query", "a.key"]
    assert isinstance(model["a"]["key"], LoraLinear) and isinstance(model["out"], nn.Linear)
    assert merge(model) == 2 and set(model.state_dict()) == names and merge(model) == 0


def test_dropout_is_of_the_update_alone_and_only_in_training() -> None:
    layer = LoraLinear(nn.Linear(8, 8), 2, dropout=0.9)
    x = torch.randn(3, 8)
    assert torch.equal(layer(x), layer.base(x))
    with torch.no_grad():
        layer.second.normal_()
    assert not torch.equal(layer.train()(x), layer(x)) and torch.equal(layer.eval()(x), layer(x))


def test_refusals_change_nothing() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    with pytest.raises(UserError, match="no linear layer named query"):
        adapt(model, ("query",), 2)
    with pytest.raises(UserError, match="rank 5"):
        adapt(model, ("0",), 5)
    assert isinstance(model[0], nn.Linear)
    with pytest.raises(UserError, match="not a ReLU"):
        LoraLinear(nn.ReLU(), 1)
