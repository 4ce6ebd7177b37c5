"""Pre-training over unlike tables, learning from one, filling cells: objectives written out, and planted worlds."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import lightformers as lf
from lightformers.bundle import Bundle
from lightformers.errors import DataError, ModelError, UserError
from lightformers.export.huggingface import save
from lightformers.models.tabular.unitabe import CLASSES, NUMBERS, PRETRAINED
from lightformers.processors import word_pieces
from lightformers.processors.schema import Schema
from lightformers.train import table_objectives as objectives
from lightformers.train.unitabe import fill, learn, pretrain

TINY: dict[str, Any] = {
    "embedding_size": 32, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32,
    "dropout": 0.0,
}  # fmt: skip
FRUITS = ("apple", "pear", "plum", "fig", "lime", "kiwi", "date", "melon")


def colour(fruit: str) -> str:
    return "red" if FRUITS.index(fruit) % 2 else "green"


def fruits(count: int, seed: int, **more: Any) -> list[dict[str, Any]]:
    drawn = np.random.default_rng(seed)
    return [{"fruit": f, "colour": colour(f), **more} for f in map(str, drawn.choice(FRUITS, count))]


def weights(count: int, seed: int) -> list[dict[str, Any]]:
    drawn = np.random.default_rng(seed)
    return [{"crates": int(n), "full": "yes" if n > 4 else "no"} for n in drawn.integers(0, 10, count)]


def accuracy(bundle: Bundle, rows: list[dict[str, Any]], labels: np.ndarray) -> float:
    with torch.no_grad():
        logits = bundle.model(**bundle.collate([{"row": r} for r in rows]).inputs).logits
    return float((logits.argmax(-1).numpy() == labels).mean())


def test_spans_and_parts() -> None:
    assert [objectives.hidden_cells(x, 40) for x in (0.5, -1.0, 1.1, 1.4, 1.6, 1.9, 2.4, 3.0)] == [1, 1, 2, 3, 4, 5, 7, 1]  # fmt: skip
    assert [objectives.hidden_cells(2.4, n) for n in (1, 2, 3, 6, 14)] == [1, 1, 1, 3, 7]
    assert objectives.parts(10, 4) == [[0, 1, 2, 3, 4], [3, 4, 5, 6, 7], [6, 7, 8, 9], [8, 9, 6, 7]]
    assert objectives.parts(10, 4, 0.0) == [[0, 1, 2], [3, 4, 5], [6, 7], [8, 9]]
    assert objectives.parts(2, 4) == [[0, 1], [1, 0]] and objectives.parts(1, 4) == [[0]]


def test_contrast_is_its_equation() -> None:
    rows = torch.randn(6, 5, dtype=torch.float32)
    total = 0.0
    for i in range(6):
        share = [math.exp(float(rows[i] @ rows[j]) / 10) for j in range(6) if j != i]
        total -= math.log(math.exp(float(rows[i] @ rows[(i + 3) % 6]) / 10) / sum(share))
    assert float(objectives.contrast(rows)) == pytest.approx(total / 6, rel=1e-5)


def corpus(**options: Any) -> objectives.Corpus:
    from lightformers.processors.unitabe import UniTabEProcessor

    tables = [
        fruits(20, 0, price=3, shop="here"),
        weights(30, 0),
        [{"fruit": None}, {"fruit": None, "crates": None}],
    ]
    return objectives.Corpus(tables, UniTabEProcessor.learn(tables, size=0), size=8, **options)  # fmt: skip


def test_masked_batches_hide_what_they_ask_for() -> None:
    made = corpus(weights={"contrast": 0})
    names = set()
    for position in range(12):
        batch = made.batch(position)
        mask = made.processor.token(word_pieces.MASK)
        hidden = (batch.inputs["input_ids"] == mask).sum(1)
        columns = (batch.inputs["types"] >= 0).sum(1)
        assert (hidden >= 1).all() and (hidden <= (columns // 2).clamp(min=1)).all()
        for prompt, answer, row in zip(batch.inputs["prompt_ids"], batch.targets["answer"], range(99)):
            words = made.processor.said([int(t) for t in prompt if t])
            assert words.startswith("recovery ") and words.endswith(" :")
            name = words[9:-2]
            names.add(name)
            assert made.processor.vocabulary[int(answer[answer >= 0][-1])] == word_pieces.END
            read = batch.inputs["answer_ids"][row]
            assert int(read[0]) == made.processor.token(word_pieces.BEGIN)
            kept = answer[answer >= 0][:-1]
            assert torch.equal(read[1 : 1 + len(kept)], kept)
    assert names == {"fruit", "colour", "price", "shop", "crates", "full"}
    again = corpus(weights={"contrast": 0}).batch(5)
    assert all(torch.equal(v, made.batch(5).inputs[k]) for k, v in again.inputs.items())


def test_contrast_pairs_parts_of_the_same_rows() -> None:
    made = corpus(weights={"masking": 0})
    batch = made.batch(3)
    assert "prompt_ids" not in batch.inputs and len(batch.inputs["types"]) == 16
    assert all(int(made.processor.token(word_pieces.MASK)) not in ids for ids in batch.inputs["input_ids"])


@pytest.fixture(scope="module")
def orchard() -> Bundle:
    """Pre-trained on a table in which a fruit has its colour, and on another that knows nothing of fruits."""
    wide = {**TINY, "embedding_size": 64, "hidden_size": 64}
    tables = [fruits(64, 0), weights(16, 0)]
    return pretrain(tables, seconds=None, steps=200, batch=16, lr=3e-3, weights={"contrast": 0}, vocabulary=400, sizes=wide)  # fmt: skip


def test_planted_hidden_cells_are_filled(orchard: Bundle) -> None:
    assert orchard.task == PRETRAINED and orchard.history[0]["steps"] == 200
    shown = fill(orchard, [{"fruit": f, "colour": None} for f in FRUITS])
    assert [row["colour"] for row in shown] == [colour(f) for f in FRUITS]


def test_planted_what_one_table_taught_is_known_in_another(orchard: Bundle) -> None:
    """The classes of four fruits, in a table with another column, tell those of the four others only if their colours are
    known."""
    before = {k: v.clone() for k, v in orchard.model.state_dict().items()}
    rows = [{"fruit": f, "stand": 3} for f in FRUITS]
    labels = np.array([int(colour(f) == "red") for f in FRUITS])
    found: dict[str, list[float]] = {"pre-trained": [], "scratch": []}
    for name, base in (("pre-trained", orchard), ("scratch", None)):
        for seed in range(3):
            made = learn(
                rows[:4], labels[:4], 2, Schema.of(rows), weights=base, epochs=20, seconds=None, lr=5e-3, seed=seed,
                sizes=None if base else TINY,
            )  # fmt: skip
            found[name].append(accuracy(made, rows[4:], labels[4:]))
    assert np.mean(found["pre-trained"]) >= 0.9 and np.mean(found["scratch"]) <= 0.7
    assert all(torch.equal(v, before[k]) for k, v in orchard.model.state_dict().items())


def test_a_classifier_learns_and_repeats() -> None:
    rows = weights(260, 1)
    labels = np.array([int(r["crates"]) > 4 for r in rows]).astype(np.int64)
    shown = [{"crates": r["crates"]} for r in rows]
    made = [
        learn(shown, labels, 2, Schema.of(shown), epochs=5, lr=1e-2, seed=3, sizes=TINY) for _ in range(2)
    ]
    assert accuracy(made[0], shown, labels) > 0.95 and made[0].task == CLASSES
    a, b = (m.model.state_dict() for m in made)
    assert all(torch.equal(a[k], b[k]) for k in a)
    note = made[0].history[-1]
    assert note["held out"] == 39 and 0 < note["stopped at"] <= 1


@pytest.mark.parametrize("head", ["scalar", "digits"])
def test_a_regressor_learns(head: str) -> None:
    rows = [{"crates": n % 10} for n in range(60)]
    targets = np.array([float(r["crates"]) * 3 - 5 for r in rows])
    made = learn(rows, targets, None, Schema.of(rows), head=head, epochs=40, lr=1e-2, sizes=TINY)
    with torch.no_grad():
        said = made.model(**made.collate([{"row": r} for r in rows]).inputs).prediction.numpy()
    assert made.task == NUMBERS
    mean, deviation = made.model.config.target_units
    assert (head == "scalar") == (deviation != 1)
    said = said * deviation + mean
    assert np.mean((said - targets) ** 2) < 0.2 * targets.var()


def test_weights_may_come_from_a_folder(tmp_path: Path) -> None:
    start = pretrain([weights(40, 0), fruits(40, 1)], seconds=None, steps=3, vocabulary=0, sizes=TINY)
    save(start, tmp_path)
    assert lf.load(tmp_path).task == PRETRAINED
    rows, labels = weights(20, 2), np.arange(20) % 2
    options: dict[str, Any] = {"epochs": 2, "seconds": None, "seed": 1}
    made = [learn(rows, labels, 2, Schema.of(rows), weights=w, **options) for w in (start, str(tmp_path))]
    a, b = (m.model.state_dict() for m in made)
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert (
        made[0].processor.vocabulary == start.processor.vocabulary
        and made[0].history[0]["step"] == "pretrain"
    )
    with pytest.raises(ModelError, match="not of a Linear"):
        learn(rows, labels, 2, Schema.of(rows), weights=Bundle(torch.nn.Linear(1, 1)))


def test_filling_leaves_the_rest() -> None:
    start = pretrain([weights(40, 0), fruits(40, 1)], seconds=None, steps=3, vocabulary=0, sizes=TINY)
    rows = [{"crates": None, "full": "yes"}, {"crates": 3, "full": " "}, {"crates": 4, "full": "no"}]
    done = fill(start, rows)
    assert rows[0]["crates"] is None and done[2] == rows[2]
    assert done[0]["crates"] is None or isinstance(done[0]["crates"], float)
    assert done[1]["full"] in ("yes", "no") and done[1]["crates"] == 3
    assert fill(start, rows, ["full"])[0]["crates"] is None
    with pytest.raises(DataError, match="row 1 has no value"):
        fill(start, [rows[2], {"crates": None}])
    with pytest.raises(DataError, match="no row has a column x"):
        fill(start, rows, ["x"])
    with pytest.raises(ModelError, match="UniTabE"):
        fill(Bundle(torch.nn.Linear(1, 1)), rows)


def test_refusals() -> None:
    rows = weights(4, 0)
    schema = Schema.of(rows)
    with pytest.raises(DataError, match="one for each"):
        learn(rows, np.zeros(3), None, schema)
    with pytest.raises(DataError, match="missing or infinite"):
        learn(rows, np.array([1, 2, np.nan, 4]), None, schema)
    with pytest.raises(DataError, match="below 2"):
        learn(rows, np.array([0, 1, 2, 0]), 2, schema)
    with pytest.raises(UserError, match="head"):
        learn(rows, np.zeros(4), None, schema, head="words")
    start = pretrain([rows], seconds=None, steps=1, vocabulary=0, labels=2, sizes=TINY)
    with pytest.raises(DataError, match="3 classes, and the vocabulary has tokens for 2"):
        learn(rows, np.array([0, 1, 2, 0]), 3, schema, weights=start)
    with pytest.raises(UserError, match="hidden_size cannot be given"):
        learn(rows, np.array([0, 1, 1, 0]), 2, schema, weights=start, sizes={"hidden_size": 8})
    with pytest.raises(DataError, match="tables"):
        pretrain([])
    with pytest.raises(DataError, match="no text"):
        pretrain([[{"a": None}]], steps=1)
    with pytest.raises(UserError, match="weights"):
        pretrain([rows], steps=1, weights={"guessing": 1}, vocabulary=0)
