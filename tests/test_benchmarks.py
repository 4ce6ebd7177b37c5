"""The benchmark scripts: their arithmetic, their refusals, and a tiny training that is stopped and goes on."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import peers_page  # noqa: E402
import slim_vs_peers  # noqa: E402
import train_sst2  # noqa: E402

from lightformers import runners, tasks  # noqa: E402
from lightformers.bundle import Bundle  # noqa: E402
from lightformers.errors import UserError  # noqa: E402
from lightformers.steps import Deploy  # noqa: E402


def row(name: str, faster: float = 1.0, smaller: float = 1.0, error: str | None = None) -> dict:
    if error:
        return {"name": name, "error": error}
    return {
        "name": name, "error": None, "throughput": 480.0, "seconds": [1.0], "size_bytes": 23_000_000,
        "slim_faster": {"estimate": faster, "low": faster - 0.1, "high": faster + 0.1}, "slim_smaller": smaller,
        "quality": {"estimate": 0.5, "low": 0.48, "high": 0.52}, "quality_examples": 2000,
        "ratio": {"estimate": 0.99, "low": 0.98, "high": 1.0, "bound": 0.985},
    }  # fmt: skip


def slim(labels: bool = False, bound: float = 0.975, proven: bool = True, seconds: float = 500.0) -> dict:
    control = (
        {"ratio": {"estimate": 1.1, "low": 1.05, "high": 1.15}, "note": "same labels"} if labels else None
    )
    verdict = {"proven": proven, "ratio": {"bound": bound}, "sentence": "Said."}
    return {
        "use_labels": labels, "floor": 0.97, "seconds": seconds, "verdict": verdict, "control": control,
        "recipe": ["DropBlocks", "Recover"],
    }  # fmt: skip


def reached(rows: list[dict], facts: dict) -> list[bool]:
    return [t["reached"] for t in peers_page.targets(rows, facts)]


def test_targets_follow_the_figures_and_the_labels():
    rows = [row(peers_page.HONEST, 1.5), row(peers_page.ENCODE, 7.2), row(peers_page.EAGER, 9.0, 5.1)]
    assert reached(rows, slim()) == [True] * 5
    assert reached(rows, slim(labels=True)) == [False, True, True, False, True]  # 1.6 and 0.99 are asked then
    assert reached(rows, slim(proven=False))[3] is False
    assert reached(rows, slim(seconds=601))[4] is False
    lost = [row(peers_page.HONEST, error="no openvino"), *rows[1:]]
    first = peers_page.targets(lost, slim())[0]
    assert first["reached"] is False and first["got"] is None


def test_the_page_shows_every_row_and_what_must_be_read_beside():
    rows = [row("slim"), row(peers_page.HONEST, 1.5), row("a | b", error="cannot be built")]
    result = {
        "task": "retrieval", "created": "today", "rows": rows, "rounds": 5, "examples": 512, "deploy": "openvino int8",
        "machine": {"cpu": "A CPU", "cores": {"usable": 2}, "isa": {"avx2": True, "amx_int8": False}},
        "original": {"quality": {"estimate": 0.51, "low": 0.49, "high": 0.53}, "quality_examples": 7800},
        "slim": slim(labels=True), "targets": peers_page.targets(rows, slim(labels=True)),
    }  # fmt: skip
    page = peers_page.markdown(result)
    table = [line for line in page.splitlines() if line.startswith("|")]
    assert {line.replace("\\|", "").count("|") for line in table} == {len(peers_page.HEAD) + 1}
    assert "1.50 [1.40, 1.60]" in table[3] and "0.9900 (0.9850)" in table[3]
    assert "not run" in table[4] and "Not run: a | b: cannot be built" in page
    assert "avx2" in page and "amx_int8" not in page
    assert "Control (same labels): 1.1000 [1.0500, 1.1500]" in page
    assert (
        "NOT reached: times as fast as OpenVINO + NNCF int8, sorted: 1.5 (lower end 1.4); wanted 1.6." in page
    )
    assert "not measured; wanted 7." in page


def test_arguments(capsys):
    given = slim_vs_peers.parse(["--task", "sst2", "--labels", "--rounds", "2"])
    assert (given.task, given.labels, given.rounds, given.budget) == ("sst2", True, 2, 540)
    for wrong in (["--slim", "demo"], ["--rounds", "0"], ["--task", "weather"]):
        with pytest.raises(SystemExit):
            slim_vs_peers.parse(wrong)
    assert "which with --task" in capsys.readouterr().err


def test_a_folder_without_a_finished_result_is_refused_before_anything_is_trained(tmp_path, monkeypatch):
    monkeypatch.setattr(slim_vs_peers, "subject", lambda name: pytest.fail("went on"))
    given = slim_vs_peers.parse(["--task", "sst2", "--slim", str(tmp_path)])
    with pytest.raises(UserError, match="no finished result"):
        slim_vs_peers.benchmark("sst2", given)
    (tmp_path / "report.json").write_text("{}")
    assert slim_vs_peers.slimmed("sst2", [], given) == tmp_path


def test_slim_is_called_as_a_user_would_and_its_failure_is_said(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    called = tmp_path / "called.json"
    script = "import json, sys; json.dump(sys.argv[1:], open('called.json', 'w')); sys.exit(7)"
    monkeypatch.setattr(slim_vs_peers, "CLI", [sys.executable, "-c", script])
    given = slim_vs_peers.parse(["--task", "retrieval", "--labels", "--budget", "300"])
    with pytest.raises(UserError, match="status 7"):
        slim_vs_peers.slimmed("retrieval", ["demo"], given)
    out = str(Path("out", "slim-retrieval-labels-300s"))
    assert json.loads(called.read_text()) == [
        "demo", "--floor", "0.99", "--budget", "300s", "--out", out, "--use-labels",
    ]  # fmt: skip


class Words:
    """A tokenizer of words: ids by their letters."""

    pad_token_id = 1
    padding_side = "right"

    def __call__(self, texts, pairs=None, **options):
        rows = [[5] + [7 + sum(map(ord, w)) % 90 for w in t.split()] + [6] for t in texts]
        return {"input_ids": rows}

    def save_pretrained(self, folder):
        (Path(folder) / "words.txt").write_text("words")


def tiny() -> Bundle:
    import torch
    import transformers as tf

    torch.manual_seed(0)
    config = tf.BertConfig(
        vocab_size=100, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
        max_position_embeddings=64, pad_token_id=1, id2label={0: "negative", 1: "positive"},
    )  # fmt: skip
    return Bundle(tf.BertForSequenceClassification(config), Words(), "text-classification", max_length=32)


@pytest.fixture
def sentiment():
    rng = np.random.default_rng(0)
    rows = [
        {
            "text": " ".join([f"w{k} fine" if i % 2 else f"w{k} dull" for k in rng.integers(0, 500, 4)]),
            "label": i % 2,
        }
        for i in range(240)
    ]
    return tasks.TextClassification.from_examples(rows)


def test_both_orders_share_one_model_and_agree(sentiment):
    runner, size = slim_vs_peers.build(bundle := tiny(), Deploy(batch_size=4), sentiment)
    assert size > 4 * bundle.parameters
    halved, less = slim_vs_peers.build(bundle, Deploy(precision="bf16", batch_size=4), sentiment)
    assert 0.4 < less / size < 0.8
    other = slim_vs_peers.reordered(runner, "sorted")
    assert (runner.deploy.batching, other.deploy.batching) == ("padded", "sorted")
    assert other.module is runner.module
    load = sentiment.workload(30)
    logits = lambda outputs, batch: list(outputs["logits"].numpy())  # noqa: E731
    np.testing.assert_allclose(runner(load, logits), other(load, logits), atol=1e-5)
    halved.close()


def test_training_is_stopped_and_goes_on_and_is_reused(tmp_path, sentiment, monkeypatch):
    said: list[str] = []
    options = {"epochs": 6.0, "lr": 3e-3, "seconds": 60.0}
    whole = tiny()
    train_sst2.train(whole, sentiment, tmp_path / "whole", say=said.append, **options)
    runner = runners.build(whole)
    assert sentiment.evaluate(runner, "verify").value > 0.9
    assert any(line.startswith("100 %") for line in said)

    def stop(text: str) -> None:
        if text.startswith("40 %"):
            raise KeyboardInterrupt

    folder = tmp_path / "part"
    with pytest.raises(KeyboardInterrupt):
        train_sst2.train(tiny(), sentiment, folder, say=stop, **options)
    assert not folder.exists()
    with pytest.raises(UserError, match="other settings"):
        train_sst2.train(tiny(), sentiment, folder, say=stop, **options | {"epochs": 2.0})
    said.clear()
    resumed = tiny()
    train_sst2.train(resumed, sentiment, folder, say=said.append, **options)
    assert said[0].startswith("50 %")
    assert not (tmp_path / "part-training").exists()
    for a, b in zip(whole.model.parameters(), resumed.model.parameters()):
        np.testing.assert_allclose(a.detach().numpy(), b.detach().numpy(), atol=1e-5)
    done = json.loads((folder / train_sst2.DONE).read_text())
    assert done["accuracy"]["verify"]["estimate"] > 0.9
    assert train_sst2.ready(folder, say=said.append) == folder
    assert "is there" in said[-1]


def test_a_folder_that_holds_something_else_is_not_trained_into(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="another --out"):
        train_sst2.ready(tmp_path, say=lambda text: None)
