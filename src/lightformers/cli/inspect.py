"""`lightformers inspect`: the anatomy of a model, without its weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.tree import Tree
    from torch import nn

    from lightformers.anatomy import Block


def inspect(
    model: Annotated[str, typer.Argument(help="A Hugging Face model folder, or a hub name.")],
    length: Annotated[
        int | None, typer.Option(min=1, help="Positions of the input that compute is counted for.")
    ] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Allow the model's own code to run.")
    ] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")] = False,
) -> None:
    """Show where the pieces of a model are, what they weigh and compute, and which cuts reload natively."""
    from lightformers.cli.console import out, show_json
    from lightformers.telemetry import silence

    silence()
    facts = _facts(_blueprint(model, trust_remote_code), model, length)
    if json_:
        show_json(facts)
    else:
        out.print(_tree(facts))


def _blueprint(name: str, trust_remote_code: bool) -> nn.Module:
    """The model on the meta device, built from its config; weights are not read (a custom one's are)."""
    import transformers

    from lightformers import anatomy, loading
    from lightformers.errors import ModelError, reason
    from lightformers.models.registry import model_class, register

    register()
    folder = Path(name)
    if folder.is_dir():
        loading.check_files(folder)
        if (folder / "lightformers.json").is_file():
            return loading.load_bundle(name, None, trust_remote_code).model
        sentence = loading.sentence_transformer(folder)
        config = loading.read_config(sentence["root"] if sentence else folder, trust_remote_code)
    elif folder.exists() or name.startswith((".", "/", "~")):
        raise ModelError(f"{name} is no folder; give a Hugging Face model folder or a hub name")
    else:
        try:
            config = transformers.AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code)
        except (
            Exception
        ) as error:  # offline, unknown name, unknown architecture, own code: the reason is told
            raise ModelError(
                f"no folder {name!r} here, and no config of that name: {reason(error)}"
            ) from error
    named = (getattr(config, "architectures", None) or [""])[0]
    kind = getattr(transformers, named, None) or model_class(named)
    if kind is None:
        try:
            kind = transformers.MODEL_MAPPING[type(config)]
        except KeyError:
            raise ModelError(f"transformers has no model for a {type(config).__name__}") from None
    return anatomy.build(kind, config)


def _facts(model: nn.Module, name: str, length: int | None) -> dict[str, Any]:
    """Everything that is shown, as plain data."""
    from dataclasses import asdict

    from lightformers import anatomy

    found = anatomy.of(model)
    length = length or anatomy.sequence_length(model)
    whole = anatomy.total(model, length)

    def cost(parameters: int, flops: int) -> dict[str, Any]:
        return {
            "parameters": parameters,
            "flops": flops,
            "parameters_share": parameters / max(whole.parameters, 1),
            "flops_share": flops / max(whole.flops, 1),
        }

    def piece(path: str | None) -> dict[str, Any] | None:
        return None if path is None else {"path": path} | cost(anatomy.parameters_of(model, path), 0)

    head_flops = anatomy.head_cost(model, found, length)
    stacks = []
    for stack in found.stacks:
        blocks = [asdict(b) | _block_costs(model, b, length, cost) for b in found.stack(stack.name)]
        runs = stack.depth // len(blocks)
        flops = sum(b["flops"] for b in blocks) * runs
        stacks.append(asdict(stack) | cost(sum(b["parameters"] for b in blocks), flops) | {"blocks": blocks})
    named = [path for path in (found.embeddings, found.positions, found.head) if path is not None]
    inside = [block.path for block in found.blocks]
    other = whole.parameters - anatomy.parameters_of(model, [*named, *inside])
    head = (
        None
        if found.head is None
        else {"path": found.head} | cost(head_flops.parameters, head_flops.flops) | {"tied": found.tied}
    )
    return {
        "model": name,
        "class": type(model).__name__,
        "family": found.family,
        "length": length,
        "width": found.width,
        "parameters": whole.parameters,
        "flops": whole.flops,
        "embeddings": piece(found.embeddings),
        "positions": piece(found.positions),
        "stacks": stacks,
        "head": head,
        "other": cost(other, 0),
        "native": {cut: anatomy.native(model, cut) for cut in anatomy.CUTS},
        "native_reasons": anatomy.native_reasons(model),
    }


def _block_costs(model: nn.Module, block: Block, length: int, cost: Any) -> dict[str, Any]:
    from lightformers import anatomy

    whole = anatomy.block_cost(model, block, length)
    pieces: dict[str, Any] = {}
    if block.attention:
        own = anatomy.attention_cost(model, block.attention, length)
        pieces["attention"] = cost(own.parameters, own.flops)
    if block.cross_attention:
        own = anatomy.attention_cost(model, block.cross_attention, length, length)
        pieces["cross_attention"] = cost(own.parameters, own.flops)
    if block.feed_forward:
        own = anatomy.feed_forward_cost(model, block.feed_forward, length)
        pieces["feed_forward"] = cost(own.parameters, own.flops)
    pieces["others"] = [
        {"kind": type(anatomy.get(model, path)).__name__, **cost(anatomy.parameters_of(model, path), 0)}
        for path in block.others
    ]
    return {**cost(whole.parameters, whole.flops), "costs": pieces}


def _tree(facts: dict[str, Any]) -> Tree:
    from rich.markup import escape
    from rich.tree import Tree

    from lightformers.models.registry import MODELS

    tree = Tree(
        f"[bold]{escape(facts['model'])}[/]  {facts['class']} ({escape(facts['family'])}), "
        f"{_count(facts['parameters'])} parameters, {_count(facts['flops'])}FLOP for {facts['length']} positions"
    )
    for name in ("embeddings", "positions"):
        if facts[name]:
            tree.add(f"{name}  {_weight(facts[name])}  [dim]{escape(facts[name]['path'])}[/]")
    for stack in facts["stacks"]:
        shared = f", one block run {stack['depth']} times" if stack["shared"] else ""
        branch = tree.add(
            f"{escape(stack['name'])}: {stack['depth']} blocks, width {stack['width']}{shared}  {_weight(stack)}"
        )
        for first, last, block in _runs(stack["blocks"]):
            blocks = f"block {first}" if first == last else f"blocks {first} to {last}, each"
            leaf = branch.add(f"{blocks}  {_weight(block)}  [dim]{escape(block['path'])}[/]")
            for kind in ("attention", "cross_attention"):
                part = block[kind]
                if part:
                    groups = (
                        f" over {part['kv_heads']} key/value" if part["kv_heads"] != part["heads"] else ""
                    )
                    text = f"{part['heads']} heads of {part['head_dim']}{groups}"
                    leaf.add(f"{kind.replace('_', '-')}: {text}  {_weight(block['costs'][kind])}")
            for part in block["costs"]["others"]:
                leaf.add(f"{part['kind']}, not cut inside  {_weight(part)}")
            part = block["feed_forward"]
            if part:
                gate = "gated, " if part["gate"] or part["packed"] else ""
                text = f"{gate}{part['width']} channels, {escape(part['activation'] or 'activation unnamed')}"
                leaf.add(f"feed-forward: {text}  {_weight(block['costs']['feed_forward'])}")
    if facts["head"]:
        tied = ", tied to the embeddings" if facts["head"]["tied"] else ""
        tree.add(f"head{tied}  {_weight(facts['head'])}  [dim]{escape(facts['head']['path'])}[/]")
    tree.add(f"other (norms, pooler, patches, ...)  {_weight(facts['other'])}")
    where = "with lightformers imported" if facts["class"] in MODELS else "in plain transformers"
    cuts = tree.add(f"cuts that reload {where}")
    for cut, reason in facts["native"].items():
        cuts.add(f"[green]{cut}[/]" if reason is None else f"[yellow]not {cut}[/]: {escape(reason)}")
    if facts["native_reasons"]:
        why = tree.add(f"[yellow]as it stands it does not reload {where}[/]")
        for reason in facts["native_reasons"]:
            why.add(escape(reason))
    return tree


def _runs(blocks: list[dict[str, Any]]) -> list[tuple[int, int, dict[str, Any]]]:
    """Neighbours of the same sizes, as (first, last, the first of them)."""

    def sizes(block: dict[str, Any]) -> tuple[Any, ...]:
        heads = [
            (block[k]["heads"], block[k]["kv_heads"]) for k in ("attention", "cross_attention") if block[k]
        ]
        return block["parameters"], block["flops"], heads

    runs: list[tuple[int, int, dict[str, Any]]] = []
    for block in blocks:
        if runs and sizes(runs[-1][2]) == sizes(block):
            runs[-1] = (runs[-1][0], block["index"], runs[-1][2])
        else:
            runs.append((block["index"], block["index"], block))
    return runs


def _weight(cost: dict[str, Any]) -> str:
    text = f"[cyan]{_count(cost['parameters'])}, {cost['parameters_share']:.0%}[/]"
    return text + (f", [magenta]{cost['flops_share']:.0%} of compute[/]" if cost["flops"] else "")


def _count(number: float) -> str:
    for unit in ("", " k", " M", " G", " T"):
        if number < 1000:
            return f"{number:.3g}{unit}"
        number /= 1000
    return f"{number:.3g} P"
