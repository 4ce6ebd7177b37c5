"""Attention cores as mixers (long_range_arena): the contract of mixers, rows of the table, seeds by layer."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lightformers.errors import UserError
from lightformers.parts.attention.table import CORES
from lightformers.parts.mixers.efficient import EfficientAttention
from lightformers.parts.mixers.table import MIXERS, make
from mixer_contract import check_masked

SMALL: dict[str, dict[str, Any]] = {
    "softmax": {},
    "local": {"block": 4},
    "sparse": {"block": 4, "columns": 2},
    "longformer": {"window": 4, "tokens": 1},
    "longformer alone": {"window": 4},
    "linformer": {"length": 24, "rank": 5},
    "reformer": {"buckets": 4, "chunk": 4},
    "sinkhorn": {"block": 4, "length": 24},
    "synthesizer": {"length": 24, "rank": 3},
    "synthesizer random": {"length": 24, "form": "random"},
    "synthesizer dense": {"length": 24, "form": "dense"},
    "synthesizer mixed": {"length": 24, "form": "random+dot"},
    "bigbird": {"block": 2, "random": 1, "length": 24},
    "linear": {},
    "performer": {"features": 16},
    "performer relu": {"kernel": "relu"},
}


@pytest.mark.parametrize("name", SMALL)
def test_contract(name: str) -> None:
    torch.manual_seed(0)
    mixer = make(MIXERS, name.split()[0], 12, heads=3, **SMALL[name])
    check_masked(mixer, 12)
    x, junk = torch.randn(2, 2, 12, 12, dtype=torch.float64)
    ones = torch.ones(2, 12)
    left = mixer(torch.cat([5 * junk, x], 1), torch.cat([0 * ones, ones], 1))[:, 12:]
    torch.testing.assert_close(left, mixer(x), atol=1e-9, rtol=1e-9)


def test_projections_are_those_that_are_read() -> None:
    def count(core: str, **options: Any) -> int:
        part = EfficientAttention(8, 2, core, **options)
        return sum(p.numel() for p in part.parameters())

    assert count("softmax") == count("local") == count("performer") == count("linear") == 4 * 64
    assert count("reformer") == 3 * 64
    assert count("longformer", tokens=1) == 7 * 64
    assert count("longformer", tokens=1, separate=False) == count("longformer") == 4 * 64
    assert count("linformer", length=16, rank=4) == 4 * 64 + 2 * 64
    assert count("synthesizer", form="random", length=16) == 2 * 64 + 2 * 256
    assert count("softmax", bias=True) == 4 * 72


def test_layers_draw_apart() -> None:
    first, second, again = (
        make(MIXERS, "performer", 8, layer=i, layers=2, heads=2).core.directions for i in (0, 1, 0)
    )
    assert torch.equal(first, again) and not torch.equal(first, second)


@pytest.mark.parametrize("core", CORES)
def test_every_core_is_a_mixer_of_the_table(core: str) -> None:
    assert make(MIXERS, core, 8, heads=2)(torch.randn(1, 5, 8)).shape == (1, 5, 8)
    with pytest.raises(UserError, match="heads"):  # the message names what it takes
        make(MIXERS, core, 8, nothing=3)
    with pytest.raises(UserError, match="divide"):
        make(MIXERS, core, 8, heads=3)


def test_causal_ones_are_refused() -> None:
    with pytest.raises(UserError, match="both ways"):
        EfficientAttention(8, 2, "local", causal=True)
    with pytest.raises(UserError, match="causal"):
        make(MIXERS, "local", 8, causal=True)
