"""Training scripts, the tables of methods and the targets of compression, on what is tiny."""

from __future__ import annotations

import gzip
import json
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent / "benchmarks"), str(HERE / "compare")]

import compare_methods  # noqa: E402
import compare_world  # noqa: E402
import compression  # noqa: E402
import memory_claim  # noqa: E402
import train_small_gpt  # noqa: E402
import train_small_vit  # noqa: E402
import training  # noqa: E402

import lightformers as lf  # noqa: E402
from lightformers import compress, runners, tasks  # noqa: E402
from lightformers.compare import advice  # noqa: E402
from lightformers.errors import UserError  # noqa: E402
from lightformers.steps import Deploy, Recipe  # noqa: E402


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """Three books of few words."""
    rng = random.Random(0)
    words = ["the", "ship", "went", "out", "to", "sea", "and", "came", "back", "with", "gold", "."]
    for name in ("a_book_1900", train_small_gpt.VALID, train_small_gpt.TEST):
        text = "\n\n".join(" ".join(rng.choices(words, k=30)) + "\nand on" for _ in range(60))
        (tmp_path / f"{name}.txt.gz").write_bytes(gzip.compress(text.encode()))
    return tmp_path


def test_a_small_decoder_learns_its_books_and_opens_in_transformers(
    library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "PARTS", 2)
    bundle, task = train_small_gpt.made(library, blocks=2, width=32, heads=2)
    assert [len(task.splits[s]) > 20 for s in ("train", "search", "verify")] == [True] * 3
    assert "and on" in task.splits["train"][0]["text"] and "\n\n" not in task.splits["train"][0]["text"]
    folder = training.train(
        bundle,
        task,
        library / "gpt",
        epochs=5.0,
        lr=1e-2,
        max_tokens=256,
        dropout=False,
        say=lambda text: None,
    )
    done = json.loads((folder / training.DONE).read_text())
    # untrained it is about the size of the vocabulary
    assert done["perplexity"]["verify"]["estimate"] < 0.1 * len(bundle.processor)
    again = lf.load(folder)
    assert again.task == "causal-lm" and again.max_length == train_small_gpt.LENGTH
    batch = bundle.collate([{"text": "the ship"}])
    torch.testing.assert_close(again.model(**batch.inputs).logits, bundle.model(**batch.inputs).logits)
    assert again.processor.decode(again.processor("the ship went")["input_ids"]) == "the ship went"


def test_a_small_vit_is_saved_with_its_image_processor(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = [
        {"image": (rng.integers(0, 60, (32, 32, 3)) + 120 * (i % 2)).astype(np.uint8), "label": "ab"[i % 2]}
        for i in range(80)
    ]
    task = tasks.from_data("image-classification", rows)
    bundle = train_small_vit.vit(task.labels, blocks=1, width=24, heads=2)
    task.check(bundle)
    folder = training.train(
        bundle, task, tmp_path / "vit", epochs=4.0, lr=3e-3, dropout=False, max_examples=16,
        augment=train_small_vit.turned, say=lambda text: None,
    )  # fmt: skip
    assert json.loads((folder / training.DONE).read_text())["accuracy"]["verify"]["estimate"] > 0.9
    again = lf.load(folder)
    assert again.task == "image-classification" and again.encode(rows[:1])[0]["pixel_values"].shape == (
        3,
        32,
        32,
    )
    batch = bundle.collate([{"image": r["image"]} for r in rows[:2]])
    torch.testing.assert_close(again.model(**batch.inputs).logits, bundle.model(**batch.inputs).logits)


def test_images_are_turned_by_their_seed() -> None:
    from lightformers.bundle import Batch

    pixels = torch.arange(16.0).reshape(4, 1, 2, 2)
    turned = train_small_vit.turned(Batch({"pixel_values": pixels.clone()}, {}), 1).inputs["pixel_values"]
    same = [torch.equal(a, b) for a, b in zip(turned, pixels)]
    assert any(same) and not all(same)
    for a, b, s in zip(turned, pixels, same):
        assert s or torch.equal(a, b.flip(-1))


def test_the_page_of_methods_is_made_of_reports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = compare_world.row
    made = compare_world.report(
        [row("poor", 0.7, 1e6, 2.0), row("good", 0.99, 2e6, 1.5, labels=True, sized=False),
         {"name": "left", "kind": "prune", "sized": True, "note": "", "state": "refused", "reason": "no | way"}]
    )  # fmt: skip
    made["machine"] = {"cpu": "Processor", "cores": {"usable": 2}}
    made["advice"] = advice.advice(made)
    monkeypatch.setattr(compare_methods, "HERE", tmp_path)
    page = tmp_path / "page.md"
    with pytest.raises(UserError, match="no comparison was made yet"):
        compare_methods.write_page(page)
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "compare-sst2.json").write_text(json.dumps(made))
    compare_methods.write_page(page)
    text = page.read_text()
    assert "## MiniLM, fine-tuned on SST-2" in text and "## A small vision" not in text
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(lines) == 5 and len({line.count(" | ") for line in lines}) == 1
    assert lines[3].startswith("| `good` (own size) (labels) | 0.990 [0.980, 1.000] |")
    assert "1.50 [1.40, 1.60]" in lines[3] and "`left`: no | way" in text
    assert compare_methods.parse(["--only", "gpt", "--only", "vit"]).only == ["gpt", "vit"]


def test_a_recipe_is_spread_over_a_deeper_model() -> None:
    bundle = compare_world.bundle(steps=1)
    steps = [
        compress.DropBlocks(blocks=(0, 3)), compress.PruneChannels(keep=0.5), compress.Recover(), compress.TrimVocabulary()
    ]  # fmt: skip
    spread = compression.scaled(steps, 4, 12)
    assert [type(s).__name__ for s in spread] == ["DropBlocks", "PruneChannels"]
    assert spread[0] == compress.DropBlocks(blocks=(0, 1, 2, 9, 10, 11))
    large = compression.base_model(bundle, blocks=12, width=64)
    small = Recipe(spread).apply(large)
    found = lf.anatomy.of(small.model)
    assert len(found.blocks) == 6 and found.blocks[0].feed_forward.width == 128
    assert len(lf.anatomy.of(large.model).blocks) == 12
    with pytest.raises(UserError, match="multiple"):
        compression.scaled(steps, 4, 10)


def test_a_cascade_asks_as_often_as_its_quantile_says() -> None:
    bundle = compare_world.bundle(steps=1)
    steps = [compress.DropBlocks(blocks=(0, 3)), compress.Recover(), compress.Cascade(0.9)]
    large = compression.base_model(bundle, blocks=12, width=64)
    small = Recipe(compression.scaled(steps, 4, 12)).apply(large)
    texts = compare_world.task().workload(24, seed=1)
    found = compression.sureness(small, Deploy(), texts[:4], texts)
    assert found.shape == (24,) and (found >= 0.5).all() and len(set(found)) > 1
    small.model.config.sure = float(np.quantile(found, 0.25))
    asked: list[int] = []
    small.model.second.register_forward_pre_hook(
        lambda module, given, named: asked.append(len(named["input_ids"])), with_kwargs=True
    )
    runner = runners.build(small, Deploy())
    runner(texts, lambda outputs, batch: [0] * len(outputs["logits"]))
    assert sum(asked) == 6


def test_methods_that_are_not_measured_again_keep_their_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = {"name": "obert", "limit": 1.0, "error": None, "peak": 0.5, "sizes": 1.0, "reached": True}
    out = tmp_path / "compression.json"
    out.write_text(
        json.dumps(
            {"rows": [{"row": "memory", "rows": [held, held | {"name": "low-rank", "reached": False}]}]}
        )
    )
    new = {
        "shape": {},
        "bytes": 1,
        "imports": 1,
        "model": 1,
        "rows": [held | {"name": "low-rank", "peak": 0.7}],
    }
    monkeypatch.setattr(memory_claim, "claim", lambda names, say: new)
    row = compression.memory(
        compression.parse(["--rows", "memory", "--methods", "low-rank", "--out", str(out)])
    )
    assert [(r["name"], r["peak"]) for r in row["rows"]] == [("low-rank", 0.7), ("obert", 0.5)] and row[
        "reached"
    ]


def test_the_rival_runs_in_the_same_batches() -> None:
    mine = Deploy("openvino", "bf16", "sorted", 64, 4096, threads=1, streams=2)
    rival = compression.rival_of(mine)
    assert (rival.precision, rival.calibration) == ("int8", compression.CALIBRATION)
    assert mine.narrow and not rival.narrow  # the careful user's graph is as it was converted
    same = ("runtime", "batching", "batch_size", "max_tokens", "threads", "streams")
    assert all(getattr(rival, f) == getattr(mine, f) for f in same)


def duel_row(name: str, estimate: float, reached: bool, **more: Any) -> dict[str, Any]:
    faster = {"estimate": estimate, "low": estimate - 0.1, "high": estimate + 0.1}
    return {
        "row": name, "wanted": 2.0, "faster": faster, "throughput": 10.0, "rival": 5.0, "steps": ["DropBlocks"],
        "deploy": "openvino int8", "reached": reached, **more,
    }  # fmt: skip


def test_rows_are_replaced_said_and_shown() -> None:
    memory = {
        "row": "memory", "reached": False, "bytes": 4e8, "imports": 3e8, "model": 5e8, "shape": {},
        "rows": [{"name": "obert", "limit": 1.2e9, "error": None, "peak": 1.3e9, "sizes": 3.25, "reached": False},
                 {"name": "low-rank", "limit": 1.2e9, "error": "broke", "peak": None, "reached": False}],
    }  # fmt: skip
    verdict = {"ratio": {"bound": 0.9912}, "sentence": "Proven here."}
    old = {"rows": [duel_row("base", 1.0, False), memory]}
    rows = compression.merged(
        old, [duel_row("sst2", 2.2, True, verdict=verdict, floor=0.99), duel_row("base", 1.9, False)]
    )
    assert [r["row"] for r in rows] == ["sst2", "base", "memory"] and rows[1]["faster"]["estimate"] == 1.9
    assert "2.20 [2.10, 2.30] times as fast" in compression.line(rows[0])
    assert "proven 0.9912 of 0.99: reached" in compression.line(rows[0])
    assert compression.line(rows[2]) == "memory: NOT reached (over the limit: obert, low-rank)"
    machine = {"cpu": "Processor", "cores": {"usable": 2}}
    page = compression.markdown({"machine": machine, "created": "today", "rows": rows})
    assert "| obert | 1,300 MB | 3.25 | 1,200 MB | over |" in page and "| low-rank | failed | – |" in page
    assert page.count("| sst2 |") == 1 and "sst2: Proven here." in page


def test_arguments_of_compression(capsys: pytest.CaptureFixture[str]) -> None:
    assert compression.parse([]).rows == list(compression.ROWS)
    with pytest.raises(SystemExit):
        compression.parse(["--slim", "somewhere"])
    assert "which with --rows" in capsys.readouterr().err


TINY = {"blocks": 2, "width": 32, "heads": 4, "vocabulary": 100, "length": 12}


@pytest.mark.parametrize("name", memory_claim.METHODS)
def test_what_is_weighed_is_the_method_itself(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    real = Recipe.apply

    def watched(self: Recipe, bundle: Any, task: Any, run: Any) -> Any:
        seen.append(real(self, bundle, task, run))
        return seen[-1]

    monkeypatch.setattr(Recipe, "apply", watched)
    memory_claim.child(name, TINY)
    (made,) = seen
    assert torch.isfinite(made.model(input_ids=torch.ones(1, 4, dtype=torch.long)).logits).all()
    assert memory_claim.statistics(name, TINY) >= 0


def test_a_bert_base_has_its_110_million_parameters() -> None:
    with torch.device("meta"):
        assert 109e6 < memory_claim.model(memory_claim.BASE).parameters < 110e6
    # one layer's second moments, and obert's inverse blocks of 50
    assert memory_claim.statistics("low-rank", memory_claim.BASE) == 4 * 3072**2
    assert memory_claim.statistics("obert", memory_claim.BASE) == 4 * 50 * 3072 * 768


@pytest.mark.slow
def test_peaks_of_fresh_processes() -> None:
    found = memory_claim.claim(TINY, ("drop-blocks", "llm-fp4"), say=lambda text: None)
    assert found["imports"] > 1e8 and {r["name"] for r in found["rows"]} == {"drop-blocks", "llm-fp4"}
    assert all(r["error"] is None and r["peak"] > 0 for r in found["rows"])
