"""The experiment of deltanet on a tiny budget."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from data_sets import needs

from lightformers import reproduce
from lightformers.reproduce import Finding, deltanet, recall


def test_the_experiment_ends_in_a_finding(tmp_path: Path) -> None:
    needs("tinyshakespeare")
    made = reproduce.run("deltanet", budget_seconds=2)
    made.write(tmp_path)
    assert Finding.read("deltanet", tmp_path).slug == "deltanet" and len(made.seeds) == 2
    rows = {row["arm"]: row for row in made.table}
    assert len(rows) == 4
    for row in rows.values():
        for pairs in (2, 4, 8):
            assert 0 <= row[deltanet.at_pairs(pairs)]["mean"] <= 1
    equal = [rows[a]["bytes of state after 64 tokens"] for a in ("DeltaNet", "additive linear attention")]
    assert equal[0] == equal[1] < rows["transformer"]["bytes of state after 64 tokens"]
    sizes = list(made.settings["parameters"].values())
    assert max(sizes) < 1.02 * min(sizes)
    assert made.settings["seconds by length"]["512"]["times as fast"] > 1


def test_mixed_draws_are_of_several_sizes() -> None:
    tokens, targets = deltanet.mixed(np.random.default_rng(0), 4)
    assert tokens.shape == targets.shape == (4, 32)
    asked = {int((deltanet.mixed(seed, 1)[1] >= 0).sum()) for seed in range(20)}
    assert asked == {2, 4, 8}
    assert int((deltanet.mixed(0, 1, pairs=8)[1] >= 0).sum()) == 8
    memory = (
        recall.decoder(deltanet.arms(20)["Mamba"], 20, 32)
        .layers[0]
        .mixer.begin(1, "cpu", deltanet.torch.float32)
    )
    assert 32 * 32 // 4 in [held.numel() for held in memory.values()]  # the state of the other arms
