import gc
import subprocess
import sys
import weakref

import numpy as np
import pytest
import torch
from runner_models import bundle, per_example, texts

from lightformers.errors import UserError
from lightformers.runners import build, openvino_folder
from lightformers.steps import Deploy

FAMILIES = [
    "bert",
    "bert-classifier",
    "roberta",
    "distilbert-classifier",
    "electra",
    "gpt2",
    "llama",
    "mpnet",
    "t5",
]


def _cosines(a, b):
    return [float(np.dot(x, y) / np.linalg.norm(x) / np.linalg.norm(y)) for x, y in zip(a, b)]


def _eager(mine, examples):
    """Each example alone, straight through the model."""
    out = []
    with torch.inference_mode():
        for e in examples:
            batch = mine.collate([e])
            values = mine.module()(**batch.inputs)
            out += per_example({"x": values.get("embedding", values.get("logits"))}, batch)
    return out


@pytest.mark.parametrize("batching", ["padded", "sorted"])
@pytest.mark.parametrize("name", ["bert", "bert-classifier", "gpt2"])
def test_torch_equals_one_by_one_in_the_given_order(name, batching):
    mine = bundle(name)
    runner = build(mine, Deploy(batching=batching, batch_size=4, max_tokens=40))
    for got, expected in zip(runner(texts(), per_example), _eager(mine, texts())):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_reduce_sees_the_examples_of_its_rows():
    rows = build(bundle(), Deploy(batching="sorted", batch_size=3))(
        texts(), lambda outputs, batch: [e["row"] for e in batch.targets["examples"]]
    )
    assert rows == list(range(13))


def test_tokenization_is_one_call():
    mine = bundle()
    build(mine, Deploy(batch_size=2))(texts(), per_example)
    assert mine.processor.calls == 1


@pytest.mark.parametrize(("precision", "least"), [("bf16", 0.99), ("int8", 0.97)])
def test_torch_low_precision_is_close(precision, least):
    mine = bundle()
    got = build(mine, Deploy(precision=precision, batching="sorted"))(texts(), per_example)
    cosines = _cosines(got, _eager(mine, texts()))
    assert least < min(cosines)
    assert min(cosines) < 1 - 1e-9  # it really ran in another precision


def test_torch_puts_mode_and_threads_back():
    mine = bundle()
    mine.model.train()
    before = torch.get_num_threads()
    seen = []
    build(mine, Deploy(threads=1))(texts(2), lambda o, b: [seen.append(torch.get_num_threads())] * 2)
    assert seen == [1] and torch.get_num_threads() == before
    assert mine.model.training and mine.model.encoder.training


@pytest.mark.parametrize("name", FAMILIES)
def test_openvino_equals_torch(name):
    pytest.importorskip("openvino")
    mine = bundle(name)
    runner = build(mine, Deploy("openvino", batching="sorted", batch_size=4))
    expected = build(mine, Deploy(batch_size=4))(texts(), per_example)
    for got, old in zip(runner(texts(), per_example), expected):
        np.testing.assert_allclose(got, old, rtol=1e-3, atol=5e-5)
    runner.close()


@pytest.mark.parametrize(
    "deploy",
    [
        Deploy("openvino", "bf16", "sorted", max_tokens=30, batch_size=64),
        Deploy("openvino", "int8", "sorted", streams=2, batch_size=3),
        Deploy("openvino", "int8-weights", "sorted", threads=1),
    ],
    ids=lambda d: d.precision,
)
def test_openvino_low_precision_is_close(deploy):
    pytest.importorskip("nncf")
    mine = bundle()
    runner = build(mine, deploy, calibration=texts())
    assert min(_cosines(runner(texts(), per_example), _eager(mine, texts()))) > 0.95
    runner.close()


def test_int8_never_pads_to_the_head_size():
    """OpenVINO 2026.4 computes wrong attention there (see awkward_lengths)."""
    pytest.importorskip("nncf")
    mine = bundle()  # heads of size 8
    runner = build(mine, Deploy("openvino", "int8", batch_size=1), calibration=texts())
    assert runner.awkward == {8} and runner.padded_length(8) == 9 and runner.padded_length(7) == 7
    widths = []
    runner(texts(), lambda o, b: [widths.append(b.inputs["input_ids"].shape[1])])
    assert 8 not in widths and 9 in widths  # "6 words" + 2 came as 8


def test_openvino_errors_in_reduce_leave_the_runner_usable():
    pytest.importorskip("openvino")
    mine = bundle()
    runner = build(mine, Deploy("openvino", batch_size=2, streams=2))

    def fails(outputs, batch):
        raise RuntimeError("no")

    for _ in range(5):  # each time other requests are under way when the error comes
        with pytest.raises(RuntimeError, match=r"^no$"):
            runner(texts(), fails)
    assert len(runner(texts(), per_example)) == 13


def test_openvino_folder_runs_an_exported_graph(tmp_path):
    ov = pytest.importorskip("openvino")
    from lightformers.runners.openvino_graph import convert

    mine = bundle()
    with pytest.raises(UserError, match="0 OpenVINO graphs"):
        openvino_folder(tmp_path, mine)
    ov.save_model(convert(mine), str(tmp_path / "openvino_model.xml"), compress_to_fp16=False)
    got = openvino_folder(tmp_path, mine, Deploy("openvino"))(texts(), per_example)
    np.testing.assert_allclose(got, _eager(mine, texts()), rtol=1e-3, atol=2e-5)


def test_onnxruntime_equals_torch():
    pytest.importorskip("onnxruntime")
    mine = bundle("bert-classifier")
    expected = _eager(mine, texts())
    got = build(mine, Deploy("onnxruntime", batching="sorted", batch_size=5))(texts(), per_example)
    np.testing.assert_allclose(got, expected, rtol=1e-3, atol=2e-5)


@pytest.mark.slow
def test_onnxruntime_int8_is_close():
    pytest.importorskip("onnxruntime")
    mine = bundle()
    got = build(mine, Deploy("onnxruntime", "int8", "sorted"))(texts(), per_example)
    assert min(_cosines(got, _eager(mine, texts()))) > 0.95


def test_int8_without_calibration_says_what_to_do():
    with pytest.raises(UserError, match="needs calibration examples"):
        build(bundle(), Deploy("openvino", "int8"))


def test_nothing_is_posted_or_printed():
    pytest.importorskip("nncf")
    code = (
        "import sys, socket; sys.path.insert(0, 'tests/runners')\n"
        "def refuse(*a, **k): raise SystemExit('a connection was opened')\n"
        "socket.socket.connect = refuse; socket.getaddrinfo = refuse\n"
        "from runner_models import bundle, texts, per_example\n"
        "from lightformers.runners import build\n"
        "from lightformers.steps import Deploy\n"
        "r = build(bundle(), Deploy('openvino', 'int8', 'sorted'), calibration=texts())\n"
        "assert len(r(texts(), per_example)) == 13\n"
        "assert sys.modules['openvino_telemetry'] is None\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_closing_frees_the_requests():
    pytest.importorskip("openvino")
    runner = build(bundle(), Deploy("openvino", batch_size=2, streams=2))
    runner(texts(), per_example)
    kept = [weakref.ref(r) for r in runner.requests]
    runner.close()
    gc.collect()
    assert [r() for r in kept] == [None] * 3
