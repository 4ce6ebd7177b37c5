from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pytest
import torch

import lightformers as lf
from lightformers import anatomy
from lightformers.bundle import Bundle
from lightformers.errors import DataError, ModelError, UserError
from lightformers.export import huggingface
from lightformers.models.tabular.rows import RowTransformer, RowTransformerConfig, layers
from lightformers.processors.schema import Schema
from lightformers.processors.table import TableProcessor
from lightformers.train.rows import hold, learn

SIZES = {"numbers": 3, "categories": [4, 5], "hidden_size": 16, "layers": layers(16, 2, 4, 0.0)}


def _model(task: str = "tabular-classification", **changes) -> RowTransformer:
    torch.manual_seed(0)
    config = RowTransformerConfig(
        **{**SIZES, "task": task, "num_labels": 3, "initializer_range": 0.3, **changes}
    )
    return RowTransformer(config).eval()


def _inputs(batch: int = 5) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    seen = (torch.rand(batch, 3) < 0.7).float()
    categories = torch.stack([torch.randint(0, n, (batch,)) for n in (4, 5)], 1)
    return {"numbers": torch.randn(batch, 3) * seen, "seen": seen, "categories": categories}


def test_the_equations() -> None:
    """Token by token, head by head, as the paper writes them."""
    model, given = _model(), _inputs(1)
    cells, tokens = model.cells, [model.gathering]
    for j in range(3):
        x, there = given["numbers"][0, j], given["seen"][0, j] > 0
        tokens.append((x * cells.weight[j] if there else cells.absent[j]) + cells.bias[j])
    for j, start in enumerate((0, 4)):
        tokens.append(cells.table.weight[start + given["categories"][0, j]] + cells.bias[3 + j])
    x = torch.stack(tokens)
    for layer in model.layers:
        y, heads = layer.mixer_norm(x), []
        q, k, v = (f(y).reshape(6, 4, 4) for f in (layer.mixer.query, layer.mixer.key, layer.mixer.value))
        for h in range(4):
            weights = (q[:, h] @ k[:, h].T / 2).softmax(-1)
            heads.append(weights @ v[:, h])
        x = x + layer.mixer.out(torch.cat(heads, 1))
        y = layer.ffn_norm(x)
        x = x + layer.ffn.down(torch.relu(layer.ffn.gate(y)) * layer.ffn.up(y))
    expected = model.out(torch.relu(model.norm(x[0])))
    assert torch.allclose(model(**given).logits[0], expected, atol=1e-5)


def test_parameters_of_the_default_of_the_paper() -> None:
    """3 layers of width 192, 8 heads, ReGLU of 256: 0.9 M, whatever the table has."""
    with torch.device("meta"):
        model = RowTransformer(RowTransformerConfig(8, (), 192, layers(192, 3, 8), num_labels=1))
    block = 4 * (192 * 192 + 192) + 2 * (192 * 256 + 256) + (256 * 192 + 192) + 4 * 192
    table = 8 * 3 * 192 + 192
    assert sum(p.numel() for p in model.parameters()) == 3 * block + table + 2 * 192 + 193


def test_what_is_missing_is_not_read() -> None:
    model, given = _model(), _inputs()
    other = {**given, "numbers": torch.where(given["seen"] > 0, given["numbers"], 7.0)}
    assert torch.equal(model(**given).logits, model(**other).logits)


def test_every_parameter_gets_a_gradient() -> None:
    for task in ("tabular-classification", "tabular-regression"):
        model = _model(task)
        outputs = model(**_inputs(64))
        (outputs["logits"].square().sum() if "logits" in outputs else outputs["prediction"].sum()).backward()
        idle = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum()]
        assert idle == [] or idle == [n for n in idle if n.endswith("key.bias")]  # softmax is blind to it


def test_tables_of_one_kind() -> None:
    numbers = _model(categories=[])
    assert numbers(numbers=torch.zeros(2, 3), seen=torch.ones(2, 3)).logits.shape == (2, 3)
    classes = _model(numbers=0)
    assert classes(categories=torch.zeros(2, 2, dtype=torch.long)).logits.shape == (2, 3)


@pytest.mark.parametrize("cut", ["blocks", "heads", "channels"])
def test_cuts_reload(cut, tmp_path) -> None:
    """Also where layers become unequal."""
    model, given = _model(), _inputs()
    found = anatomy.of(model)
    assert found.family == "rows" and len(found.blocks) == 2 and found.blocks[0].attention.heads == 4
    if cut == "blocks":
        anatomy.surgery.keep_blocks(model, [1])
    elif cut == "heads":
        anatomy.surgery.keep_heads(model, {0: [1, 3]})
    else:
        anatomy.surgery.keep_channels(model, {1: range(3, 12)})
    assert anatomy.native_reasons(model) == []
    huggingface.save(Bundle(model, _processor()[0], "tabular-classification"), tmp_path)
    again = lf.load(tmp_path)
    assert torch.equal(again.model(**given).logits, model(**given).logits)
    assert again.task == "tabular-classification" and again.processor == _processor()[0]


def test_what_slim_may_not_cut() -> None:
    reasons = {
        cut: anatomy.native(_model(), cut) for cut in ("blocks", "heads", "channels", "width", "vocabulary")
    }
    assert [cut for cut, reason in reasons.items() if reason] == ["width", "vocabulary"]


def test_custom_structures_keep_their_task(tmp_path) -> None:
    from lightformers.parts.low_rank import LowRankLinear

    model = _model("tabular-regression")
    made = LowRankLinear(16, 16, 2, True)
    anatomy.surgery.replace_linear(model, "layers.0.mixer.query", made)
    huggingface.save(Bundle(model, _processor()[0], "tabular-regression"), tmp_path, allow_custom=True)
    assert lf.load(tmp_path).task == "tabular-regression"


def test_export_moves_the_batch() -> None:
    model, given = _model(), _inputs()
    batch = {name: {0: torch.export.Dim.AUTO} for name in given}
    graph = torch.export.export(model, (), given, dynamic_shapes=batch).module()
    more = _inputs(9)
    assert torch.allclose(graph(**more)["logits"], model(**more).logits, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"numbers": 0, "categories": []}, "at least one column"),
        ({"categories": [0]}, "has values"),
        ({"task": "clustering"}, "task is one of"),
        ({"layers": []}, "names no layers"),
    ],
)
def test_wrong_settings(changes, message) -> None:
    with pytest.raises(UserError, match=message):
        _model(**changes)
    with pytest.raises(UserError, match="do not fit a width of 30"):
        layers(30, 2, 4)


def test_wrong_inputs() -> None:
    given = _inputs()
    with pytest.raises(UserError, match=r"categories is \(batch, 2\) for this table, not None"):
        _model()(numbers=given["numbers"], seen=given["seen"])
    with pytest.raises(UserError, match=r"numbers is \(batch, 3\) for this table, not \(5, 2\)"):
        _model()(**{**given, "numbers": given["numbers"][:, :2]})


def _processor(n: int = 50) -> tuple[TableProcessor, list[dict]]:
    drawn = np.random.default_rng(0)
    rows = [
        {"a": float(drawn.normal()), "b": float(i) if i % 5 else None, "c": float(i // 10), "city": "xyz"[i % 3],
         "id": f"id {i // 2 if i < 20 else i}"}
        for i in range(n)
    ]  # fmt: skip
    schema = Schema.of(rows)
    return TableProcessor.of(schema.cast(rows), schema), rows


def test_numbers_become_normal_scores() -> None:
    processor, rows = _processor()
    encoded = processor.encode_examples([{"row": r} for r in rows])
    inputs, _ = processor.pad_encoded(encoded)
    assert inputs["numbers"].shape == (50, 3) and inputs["categories"].shape == (50, 2)
    a = inputs["numbers"][:, 0].double().numpy()
    assert np.array_equal(a.argsort(), np.argsort([r["a"] for r in rows]))
    assert abs(a.mean()) < 0.05 and a.std() == pytest.approx(1, abs=0.1)
    assert (inputs["seen"][:, 1] == 0).sum() == 10 and (inputs["numbers"][::5, 1] == 0).all()
    assert len(set(inputs["numbers"][:, 2].tolist())) == 5  # ties share a score
    far = processor.encode_examples([{"row": {"a": 1e9, "b": 0, "c": 0, "city": "w", "id": "id 3"}}])[0]
    assert far["numbers"][0] == pytest.approx(a.max()) and far["categories"][0] == 1
    assert far["categories"][1] > 1 and processor.sizes == (5, 12)  # ten ids stand in two rows


def test_processor_as_json() -> None:
    processor = _processor()[0]
    fields = json.loads(json.dumps(asdict(processor)))
    assert TableProcessor.from_fields(fields) == processor
    assert len(processor.encode_examples(processor.samples(3))) == 3
    with pytest.raises(DataError, match="an example of a table"):
        processor.encode_examples([{"text": "a"}])


def test_learning_a_planted_rule_and_seeds() -> None:
    drawn = np.random.default_rng(0)
    x = drawn.normal(size=(300, 3))
    rows = [{"a": float(a), "b": float(b), "c": float(c)} for a, b, c in x]
    y = 100 + 7 * x[:, 0] * np.sign(x[:, 1])
    options = {"width": 16, "depth": 1, "heads": 2, "epochs": 20, "batch": 32, "lr": 5e-3, "dropout": 0.0}
    made = learn(rows, y, None, Schema.of(rows), seed=3, **options)
    given, _ = made.processor.pad_encoded(made.encode([{"row": r} for r in rows]))
    with torch.no_grad():
        found = made.model(**given).prediction.double().numpy() * made.model.config.target_units[1] + 100
    assert np.corrcoef(found, y)[0, 1] > 0.9
    same, other = (learn(rows, y, None, Schema.of(rows), seed=s, **{**options, "epochs": 1}) for s in (3, 4))
    again = learn(rows, y, None, Schema.of(rows), seed=3, **{**options, "epochs": 1})
    assert torch.equal(same.model.out.weight, again.model.out.weight)
    assert not torch.equal(same.model.out.weight, other.model.out.weight)


def test_rows_held_back() -> None:
    y = np.array([0] * 90 + [1] * 9 + [2])
    kept, held = hold(y, 3, seed=0)
    assert sorted(kept + held) == list(range(100)) and set(y[kept]) == {0, 1, 2} and set(y[held]) == {0, 1}
    with pytest.raises(DataError, match="2 rows and 1 targets"):
        learn([{"a": 1}, {"a": 3}], np.zeros(1), None, Schema.of([{"a": 3}]))
    with pytest.raises(ModelError):
        anatomy.surgery.keep_width(_model(), range(8))
