"""A training from text to a model folder: in parts that are saved, validated and gone on from."""

from __future__ import annotations

import dataclasses
import math
import shutil
import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightformers.bundle import Batch, Bundle
from lightformers.errors import UserError
from lightformers.files import read_json, write_json
from lightformers.pretrain.corpus import Corpus, Windows, in_order, prepare
from lightformers.train import Settings, TrainState, fit
from lightformers.train.schedules import Schedule

PARTS = 20  # the training is saved and validated after each
VALIDATED = 128  # windows that a validation looks at; the last one looks at all
LOGITS = 1 << 26  # numbers that the logits of a batch may have; larger ones are learnt from in several goes
WORK = ".training"


@dataclass(frozen=True)
class Plan:
    """What to train, on what, for how long.

    model: a preset of `lightformers.list_models()`, made anew with `overrides`, or a folder whose model is trained on.
    text, valid, column, tokenizer, vocabulary, length: see `corpus.prepare`. tokenizer None: bpe, or the folder's own.
    batch: tokens of an update, over all processes. steps, epochs, seconds: the budget, whichever ends first.
    lr: peak learning rate. precision: "auto" (bf16 copies of the weights where the machine is fast with them), or one
    of `train.Settings`. prompt: what the sample at the end goes on from.
    """

    model: str
    text: str
    valid: str | None = None
    column: str = "text"
    tokenizer: str | None = None
    vocabulary: int = 4096
    length: int = 256
    batch: int = 8192
    steps: int | None = None
    epochs: float | None = None
    seconds: float | None = None
    lr: float = 1e-3
    warmup: float = 0.05
    schedule: Schedule = "cosine"
    weight_decay: float = 0.1
    precision: str = "auto"
    dropout: bool = False
    seed: int = 0
    prompt: str = ""
    overrides: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.length < 2 or self.batch < self.length:
            raise UserError(
                f"--length {self.length} must be at least 2, and --batch {self.batch} hold at least one window of it"
            )
        if self.steps is None and self.epochs is None and self.seconds is None:
            raise UserError("say how long to train: --steps, --epochs or --budget")
        if min(b for b in (self.steps, self.epochs, self.seconds) if b is not None) <= 0:
            raise UserError("--steps, --epochs and --budget must be positive")


def train(plan: Plan, out: str | Path, progress: Any = None, device: str = "cpu") -> dict[str, Any]:
    """Train, write a Hugging Face folder with `training.json` into `out`, and return what that file says.

    Under torchrun every process trains on its share of each batch: the result is that of one process. Killed at any
    moment, the same call goes on from the last twentieth. Raises UserError where `out` holds a training begun otherwise.
    progress: a `slim.progress.Progress`, or None.
    """
    from accelerate import PartialState

    processes = PartialState(cpu=torch.device(device).type == "cpu")
    out, say = Path(out), progress if processes.is_main_process else None
    work = out / WORK
    if (out / "training.json").is_file() and read_json(out / "training.json")["plan"] == _told(plan):
        return dict(read_json(out / "training.json"))
    if processes.is_main_process:
        work.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(plan.seed)
    if say:
        say.phase("text")
    with processes.main_process_first():
        corpus = prepare(
            work, plan.text, plan.valid, plan.column, _tokenizer(plan), plan.vocabulary, plan.length
        )
    bundle = _model(plan, corpus)
    bundle.model.to(processes.device)
    windows, settings = _shared_out(plan, corpus, bundle, processes.num_processes)
    if processes.is_main_process:
        _begin(work, plan, corpus)
    processes.wait_for_everyone()
    if say:
        say.phase("training", plan.seconds)
    curve, state = _resumed(work, bundle)
    for part in range(curve[-1]["part"] + 1 if curve else 1, PARTS + 1):
        result = fit(
            bundle.model, windows, following, dataclasses.replace(settings, until=part / PARTS),
            progress=(lambda e: say.training(**_whole(e))) if say else None, state=state, device=processes.device,
        )  # fmt: skip
        state = result.state
        if not result.losses:  # this part's share of the budget was spent by the one before it
            continue
        nats = validate(bundle, corpus, plan, None if part == PARTS else VALIDATED, settings.precision)
        curve.append(
            {
                "part": part,
                "tokens": result.tokens,
                "steps": result.steps,
                "seconds": result.seconds,
                "loss": result.loss,
                "valid": nats,
            }
        )
        if processes.is_main_process:
            state.save(work / "state")
            write_json(work / "curve.json", curve)
        if say:
            say.best(
                f"{result.tokens:,} tokens: loss {result.loss:.3f}, validation {nats:.3f} ({bits(nats, corpus):.3f} bits a byte)"
            )
    return _finish(plan, out, bundle, corpus, curve, state) if processes.is_main_process else {}


def _whole(event: dict[str, Any]) -> dict[str, Any]:
    """With the seconds that are left of the whole training, not of this part."""
    return event | {"seconds_left": event["seconds"] * (1 / max(event["fraction"], 1e-9) - 1)}


def following(module: nn.Module, batch: Batch) -> Tensor:
    """Mean nats of the token that follows each."""
    logits = module(**batch.inputs).logits
    return F.cross_entropy(logits.flatten(0, 1).float(), batch.targets["following"].flatten())


@torch.no_grad()
def validate(bundle: Bundle, corpus: Corpus, plan: Plan, most: int | None, precision: str = "fp32") -> float:
    """Mean nats a token of the validation text, in windows of the training's length without overlap."""
    model, total, count = bundle.model.eval(), 0.0, 0
    device = next(model.parameters()).device
    rows = max(1, min(plan.batch // plan.length, LOGITS // (plan.length * len(corpus.tokenizer))))
    length = min(plan.length, len(corpus.valid) - 1)
    fast = torch.autocast(device.type, torch.bfloat16) if precision != "fp32" else nullcontext()
    for batch in in_order(corpus.valid, length, rows, most):
        batch = batch.to(device)
        with fast:
            loss = following(model, batch)
        size = batch.targets["following"].numel()
        total, count = total + float(loss) * size, count + size
    return total / max(count, 1)


def bits(nats: float, corpus: Corpus) -> float:
    """Bits a byte of the validation text, from nats a token."""
    return nats / math.log(2) * len(corpus.valid) / corpus.valid_bytes


def _tokenizer(plan: Plan) -> Any:
    if plan.tokenizer is not None:
        return plan.tokenizer
    return plan.model if Path(plan.model).is_dir() else "bpe"


def _model(plan: Plan, corpus: Corpus) -> Bundle:
    """A new model of a preset with the tokenizer's vocabulary, or the one in a folder."""
    words = corpus.tokenizer
    if Path(plan.model).is_dir():
        from lightformers.bundle import load

        bundle = load(plan.model, task="causal-lm", processor=words)
        rows = bundle.model.get_input_embeddings().num_embeddings  # type: ignore[operator]
        if rows < len(words):
            raise UserError(
                f"the tokenizer has {len(words):,} tokens, the model in {plan.model} only {rows:,}: give --vocabulary {rows} or less, or "
                "leave --tokenizer out"
            )
        if plan.overrides:
            raise UserError("--set changes the form of a new model; a folder's model has its own")
    else:
        from lightformers.models import create_model

        made: Any = create_model(plan.model, **{"vocab_size": len(words), **plan.overrides})
        if not hasattr(made, "generation_config"):
            raise UserError(f"{plan.model} is no language model that continues text")
        bundle = Bundle(made, words, "causal-lm")
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            setattr(made.config, name, getattr(words, name))
            setattr(made.generation_config, name, getattr(words, name))
    most = getattr(bundle.model.config, "max_position_embeddings", None)
    if most and plan.length > most:
        raise UserError(f"--length {plan.length} is more than the {most} positions of {plan.model}")
    bundle.max_length = most or plan.length
    return bundle


def _shared_out(plan: Plan, corpus: Corpus, bundle: Bundle, processes: int) -> tuple[Windows, Settings]:
    """Rows of a batch and batches of an update, so that an update is the same windows for any number of processes."""
    rows = plan.batch // plan.length
    if rows % processes:
        raise UserError(
            f"--batch holds {rows} windows of {plan.length}, which {processes} processes cannot share equally"
        )
    each = rows // processes
    most = max(1, LOGITS // (plan.length * len(corpus.tokenizer)))
    micro = next(r for r in range(min(each, most), 0, -1) if each % r == 0)
    windows = Windows(corpus.train, plan.length, micro, plan.seed)
    epochs = None if plan.epochs is None else max(1, round(plan.epochs * windows.per_epoch / rows))
    steps = min((s for s in (plan.steps, epochs) if s is not None), default=None)
    return windows, Settings(
        seconds=plan.seconds, steps=steps, lr=plan.lr, warmup=plan.warmup, schedule=plan.schedule,
        weight_decay=plan.weight_decay, betas=(0.9, 0.95), accumulate=each // micro, seed=plan.seed, dropout=plan.dropout,
        precision=_precision(plan),  # type: ignore[arg-type]
    )  # fmt: skip


def _precision(plan: Plan) -> str:
    from lightformers.compress.distill.common import precision
    from lightformers.steps import Run

    return precision(Run()) if plan.precision == "auto" else plan.precision


def _told(plan: Plan) -> dict[str, Any]:
    return dataclasses.asdict(plan) | {"overrides": dict(plan.overrides)}


def _begin(work: Path, plan: Plan, corpus: Corpus) -> None:
    """Note what is trained; a training begun otherwise is not gone on with."""
    noted = {"plan": _told(plan), "text": corpus.fingerprint}
    if (work / "plan.json").is_file():
        if read_json(work / "plan.json") != noted:
            raise UserError(
                f"{work.parent} holds a training begun with other options or another text: give another --out, or delete {work}"
            )
        return
    write_json(work / "plan.json", noted)


def _resumed(work: Path, bundle: Bundle) -> tuple[list[dict[str, Any]], TrainState | None]:
    if not (work / "state").is_dir():
        return [], None
    state = TrainState.load(work / "state")
    curve = [row for row in read_json(work / "curve.json") if row["steps"] <= state.step]
    return curve, state


def _finish(
    plan: Plan,
    out: Path,
    bundle: Bundle,
    corpus: Corpus,
    curve: list[dict[str, Any]],
    state: TrainState | None,
) -> dict[str, Any]:
    from lightformers import export
    from lightformers.measure.machine import machine

    last = curve[-1]
    export.save(bundle, out)
    found = {
        "plan": _told(plan), "text": corpus.fingerprint, "parameters": bundle.parameters, "curve": curve,
        "tokens": last["tokens"], "steps": last["steps"], "seconds": last["seconds"],
        "tokens_per_second": last["tokens"] / max(last["seconds"], 1e-9), "loss": last["loss"], "valid": last["valid"],
        "perplexity": math.exp(min(last["valid"], 700)), "bits_per_byte": bits(last["valid"], corpus),
        "sample": sample(bundle, plan.prompt, plan.seed), "machine": machine(), "created": time.strftime("%Y-%m-%d"),
    }  # fmt: skip
    write_json(out / "training.json", found)
    shutil.rmtree(out / WORK, ignore_errors=True)
    return found


@torch.no_grad()
def sample(bundle: Bundle, prompt: str = "", seed: int = 0, tokens: int = 120) -> str:
    """A continuation of `prompt`, drawn at temperature 0.8 from the 50 likeliest tokens."""
    model: Any = bundle.model.eval()
    words: Any = bundle.processor
    ids = words(prompt, add_special_tokens=False)["input_ids"] or [words.eos_token_id or 0]
    room = (bundle.max_length or len(ids) + tokens) - len(ids)
    if room < 1:
        raise UserError(f"the prompt has {len(ids)} tokens, and the model room for {bundle.max_length}")
    given = torch.tensor([ids], device=next(model.parameters()).device)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        found = model.generate(
            input_ids=given, attention_mask=torch.ones_like(given), do_sample=True, temperature=0.8, top_k=50,
            max_new_tokens=min(tokens, room), pad_token_id=words.pad_token_id, eos_token_id=None,
        )  # fmt: skip
    return str(words.decode(found[0], skip_special_tokens=True))
