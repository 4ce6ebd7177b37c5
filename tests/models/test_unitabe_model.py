"""UniTabE against its equations written out, torch's own encoder and LSTM, and what must not matter."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lightformers as lf
from lightformers import anatomy
from lightformers.bundle import Bundle
from lightformers.errors import UserError
from lightformers.export.huggingface import save
from lightformers.models.tabular.unitabe import CLASSES, NUMBERS, UniTabE, UniTabEConfig
from lightformers.parts.numerals import read
from lightformers.parts.tab_unit import Gate
from lightformers.processors.unitabe import UniTabEProcessor
from lightformers.runners import build
from lightformers.steps import Deploy

ROWS: list[dict[str, Any]] = [
    {"age": 31, "home town": "Oslo", "member": True},
    {"age": None, "home town": "Rome by the sea", "member": False},
    {"height": -1.25, "age": 4},
    {"home town": "Oslo"},
]
PROCESSOR = UniTabEProcessor.learn([ROWS], size=0)
EXAMPLES = [{"row": row} for row in ROWS]
#: The parts of a question or answer that the configurations below share.
ASKS: dict[str, dict[str, Any]] = {
    "pretraining": {},
    "classes": {
        "task": CLASSES,
        "prompt_ids": PROCESSOR.prompt("classification"),
        "label_ids": PROCESSOR.labels(3),
    },
    "scalar": {"task": NUMBERS, "prompt_ids": PROCESSOR.prompt("regression")},
    "digits": {
        "task": NUMBERS, "prompt_ids": PROCESSOR.prompt("regression"), "head": "digits", "answer_tokens": 5, "otherwise": 7.0,
        "numeral_ids": [PROCESSOR.token(c) for c in "0123456789.-"],
    },
}  # fmt: skip


def made(ask: str = "classes", **fields: Any) -> UniTabE:
    torch.manual_seed(0)
    sizes = {
        "embedding_size": 16, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 20,
        "vocab_size": len(PROCESSOR.vocabulary),
    }  # fmt: skip
    return UniTabE(UniTabEConfig(**{**sizes, **ASKS[ask], **fields})).eval()


def inputs(rows: list[dict[str, Any]] = ROWS) -> dict[str, Tensor]:
    return PROCESSOR.pad_encoded(PROCESSOR.encode_examples([{"row": r} for r in rows]))[0]


def alone(model: UniTabE, row: dict[str, Any]) -> Tensor:
    """The states of one row, every equation written out."""
    unit, width = model.unit, model.config.embedding_size

    def text(ids: tuple[int, ...]) -> Tensor:
        place = torch.arange(len(ids), dtype=torch.float64)
        out = unit.words.weight[list(ids)] * math.sqrt(width)
        for i in range(width):
            angle = place / 10000 ** ((i - i % 2) / width)
            out[:, i] = out[:, i] + (angle.cos() if i % 2 else angle.sin())
        return unit.norm(out)

    def gate(made: Gate, x: Tensor) -> Tensor:
        return torch.sigmoid(made.outer(torch.relu(made.inner(x))))

    columns, values = [], []
    for cell in PROCESSOR.cells(row):
        c = text(cell.name_ids).mean(0)
        if unit.types is not None:
            t = unit.types.weight[cell.type]
            c = c + t * gate(unit.type_gate, t)
        columns.append(c)
        values += [v + c * gate(unit.link_gate, c) for v in text(cell.value_ids)]
    x = model.enter(torch.stack([model.first, *columns, *values]))[None]
    for layer in model.layers:
        theirs = nn.TransformerEncoderLayer(24, 4, 20, 0.0, batch_first=True).double().eval()
        ours = layer.attention
        with torch.no_grad():
            for kind in ("weight", "bias"):
                fused = torch.cat([getattr(m, kind) for m in (ours.query, ours.key, ours.value)])
                getattr(theirs.self_attn, f"in_proj_{kind}").copy_(fused)
        for mine, own in ((theirs.self_attn.out_proj, ours.out), (theirs.linear1, layer.up),
                          (theirs.linear2, layer.down), (theirs.norm1, layer.attention_norm), (theirs.norm2, layer.ffn_norm)):  # fmt: skip
            mine.load_state_dict(own.state_dict())
        x = theirs(x)
    return x


@pytest.mark.parametrize("aware", [True, False])
def test_states_are_those_of_the_equations(aware: bool) -> None:
    """Rows of unequal columns in one batch give what each gives alone, written out, with torch's own layers."""
    model = made(type_aware=aware).double()
    assert (model.unit.types is not None) == aware
    states, seen = model.encode(**inputs())
    for row, state, there in zip(ROWS, states, seen):
        torch.testing.assert_close(state[there][None], alone(model, row), rtol=1e-5, atol=1e-6)


def test_answers_are_those_of_the_equations() -> None:
    model = made().double()
    decoder, words = model.decoder, model.unit.words.weight
    for row in ROWS:
        states = alone(model, row)[0]
        prompt = words[model.config.prompt_ids]
        scores = decoder.attention.ask(prompt) @ decoder.attention.look(states).T
        found = scores.softmax(-1) @ states
        a = (decoder.attention.weigh(found).softmax(0) * found).sum(0)
        h, c = decoder.start(torch.cat([states[0], a])).chunk(2)
        y = decoder.out(
            decoder.lstm(words[[model.config.bos_token_id]][None], (h[None, None], c[None, None]))[0]
        )
        expected = (y[0, 0] @ words.T)[model.config.label_ids]
        torch.testing.assert_close(model(**inputs([row])).logits[0], expected, rtol=1e-5, atol=1e-6)


def test_a_pass_over_an_answer_is_its_steps() -> None:
    model = made("digits")
    ids = torch.tensor([[1, 7, 8, 9]] * len(ROWS))
    whole = model(**inputs(), answer_ids=ids).answers
    memory, steps = model.ask(torch.tensor([model.config.prompt_ids]), *model.encode(**inputs())), []
    for token in ids.unbind(1):
        y, memory = model.decoder.step(model.unit.words(token), memory)
        steps.append(y @ model.unit.words.weight.T)
    torch.testing.assert_close(whole, torch.stack(steps, 1))


def test_neither_padding_nor_order_nor_what_is_hidden_matters() -> None:
    model = made()
    together = model(**inputs()).logits
    for i, row in enumerate(ROWS):
        torch.testing.assert_close(model(**inputs([row])).logits[0], together[i], rtol=1e-4, atol=1e-5)
        turned = dict(reversed(row.items()))
        torch.testing.assert_close(model(**inputs([turned])).logits[0], together[i], rtol=1e-4, atol=1e-5)
    batch = inputs()
    for columns, ids in (("name_columns", "name_ids"), ("value_columns", "input_ids")):
        batch[ids] = torch.where(batch[columns] < 0, 9, batch[ids])  # junk where nothing stands
    torch.testing.assert_close(model(**batch).logits, together)
    assert (together[0] - together[3]).abs().max() > 1e-4
    other = model(**inputs([{**ROWS[1], "age": 5}])).logits[0]
    assert (other - together[1]).abs().max() > 1e-5  # a missing cell is not one that holds a value


@pytest.mark.parametrize("ask", ASKS)
def test_every_parameter_learns(ask: str) -> None:
    model = made(ask)
    given = {"answer_ids": torch.ones(len(ROWS), 2, dtype=torch.long)} if ask == "digits" else {}
    out = model(**inputs(), **given)
    if ask == "pretraining":
        prompts = torch.tensor([[7, 8]] * len(ROWS))
        out = model(**inputs(), prompt_ids=prompts, answer_ids=prompts)
    name = {"scalar": "prediction", "classes": "logits"}.get(ask, "answers")
    getattr(out, name).float().square().sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum()] == []


def test_numbers_are_read_as_they_are_written() -> None:
    texts = ["12", "-0.5", "3.25", "7.1.2", "-", "", "4-4", ".5", "1e5"]
    said = torch.full((len(texts), 6), 99)
    for row, text in zip(said, texts):
        row[: len(text)] = torch.tensor(["0123456789.-".find(c) if c != "e" else 50 for c in text])
    found = read(said, range(12), otherwise=-1.0)
    torch.testing.assert_close(found, torch.tensor([12, -0.5, 3.25, 7.1, -1, -1, 4, 0.5, 1]))
    model = made("digits")
    assert torch.isfinite(model(**inputs()).prediction).all()


@pytest.mark.parametrize("ask", ["classes", "scalar", "digits"])
def test_it_is_saved_and_loaded(ask: str, tmp_path: Path) -> None:
    task = ASKS[ask]["task"]
    bundle = Bundle(made(ask), PROCESSOR, task)
    assert save(bundle, tmp_path) == []
    again = lf.load(tmp_path)
    assert again.task == task and again.processor == PROCESSOR and isinstance(again.model, UniTabE)
    name = "logits" if task == CLASSES else "prediction"
    mine, theirs = (b.model(**b.collate(EXAMPLES).inputs)[name] for b in (bundle, again))
    assert torch.equal(mine, theirs)


@pytest.mark.parametrize("ask", ["classes", "scalar", "digits"])
def test_openvino_gives_the_same(ask: str) -> None:
    bundle = Bundle(made(ask), PROCESSOR, ASKS[ask]["task"])
    name = "logits" if ask == "classes" else "prediction"

    def answers(runtime: Any) -> Tensor:
        runner = build(bundle, Deploy(runtime, "fp32", "sorted", batch_size=3))
        try:
            return torch.stack(runner(EXAMPLES, lambda out, batch: list(out[name])))
        finally:
            runner.close()

    torch.testing.assert_close(answers("openvino"), answers("torch"), rtol=1e-4, atol=1e-4)


def test_it_is_cut_like_any_other_model() -> None:
    for cut in ("blocks", "heads", "channels"):
        model = made()
        found = anatomy.of(model)
        assert [(b.attention.heads, b.feed_forward.width) for b in found.blocks] == [(4, 20)] * 2
        assert anatomy.native(model, cut) is None
        if cut == "blocks":
            anatomy.surgery.keep_blocks(model, [1])
        elif cut == "heads":
            anatomy.surgery.keep_heads(model, {0: [0, 2], 1: [1, 3]})
        else:
            anatomy.surgery.keep_channels(model, {0: range(8), 1: range(3, 11)})
        again = UniTabE(UniTabEConfig.from_dict(model.config.to_dict())).eval()
        again.load_state_dict(model.state_dict())
        assert torch.equal(again(**inputs()).logits, model(**inputs()).logits)
    assert "width of the encoder" in (anatomy.native(made(), "width") or "")


def test_refusals() -> None:
    with pytest.raises(UserError, match="prompt_ids"):
        UniTabEConfig(task=CLASSES, label_ids=[1, 2])
    with pytest.raises(UserError, match="one token for each"):
        UniTabEConfig(task=CLASSES, prompt_ids=[5], label_ids=[4, 4])
    with pytest.raises(UserError, match="twelve"):
        UniTabEConfig(task=NUMBERS, prompt_ids=[5], head="digits")
    with pytest.raises(UserError, match="do not divide"):
        UniTabEConfig(hidden_size=30, num_attention_heads=4)
    model, batch = made(), inputs()
    with pytest.raises(UserError, match="beyond the"):
        model(**{**batch, "input_ids": batch["input_ids"] + 10_000})
    with pytest.raises(UserError, match="belong to columns 0 to"):
        model(**{**batch, "value_columns": batch["value_columns"] + 3})
    with pytest.raises(UserError, match="alike in shape"):
        model(**{**batch, "name_ids": batch["name_ids"][:, 1:]})
    short = made(max_cell_tokens=2)
    with pytest.raises(UserError, match="longer than the 2"):
        short(**batch)
