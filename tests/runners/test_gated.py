"""Gated feed-forwards in OpenVINO: not fused, since the fused kernel ends a process that has one thread a stream."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytest.importorskip("openvino", reason="needs OpenVINO, the extra [openvino]")

SCRIPT = """
import numpy as np
import torch
import lightformers as lf
from lightformers import runners
from lightformers.bundle import Bundle
from lightformers.runners import openvino_graph


class Numbers:
    pad_token_id, padding_side, is_fast = 0, "right", False

    def __call__(self, texts, pairs=None, **options):
        return {"input_ids": [[int(w) for w in t.split()] for t in texts]}


torch.manual_seed(0)
layers = [{"mixer": {"kind": "attention", "heads": 3}, "ffn": {"kind": "swiglu", "hidden": 512}}]
model = lf.create_model("transformer-3m", vocab_size=64, layers=layers).eval()
bundle = Bundle(model, Numbers(), "causal-lm", max_length=32)
examples = [{"text": " ".join(str(1 + (i * j) % 60) for i in range(20))} for j in range(1, 4)]
swishes = [n for n in openvino_graph.convert(bundle, examples).get_ops() if n.get_type_name() == "Swish"]
assert swishes and all(n.get_input_size() == 2 for n in swishes)
runner = runners.build(bundle, lf.Deploy("openvino", "bf16", "sorted", 8, threads=1), examples)
found = runner(examples, lambda outputs, batch: [np.asarray(row) for row in outputs["logits"]])
with torch.no_grad():
    right = model(input_ids=bundle.collate(examples).inputs["input_ids"]).logits.numpy()
assert np.abs(np.stack(found) - right).max() < 0.03 * np.abs(right).max()
print("done")
"""


def test_a_gated_feed_forward_runs_on_one_thread() -> None:
    made = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=300)
    assert made.returncode == 0 and made.stdout.endswith("done\n"), made.stderr[-2000:]
