"""Pre-training of TabDPT: what it is shown, that nothing leaks, and that it can be stopped."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from lightformers.errors import DataError, UserError
from lightformers.models.tabular.tabdpt import TabDPT, TabDPTConfig
from lightformers.train import tabdpt
from lightformers.train.synthetic_tables import Tables, synthetic
from lightformers.train.tabdpt import Settings, loss, pretrain
from lightformers.train.tabdpt_batches import Source, episodes, split, target_of

CONFIG = TabDPTConfig(8, 32, 48, 2, 2)


def source(rows: int = 60, columns: int = 5, seed: int = 0) -> Source:
    return Source.of(np.random.default_rng(seed).standard_normal((rows, columns)))


def test_drawn_tables_are_what_they_say() -> None:
    made = [synthetic(24, 40, 12, seed) for seed in range(6)]
    for tables in made:
        assert tables.x.shape == (24, 40, 12) and tables.y.shape == (24, 40)
        assert torch.isfinite(tables.y).all() and not tables.x.isinf().any()
        labels = tables.y[~tables.regression]
        assert (labels == labels.round()).all() and (labels >= 0).all() and (labels < 10).all()
        assert all(y.std() > 0 for y in tables.y[tables.regression])
    every = torch.cat([t.regression for t in made])
    assert 0.1 < every.float().mean() < 0.6
    widths = {int((t.x.nan_to_num(1).abs().sum(1) > 0).sum(-1)[i]) for t in made for i in range(0, 24, 8)}
    assert len(widths) > 4  # tables of many widths
    again = synthetic(24, 40, 12, 3)
    assert torch.equal(again.x.nan_to_num(7), made[3].x.nan_to_num(7)) and torch.equal(again.y, made[3].y)


def test_columns_of_drawn_tables_tell_the_target() -> None:
    """Rows of equal label lie nearer to each other than others: there is something to learn."""
    tables = synthetic(64, 100, 6, 5, regression=0.0)
    parts = split(tables, 60)
    nearest = torch.cdist(parts.x, parts.context_x).argmin(-1)
    right = (parts.context_y.gather(1, nearest) == parts.y).float().mean()
    shuffled = (parts.context_y.roll(1, 1).gather(1, nearest) == parts.y).float().mean()
    assert right > shuffled + 0.05


def test_the_target_is_never_among_the_columns() -> None:
    # Columns of distinct scales and few values: a leak would be an affine copy, correlation 1.
    rng = np.random.default_rng(0)
    tables = [Source.of(rng.standard_normal((300, 4)))]
    for seed in range(4):
        drawn = episodes(tables, 8, 150, 50, 4, seed, synthetic_share=0.0)
        for x, y in zip(drawn.context_x, drawn.context_y):
            seen = x[:, x.std(0) > 0]
            related = torch.corrcoef(torch.cat([seen, y[:, None]], 1).T)[-1, :-1]
            assert related.abs().max() < 0.9


def test_neighbours_are_retrieved() -> None:
    """Two far clouds: a sample of neighbours holds rows of one of them, a random one rows of both."""
    rng = np.random.default_rng(0)
    values = rng.standard_normal((200, 3)) + 100 * (np.arange(200) % 2)[:, None]
    values[:, 2] = rng.integers(0, 3, 200)  # the only column of few values
    values = np.column_stack([values, np.arange(200) % 2])

    def spread(retrieved: bool) -> float:
        made = episodes([Source.of(values)], 12, 60, 20, 4, 1, 0.0, retrieved)
        x = torch.cat([made.context_x, made.x], 1)
        # two clouds 100 deviations apart: all values near -1 and 1
        both = (x.abs() - 1).abs() < 0.1
        return float((both.float().mean(1) > 0.9).any(-1).float().mean())

    assert spread(True) == 0.0 and spread(False) > 0.7


def test_labels_of_queries_reach_nothing_but_the_loss() -> None:
    tables = synthetic(16, 30, 8, 0)
    other = tables.y.clone()
    other[:, 20:] = other[:, 20:].flip(1) + 1
    one, two = split(tables, 20), split(Tables(tables.x, other, tables.regression), 20)
    for name in ("context_x", "context_y", "x"):
        assert torch.equal(getattr(one, name), getattr(two, name))
    assert not torch.equal(one.y, two.y)


def test_targets_are_classes_or_numbers() -> None:
    rng = np.random.default_rng(0)
    few = np.repeat([3.0, 5.0, 8.0], 10).astype(np.float32)
    names, number = target_of(rng, few)
    assert not number and sorted(set(names)) == [0, 1, 2]
    assert len({(a, b) for a, b in zip(few, names)}) == 3  # a value has one number
    kinds = [target_of(rng, rng.standard_normal(50).astype(np.float32)) for _ in range(60)]
    assert 0.2 < np.mean([number for _, number in kinds]) < 0.8
    assert {len(set(y)) for y, number in kinds if not number} <= set(range(2, 10))


def test_loss_is_cross_entropy_and_square() -> None:
    parts = split(synthetic(64, 30, 8, 5, regression=0.5), 20)
    assert parts.regression.any() and not parts.regression.all()
    outputs = torch.randn(64, 10, 11)
    wanted = []
    for out, y, number in zip(outputs, parts.y, parts.regression):
        for o, target in zip(out, y):
            chance = o[:10].log_softmax(0)
            smooth = 0.9 * chance[int(target)] + 0.1 * chance.mean() if not number else None
            wanted.append((o[10] - target) ** 2 if number else -smooth)
    torch.testing.assert_close(loss(outputs, parts, 0.1), torch.stack(wanted).mean())


def test_every_parameter_is_trained() -> None:
    model = TabDPT(CONFIG)
    drawn = episodes([source()], 16, 30, 10, 8, 0, 0.5)
    loss(model.answers(drawn.context_x, drawn.context_y, drawn.x), drawn).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_it_learns_and_goes_on_where_it_stopped(tmp_path: Path, precision: str) -> None:
    def settings(steps: int) -> Settings:
        return Settings(
            rows=320,
            context=(16, 24),
            queries=16,
            warmup=2,
            steps=steps,
            synthetic=0.7,
            precision=precision,  # type: ignore[arg-type]
        )

    whole = pretrain([source()], settings(4), CONFIG)
    pretrain([source()], settings(2), CONFIG, tmp_path / "state")
    seen: list[tabdpt.Progress] = []
    rest = pretrain([source()], settings(4), CONFIG, tmp_path / "state", seen.append)
    for a, b in zip(whole.state_dict().values(), rest.state_dict().values()):
        torch.testing.assert_close(a, b)
    assert seen[-1].step == 4 and all(p.dtype == torch.float32 for p in rest.parameters())


def test_loss_falls() -> None:
    held_out = split(synthetic(32, 48, 8, 77), 32)

    def mark(model: TabDPT) -> float:
        with torch.no_grad():
            return float(loss(model.answers(held_out.context_x, held_out.context_y, held_out.x), held_out))

    made = [
        pretrain([], Settings(rows=512, context=(16, 32), queries=16, warmup=5, lr=5e-3, steps=n), CONFIG)
        for n in (1, 40)
    ]
    assert mark(made[1]) < mark(made[0]) - 0.2


def test_weights_are_halved_and_read_again(tmp_path: Path) -> None:
    model = TabDPT(CONFIG)
    file = tabdpt.save_weights(model, tmp_path / "small.safetensors", {"minutes": 1})
    again = tabdpt.pretrained(file, softmax_temperature=0.3)
    assert again.config.softmax_temperature == 0.3 and again.config.hidden_size == 32
    for a, b in zip(model.state_dict().values(), again.state_dict().values()):
        torch.testing.assert_close(a.half().float(), b)
    with pytest.raises(UserError, match="no weights of TabDPT"):
        tabdpt.pretrained(tmp_path / "other.safetensors")


def test_what_cannot_be_learnt_from_is_refused() -> None:
    with pytest.raises(UserError, match="needs an end"):
        pretrain([], Settings(), CONFIG)
    with pytest.raises(UserError, match="synthetic share is 1"):
        pretrain([], Settings(steps=1, synthetic=0.5), CONFIG)
    with pytest.raises(DataError, match="16 rows and 2 columns"):
        Source.of(np.zeros((3, 4)))
    with pytest.raises(DataError, match="without any value"):
        Source.of(np.full((20, 2), math.nan))
    with pytest.raises(DataError, match="take a smaller context"):
        episodes([source()], 4, 100, 50, 8, 0, 0.0)
    with pytest.raises(UserError, match="synthetic tables"):
        synthetic(4, 1, 3, 0)
