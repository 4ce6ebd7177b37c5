"""The experiment of retro on a tiny budget."""

from __future__ import annotations

from pathlib import Path

import torch

from lightformers import reproduce
from lightformers.reproduce import Finding
from lightformers.reproduce.retro import CHUNK, World, with_passages


def test_experiment_on_a_tiny_budget(tmp_path: Path) -> None:
    made = reproduce.run("retro", budget_seconds=0.3)
    made.write(tmp_path)
    assert Finding.read("retro", tmp_path).slug == made.slug
    assert len(made.seeds) == 2 and "instead of 300" in made.limits
    rows = {row["arm"]: row for row in made.table}
    assert 0.9 < rows["RETRO"]["parameters"] / rows["decoder"]["parameters"] < 1.1
    assert rows.keys() == {"RETRO", "RETRO, others' neighbours", "decoder", "decoder, passage in context"}
    assert min(made.settings["value in the best neighbour"]) > 0.5


def test_questions_are_followed_by_answers_and_retrieve_their_statement() -> None:
    world = World.drawn(200, 0)
    facts = torch.tensor([[3, 7, 9]])
    ids, near = world.texts(facts)
    chunks = ids.view(3, CHUNK)
    assert torch.equal(chunks[1:, 0], world.values[facts[0, :2]])
    assert torch.equal(chunks[:, 2:5], world.names[facts[0]])
    assert torch.equal(near[0, :, 0, :3], world.names[facts[0]]) and torch.equal(
        near[0, :, 0, 4], world.values[facts[0]]
    )
    assert with_passages(ids, near).shape == (1, 6 * CHUNK)
