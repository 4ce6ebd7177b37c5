"""Memory that torch's allocator held."""

from __future__ import annotations

import torch
from torch import nn

from lightformers.measure.allocation import allocated


def test_what_is_held_at_once_counts() -> None:
    def one_after_the_other() -> None:
        for _ in range(3):
            torch.empty(1_000_000)

    def together() -> None:
        kept = [torch.empty(1_000_000) for _ in range(3)]
        kept.clear()

    assert 4_000_000 <= allocated(one_after_the_other) < 4_100_000
    assert 12_000_000 <= allocated(together) < 12_100_000


def test_what_was_there_before_is_neither_counted_nor_taken_off() -> None:
    held = [torch.empty(1_000_000)]

    def replace() -> None:
        held.clear()
        held.append(torch.empty(500_000))

    assert 2_000_000 <= allocated(replace) < 2_100_000


def test_what_is_kept_for_the_backward_pass_counts() -> None:
    layers = nn.Sequential(*(nn.Sequential(nn.Linear(64, 64, bias=False), nn.Sigmoid()) for _ in range(10)))
    x = torch.randn(1000, 64)

    def learn() -> None:
        layers(x).sum().backward()
        layers.zero_grad()

    def infer() -> None:
        with torch.no_grad():
            layers(x)

    one = 1000 * 64 * 4
    assert 10 * one <= allocated(learn) < 14 * one
    assert allocated(infer) <= 3 * one
    assert allocated(learn) == allocated(learn)
