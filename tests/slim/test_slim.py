"""The whole run on a tiny classifier of planted data: dry runs, wrong input, and (slow) a kill and its resumption."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BartConfig,
    BartForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

import lightformers as lf
from lightformers.bundle import Bundle
from lightformers.cli import main
from lightformers.errors import DataError, UserError

WORDS = [f"word{i}" for i in range(60)]
GOOD, BAD = WORDS[:20], WORDS[20:40]


def examples(n: int, seed: int) -> list[dict]:
    """Texts whose label is whether good or bad words prevail: a model can learn it at once."""
    rng = random.Random(seed)
    out = []
    for i in range(n):
        label = i % 2
        marked = rng.choices(GOOD if label else BAD, k=4)
        other = rng.choices(WORDS[40:], k=rng.randint(2, 12))
        words = marked + other
        rng.shuffle(words)
        out.append({"text": " ".join(words) + f" word{rng.randint(40, 59)}", "label": label})
    return out


def tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {t: i for i, t in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS])}
    raw = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    raw.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])  # fmt: skip
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]", mask_token="[MASK]"
    )  # fmt: skip


def bert() -> BertForSequenceClassification:
    config = BertConfig(
        hidden_size=32, num_hidden_layers=4, num_attention_heads=2, intermediate_size=64, vocab_size=65,
        max_position_embeddings=64, num_labels=2, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return BertForSequenceClassification(config)


def bart() -> BartForSequenceClassification:
    config = BartConfig(
        d_model=32, encoder_layers=4, decoder_layers=3, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=64, decoder_ffn_dim=64, vocab_size=65, max_position_embeddings=64, dropout=0.0,
        id2label={0: "bad", 1: "good"}, label2id={"bad": 0, "good": 1},  # transformers forgets two labels without names
        pad_token_id=0, bos_token_id=2, eos_token_id=3, decoder_start_token_id=3,
    )  # fmt: skip
    return BartForSequenceClassification(config)


def classifier(train: list[dict], make: Callable[[], PreTrainedModel] = bert, steps: int = 60) -> Bundle:
    torch.manual_seed(0)
    bundle = Bundle(make(), tokenizer(), "text-classification", max_length=64)
    optimizer = torch.optim.Adam(bundle.model.parameters(), lr=2e-3)
    for step in range(steps):
        batch = bundle.collate(train[(step * 32) % len(train) :][:32])
        optimizer.zero_grad()
        logits = bundle.model(**batch.inputs).logits
        torch.nn.functional.cross_entropy(logits, batch.targets["label"]).backward()
        optimizer.step()
    bundle.model.eval()
    return bundle


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return made(tmp_path_factory.mktemp("world"), bert)


def made(folder: Path, make: Callable[[], PreTrainedModel]) -> tuple[Path, Path]:
    """A model folder and a jsonl file."""
    data = examples(900, 1)
    bundle = classifier(data, make)
    bundle.model.save_pretrained(folder / "model")
    bundle.processor.save_pretrained(folder / "model")
    (folder / "data.jsonl").write_text("\n".join(map(json.dumps, data)), encoding="utf-8")
    return folder / "model", folder / "data.jsonl"


def command(world: tuple[Path, Path], out: Path, *more: str) -> list[str]:
    model, data = world
    return [
        "slim",
        str(model),
        "--task",
        "text-classification",
        "--data",
        str(data),
        "--out",
        str(out),
        *more,
    ]


def run(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", ["lightformers", *arguments])
    with pytest.raises(SystemExit) as stop:
        main()
    return int(stop.value.code or 0)


def test_a_dry_run_says_what_it_will_try_and_leaves_nothing(world, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    code = run(command(world, out, "--dry-run", "--floor", "0.9"), monkeypatch)
    said = capsys.readouterr().out
    assert code == 0 and not out.exists()
    assert "will try" in said and "verification examples can resolve" in said


def test_a_floor_that_the_data_cannot_prove_is_said_before_hours_are_spent(world, tmp_path):
    bundle = lf.load(world[0])
    noisy = [{**e, "label": e["label"] if i % 4 else 1 - e["label"]} for i, e in enumerate(examples(400, 2))]
    task = lf.tasks.TextClassification.from_examples(noisy)
    result = lf.slim(bundle, task, floor=0.9999, dry_run=True, out=tmp_path / "out")
    assert not result.proven
    assert any("can hardly be proven" in line for line in result.report["preflight"]["plan"])


def test_too_little_data_is_an_error(world, tmp_path):
    task = lf.tasks.TextClassification.from_examples(examples(40, 3))
    with pytest.raises(DataError, match="at least 20"):
        lf.slim(lf.load(world[0]), task, out=tmp_path / "out", dry_run=True)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--floor", "1.5"], "--floor"),
        (["--budget", "soon"], "no time"),
        (["--lengths", "a:b"], "--lengths"),
        (["--text", "nosuch"], "nosuch"),
    ],
)
def test_wrong_options_end_in_one_line(world, tmp_path, monkeypatch, capsys, more, said):
    assert run(command(world, tmp_path / "out", "--dry-run", *more), monkeypatch) == 2
    captured = capsys.readouterr()
    assert said in captured.err and "Traceback" not in captured.err and not captured.out


def test_two_runs_cannot_share_a_folder(world, tmp_path):
    from filelock import FileLock

    (tmp_path / ".slim").mkdir()
    task = lf.tasks.TextClassification.from_examples(examples(400, 1))
    with FileLock(tmp_path / ".slim" / "lock"), pytest.raises(UserError, match="another run"):
        lf.slim(lf.load(world[0]), task, out=tmp_path, budget=60)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_resumed_proven_and_reloaded(world, tmp_path):
    out = tmp_path / "small"
    full = [sys.executable, "-m", "lightformers", *command(world, out, "--floor", "0.9", "--budget", "300s")]
    process = subprocess.Popen(full, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    database = out / ".slim" / "study.db"
    for _ in range(240):  # until some trials are in
        time.sleep(1)
        if database.is_file() and _trials(database) >= 3:
            break
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    before = _trials(database)
    assert before >= 3
    done = subprocess.run(full, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "resuming" in done.stderr
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert report["verdict"]["proven"] and report["verdict"]["ratio"]["bound"] >= 0.9
    assert all(row["ok"] for row in report["reload"]) and len(report["reload"]) >= 2
    assert {"report.html", "recipe.yaml", "config.json", "model.safetensors", "README.md"} <= {
        p.name for p in out.iterdir()
    }
    other = subprocess.run([*full, "--floor", "0.95"], capture_output=True, text=True)
    assert other.returncode == 2 and "--restart" in other.stderr
    recipe = lf.Recipe.from_yaml(out / "recipe.yaml")
    again = [sys.executable, "-m", "lightformers", "apply", str(out / "recipe.yaml"), *full[4:9]]
    replayed = subprocess.run(
        [*again, "--out", str(tmp_path / "again"), "--json"], capture_output=True, text=True
    )
    assert replayed.returncode == 0, replayed.stderr
    said = json.loads(replayed.stdout)
    assert [s["step"] for s in said["steps"]] == [type(s).__name__ for s in recipe.steps]
    assert said["parameters"] == lf.load(out).parameters


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("more", "wanted"),
    [
        (["--steps", "minitron,minilm,llm-int8", "--allow-custom"], {"minitron"}),
        (
            ["--steps", "obert,vtrans,bct,trim-vocabulary", "--allow-custom", "--goal", "size"],
            {"obert", "vtrans"},
        ),
    ],
)
def test_named_steps_are_searched_and_reload(world, tmp_path, more, wanted):
    out = tmp_path / "small"
    full = [
        sys.executable,
        "-m",
        "lightformers",
        *command(world, out, "--floor", "0.9", "--budget", "180s", *more),
    ]
    done = subprocess.run(full, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert report["verdict"]["proven"] and all(row["ok"] for row in report["reload"])
    tried = {t["name"].split()[0] for t in report["trials"] if t["state"] == "complete"}
    assert wanted <= tried
    assert wanted <= {
        t["name"].split()[0] for t in report["trials"] if t["rung"] > 0 and t["state"] == "complete"
    }


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_model_of_two_stacks_is_shortened(tmp_path):
    world, out = made(tmp_path, bart), tmp_path / "small"
    full = [sys.executable, "-m", "lightformers", *command(world, out, "--floor", "0.9", "--budget", "180s")]
    done = subprocess.run([*full, "--steps", "drop-blocks"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert report["verdict"]["proven"] and all(row["ok"] for row in report["reload"])
    assert {"6 blocks", "3 blocks"} <= {t["name"] for t in report["trials"] if t["state"] == "complete"}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_cut_in_front_of_the_original(world, tmp_path):
    out = tmp_path / "small"
    full = [sys.executable, "-m", "lightformers", *command(world, out, "--floor", "0.9", "--budget", "180s")]
    done = subprocess.run(
        [*full, "--allow-custom", "--steps", "drop-blocks,cascade"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "each in front of the original" in done.stderr
    assert "then the original, int8" in done.stderr  # among the finalists: run, scored and raced
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert report["verdict"]["proven"] and all(row["ok"] for row in report["reload"])


def _trials(database: Path) -> int:
    import sqlite3

    with sqlite3.connect(database) as connection:
        try:
            return connection.execute("select count(*) from slim_trials where state = 'complete'").fetchone()[
                0
            ]
        except sqlite3.OperationalError:
            return 0
