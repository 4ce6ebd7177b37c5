"""The experiment of verbatim-memory: its parts, and a tiny budget."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from data_sets import needs
from torch import nn

from lightformers import reproduce
from lightformers.errors import UserError
from lightformers.reproduce import Finding, plots, small
from lightformers.reproduce import verbatim_memory as study
from lightformers.tasks import noun_lists


class Copier(nn.Module):
    """Expects what followed the last word when it came before, or else anything equally."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.vocabulary = vocabulary

    def forward(self, input_ids: torch.Tensor) -> Any:
        logits = torch.zeros(*input_ids.shape, self.vocabulary)
        for row, words in enumerate(input_ids.tolist()):
            for t, word in enumerate(words):
                # a comma says nothing, so the word before it is what is looked for
                last = words[t - 1 : t + 1]
                places = [s for s in range(1, t) if words[s - 1 : s + 1] == last and word]
                for s in places[-1:]:
                    logits[row, t, words[s + 1]] = 5.0
        return SimpleNamespace(logits=logits)


def world() -> study.Text:
    """Words that need no data."""
    words = [*noun_lists.NOUNS, ",", ".", *sorted({*noun_lists.PREFACE, *noun_lists.PROMPT} - {",", "."})]
    number = {w: i for i, w in enumerate(dict.fromkeys(words), 1)}
    rng = np.random.default_rng(0)
    return study.Text(
        rng.integers(1, len(number) + 1, 4000),
        tuple(["so", "it", "was", "and", "then", "it", "was", "not"] * 20),
        number,
    )


def test_a_model_that_copies_is_told_apart_from_one_that_does_not() -> None:
    """Planted: pairs of words are looked up, so repeat is low, another order is as bad as new nouns."""
    text = world()
    found = study.measure(Copier(text.vocabulary), text, 0, 10)
    for delay in study.DELAYS:
        assert found["repeat", delay] < 50 and found["control", delay] == pytest.approx(100, abs=1e-3)
        assert found["permute", delay] > 99
    flat = study.measure(Copier(text.vocabulary + 1).eval(), text, 1, 5)
    assert flat["repeat", 12] < 50


def test_surprisal_is_minus_log_p_of_each_word() -> None:
    text = world()
    model = study.arm("2 layers", text.vocabulary, 0)
    tokens = torch.randint(1, text.vocabulary, (3, 11))
    nats = study.surprisal(model, tokens, rows=2)
    with torch.no_grad():
        p = model(input_ids=tokens[2:]).logits[0].softmax(-1)
    assert nats[2, 0] == 0
    assert nats[2, 1:] == pytest.approx([-float(p[t, tokens[2, t + 1]].log()) for t in range(10)], rel=1e-4)


def test_texts_in_training_are_the_same_with_and_without_lists() -> None:
    text = world()
    seen = 0
    for position in range(6):
        plain, planted = (
            study.Windows(text, 3, lists).batch(position).inputs["input_ids"] for lists in (False, True)
        )
        assert torch.equal(planted, study.Windows(text, 3, True).batch(position).inputs["input_ids"])
        changed = (plain != planted).any(1)
        seen += int(changed.sum())
        stop = text.number["."]
        for row in planted[changed].tolist():
            ends = [i for i, w in enumerate(row) if w == stop and row[i - 2] == text.number[","]]
            assert any(row[a - 4 : a] == row[b - 4 : b] for a in ends for b in ends if a < b), (
                row
            )  # the list comes again
    assert 6 * 16 / study.PLANTED / 2 < seen < 6 * 16 / study.PLANTED * 2


def test_what_does_not_fit_is_refused() -> None:
    text = world()
    long = noun_lists.stimuli("repeat", 0, 2, 5, study.WINDOW, text.held)
    with pytest.raises(UserError, match="longer than the window"):
        text.tokens(long)
    poor = study.Text(text.train, text.held, {w: i for w, i in text.number.items() if w != "guns"})
    every = noun_lists.stimuli("repeat", 0, 40, 5, 12, text.held)
    with pytest.raises(UserError, match="not in the vocabulary"):
        poor.tokens(every)
    with pytest.raises(UserError, match="no queries"):
        study.shuffled(study.arm("lstm", 50, 0), 0)


def test_the_longest_delay_fits_into_the_window() -> None:
    text = world()
    made = noun_lists.stimuli("permute", 0, 3, study.LENGTH, study.DELAYS[-1], text.held)
    assert text.tokens(made).shape[1] <= study.WINDOW


def test_shuffling_keeps_the_weights_and_changes_what_they_match() -> None:
    model = study.arm("2 layers", 50, 0)
    x = torch.arange(20)[None]
    with torch.no_grad():
        before = model(input_ids=x).logits
    rows = [p.sort(0).values.clone() for n, p in model.named_parameters() if n.endswith("query.weight")]
    study.shuffled(model, 0)
    after = [p.sort(0).values for n, p in model.named_parameters() if n.endswith("query.weight")]
    assert len(rows) == 2 and all(torch.equal(a, b) for a, b in zip(rows, after))
    with torch.no_grad():
        assert not torch.allclose(before, model(input_ids=x).logits, atol=1e-6)


def test_arms_have_equal_parameters() -> None:
    counts = {name: small.count(study.arm(name, study.WORDS, 0)) for name in study.ARMS}
    assert max(counts.values()) / min(counts.values()) < 1.03, counts


def test_experiment_on_a_tiny_budget(tmp_path: Path) -> None:
    needs("wikitext2_small")
    text = study.Text.of()
    assert text.vocabulary == study.WORDS and (np.bincount(text.train)[list(map(text.number.get, noun_lists.NOUNS))] > 20).all()  # fmt: skip
    made = reproduce.run("verbatim-memory", budget_seconds=2)
    made.write(tmp_path)
    assert Finding.read("verbatim-memory", tmp_path).verdict == "inconclusive"
    assert {row["arm"] for row in made.table} == {"2 layers", "lstm", "2 layers, attention shuffled"}
    assert "instead of 300" in made.limits and len(plots.drawable(made.plots)) == 3
