from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from tasks_fakes import TinyRunner, bundle, tiny

from lightformers.errors import DataError, ModelError
from lightformers.tasks import CausalLM, MaskedLM, from_data
from lightformers.tasks.pieces import cut


def test_pieces() -> None:
    lines = ["a b c", "d e", "", "f g h i j k l", "m"]
    assert list(cut(lines, 5)) == ["a b c\nd e", "f g h i j", "k l\nm"]
    assert list(cut(["", " "], 5)) == []
    words = [w for piece in cut(lines, 2) for w in piece.split()]
    assert words == ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l", "m"]
    with pytest.raises(DataError, match="max_words is 1"):
        list(cut(lines, 1))


@pytest.fixture
def book(tmp_path):
    file = tmp_path / "book.txt"
    file.write_text("\n".join(f"line {i} of a small book" + ("\n" if i % 3 == 0 else "") for i in range(200)))
    return file


def test_text_files_and_tables(book, tmp_path) -> None:
    task = from_data("causal-lm", book, max_words=20)
    everything = [e for rows in task.splits.values() for e in rows]
    words = " ".join(e["text"] for e in sorted(everything, key=lambda e: int(e["text"].split()[1]))).split()
    assert words == book.read_text().split()
    assert max(len(e["text"].split()) for e in everything) <= 20
    groups = [{e["group"] for e in rows} for rows in task.splits.values()]
    assert not groups[0] & groups[2] and task.evaluate is not None
    table = tmp_path / "a.jsonl"
    table.write_text("\n".join(json.dumps({"body": "word " * 30 + str(i)}) for i in range(20)))
    rows = from_data("causal-lm", table, text="body", max_words=20).splits["verify"]
    assert len(rows) == 2 * len({e["group"] for e in rows})
    with pytest.raises(DataError, match="no column 'text'; columns there: 'body'"):
        from_data("causal-lm", table)


@pytest.mark.parametrize("side", ["right", "left"])
def test_perplexity_matches_a_literal_sum(side) -> None:
    model = tiny("causal-lm", side=side)
    rows = [{"text": t} for t in ("abc", "a", "hello there", "b. c, d")]
    task = CausalLM({"train": rows, "search": rows, "verify": rows})
    scores = task.evaluate(TinyRunner(model))
    nats, tokens = 0.0, 0
    for row, stat in zip(rows, scores.stats):
        ids = torch.tensor(model.processor(row["text"])["input_ids"])
        with torch.no_grad():
            logp = torch.log_softmax(model.model(input_ids=ids[None]).logits[0], -1)
        own = -sum(logp[i, ids[i + 1]].item() for i in range(len(ids) - 1))
        assert stat[0] == pytest.approx(own, rel=1e-3) and stat[1] == len(ids) - 1
        nats, tokens = nats + own, tokens + len(ids) - 1
    assert (
        scores.value == pytest.approx(np.exp(nats / tokens), rel=1e-3) and not scores.metric.higher_is_better
    )
    batch = task.collate(model, rows)
    loss = task.loss(model.module()(**batch.inputs), batch)
    assert loss.item() == pytest.approx(nats / tokens, rel=1e-3)
    loss.backward()


def test_another_vocabulary_is_divided_by_the_originals_tokens() -> None:
    rows = [{"text": "abcd"}, {"text": "ab cd"}]
    task = CausalLM({"train": rows, "search": rows, "verify": rows})
    task.set_reference(TinyRunner(tiny("causal-lm")))
    other = tiny("causal-lm")
    from tasks_fakes import tokenizer

    other.processor = tokenizer(extra=["abcd"])
    other.model.resize_token_embeddings(len(other.processor))
    scores = task.evaluate(TinyRunner(other))
    assert scores.stats[:, 1].tolist() == [5, 5]  # letters and two ends, less the first
    assert task.evaluate(TinyRunner(other), limit=1).stats[:, 1].tolist() == [5]


def test_masks_are_fixed_and_special_tokens_stay() -> None:
    model = tiny("masked-lm")
    rows = [{"text": f"{'abcdefghij' * (i + 1)} x{i}"} for i in range(3)]
    task = MaskedLM({"train": rows, "search": rows, "verify": rows})
    with pytest.raises(DataError, match=r"task\.check"):
        task.evaluate(TinyRunner(model))
    task.check(model)

    class Spy(TinyRunner):
        def run(self, encoded, reduce):
            self.encoded = encoded
            return super().run(encoded, reduce)

    runner = Spy(model)
    scores = task.evaluate(runner)
    for encoded, row, stat in zip(runner.encoded, rows, scores.stats):
        plain = model.processor(row["text"], truncation=True, max_length=40)["input_ids"]
        assert [t for i, t in enumerate(plain) if i in encoded["masked"]] == encoded["originals"]
        assert all(encoded["input_ids"][i] == 4 for i in encoded["masked"]) and 0 not in encoded["masked"]
        assert len(encoded["masked"]) == max(1, round(0.15 * (len(plain) - 2))) == stat[1]
        with torch.no_grad():
            logp = torch.log_softmax(
                model.model(input_ids=torch.tensor([encoded["input_ids"]])).logits[0], -1
            )
        own = -sum(logp[p, t].item() for p, t in zip(encoded["masked"], encoded["originals"]))
        assert stat[0] == pytest.approx(own, rel=1e-3)
    assert (task.evaluate(runner).stats == scores.stats).all()
    few = task.evaluate(runner, limit=2).stats.tolist()
    assert all(
        any(np.allclose(row, s, rtol=1e-4) for s in scores.stats) for row in few
    )  # same masks, less examples
    assert TinyRunner(model)(task.workload(3), task.reduce) == [(0.0, 0)] * 3


def test_training_masks() -> None:
    model = tiny("masked-lm", max_length=None)
    task = MaskedLM.from_examples([{"text": f"abcdefghijklmnopqrst {i}"} for i in range(40)])
    batch = task.collate(model, [{"text": "abcdefghijklmnopqrst " * 20}] * 4, seed=1)
    assert model.processor.mask_token_id == 4
    kept = total = masks = 0
    for example in batch.targets["examples"]:
        now = [example["input_ids"][i] for i in example["masked"]]
        masks += now.count(4)
        kept += sum(a == b for a, b in zip(now, example["originals"]))
        total += len(now)
    assert total == 4 * 60
    assert 0.7 < masks / total < 0.9 and 0.04 < kept / total < 0.2
    again = task.collate(model, [{"text": "abcdefghijklmnopqrst " * 20}] * 4, seed=1)
    assert torch.equal(again.inputs["input_ids"], batch.inputs["input_ids"])
    small = task.collate(model, task.training_examples(True)[:3], seed=2)
    loss = task.loss(model.module()(**small.inputs), small)
    loss.backward()
    assert 1 < loss.item() < 10
    with pytest.raises(DataError, match=r"task\.collate"):
        task.loss({"logits": torch.zeros(1, 4, 5)}, model.collate([{"text": "ab"}]))


def test_wrong_heads(book) -> None:
    with pytest.raises(ModelError, match="no mask token"):
        from_data("masked-lm", book, bundle=bundle("masked-lm"))
    with pytest.raises(ModelError, match="head for masked-lm, the task is causal-lm"):
        from_data("causal-lm", book, bundle=bundle("masked-lm"))
    long = from_data("causal-lm", book, bundle=bundle("causal-lm", max_length=5))
    assert "longer than the model's 5 tokens" in long.warnings[0]
