"""Sequence mixers on this processor: speed by length, memory by length, seconds per generated token.

    python benchmarks/language.py                            # every row: an hour on two idle cores
    python benchmarks/language.py --only mamba mamba2        # some families
    python benchmarks/language.py --sections scans --lengths 2048 4096 --rounds 3

Sections:
    scans     forward and backward over one sequence, interleaved with what is run without us: transformers' own code for
              the CPU, or the literal recurrence. A rival that took more than --patience seconds is not tried at longer
              lengths.
    memory    the most a fresh process holds in one forward and backward, less what it holds at a length of 64; per token
              it must not grow
    decoding  seconds per token and bytes of state of a decoder of four layers, by tokens so far, beside the transformer
    training  tokens per second of `train.fit` on a preset, beside a trainer written by hand for it alone
    speaking  seconds per token of `generate` on a preset, beside transformers' Llama of the same weights

Results go to `results/language.json` and the page beside it; a row that is run again takes the place of the old one.
Rows are in `language_rows.py`.
"""

from __future__ import annotations

import argparse
import copy
import gc
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import language_rows
import language_training
import torch
from language_rows import OURS, ROWS, SPEAKERS, Calls, Speaker
from training import guarded

from lightformers import measure
from lightformers.files import read_json, write_json, write_text

OUT = Path(__file__).parent / "results" / "language.json"
SECTIONS = ("scans", "memory", "decoding", "training", "speaking")
SHORT = 64
#: Bytes per token at the longest length may be so much more than at the shortest for memory to be called linear.
LINEAR = 1.25
STEPS = 32


def scans(name: str, lengths: Sequence[int], rounds: int, patience: float) -> list[dict[str, Any]]:
    """A row per length: seconds of each, and how many times as fast ours is, with its interval."""
    row, found, slow = ROWS[name], [], dict[str, str]()
    for n in lengths:
        calls: Calls = {k: call for k, call in row.calls(n).items() if k not in slow}
        tried = {}
        for rival, call in calls.items():
            begun = time.perf_counter()
            call()  # warm-up, and a look at how long it takes
            tried[rival] = time.perf_counter() - begun
        # what is too slow for rounds has its one run counted, against one of ours right behind it
        patient = {k: c for k, c in calls.items() if k == OURS or tried[k] <= patience / rounds}
        times = measure.compare(patient, rounds, warmup=0)
        seconds = {k: times[k].median if k in times else tried[k] for k in calls}
        ratios = {
            k: vars(measure.paired(times[k], times[OURS])) if k in times else {"estimate": tried[k] / seconds[OURS]}
            for k in calls
            if k != OURS
        }  # fmt: skip
        found.append(
            {"length": n, "seconds": seconds, "faster": ratios, "rounds": rounds, "not tried": dict(slow)}
        )
        slow |= {k: f"took {s:.0f} s at {n}" for k, s in tried.items() if s > patience}
        del calls, patient
        gc.collect()
    return found


def memory(name: str, lengths: Sequence[int]) -> dict[str, Any]:
    """Bytes of one forward and backward by length, above what the same process takes for a short sequence.

    The C library is told to give every tensor back at once: what it keeps of freed ones by default grows in leaps.
    """
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"
    floor = measure.peak_memory(language_rows.one_pass, name, SHORT)
    held = {n: measure.peak_memory(language_rows.one_pass, name, n) - floor for n in lengths}
    each = {n: held[n] / n for n in held}
    return {
        "bytes": {str(n): b for n, b in held.items()},
        "bytes per token": {str(n): b for n, b in each.items()},
        "linear": each[max(each)] <= LINEAR * each[min(each)],
    }


def decoder(speaker: Speaker, width: int, layers: int) -> torch.nn.Module:
    """A decoder of random weights."""
    from lightformers.models.language.decoder import Decoder, DecoderConfig

    torch.manual_seed(0)
    rows = [dict(speaker.layers[i % len(speaker.layers)]) for i in range(layers * len(speaker.layers))]
    return Decoder(DecoderConfig(vocab_size=256, hidden_size=width, layers=rows)).eval()


@torch.no_grad()
def decoding(
    names: Sequence[str], contexts: Sequence[int], rounds: int, width: int = 256, layers: int = 4
) -> dict[str, Any]:
    """Per family: seconds per token and bytes of state by tokens so far; all families and contexts take turns."""
    calls, states, sizes = {}, {}, {}
    for name in names:
        model = decoder(SPEAKERS[name], width, layers)
        sizes[name] = sum(p.numel() for p in model.parameters())
        for context in contexts:
            tokens = torch.randint(256, (1, context), generator=torch.Generator().manual_seed(0))
            past = model(input_ids=tokens, use_cache=True, logits_to_keep=1).past_key_values
            states[name, context] = sum(x.nbytes for state in past.states for x in state.values())
            calls[f"{name} {context}"] = lambda model=model, past=past: _speak(model, past)
    times = measure.compare(calls, rounds)
    found: dict[str, Any] = {}
    for name in names:
        seen = {c: times[f"{name} {c}"] for c in contexts}
        least, most = min(contexts), max(contexts)
        found[name] = {
            "parameters": sizes[name],
            "seconds per token": {str(c): t.median / STEPS for c, t in seen.items()},
            "bytes of state": {str(c): states[name, c] for c in contexts},
            "longest over shortest": vars(measure.paired(seen[most], seen[least])),
            "faster than the transformer": {
                str(c): vars(measure.paired(times[f"transformer {c}"], seen[c])) for c in contexts
            } if "transformer" in names else {},
        }  # fmt: skip
    return found


def _speak(model: torch.nn.Module, past: Any) -> None:
    past = copy.copy(past)
    past.states = list(past.states)  # steps put new states in; those that came are not changed
    token = torch.zeros(1, 1, dtype=torch.long)
    for _ in range(STEPS):
        token = model(input_ids=token, past_key_values=past).logits[:, -1:].argmax(-1)


def markdown(result: dict[str, Any]) -> str:
    """The page."""
    lines = [
        "# Sequence mixers by length",
        "",
        f"{result['machine']['cpu']}, {result['threads']} threads. Brackets: 95 % intervals.",
        "",
    ]
    if result["scans"]:
        lines += [
            "## Forward and backward",
            "",
            "| row | length | ours, ms | rival | times as fast | asked |",
            "|---|---|---|---|---|---|",
        ]
    for name, rows in result["scans"].items():
        asked = f"{ROWS[name].wanted:g}" if name in ROWS and ROWS[name].wanted else ""
        for r in rows:
            for rival, ratio in r["faster"].items():
                lines.append(
                    f"| {name} | {r['length']} | {1e3 * r['seconds'][OURS]:.1f} | {rival} | {ranged(ratio)} | {asked} |"
                )
            for rival, why in r["not tried"].items():
                lines.append(
                    f"| {name} | {r['length']} | {1e3 * r['seconds'][OURS]:.1f} | {rival} | {why} | {asked} |"
                )
    if result["memory"]:
        lines += [
            "",
            "## Memory",
            "",
            "| row | length | MB | bytes per token | linear |",
            "|---|---|---|---|---|",
        ]
    for name, m in result["memory"].items():
        for n, held in m["bytes"].items():
            lines.append(
                f"| {name} | {n} | {held / 1e6:.1f} | {m['bytes per token'][n]:.0f} | {'yes' if m['linear'] else 'no'} |"
            )
    if result["decoding"]:
        lines += [
            "",
            "## Decoding",
            "",
            "| family | tokens so far | ms per token | state, kB | times as fast as the transformer |",
            "|---|---|---|---|---|",
        ]
    for name, d in result["decoding"].items():
        for n, s in d["seconds per token"].items():
            ratio = d["faster than the transformer"].get(n)
            lines.append(
                f"| {name} | {n} | {1e3 * s:.2f} | {d['bytes of state'][n] / 1e3:.0f} | {ranged(ratio) if ratio else ''} |"
            )
    return "\n".join([*lines, *language_training.page(result), ""])


def ranged(ratio: dict[str, float]) -> str:
    """ "12.3 [11.9, 12.8]", or the estimate alone where it was run once."""
    return f"{ratio['estimate']:.2f}" + (
        f" [{ratio['low']:.2f}, {ratio['high']:.2f}]" if "low" in ratio else ""
    )


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    families = sorted({name.split(":")[0] for name in ROWS} | set(SPEAKERS))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--only", nargs="+", choices=families, default=families, metavar="FAMILY", help=", ".join(families)
    )
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=SECTIONS)
    parser.add_argument("--lengths", nargs="+", type=int, default=[2048, 4096, 8192, 16384])
    parser.add_argument("--contexts", nargs="+", type=int, default=[128, 1024, 8192, 16384])
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds")
    parser.add_argument("--patience", type=float, default=60.0, help="seconds that a rival may take")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=OUT)
    return parser.parse_args(arguments)


def main() -> None:
    given = parse()
    torch.set_num_threads(given.threads)
    result = {name: {} for name in SECTIONS} | (read_json(given.out) if given.out.is_file() else {})

    def keep(section: str, found: dict[str, Any]) -> None:
        result[section] |= found
        result.update(
            machine=measure.machine(),
            threads=given.threads,
            created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        )
        write_json(given.out, result)
        write_text(given.out.with_suffix(".md"), markdown(result))
        print(f"{section}: {', '.join(found)}", flush=True)

    rows = [name for name in ROWS if name.split(":")[0] in given.only]
    for name in rows if "scans" in given.sections else ():
        keep("scans", {name: scans(name, given.lengths, given.rounds, given.patience)})
    for name in rows if "memory" in given.sections else ():
        keep("memory", {name: memory(name, given.lengths)})
    spoken = [name for name in SPEAKERS if name in given.only or name == "transformer"]
    if "decoding" in given.sections and len(spoken) > 1:
        keep("decoding", decoding(spoken, given.contexts, given.rounds))
    for section in ("training", "speaking"):
        if section in given.sections and "transformer" in given.only:
            for preset in language_training.PRESETS:
                keep(section, {preset: getattr(language_training, section)(preset, rounds=given.rounds)})


if __name__ == "__main__":
    sys.exit(guarded(main))
