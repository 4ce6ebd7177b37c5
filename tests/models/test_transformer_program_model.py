"""Transformer Programs: relaxed = hard = written source, on every kind of choice; planted programs; refusals."""

from __future__ import annotations

import itertools
import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from lightformers.errors import DataError, UserError
from lightformers.models.language.transformer_programs import ProgramConfig, TransformerProgram
from lightformers.models.language.transformer_programs_code import write
from lightformers.parts.discrete import nearness
from lightformers.reproduce import rasp
from lightformers.train.programs import Annealed, train_program

WORDS = ("<pad>", "<s>", "a", "b", 'it"s', "<unk>")
LABELS = ("<pad>", "<unk>", "x", "y", "z")


def config(**changed: Any) -> ProgramConfig:
    fields = {
        "words": WORDS,
        "labels": LABELS,
        "length": 6,
        "size": 6,
        "layers": 2,
        "heads": 2,
        "number_heads": 2,
    }
    return ProgramConfig(**(fields | changed))  # type: ignore[arg-type]


def made(seed: int = 0, **changed: Any) -> TransformerProgram:
    torch.manual_seed(seed)
    return TransformerProgram(config(**changed)).eval()


def texts(count: int, longest: int = 6) -> list[list[str]]:
    drawn = random.Random(0)
    return [[], *(["<s>", *drawn.choices(WORDS[2:5], k=drawn.randrange(longest))] for _ in range(count))]


def executed(source: str) -> dict[str, Any]:
    space: dict[str, Any] = {"__name__": "program"}
    exec(compile(source, "program.py", "exec"), space)
    return space


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"causal": True},
        {"variables": 2},
        {"pooled": True, "causal": True, "variables": 1},
        {"layers": 3, "inputs": 3, "size": 7},
        {"number_heads": 0, "number_tables": 0, "tables": 0},
        {"heads": 0, "tables": 3},
    ],
)
def test_the_written_program_is_the_network(changed: dict[str, Any]) -> None:
    for seed in range(3):
        model, rows = made(seed, **changed), texts(40)
        run = executed(write(model))["run"]
        assert [run(row) for row in rows] == model.run(rows)
        assert run(["<s>", "never seen"]) == model.run([["<s>", "never seen"]])[0]


def test_the_written_program_runs_without_torch(tmp_path: Path) -> None:
    model = made(3)
    source = write(model, tmp_path / "program.py")
    assert "torch" not in source and (tmp_path / "program.py").read_text() == source
    shut = "import sys; sys.modules['torch'] = sys.modules['numpy'] = sys.modules['lightformers'] = None\n"
    code = shut + f"sys.path.insert(0, {str(tmp_path)!r})\nimport program, json\n"
    rows = texts(5)
    code += f"print(json.dumps([program.run(t) for t in json.loads({json.dumps(json.dumps(rows))})]))"
    out = subprocess.run(
        [sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert json.loads(out) == model.run(rows)
    said = subprocess.run([sys.executable, "-I", str(tmp_path / "program.py"), "<s>", "b", "a"], capture_output=True, text=True)  # fmt: skip
    assert said.stdout.split() == model.run([["<s>", "b", "a"]])[0]


@pytest.mark.parametrize("changed", [{}, {"causal": True}, {"variables": 2, "layers": 3}])
def test_relaxed_with_hard_choices_is_the_program(changed: dict[str, Any]) -> None:
    """The literal equations of the relaxed network, with every choice an argmax, against gathers and counts."""
    model = made(1, **changed)
    ids = model.ids(texts(30))
    real = ids != 0
    allowed = real[:, :, None] & real[:, None, :]
    allowed = allowed.tril() if model.config.causal else allowed
    soft = model._sample(ids, allowed)  # in evaluation the temperature is None
    hard = model(ids)["logits"]
    said = list(model.config.said)
    assert torch.allclose(soft[real][:, said].double(), hard[real][:, said], atol=1e-4)
    assert torch.isneginf(hard[..., [0, 1]]).all()


def test_large_counts_are_decided_by_sums_as_in_the_network() -> None:
    """Sums of sums have too many cases for a table; the source then holds the weights."""
    model = made(0, layers=3, heads=0, tables=0, number_heads=3, number_tables=2)
    source = write(model)
    assert "_FIRST = " in source
    assert [executed(source)["run"](t) for t in texts(40)] == model.run(texts(40))


def test_nearest_match_wins_itself_last_and_the_left_of_two() -> None:
    near = nearness(7)
    literal = torch.zeros(7, 7)
    for i, j in itertools.product(range(7), range(7)):
        literal[i, j] = -2.0 if i == j else -(j - i - 1) / 5 if j > i else -(i - j - 1) / 6
    assert torch.allclose(near, literal)
    order = near[3].sort(descending=True, stable=True).indices.tolist()
    assert order == [2, 4, 1, 5, 0, 6, 3]


def planted_histogram() -> TransformerProgram:
    """One counting head that looks for the same word, one table of numbers that says the count."""
    words = ("<pad>", "<s>", "a", "b", "c")
    model = TransformerProgram(
        ProgramConfig(words, ("<pad>", "1", "2", "3"), 5, 5, None, 1, 0, 1, 0, 1, inputs=1, inner=3)
    ).eval()
    head, table = model.layers[0].number_heads, model.layers[0].number_tables
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
        head.query[0, 0] = head.key[0, 0] = head.value[0, 0] = 1
        head.predicate[0] = torch.eye(5)
        table.read[0, 0, 1] = 1
        table.first[:] = 1
        table.first_bias[0] = torch.tensor([0.0, -1.0, -2.0])
        table.second[0] = torch.tensor([[0, 1, 1, 1, 0], [0, -1, 1, 1, 0], [0, 0, -3, 1, 0.0]])
        for count in (1, 2, 3):
            model.said[2, count, count] = 1
    return model


def test_a_planted_program_counts_and_reads_like_one() -> None:
    model, words = planted_histogram(), ["<s>", "a", "b", "a", "a"]
    assert model.run([words])[0][1:] == ["3", "1", "3", "3"]
    source = write(model)
    assert executed(source)["run"](words)[1:] == ["3", "1", "3", "3"]
    assert "if query in {'a'}:\n        return key == 'a'" in source
    assert "count_0_0 = aggregate_sum(select(tokens, tokens, count_0_0_predicate), ones)" in source


def test_training_finds_the_counting_program() -> None:
    data = rasp.make("hist", 60, vocabulary=4, length=4)
    torch.manual_seed(0)
    model = TransformerProgram(
        ProgramConfig(data.words, data.said, 4, 4, None, 1, 0, 2, 0, 1, inputs=1, inner=16)
    )
    result = train_program(model, data.texts, data.labels, steps=250, batch=60)
    said, asked = model.run(data.texts), data.labels
    right = [a == b for row, wanted in zip(said, asked) for a, b in zip(row, wanted) if b != "<pad>"]
    assert sum(right) / len(right) > 0.95 and result.loss < 0.5
    assert not model.training and model.temperature == pytest.approx(0.01)


def test_every_parameter_learns() -> None:
    model = made(0, variables=2).train()
    model.temperature = 1.0
    logits = model(model.ids(texts(20)))["logits"]
    logits[..., 2:].square().sum().backward()
    for name, p in model.named_parameters():
        assert p.grad is not None and torch.isfinite(p.grad).all(), name
        chosen = name.rsplit(".", 1)[-1] in ("query", "key", "value", "read")
        one = chosen and p.shape[-1] == 1  # a gate that has one thing to read has nothing to learn
        assert one or p.grad.abs().sum() > 0, name


def test_saved_and_loaded_it_is_the_same_program(tmp_path: Path) -> None:
    model = made(2, variables=1, causal=True)
    model.save_pretrained(tmp_path)
    again = TransformerProgram.from_pretrained(tmp_path)
    assert again.config == model.config and write(again) == write(model)


def test_the_papers_sizes() -> None:
    """3 layers, 4 + 4 heads, 2 + 2 tables of 64 units, 8 values: counted from the equations."""
    with torch.device("meta"):
        model = TransformerProgram(
            ProgramConfig(
                tuple(["<pad>", "<s>", "0", "1", "2", "3", "4", "5"][:8]), ("<pad>", *"1234567"), 8, 8
            )
        )
    wanted, variables, numbers = 0, 2, 1
    wanted = 0
    for _ in range(3):
        wanted += 4 * (3 * variables + 64) + 4 * (2 * variables + numbers + 64)
        variables, numbers = variables + 4, numbers + 4
        wanted += 2 * (2 * variables + 64 * 16 + 64 + 8 * 64 + 8) + 2 * (
            2 * numbers + 64 * 2 + 64 + 8 * 64 + 8
        )
        variables += 4
    wanted += 8 * (8 * variables + numbers)
    assert sum(p.numel() for p in model.parameters()) == wanted


def test_tasks_are_what_they_say() -> None:
    assert rasp.histogram(list("aba")) == (["<s>", "a", "b", "a"], ["<pad>", "2", "1", "2"])
    assert rasp.double_histogram(list("aabbc"))[1][1:] == ["2", "2", "2", "2", "1"]
    assert rasp.ordered(list("201"))[1] == ["<pad>", "0", "1", "2", "<pad>"]
    assert rasp.most_frequent(list("abbc"))[1][1:] == ["b", "a", "c", "<s>"]
    assert rasp.dyck(list("())("))[1][1:] == ["P", "T", "F", "F"]
    assert rasp.dyck(list("{()}"))[1][1:] == ["P", "P", "P", "T"]
    data = rasp.make("dyck2", 300, length=9)
    assert len({tuple(t) for t in data.texts}) == len(data) == 300
    assert {len(t) for t in data.texts} == {9} and {w for r in data.labels for w in r} == {
        "<pad>",
        "T",
        "P",
        "F",
    }


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(UserError, match="positions are a variable"):
        config(length=7)
    with pytest.raises(UserError, match="learned variables"):
        config(size=6, words=(*WORDS, "more"))
    with pytest.raises(UserError, match="first word must be <pad>"):
        config(words=WORDS[1:])
    model = made()
    with pytest.raises(UserError, match="padding must stand on the right"):
        model(torch.tensor([[0, 2, 3]]))
    with pytest.raises(UserError, match="more than the 6"):
        model(torch.ones(1, 7, dtype=torch.long))
    with pytest.raises(UserError, match="is <pad>"):
        model.ids([["<s>", "<pad>"]])
    with pytest.raises(DataError, match="does not say: w"):
        train_program(model, [["<s>", "a"]], [["<pad>", "w"]], steps=1)
    with pytest.raises(UserError, match="temperatures fall"):
        Annealed(10, hot=0.1, cold=1.0)
    run = executed(write(model))["run"]
    with pytest.raises(ValueError, match="more than 6"):
        run(["a"] * 7)
