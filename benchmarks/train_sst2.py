"""Train the SST-2 classifier that `slim_vs_peers.py` slims: all-MiniLM-L6-v2 with a new head of two classes.

    python benchmarks/train_sst2.py [--out out/sst2-minilm] [--epochs 4] [--seconds 540] [--seed 0]

About five minutes on two idle cores with AMX, never more than `--seconds`. Killed at any moment, the same command goes
on from the last tenth; a finished folder is left as it is. Nothing of the test split is looked at before the end.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightformers import export, reproduce, runners, tasks
from lightformers.bundle import Bundle
from lightformers.compress.distill.common import precision
from lightformers.errors import Interrupted, UserError
from lightformers.files import read_json, write_json
from lightformers.loading import packaged_model
from lightformers.runners.named import named
from lightformers.stats import interval
from lightformers.steps import Deploy, Run
from lightformers.telemetry import quiet, silence
from lightformers.train import Feed, Settings, TrainState, fit

PARTS = 10  # the training is saved after each
DONE = "training.json"
FOLDER = Path("out") / "sst2-minilm"


def classifier(source: Path, seed: int = 0) -> Bundle:
    """The packaged model with a new head; its weights are drawn from `seed`."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    torch.manual_seed(seed)
    names = {0: "negative", 1: "positive"}
    with quiet():
        model = AutoModelForSequenceClassification.from_pretrained(
            source, id2label=names, label2id={v: k for k, v in names.items()}
        )
        tokenizer = AutoTokenizer.from_pretrained(source)
    return Bundle(model, tokenizer, "text-classification", max_length=128)


def sst2(bundle: Bundle | None = None) -> Any:
    """The task: the original train, dev (search) and test (verify) splits of whole sentences."""
    return tasks.from_data(
        "text-classification", reproduce.data("sst2"), text="text", label="label", bundle=bundle
    )


def train(
    bundle: Bundle, task: Any, folder: Path, *, epochs: float = 4.0, seconds: float = 540.0, lr: float = 8e-5,
    seed: int = 0, say: Callable[[str], None] = print,
) -> Path:  # fmt: skip
    """Train `bundle` on the task's labels and write a plain Hugging Face folder.

    Goes on from `<folder>-training` where an earlier call was stopped; raises UserError if that was begun otherwise.
    """
    feed = Feed.of(bundle, task.training_examples(True), max_tokens=2048, max_examples=32, seed=seed)
    plan = {"epochs": epochs, "seconds": seconds, "lr": lr, "seed": seed, "data": task.fingerprint}
    work = folder.with_name(f"{folder.name}-training")
    state = resume(work, plan)
    for part in range(1, PARTS + 1):
        settings = Settings(
            seconds=seconds, tokens=max(int(epochs * feed.lengths.sum()), 1), until=part / PARTS, lr=lr, warmup=0.1,
            precision=precision(Run()), dropout=True, seed=seed,
        )  # fmt: skip
        result = fit(
            bundle.model, feed, lambda m, b: task.loss(named(m(**b.inputs)), b), settings, state=state
        )
        state = result.state
        state.save(work / "state")
        if result.losses:
            say(
                f"{10 * part} %: {result.steps} updates, loss {result.loss:.3f}, {result.seconds:.0f} s of training"
            )
    bundle.model.eval()
    scores = {name: score(bundle, task, name) for name in ("search", "verify")}
    export.save(bundle, folder)
    write_json(
        folder / DONE, {**plan, "updates": state.step, "seconds_used": state.seconds, "accuracy": scores}
    )
    shutil.rmtree(work, ignore_errors=True)
    found = scores["verify"]
    say(
        f"accuracy on test: {found['estimate']:.4f} [{found['low']:.4f}, {found['high']:.4f}]; saved in {folder}"
    )
    return folder


def resume(work: Path, plan: dict[str, Any]) -> TrainState | None:
    """The state of an earlier, stopped call with the same plan, or None."""
    noted = work / "plan.json"
    if not noted.is_file():
        write_json(noted, plan)
        return None
    if read_json(noted) != plan:
        raise UserError(f"{work} holds a training begun with other settings or data: delete it to start anew")
    return TrainState.load(work / "state") if (work / "state").is_dir() else None


def score(bundle: Bundle, task: Any, split: str) -> dict[str, float]:
    runner = runners.build(bundle, Deploy(batching="sorted", batch_size=64))
    return vars(interval(task.evaluate(runner, split)))


def ready(folder: Path, say: Callable[[str], None] = print, **settings: Any) -> Path:
    """The finished folder, trained first where it is not there yet."""
    if (folder / DONE).is_file():
        say(f"the SST-2 classifier is there: {folder}")
        return folder
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} is there and is no finished training (no {DONE}): give another --out")
    say("training the SST-2 classifier: about five minutes on two idle cores")
    bundle = classifier(packaged_model(), settings.get("seed", 0))
    return train(bundle, sst2(bundle), folder, say=say, **settings)


def guarded(main: Callable[[], None]) -> int:
    """Run `main`; what a user can mend ends as one line on stderr and an exit status."""
    silence()
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.code
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return Interrupted.code
    return 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=FOLDER)
    parser.add_argument("--epochs", type=float, default=4.0)
    parser.add_argument("--seconds", type=float, default=540.0)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    ready(given.out, epochs=given.epochs, seconds=given.seconds, seed=given.seed)


if __name__ == "__main__":
    sys.exit(guarded(main))
