"""The experiment of icl-discrete-functions: its parts, and a tiny budget."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from lightformers import reproduce
from lightformers.reproduce import Finding, plots, small
from lightformers.reproduce import icl_discrete_functions as study
from lightformers.tasks import boolean_functions as boolean


class Neighbour(nn.Module):
    """The learner by the nearest point as a module over interleaved rows."""

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        x, y = rows[:, 0::2].numpy().astype(int), rows[:, 1::2, 0].numpy().astype(int)
        made = boolean.Prompts(x, y, np.zeros(len(x), int))
        return torch.from_numpy(boolean.neighbour(made)).float()


def test_scores_are_read_before_the_label_comes() -> None:
    """A change of an example's label changes later scores only."""
    for mixer in study.MIXERS:
        model = study.reader(mixer, 0).eval()
        made = study.drawn(study.CLASSES["conjunction"], (0,), 3)
        rows = torch.from_numpy(boolean.interleaved(made))
        other = rows.clone()
        other[:, 2 * 7 + 1, 0] *= -1
        with torch.no_grad():
            one, two = model(rows), model(other)
        assert one.shape == (3, study.POINTS)
        assert torch.allclose(one[:, :8], two[:, :8], atol=1e-5) and not torch.allclose(one[:, 8:], two[:, 8:], atol=1e-5)  # fmt: skip


def test_a_module_that_knows_is_right_where_it_can_be() -> None:
    made = study.drawn(study.CLASSES["nearest"], (5,), 60)
    shares = study.right(Neighbour(), made)
    first = study.CLASSES["nearest"].first
    assert shares[first:] == [1.0] * (study.POINTS - first) and max(shares[:first]) < 0.9
    assert study.late(shares) == 1.0


def test_labels_that_cannot_be_known_have_no_loss() -> None:
    nearest = study.Fresh(study.CLASSES["nearest"], 0, 8).batch(0)
    first = study.CLASSES["nearest"].first

    class Fixed(nn.Module):
        def __init__(self, early: float) -> None:
            super().__init__()
            self.early = early

        def forward(self, rows: torch.Tensor) -> torch.Tensor:
            out = torch.zeros(len(rows), study.POINTS)
            out[:, :first] = self.early
            return out

    losses = [study.objective(Fixed(early), nearest).item() for early in (-50.0, 50.0)]
    assert losses == pytest.approx([np.log(2)] * 2)


def test_a_lesson_is_looked_at_right_behind_it() -> None:
    right = np.zeros((2, 8))
    right[0, 2:5], right[1, 4:7] = 1, 1
    assert study.at_once(right, np.array([2, 4])) == 1.0
    assert study.at_once(right, np.array([3, 4])) == pytest.approx(5 / 6)
    made = study.drawn(study.CLASSES["conjunction, taught"], (0,), 40)
    assert made.taught.min() >= 2 and made.taught.max() + 3 <= study.POINTS


def test_readers_have_equal_parameters() -> None:
    counts = {mixer: small.count(study.reader(mixer, 0)) for mixer in study.MIXERS}
    assert max(counts.values()) / min(counts.values()) < 1.12, counts


def test_prompts_of_training_are_not_those_of_the_test() -> None:
    functions = study.CLASSES["conjunction"]
    held = {row.tobytes() for row in boolean.interleaved(study.drawn(functions, (2, 0), 200))}
    for position in range(4):
        rows = study.Fresh(functions, 0).batch(position).inputs["rows"]
        assert not held & {row.numpy().tobytes() for row in rows}
        assert torch.equal(rows, study.Fresh(functions, 0).batch(position).inputs["rows"])


def test_experiment_on_a_tiny_budget(tmp_path: Path) -> None:
    made = reproduce.run("icl-discrete-functions", budget_seconds=2)
    made.write(tmp_path)
    assert Finding.read("icl-discrete-functions", tmp_path).verdict == "inconclusive"
    arms = {row["arm"] for row in made.table}
    assert {
        "conjunction: attention",
        "conjunction: elimination",
        "nearest: lstm",
        "sparse-parity: gaussian",
    } <= arms
    assert "instead of 300" in made.limits and len(made.seeds) == 2
    drawn = plots.drawable(made.plots)
    assert len(drawn) == 3 and plots.page(drawn).startswith("<svg")
