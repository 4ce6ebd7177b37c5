"""A graph of which one row is read computes that row alone in its last block, and says the same at every shape."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as tf

pytest.importorskip("openvino")

import runner_models as world

from lightformers import export, runners
from lightformers.bundle import Bundle, Pooling
from lightformers.runners import openvino_graph, openvino_narrow
from lightformers.steps import Deploy

CLASSIFIERS = ("bert-classifier", "roberta-classifier", "distilbert-classifier")


def compiled(model: Any) -> Any:
    import openvino

    return openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})


def products(model: Any) -> int:
    """Matrix products of which every row is computed: their length moves."""
    shapes = [
        o.output(0).get_partial_shape() for o in model.get_ordered_ops() if o.get_type_name() == "MatMul"
    ]
    return sum(len(s) == 3 and s[1].is_dynamic for s in shapes)


def agree(whole: Any, narrow: Any, batches: list[dict[str, np.ndarray]]) -> None:
    one, other = compiled(whole), compiled(narrow)
    for batch in batches:
        assert np.abs(one(batch)[0] - other(batch)[0]).max() < 1e-5


def batches(bundle: Bundle) -> list[dict[str, np.ndarray]]:
    texts = world.texts(12)
    return [
        {k: v.numpy() for k, v in bundle.collate(texts[a:b]).inputs.items()}
        for a, b in ((0, 3), (4, 5), (2, 12))
    ]


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_classifiers_by_their_first_token(name: str) -> None:
    bundle = world.bundle(name)
    whole, narrow = (openvino_graph.convert(bundle) for _ in range(2))
    openvino_narrow.narrowed(narrow)
    # of two blocks' six products each, the last one's query, output and feed-forward are left out
    assert products(whole) - products(narrow) == 4
    names = {p.get_any_name() for p in whole.inputs}
    agree(whole, narrow, [{k: v for k, v in b.items() if k in names} for b in batches(bundle)])


def test_first_vectors_and_last_ones() -> None:
    bundle = world.bundle("bert")
    bundle.pooling = Pooling("cls")
    whole, narrow = (openvino_graph.convert(bundle) for _ in range(2))
    assert products(openvino_narrow.narrowed(narrow)) == products(whole) - 4
    agree(whole, narrow, batches(bundle))

    class Last(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = world.bundle("llama").model.model
            self.config = self.model.config

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"logits": self.model(input_ids, attention_mask, use_cache=False).last_hidden_state[:, -1]}

    decoder = Bundle(Last(), world.WordTokenizer(), None, max_length=24)
    whole, narrow = (openvino_graph.convert(decoder) for _ in range(2))
    assert products(openvino_narrow.narrowed(narrow)) < products(whole)
    agree(whole, narrow, batches(decoder))


def test_the_last_query_of_causal_attention_still_sees_all_keys() -> None:
    import openvino

    class Causal(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.up = (torch.nn.Linear(8, 8) for _ in range(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            rows, length, _ = x.shape
            q, k, v = (t.view(rows, length, 2, 4).transpose(1, 2) for t in (self.q(x), self.k(x), x))
            mixed = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            return self.up(mixed.transpose(1, 2).reshape(rows, length, 8))[:, -1]

    torch.manual_seed(0)
    module, x = Causal().eval(), torch.randn(2, 5, 8)
    with torch.no_grad():
        wanted = module(x).numpy()
        model = openvino.convert_model(module, example_input=x, input=[-1, -1, 8])
    attention = [op for op in model.get_ordered_ops() if op.get_type_name() == "ScaledDotProductAttention"]
    assert attention and attention[0].get_attributes()["causal"]
    assert np.abs(compiled(openvino_narrow.narrowed(model))(x.numpy())[0] - wanted).max() < 1e-5


def test_images() -> None:
    torch.manual_seed(0)
    config = tf.ViTConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, image_size=16,
                          patch_size=4, num_labels=3, initializer_range=0.2)  # fmt: skip
    processor = tf.ViTImageProcessorPil(size={"height": 16, "width": 16})
    bundle = Bundle(tf.ViTForImageClassification(config).eval(), processor, "image-classification")
    rng = np.random.default_rng(0)
    examples = [{"image": rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)} for _ in range(5)]
    whole, narrow = (openvino_graph.convert(bundle, examples) for _ in range(2))
    openvino_narrow.narrowed(narrow)
    rows = [
        [op.output(0).get_partial_shape()[1].to_string() for op in m.get_ordered_ops() if op.get_type_name() == "MatMul"
         and len(op.output(0).get_partial_shape()) == 3] for m in (whole, narrow)
    ]  # fmt: skip
    assert rows[0].count("17") - rows[1].count("17") == 4 == rows[1].count("1")
    agree(
        whole,
        narrow,
        [{"pixel_values": bundle.collate(examples[:n]).inputs["pixel_values"].numpy()} for n in (1, 5)],
    )


@pytest.mark.parametrize("name", ["bert", "gpt2-classifier"])
def test_where_all_rows_are_read_nothing_changes(name: str) -> None:
    bundle = world.bundle(name)
    whole, same = (openvino_graph.convert(bundle) for _ in range(2))
    openvino_narrow.narrowed(same)
    assert [o.get_type_name() for o in whole.get_ordered_ops()] == [
        o.get_type_name() for o in same.get_ordered_ops()
    ]


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_as_exported(precision: Any, tmp_path: Path) -> None:
    """By transformers' exporter, whose reshapes read their sizes from the graph."""
    bundle, texts = world.bundle("distilbert-classifier"), world.texts(12)
    found = {}
    for narrow in (True, False):
        deploy = Deploy("openvino", precision, "sorted", 5, narrow=narrow)
        export.save_openvino(bundle, deploy, tmp_path / str(narrow), texts)
        runner: Any = runners.openvino_folder(tmp_path / str(narrow) / "openvino", bundle)
        found[narrow] = np.stack(
            runner(texts, lambda outputs, batch: list(outputs["logits"].float().numpy()))
        )
        assert (products(runner.model) == 12) is not narrow
        runner.close()
    rounding = 0.05 if precision == "int8" else 1e-5
    assert np.abs(found[True] - found[False]).max() < rounding * np.abs(found[False]).max()


def test_after_quantization_and_by_the_deploy() -> None:
    pytest.importorskip("nncf")
    bundle = world.bundle("bert-classifier")
    texts = world.texts(12)
    found = {}
    for narrow in (True, False):
        runner: Any = runners.build(bundle, Deploy("openvino", "int8", "sorted", 5, narrow=narrow), texts)
        found[narrow] = np.stack(
            runner(texts, lambda outputs, batch: list(outputs["logits"].float().numpy()))
        )
        assert (products(runner.model) == 12) is not narrow
        runner.close()
    assert np.abs(found[True] - found[False]).max() < 0.05 * np.abs(found[False]).max()
