"""The experiment of teaching-arithmetic: its parts, and a tiny budget."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from lightformers import reproduce
from lightformers.reproduce import Finding, plots, small
from lightformers.reproduce import teaching_arithmetic as study
from lightformers.tasks import arithmetic
from lightformers.tasks.arithmetic import Style


class Adder(nn.Module):
    """Writes what follows by the rules; keeps the text as its state."""

    def __init__(self, style: Style, error: int = 0) -> None:
        super().__init__()
        self.style, self.error = style, error

    def forward(self, input_ids: torch.Tensor, past_key_values: Any = None, use_cache: bool = True) -> Any:
        texts = [arithmetic.decode(row, self.style) for row in input_ids.tolist()]
        if past_key_values is not None:
            texts = [a + b for a, b in zip(past_key_values, texts)]
        signs = arithmetic.SYMBOLS[self.style]
        logits = torch.zeros(len(texts), input_ids.shape[1], len(signs))
        for i, text in enumerate(texts):
            question = text.removeprefix("$").removeprefix("Input:\n").split("=")[0].split("\n")[0]
            a, b = map(int, question.split("+"))
            done = len(text) - len(arithmetic.prompt(a, b, self.style))
            whole = arithmetic.completion(a + self.error, b, self.style) + "\n" * 300
            logits[i, -1, signs.index(whole[done])] = 1
        return SimpleNamespace(logits=logits, past_key_values=texts)


@pytest.mark.parametrize("style", arithmetic.STYLES)
def test_greedy_decoding_reads_what_is_written(style: Style) -> None:
    """Prompts of different lengths, sums with a digit more, and text after the end."""
    pairs = [(1, 2), (99, 99), (5, 50), (60, 7), (0, 0)]
    assert study.sums(Adder(style), pairs, style) == [3, 198, 55, 67, 0]
    assert (
        study.right(Adder(style), pairs, style) == 1.0 and study.right(Adder(style, 1), pairs, style) == 0.0
    )
    assert study.sums(Adder(style), pairs, style, most=1) == [None] * 5


def test_decoding_with_states_equals_one_pass() -> None:
    """Groups of equal length see the positions that training saw."""
    model = study._model("plain", 3)
    pairs = arithmetic.uniform(0, 30, 2)
    found = study.sums(model, pairs, "plain", most=3)
    for (a, b), said in zip(pairs, found):
        tokens = arithmetic.encode(arithmetic.prompt(a, b, "plain"), "plain")
        start = len(tokens)
        with torch.no_grad():
            for _ in range(3):
                tokens.append(int(model(input_ids=torch.tensor([tokens])).logits[0, -1].argmax()))
        assert arithmetic.answer(arithmetic.decode(tokens[start:], "plain"), "plain") == said


def test_batches_hold_whole_samples_and_are_drawn_by_seed() -> None:
    samples = study.Samples.of([(1, 2), (33, 44)], "reverse", seed=5, rows=16)
    batch = samples.batch(3)
    for tokens, wanted in zip(batch.inputs["input_ids"].tolist(), batch.targets["wanted"].tolist()):
        text = arithmetic.decode([t for t in wanted if t >= 0], "reverse")
        assert text in ("$1+2=3$\n", "$33+44=77$\n")
        assert tokens == [max(t, 0) for t in wanted]
    assert torch.equal(batch.inputs["input_ids"], samples.batch(3).inputs["input_ids"])
    assert not torch.equal(batch.inputs["input_ids"], samples.batch(4).inputs["input_ids"])


def test_padding_carries_no_loss() -> None:
    model = study._model("plain", 0)
    short = study.Samples.of([(1, 2)], "plain", 0, rows=1).batch(0)
    padded = study.Samples(torch.nn.functional.pad(short.targets["wanted"], (0, 4), value=-100), 0, 1).batch(
        0
    )
    assert study.objective(model, short).item() == pytest.approx(
        study.objective(model, padded).item(), rel=1e-5
    )


def test_the_table_is_completed_from_many_pairs_only() -> None:
    held = arithmetic.hold_out(0, 200, 2)
    few, many = (arithmetic.balanced(1, n, 2, held) for n in (120, 4000))
    assert study.table_completed(few, held, 2) < 0.3 < 0.95 < study.table_completed(many, held, 2)


def test_fitted_sizes_are_the_nearest() -> None:
    def make(hidden: int) -> nn.Module:
        return small.decoder(20, {"kind": "attention", "heads": 2}, 0, 2, 32, hidden)

    wanted = small.count(make(72)) + 100
    assert small.fitted(wanted, make) == 72
    assert small.fitted(1, make) == 8
    lstm = small.decoder(20, {"kind": "lstm"}, 0, 2, 32)
    x = torch.arange(6)[None]
    one, two = lstm(input_ids=x).logits, lstm(input_ids=x).logits
    assert one.shape == (1, 6, 20) and torch.equal(one, two)  # no state is carried from call to call


def test_experiment_on_a_tiny_budget(tmp_path: Path) -> None:
    made = reproduce.run("teaching-arithmetic", budget_seconds=2)
    made.write(tmp_path)
    assert Finding.read("teaching-arithmetic", tmp_path).slug == "teaching-arithmetic"
    assert len(made.seeds) == 2 and "instead of 300" in made.limits and made.verdict == "inconclusive"
    arms = [row["arm"] for row in made.table]
    for size in study.SIZES[:2]:
        assert {f"plain, {size} pairs", f"reverse, {size} pairs", f"rank 2, {size} pairs"} <= set(arms)
    drawn = plots.drawable(made.plots)
    assert len(drawn) == 1 and np.isfinite(len(plots.page(drawn)))
