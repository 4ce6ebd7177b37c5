"""Patterns of hybrids: the paper's own, even spreading, and what is refused."""

from __future__ import annotations

import pytest

from lightformers.errors import UserError
from lightformers.models.language import patterns

PAPER = "M-M-M--M-M*-M-M-M-M--M*-M-M-M-M-M*--M-M-M-M-M*-M--M-M-M-"


def test_the_papers_hybrid() -> None:
    assert patterns.allocate(56, 0.08, 0.5) == PAPER
    assert [PAPER.count(s) for s in "M*-"] == [24, 4, 28]


def test_counts_are_as_asked_and_attention_is_spread() -> None:
    for n in range(1, 60):
        for attention in (0.0, 0.08, 0.25, 0.5, 1.0):
            for mlp in (0.0, 0.3, 0.5):
                if attention + mlp > 1:
                    continue
                found = patterns.allocate(n, attention, mlp)
                attending = round(n * attention)
                assert len(found) == n and found.count("*") == attending
                assert found.count("-") == min(round(n * mlp), n - attending)
                if 0 < attending < n / 2:
                    assert found[0] != "*" and found[-1] != "*"
    assert patterns.allocate(8, 0, 0) == "M" * 8 and patterns.allocate(3, 1, 0) == "***"
    gaps = [len(run) for run in patterns.allocate(50, 0.1, 0).split("*")]
    assert max(gaps) - min(gaps) <= 1


def test_layers_have_one_sublayer() -> None:
    mixer, attention, mlp = (
        {"kind": "mamba2", "state": 8},
        {"kind": "attention"},
        {"kind": "mlp", "width": 16},
    )
    made = patterns.layers("M*-", mixer, attention, mlp)
    assert made == [{"mixer": mixer}, {"mixer": attention}, {"ffn": mlp}]
    assert made[0]["mixer"] is not mixer  # a copy: configurations are written to


def test_what_is_no_pattern_is_refused() -> None:
    for wrong in ("MX-", ""):
        with pytest.raises(UserError):
            patterns.check(wrong)
    with pytest.raises(UserError, match="3 layers for a model of 4"):
        patterns.check("M*-", 4)
    for shares in ((0.6, 0.5), (-0.1, 0.5), (1.1, 0.0)):
        with pytest.raises(UserError, match="shares"):
            patterns.allocate(10, *shares)
