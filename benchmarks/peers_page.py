"""What `slim_vs_peers.py` shows: the table on the terminal, the Markdown page, and the targets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

SLIM, ENCODE = "slim", "SentenceTransformer.encode"
HONEST, EAGER = "OpenVINO + NNCF int8, sorted", "eager fp32, sorted"
HEAD = ["", "texts/s", "slim is faster", "quality", "of the original (bound)", "n", "MB", "slim is smaller"]
SECONDS = 600


def targets(rows: Sequence[dict[str, Any]], slim: dict[str, Any]) -> list[dict[str, Any]]:
    """What was to be reached on the embedded default (on two cores with AMX), and what this run got.

    rows: as in the JSON. slim: use_labels, seconds and verdict of slim's report. A target is reached by the estimate;
    `low` is the lower end of its interval. A row that was not run leaves its target unreached.
    """
    by_name = {r["name"]: r for r in rows if not r["error"]}
    wanted = [
        (f"times as fast as {HONEST}", 1.6 if slim["use_labels"] else 1.4, HONEST, "slim_faster"),
        (f"times as fast as {ENCODE} in fp32", 7.0, ENCODE, "slim_faster"),
        ("times smaller than the original in fp32", 5.0, EAGER, "slim_smaller"),
    ]
    out = []
    for what, least, name, key in wanted:
        got = by_name.get(name, {}).get(key)
        value, low = (got["estimate"], got["low"]) if isinstance(got, dict) else (got, got)
        reached = value is not None and value >= least
        out.append({"what": what, "wanted": least, "got": value, "low": low, "reached": reached})
    least, bound = 0.99 if slim["use_labels"] else 0.97, slim["verdict"]["ratio"]["bound"]
    reached = slim["verdict"]["proven"] and bound >= least
    what = "share of the original's quality, proven by slim"
    out.append({"what": what, "wanted": least, "got": bound, "low": bound, "reached": reached})
    took, reached = slim["seconds"], slim["seconds"] <= SECONDS
    out.append(
        {"what": "seconds of slim, at most", "wanted": SECONDS, "got": took, "low": took, "reached": reached}
    )
    return out


def cells(row: dict[str, Any]) -> list[str]:
    """A row as text; intervals are two-sided, the bound one-sided, all at 95 %."""
    if row["error"]:
        return [row["name"], "not run", *[""] * (len(HEAD) - 2)]
    fast, quality, ratio = row["slim_faster"], row["quality"], row["ratio"]
    return [
        row["name"],
        f"{row['throughput']:.0f}",
        f"{fast['estimate']:.2f} [{fast['low']:.2f}, {fast['high']:.2f}]",
        f"{quality['estimate']:.4f} [{quality['low']:.4f}, {quality['high']:.4f}]",
        f"{ratio['estimate']:.4f} ({ratio['bound']:.4f})",
        f"{row['quality_examples']:,}",
        f"{row['size_bytes'] / 1e6:.1f}",
        f"{row['slim_smaller']:.2f}",
    ]


def sentences(result: dict[str, Any]) -> list[str]:
    """What must be read beside the table: machine, load, original, proof, control, targets."""
    slim, machine, original = result["slim"], result["machine"], result["original"]
    quality = original["quality"]
    labels = "with" if slim["use_labels"] else "without"
    isa = ", ".join(name for name, there in machine["isa"].items() if there)
    lines = [
        f"Machine: {machine['cpu']}, {machine['cores']['usable']} cores; {isa}.",
        f"{result['rounds']} interleaved rounds over {result['examples']} texts that arrive at once; tokenization counted.",
        f"The original in fp32 on all {original['quality_examples']:,} verification examples: "
        f"{quality['estimate']:.4f} [{quality['low']:.4f}, {quality['high']:.4f}].",
        f"Slim {labels} labels, floor {slim['floor']}, {slim['seconds']:.0f} s in all: "
        f"{' + '.join(slim['recipe']) or 'no cut'}, run as {result['deploy']}. {slim['verdict']['sentence']}",
        _control(slim["control"]),
    ]
    lines += [f"Not run: {row['name']}: {row['error']}" for row in result["rows"] if row["error"]]
    return lines + [_target(t) for t in result["targets"]]


def _control(control: dict[str, Any] | None) -> str:
    if control is None:
        return "Control: none, for nothing was trained."
    ratio = control["ratio"]
    figures = f"{ratio['estimate']:.4f} [{ratio['low']:.4f}, {ratio['high']:.4f}]"
    return f"Control ({control['note']}): {figures} of the original."


def _target(target: dict[str, Any]) -> str:
    got = "not measured" if target["got"] is None else f"{target['got']:.4g}"
    if target["low"] != target["got"]:
        got += f" (lower end {target['low']:.4g})"
    return f"{'Reached' if target['reached'] else 'NOT reached'}: {target['what']}: {got}; wanted {target['wanted']:g}."


def markdown(result: dict[str, Any]) -> str:
    """The page that is saved beside the JSON."""
    table = [HEAD, ["---"] * len(HEAD), *(cells(r) for r in result["rows"])]
    body = "\n".join("| " + " | ".join(c.replace("|", "\\|") for c in line) + " |" for line in table)
    notes = "\n".join(f"- {line}" for line in sentences(result))
    return f"# Slim and its peers: {result['task']}, {result['created']}\n\n{body}\n\n{notes}\n"


def show(result: dict[str, Any]) -> None:
    """The same on the terminal."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    out = Console(highlight=False)
    if not out.is_terminal:  # a log takes whole lines
        out = Console(highlight=False, width=180)
    table = Table(*HEAD, title=f"slim and its peers: {result['task']}")
    for row in result["rows"]:
        table.add_row(*map(Text, cells(row)), style="bold" if row["name"] == SLIM else "")
    out.print(table)
    for line in sentences(result):
        out.print(Text(line))
