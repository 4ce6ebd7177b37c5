"""What the training scripts share: a training in tenths that goes on where it was stopped, and a folder that is reused."""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightformers import export, runners
from lightformers.bundle import Batch, Bundle
from lightformers.compress.distill.common import precision
from lightformers.errors import Interrupted, UserError
from lightformers.files import read_json, write_json
from lightformers.runners.named import named, plain_arguments
from lightformers.stats import interval
from lightformers.steps import Deploy, Run
from lightformers.telemetry import silence
from lightformers.train import Feed, Settings, TrainState, fit

PARTS = 10  # the training is saved after each
DONE = "training.json"
Say = Callable[[str], None]


def train(
    bundle: Bundle, task: Any, folder: Path, *, epochs: float = 4.0, seconds: float = 540.0, lr: float = 8e-5,
    seed: int = 0, say: Say = print, max_tokens: int = 2048, max_examples: int = 32, dropout: bool = True,
    augment: Callable[[Batch, int], Batch] | None = None,
) -> Path:  # fmt: skip
    """Train `bundle` on the task's own loss and write a plain Hugging Face folder.

    augment: (batch, seed) -> batch, for images that are turned over. Goes on from `<folder>-training` where an earlier
    call was stopped; raises UserError if that was begun otherwise.
    """
    feed = Feed.of(
        bundle, task.training_examples(True), max_tokens=max_tokens, max_examples=max_examples, seed=seed
    )
    if augment is not None:
        pad = feed.pad
        feed.pad = lambda items, number: augment(pad(items, number), number)
    arguments = plain_arguments(bundle.module())
    plan = {"epochs": epochs, "seconds": seconds, "lr": lr, "seed": seed, "data": task.fingerprint}
    work = folder.with_name(f"{folder.name}-training")
    state = resume(work, plan)
    for part in range(1, PARTS + 1):
        settings = Settings(
            seconds=seconds, tokens=max(int(epochs * feed.lengths.sum()), 1), until=part / PARTS, lr=lr, warmup=0.1,
            precision=precision(Run()), dropout=dropout, seed=seed,
        )  # fmt: skip
        result = fit(
            bundle.model,
            feed,
            lambda m, b: task.loss(named(m(**b.inputs, **arguments)), b),
            settings,
            state=state,
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
    metric = task.metric.name
    write_json(folder / DONE, {**plan, "updates": state.step, "seconds_used": state.seconds, metric: scores})
    shutil.rmtree(work, ignore_errors=True)
    found = scores["verify"]
    say(
        f"{metric} on test: {found['estimate']:.4f} [{found['low']:.4f}, {found['high']:.4f}]; saved in {folder}"
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
    """The metric on a split, with its interval."""
    runner = runners.build(bundle, Deploy(batching="sorted", batch_size=64))
    return vars(interval(task.evaluate(runner, split)))


def ready(
    folder: Path, what: str, make: Callable[[], tuple[Bundle, Any]], say: Say = print, **settings: Any
) -> Path:
    """The finished folder, trained first where it is not there yet. make: -> untrained bundle and task."""
    if (folder / DONE).is_file():
        say(f"{what} is there: {folder}")
        return folder
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} is there and is no finished training (no {DONE}): give another --out")
    say(f"training {what}: under ten minutes on two idle cores")
    bundle, task = make()
    return train(bundle, task, folder, say=say, **settings)


def options(description: str, folder: Path, epochs: float, seconds: float) -> argparse.Namespace:
    """The options that all training scripts take."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--out", type=Path, default=folder)
    parser.add_argument("--epochs", type=float, default=epochs)
    parser.add_argument("--seconds", type=float, default=seconds)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


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
