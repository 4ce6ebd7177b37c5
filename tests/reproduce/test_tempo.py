"""The experiment of tempo on a tiny budget, and that its arms train as many parameters."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from data_sets import needs

from lightformers import reproduce
from lightformers.models.forecasting.tempo import Tempo
from lightformers.reproduce import Finding, tempo, tempo_arms
from lightformers.train import stl


class Spelled:
    """A tokenizer of a few tokens."""

    def __call__(self, text: str, add_special_tokens: bool = False) -> dict[str, list[int]]:
        return {"input_ids": [len(word) for word in text.split()]}


def test_experiment_on_a_tiny_budget(tmp_path: Path) -> None:
    needs("wikitext2_small", "etth1", "ettm1_part", "exchange_rate")
    made = reproduce.run("tempo", budget_seconds=2)
    made.write(tmp_path)  # refuses NaN
    assert Finding.read("tempo", tmp_path).slug == "tempo"
    assert len(made.seeds) == 2 and "instead of 300" in made.limits
    rows = {row["arm"]: row for row in made.table}
    assert rows.keys() == {*tempo_arms.ARMS, "yesterday's values"} - {tempo_arms.NONE}
    assert made.verdict == "inconclusive" and "Nothing follows" in made.summary  # two steps teach nothing
    day = rows["yesterday's values"]["MSE"]["values"]
    assert day[0] == day[1] > 0.2 and rows[tempo_arms.LINEAR]["MSE"]["mean"] != day[0]


def test_arms_train_as_many_parameters() -> None:
    read = tempo_arms.decoder(0)
    made = {arm: tempo_arms.make(arm, read, Spelled(), 0) for arm in tempo_arms.ARMS}
    count = {arm: tempo_arms.trained(model) for arm, model in made.items()}
    for arm in (tempo_arms.WHOLE, tempo_arms.BARE, tempo_arms.RANDOM):
        assert abs(count[arm] / count[tempo_arms.FULL] - 1) < 0.01
    full, random = made[tempo_arms.FULL], made[tempo_arms.RANDOM]
    assert isinstance(full, Tempo) and isinstance(random, Tempo)
    assert torch.equal(full.language_model.embedding.weight, read.embedding.weight)
    assert not torch.equal(random.language_model.embedding.weight, read.embedding.weight)
    assert torch.equal(full.leave[0].weight, random.leave[0].weight)
    assert len(made[tempo_arms.NONE].language_model.layers) == 0
    copies = made[tempo_arms.WHOLE].decomposition(torch.randn(2, tempo_arms.LENGTH))
    assert torch.equal(copies[:, 0], copies[:, 2])


def test_windows_come_from_all_sources_with_their_components() -> None:
    sources = []
    for at in range(3):
        rows = (at + np.random.default_rng(at).standard_normal((400, 2))).astype(np.float32)
        sources.append(tempo.Source(10 * at + rows, stl.Components.of(10 * at + rows, 24)))
    mixed = tempo.Mixed(sources, 0)
    batch = mixed.batch(5)
    past, parts = batch.inputs["past_values"], batch.targets["components"]
    assert past.shape == (32, 192, 1) and parts.shape == (32, 192, 1, 3)
    assert batch.targets["future_values"].shape == (32, 48, 1)
    torch.testing.assert_close(parts.sum(3), past, atol=1e-4, rtol=1e-4)
    number = torch.bincount((past.mean((1, 2)) / 11).round().long(), minlength=3)
    assert number.min() >= 10
    torch.testing.assert_close(mixed.batch(5).inputs["past_values"], past)
