"""Every method on forecasters and on a model of tables: the result runs and is smaller, or the refusal says why."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import transformers

import lightformers as lf
from lightformers.bundle import Bundle
from lightformers.compress import weights
from lightformers.compress.methods import METHODS, Method
from lightformers.errors import UserError
from lightformers.runners.named import named
from lightformers.steps import Recipe, Run

HORIZON, CONTEXT, WIDTH = 12, 48, 32
#: Methods that train or search for seconds.
LONG = ("dsformer", "llm-fp4", "obert")


def _series() -> Any:
    drawn, rows = np.random.default_rng(0), np.arange(600)[:, None]
    values = np.sin(rows / 4 + np.arange(3)) + 0.3 * drawn.standard_normal((600, 3))
    return lf.tasks.Forecasting.from_values(values, horizon=HORIZON, context=CONTEXT)


def _table() -> Any:
    drawn = np.random.default_rng(0)
    rows = [
        {"a": float(a), "b": str(b), "c": float(c)}
        for a, b, c in zip(drawn.normal(size=500), drawn.choice(list("xyz"), 500), drawn.normal(size=500))
    ]
    return lf.tasks.TabularClassification.from_examples(
        [{"row": r, "label": "up" if r["a"] > 0 else "down"} for r in rows]
    )


def _patchtst() -> tuple[Bundle, Any]:
    config = transformers.PatchTSTConfig(
        context_length=CONTEXT, prediction_length=HORIZON, num_input_channels=3, patch_length=8, patch_stride=8, scaling="std",
        d_model=WIDTH, num_attention_heads=4, ffn_dim=3 * WIDTH, num_hidden_layers=4, norm_type="layernorm",
    )  # fmt: skip
    bundle, task = Bundle(transformers.PatchTSTForPrediction(config).eval(), None, "forecasting"), _series()
    task.check(bundle)
    return bundle, task


def _itransformer() -> tuple[Bundle, Any]:
    task = _series()
    model = lf.create_model(
        "itransformer-etth1-96", context_length=CONTEXT, prediction_length=HORIZON, hidden_size=WIDTH,
        intermediate_size=3 * WIDTH, num_hidden_layers=4, num_time_features=0,
    )  # fmt: skip
    bundle = Bundle(model.eval(), None, "forecasting")
    task.check(bundle)
    return bundle, task


def _rows() -> tuple[Bundle, Any]:
    pytest.importorskip("sklearn", reason="needs scikit-learn, the extra [tabular]")
    task = _table()
    train = task.splits["train"]
    made = lf.tabular.Classifier(
        "ft-transformer", options={"width": WIDTH, "depth": 4, "heads": 4, "epochs": 1}, random_state=0
    ).fit([e["row"] for e in train], [task.labels[e["label"]] for e in train])
    bundle = made.to_bundle()
    task.check(bundle)
    return bundle, task


MODELS = {"patchtst": _patchtst, "itransformer": _itransformer, "ft-transformer": _rows}


@pytest.fixture(scope="module")
def worlds() -> dict[str, tuple[Bundle, Any]]:
    torch.manual_seed(0)
    return {name: make() for name, make in MODELS.items()}


def _cases() -> list[Any]:
    marks = {m.name: [pytest.mark.slow] * (m.needs_training or m.name in LONG) for m in METHODS}
    return [pytest.param(m, w, id=f"{m.name}-{w}", marks=marks[m.name]) for m in METHODS for w in MODELS]


@pytest.mark.parametrize(("method", "world"), _cases())
def test_method_on_model(method: Method, world: str, worlds: dict[str, tuple[Bundle, Any]]) -> None:
    bundle, task = worlds[world]
    if reason := method.refuses(bundle):
        assert len(reason.split()) > 3
        return
    before = {k: v.clone() for k, v in bundle.model.state_dict().items()}
    try:
        steps = method.make(0.6, bundle)
        made = Recipe(list(steps)).apply(
            bundle, task, Run(seconds=0.3, dtype="fp32", use_labels=method.needs_labels)
        )
    except UserError as error:
        assert len(str(error).split()) > 5
    else:
        found = named(made.module()(**made.collate(task.workload(4)).inputs))
        assert all(torch.isfinite(v).all() for v in found.values())
        if method.sized:
            assert weights.block_bytes(made.model) < weights.block_bytes(bundle.model)
    after = bundle.model.state_dict()
    assert all(torch.equal(v, after[k]) for k, v in before.items())
