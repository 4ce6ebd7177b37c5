"""`lightformers train`: a language model from text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from lightformers.cli import options


def train(
    model: Annotated[str, typer.Option(help="A preset (`--model list` names them), or a folder to train on.")],
    data: Annotated[str | None, typer.Option(help="txt (also .gz), a folder of these, or a table of documents.")] = None,
    out: Annotated[Path, typer.Option(help="Where the model goes.")] = Path("trained-model"),
    valid: Annotated[str | None, typer.Option(help="Text to validate on; default: the last 5 % of --data.")] = None,
    text: Annotated[str, typer.Option(help="Column of the documents of a table.")] = "text",
    tokenizer: Annotated[
        str | None, typer.Option(help="bpe, bytes, characters (made from the text), or a folder or hub name. Default bpe.")
    ] = None,
    vocabulary: Annotated[int, typer.Option(help="Tokens of a bpe tokenizer.")] = 4096,
    length: Annotated[int, typer.Option(help="Tokens of a window.")] = 256,
    batch: Annotated[int, typer.Option(help="Tokens of an update, over all processes.")] = 8192,
    budget: Annotated[str | None, typer.Option(help="Time, such as 10m.")] = None,
    epochs: Annotated[float | None, typer.Option(help="Passes over the text.")] = None,
    steps: Annotated[int | None, typer.Option(help="Updates.")] = None,
    lr: Annotated[float, typer.Option(help="Peak learning rate.")] = 1e-3,
    schedule: Annotated[str, typer.Option(help="cosine, linear, stable or constant.")] = "cosine",
    weight_decay: Annotated[float, typer.Option(help="On matrices.")] = 0.1,
    precision: Annotated[str, typer.Option(help="auto, fp32, bf16 or bf16-weights.")] = "auto",
    dropout: Annotated[bool, typer.Option("--dropout", help="Leave the model's dropout on.")] = False,
    prompt: Annotated[str, typer.Option(help="What the sample at the end goes on from.")] = "",
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="A field of the preset, NAME=VALUE; can be given more than once.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    seed: options.Seed = 0,
    quiet: Annotated[bool, typer.Option("--quiet", help="Show nothing while it works.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print training.json on stdout.")] = False,
) -> None:  # fmt: skip
    """Train a language model from text; killed, the same command goes on. Under torchrun, several processes share it."""
    from lightformers.telemetry import silence

    silence()
    import torch

    from lightformers import pretrain
    from lightformers.cli.console import out as console
    from lightformers.cli.console import show_json
    from lightformers.errors import UserError
    from lightformers.models import list_models
    from lightformers.pretrain import page
    from lightformers.slim.progress import Progress

    if model == "list":
        console.print("\n".join(list_models()))
        return
    if data is None:
        raise UserError("say what to learn from: --data text.txt")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    plan = pretrain.Plan(
        model, data, valid, text, tokenizer, vocabulary, length, batch, steps, epochs,
        None if budget is None else options.seconds(budget), lr, 0.05, schedule, weight_decay, precision, dropout, seed, prompt,  # type: ignore[arg-type]
        options.fields(set_ or []),
    )  # fmt: skip
    with Progress("lightformers train", plan.seconds, ("text", "training"), quiet) as progress:
        found = pretrain.train(plan, out, progress, device)
    if not found:  # a process that is not the first
        return
    page.write(found, out)
    if json_:
        show_json(found)
        return
    _show(found, out)


def _show(found: dict[str, Any], out: Path) -> None:
    from rich.markup import escape

    from lightformers.cli.console import out as console

    console.print(
        f"{found['parameters']:,} parameters, {found['tokens']:,} tokens in {found['seconds']:.0f} s "
        f"({found['tokens_per_second']:,.0f} a second)"
    )
    console.print(
        f"validation: {found['valid']:.3f} nats a token (perplexity {found['perplexity']:.2f}), "
        f"{found['bits_per_byte']:.3f} bits a byte"
    )
    console.print(f"[dim]{escape(found['sample'])}[/]")
    console.print(f"written to {out}; the loss plot is in {out / 'training.html'}")
