"""Forecasters on this processor: an update of training and a forecast, ours beside transformers' own, at equal settings.

    python benchmarks/forecasting.py                       # one and two threads, fp32 and bf16: ten minutes on idle cores
    python benchmarks/forecasting.py --threads 1 --precision fp32 --rounds 10
    python benchmarks/forecasting.py --quick --out quick.json

The settings are those of the official notebook for ETTh1: windows of 512 steps and 7 channels, batches of 32, patches of 8,
width 48, three layers. TSMixer has the weights of transformers' PatchTSMixer; both give the same forecasts, which is checked
first. PatchTST has the sizes of its paper for ETTh1, iTransformer its script's. All take turns, round by round; a ratio is
the median over rounds of theirs / ours with its bootstrap interval. Memory: the most that a fresh process holds in two
updates, less what one holds that has made the model.

Results go to `results/forecasting.json` and the page beside it; what is measured again takes the place of the old.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from training import guarded

from lightformers import measure
from lightformers.files import read_json, write_json, write_text

OUT = Path(__file__).parent / "results" / "forecasting.json"
OURS = "TSMixer"
#: Times as fast as PatchTSMixer an update is to be.
ASKED = 1.5


@dataclass(frozen=True)
class Sizes:
    """Of windows and of the mixers: as in the notebook, or tiny."""

    batch: int = 32
    channels: int = 7
    context: int = 512
    horizon: int = 96
    patch: int = 8
    width: int = 48
    layers: int = 3

    @classmethod
    def tiny(cls) -> Sizes:
        return cls(4, 3, 64, 8, 8, 8, 1)


def patchtsmixer(s: Sizes) -> nn.Module:
    from transformers import PatchTSMixerConfig, PatchTSMixerForPrediction

    torch.manual_seed(0)
    return PatchTSMixerForPrediction(
        PatchTSMixerConfig(
            context_length=s.context, prediction_length=s.horizon, patch_length=s.patch, patch_stride=s.patch,
            num_input_channels=s.channels, d_model=s.width, num_layers=s.layers, expansion_factor=3, dropout=0.5,
            head_dropout=0.7, mode="common_channel", scaling="std", loss="mse",
        )
    )  # fmt: skip


def ours(s: Sizes) -> nn.Module:
    from lightformers.models.forecasting.tsmixer_convert import from_transformers

    return from_transformers(patchtsmixer(s))  # type: ignore[no-any-return]


def patchtst(s: Sizes) -> nn.Module:
    from transformers import PatchTSTConfig, PatchTSTForPrediction

    torch.manual_seed(0)
    return PatchTSTForPrediction(
        PatchTSTConfig(
            context_length=s.context, prediction_length=s.horizon, patch_length=2 * s.patch, patch_stride=s.patch,
            num_input_channels=s.channels, d_model=16, num_attention_heads=4, ffn_dim=128, num_hidden_layers=3,
            attention_dropout=0.3, ff_dropout=0.3, path_dropout=0.3, head_dropout=0.3, scaling="std", loss="mse",
            share_projection=True, channel_attention=False, pre_norm=False,
        )
    )  # fmt: skip


def itransformer(s: Sizes) -> nn.Module:
    from lightformers.models.forecasting.itransformer import ITransformer, ITransformerConfig

    torch.manual_seed(0)
    width = 256 if s.width > 8 else 16
    config = ITransformerConfig(s.context, s.horizon, hidden_size=width, intermediate_size=width)
    return ITransformer(config)


MODELS: dict[str, Callable[[Sizes], nn.Module]] = {
    OURS: ours, "PatchTSMixer": patchtsmixer, "PatchTST": patchtst, "iTransformer": itransformer,
}  # fmt: skip


def windows(s: Sizes) -> tuple[Tensor, Tensor]:
    """Past and future, the same for all."""
    drawn = torch.Generator().manual_seed(1)
    return tuple(  # type: ignore[return-value]
        torch.randn(s.batch, length, s.channels, generator=drawn) for length in (s.context, s.horizon)
    )


def predicted(model: nn.Module, past: Tensor) -> Tensor:
    found = model(past_values=past)
    return found.prediction if "prediction" in found else found.prediction_outputs  # type: ignore[no-any-return]


def updating(name: str, s: Sizes, precision: str = "fp32") -> Callable[[], float]:
    """Updates of a model of its own, one a call, that goes on learning from call to call: forward, backward, AdamW."""
    model, (past, future) = MODELS[name](s).train(), windows(s)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.0, fused=True)

    def update() -> float:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            made = predicted(model, past)
        loss = nn.functional.mse_loss(made.float(), future)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    return update


def forecasting(name: str, s: Sizes, precision: str = "fp32") -> Callable[[], Tensor]:
    """Forecasts of one batch."""
    model, (past, _) = MODELS[name](s).eval(), windows(s)

    @torch.inference_mode()
    def forecast() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            return predicted(model, past)

    return forecast


KINDS: dict[str, Callable[[str, Sizes, str], Callable[[], Any]]] = {
    "training": updating,
    "inference": forecasting,
}


def race(kind: str, names: Sequence[str], s: Sizes, precision: str, rounds: int) -> dict[str, Any]:
    """Seconds of each and how many times as fast ours is."""
    calls = {name: KINDS[kind](name, s, precision) for name in names}
    times = measure.compare(calls, rounds, warmup=2)
    return {
        "seconds": {name: t.median for name, t in times.items()},
        "faster": {name: vars(measure.paired(t, times[OURS])) for name, t in times.items() if name != OURS},
        "rounds": rounds,
    }


def same_forecasts(s: Sizes) -> float:
    """The largest difference between TSMixer and PatchTSMixer; they have the same weights. Raises where it is no rounding."""
    past = windows(s)[0]
    with torch.inference_mode():
        apart = [predicted(MODELS[name](s).eval(), past) for name in (OURS, "PatchTSMixer")]
    largest = float((apart[0] - apart[1]).abs().max())
    if not largest < 1e-4:
        raise RuntimeError(
            f"the two models forecast differently, by {largest}: their times are not comparable"
        )
    return largest


def two_updates(name: str, s: Sizes) -> None:
    """What a child process does to have its memory measured."""
    update = updating(name, s)
    update()
    update()


def made_only(name: str, s: Sizes) -> None:
    updating(name, s)


def memory(names: Sequence[str], s: Sizes) -> dict[str, int]:
    """Bytes of two updates above those of the model and its windows."""
    return {n: measure.peak_memory(two_updates, n, s) - measure.peak_memory(made_only, n, s) for n in names}


def markdown(result: dict[str, Any]) -> str:
    """The page."""
    lines = [
        "# Forecasters",
        "",
        f"{result['machine']['cpu']}. Windows of {result['sizes']['context']} steps and {result['sizes']['channels']} channels, "
        f"horizon {result['sizes']['horizon']}, batches of {result['sizes']['batch']}. Brackets: 95 % intervals.",
    ]
    for kind in KINDS:
        lines += [
            "", f"## {kind.capitalize()}", "", "| threads | precision | model | ms | times as fast | asked |",
            "|---|---|---|---|---|---|",
        ]  # fmt: skip
        for row in result["races"].values():
            if row["kind"] != kind:
                continue
            for name, seconds in row["seconds"].items():
                ratio = row["faster"].get(name)
                said = (
                    ""
                    if ratio is None
                    else f"{ratio['estimate']:.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}]"
                )
                asked = f"{ASKED:g}" if kind == "training" and name == "PatchTSMixer" else ""
                lines.append(
                    f"| {row['threads']} | {row['precision']} | {name} | {1e3 * seconds:.1f} | {said} | {asked} |"
                )
    if result.get("memory"):
        lines += ["", "## Memory of an update", "", "| model | MB |", "|---|---|"]
        lines += [f"| {name} | {held / 1e6:.0f} |" for name, held in result["memory"].items()]
    return "\n".join([*lines, ""])


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sections", nargs="+", choices=(*KINDS, "memory"), default=(*KINDS, "memory"))
    parser.add_argument("--models", nargs="+", choices=tuple(MODELS), default=tuple(MODELS))
    parser.add_argument("--precision", nargs="+", choices=("fp32", "bf16"), default=("fp32", "bf16"))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    parser.add_argument("--threads", nargs="+", type=int, default=sorted({1, min(2, cores)}))
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument(
        "--quick", action="store_true", help="tiny models, two rounds, no memory: does it run?"
    )
    parser.add_argument("--out", type=Path, default=OUT)
    given = parser.parse_args(arguments)
    if OURS not in given.models:
        parser.error(f"all are compared with {OURS}: name it among --models")
    return given


def measured(given: argparse.Namespace, keep: Callable[[str, dict[str, Any]], None]) -> None:
    """Every race that is asked for; keep(name, row) after each."""
    s = Sizes.tiny() if given.quick else Sizes()
    same_forecasts(s)
    before = torch.get_num_threads()
    try:
        for threads in given.threads:
            torch.set_num_threads(threads)
            for kind in (k for k in KINDS if k in given.sections):
                for precision in given.precision:
                    found = race(kind, given.models, s, precision, 2 if given.quick else given.rounds)
                    row = {"kind": kind, "threads": threads, "precision": precision, **found}
                    keep(f"{kind} {threads} {precision}", row)
    finally:
        torch.set_num_threads(before)


def main(arguments: Sequence[str] | None = None) -> None:
    given = parse(arguments)
    result: dict[str, Any] = {"races": {}, "memory": {}}
    if given.out.is_file():
        result |= read_json(given.out)

    def write() -> None:
        result.update(
            machine=measure.machine(), sizes=vars(Sizes.tiny() if given.quick else Sizes()),
            created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        )  # fmt: skip
        write_json(given.out, result)
        write_text(given.out.with_suffix(".md"), markdown(result))

    def keep(name: str, row: dict[str, Any]) -> None:
        result["races"][name] = row
        write()
        print(f"{name}: {', '.join(f'{k} {1e3 * t:.1f} ms' for k, t in row['seconds'].items())}", flush=True)

    measured(given, keep)
    if "memory" in given.sections and not given.quick:
        result["memory"] |= memory(given.models, Sizes())
        write()


if __name__ == "__main__":
    sys.exit(guarded(partial(main, None)))
