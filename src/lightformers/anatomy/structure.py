"""Models that no row knows: inspected by structure, or described by their owner.

Looked for are lists of alike blocks (`nn.ModuleList`, `nn.Sequential`), and in a block linear layers with the
usual names whose shapes fit: q, k, v (or one fused qkv) and o; up, perhaps gate, and down.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import nn

from lightformers.anatomy.access import features, find, get, is_conv1d
from lightformers.anatomy.families import CUTS, Family, Names, StackRow
from lightformers.anatomy.find import DESCRIPTION, HEAD_COUNTS, HEAD_SIZES, host, of
from lightformers.anatomy.records import Anatomy, Fused
from lightformers.errors import ModelError

_USUAL: dict[str, Names] = {
    "q": ("q", "query", "q_proj", "q_lin", "wq", "to_q", "linear_q", "query_proj", "q_linear"),
    "k": ("k", "key", "k_proj", "k_lin", "wk", "to_k", "linear_k", "key_proj", "k_linear"),
    "v": ("v", "value", "v_proj", "v_lin", "wv", "to_v", "linear_v", "value_proj", "v_linear"),
    "qkv": ("qkv", "qkv_proj", "c_attn", "wqkv", "to_qkv", "in_proj", "query_key_value"),
    "o": ("o", "o_proj", "out_proj", "out_lin", "wo", "to_out", "proj", "c_proj", "out", "dense", "output", "linear_out"),
    "gate": ("gate_proj", "gate", "w1", "wi_0"),
    "up": ("up_proj", "up", "fc1", "lin1", "linear1", "w3", "wi", "wi_1", "c_fc", "fc_in", "w_1", "dense_h_to_4h", "w1", "in_proj"),
    "down": ("down_proj", "down", "fc2", "lin2", "linear2", "w2", "wo", "c_proj", "fc_out", "w_2", "dense_4h_to_h", "out_proj"),
}  # fmt: skip
_CROSS = ("cross", "encoder_attn", "enc_dec", "encdec", "multihead_attn")
_HOW = (
    "Describe it:\n"
    "    from lightformers import anatomy\n"
    "    anatomy.describe(\n"
    '        model, blocks="encoder.layers",            # path of the list of blocks\n'
    '        q="attention.q", k="attention.k", v="attention.v", o="attention.out",   # inside a block\n'
    '        up="mlp.0", down="mlp.2",                  # feed-forward; gate="..." if it has one\n'
    "        heads=12,                                  # query heads; not needed if the module says it\n"
    '        words="embed", final_norm="norm",          # if there are\n'
    "    )"
)


def describe(
    model: nn.Module,
    *,
    blocks: str,
    q: str = "",
    k: str = "",
    v: str = "",
    o: str = "",
    qkv: str = "",
    fused: Fused = "thirds",
    up: str = "",
    gate: str = "",
    down: str = "",
    norms: Sequence[str] = (),
    heads: int = 0,
    words: str = "",
    positions: str = "",
    final_norm: str = "",
    name: str = "described",
) -> Anatomy:
    """Tell the anatomy of a model that isn't known. Remembered on the model: `of` and all cuts go by it.

    blocks: path of the list of blocks; words, positions, final_norm: paths into the model; the others are
    relative to a block. Raises ModelError where nothing stands at a path or the shapes don't add up.
    """

    def one(path: str) -> Names:
        return (path,) if path else ()

    row = Family(
        name,
        (),
        (
            StackRow(
                "blocks", (blocks,), q=one(q), k=one(k), v=one(v), o=one(o), qkv=one(qkv), fused=fused if qkv else "",
                up=one(up), gate=one(gate), down=one(down), norms=tuple(norms), words=one(words),
                positions=one(positions), final_norm=one(final_norm), head_count=heads,
            ),
        ),
        native=frozenset(),
        reasons=dict.fromkeys(CUTS, "a described model; whether plain transformers rebuilds it is not known"),
    )  # fmt: skip
    owner = host(model)[1]
    members = list(get(owner, blocks).children())
    for path in (p for p in (q, k, v, o, qkv, up, gate, down, *norms) if p):
        if not members or find(members[0], path) is None:
            raise ModelError(f"There is nothing at {path!r} in the blocks of {blocks!r}.")
    for path in (p for p in (words, positions, final_norm) if p):
        get(owner, path)
    found = of(model, row)
    setattr(owner, DESCRIPTION, row)
    return found


def inspect(model: nn.Module) -> Family:
    """A row for a model that none is known for. Raises ModelError saying what was found."""
    owner = host(model)[1]
    stacks: list[StackRow] = []
    rejected: list[str] = []
    for path, members in _lists(owner):
        if any(path.startswith(other.blocks[0] + ".") for other in stacks):
            continue
        row, why = _stack_row(owner, path, members)
        if row is not None:
            taken = {other.name for other in stacks}
            stacks.append(replace(row, name=path) if row.name in taken else row)
        else:
            rejected.append(f"{path} ({len(members)} x {type(members[0]).__name__}): {why}")
    kind = type(owner).__name__
    model_type = getattr(getattr(owner, "config", None), "model_type", None)
    if not stacks:
        found = "; ".join(rejected) if rejected else "no list of alike blocks"
        known = f" (model type {model_type!r})" if model_type else ""
        raise ModelError(f"The anatomy of {kind}{known} is not understood. Found: {found}.\n{_HOW}")
    words = tuple(name for name, module in owner.named_modules() if type(module) is nn.Embedding)[:1]
    stacks[0] = replace(stacks[0], words=words)
    if len(stacks) > 1:  # which of them a field of the config is about can't be known
        stacks = [replace(row, depth="", heads="", kv_heads="", head_dim="", ffn="") for row in stacks]
    return Family(
        str(model_type or kind),
        (),
        tuple(stacks),
        native=frozenset(),
        reasons=dict.fromkeys(
            CUTS, f"no row of the table knows {model_type or kind}, so no reload is promised"
        ),
    )


def _lists(owner: nn.Module) -> list[tuple[str, list[nn.Module]]]:
    """Lists of blocks of one kind that hold linear layers, outermost first."""
    found = []
    for path, module in owner.named_modules():
        if isinstance(module, (nn.ModuleList, nn.Sequential)) and path:
            members = list(module.children())
            alike = members and len({type(m) for m in members}) == 1 and not _linear(members[0])
            if alike and any(_linear(m) for m in members[0].modules()):
                found.append((path, members))
    return found


def _linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or is_conv1d(module)


def _stack_row(owner: nn.Module, path: str, members: list[nn.Module]) -> tuple[StackRow | None, str]:
    block = members[0]
    linears = [name for name, module in block.named_modules() if _linear(module)]
    found = _attention_names(block, [n for n in linears if not any(c in n.lower() for c in _CROSS)])
    cross = _attention_names(block, [n for n in linears if any(c in n.lower() for c in _CROSS)])
    used = {name for names in (found, cross) for name in names.values()}
    forward = _forward_names(block, [name for name in linears if name not in used])
    if not found and not forward:
        return None, f"linears {', '.join(linears[:6])} have none of the usual names"
    key = found.get("o") or forward["down"]
    widths = {features(get(member, key))[1] for member in members if find(member, key) is not None}
    if len(widths) > 1:
        return None, f"blocks of different width ({min(widths)} to {max(widths)}) can't be cut as one stack"
    heads = _head_count(block, found)
    if found and not heads:
        return None, f"attention found ({', '.join(found.values())}), but not how many heads it has"

    def one(names: dict[str, str], piece: str) -> Names:
        return (names[piece],) if piece in names else ()

    packed = isinstance(find(block, found.get("o", "").rpartition(".")[0]), nn.MultiheadAttention)
    norms = tuple(name for name, module in block.named_modules() if "norm" in type(module).__name__.lower())
    name = next((part for part in ("decoder", "encoder") if part in path.split(".")), path)
    near = found.get("q", "").rpartition(".")[0]
    inner = features(get(block, found["o"]))[0] if found else 0
    width = features(get(block, forward["down"]))[0] if forward else 0
    return StackRow(
        name, (path,), q=one(found, "q"), k=one(found, "k"), v=one(found, "v"), o=one(found, "o"),
        qkv=one(found, "qkv"), fused="packed" if packed else "unknown" if "qkv" in found else "",
        cross=tuple(one(cross, p) for p in "qkvo") if "q" in cross else ((), (), (), ()),  # type: ignore[arg-type]
        up=one(forward, "up"), gate=one(forward, "gate"), down=one(forward, "down"),
        packed=one(forward, "packed"), norms=norms, head_count=heads,
        q_norm=tuple(f"{near}.{n}" for n in ("q_norm", "q_layernorm")),
        k_norm=tuple(f"{near}.{n}" for n in ("k_norm", "k_layernorm")),
        depth=_field(owner, "num_hidden_layers", len(members)), heads=_field(owner, "num_attention_heads", heads),
        kv_heads=_field(owner, "num_key_value_heads"), head_dim=_field(owner, "head_dim", inner // max(heads, 1)),
        ffn=_field(owner, "intermediate_size", width),
    ), ""  # fmt: skip


def _field(owner: nn.Module, name: str, value: int | None = None) -> str:
    """The name of a config field that can be written and says what was found; else nothing."""
    config = getattr(owner, "config", None)
    if not hasattr(config, name) or isinstance(getattr(type(config), name, None), property):
        return ""
    return name if value is None or getattr(config, name) in (value, None) else ""


def _attention_names(block: nn.Module, linears: list[str]) -> dict[str, str]:
    """q, k, v, o, or qkv and o, or (torch's MultiheadAttention) o alone, whose shapes fit together."""

    def named(piece: str, near: str = "") -> str | None:
        hits = [n for n in linears if n.rpartition(".")[2].lower() in _USUAL[piece] and n.startswith(near)]
        return min(
            hits, key=lambda n: (_USUAL[piece].index(n.rpartition(".")[2].lower()), len(n)), default=None
        )

    q, k, v, qkv = named("q"), named("k"), named("v"), named("qkv")
    for name, module in block.named_modules():
        if isinstance(module, nn.MultiheadAttention) and f"{name}.out_proj" in linears:
            return {"o": f"{name}.out_proj"}
    entry = q if q and k and v else qkv
    if entry is None:
        return {}
    out = features(get(block, entry))[1]
    near = entry.rpartition(".")[0]

    def fits(name: str) -> bool:
        into = features(get(block, name))[
            0
        ]  # a fused projection holds it once, and keys and values beside it
        return into == out if entry is q else into < out and (out - into) % 2 == 0

    candidates = [n for n in linears if n not in (q, k, v, qkv) and fits(n)]
    for prefix in (near, near.rpartition(".")[0]):
        close = [n for n in candidates if not prefix or n.startswith(prefix + ".")]
        o = next((n for piece in _USUAL["o"] for n in close if n.rpartition(".")[2].lower() == piece), None)
        o = o or next((n for piece in _USUAL["o"] for n in close if n.split(".")[-2:-1] == [piece]), None)
        if o is not None:
            return {"q": q, "k": k, "v": v, "o": o} if entry is q else {"qkv": entry, "o": o}  # type: ignore[dict-item]
    return {}


def _forward_names(block: nn.Module, linears: list[str]) -> dict[str, str]:
    """up and down (and gate) whose shapes fit: by name, else the only pair of linears that is left."""

    def size(name: str) -> tuple[int, int]:
        return features(get(block, name))

    def by(piece: str) -> list[str]:
        return [n for usual in _USUAL[piece] for n in linears if n.rpartition(".")[2].lower() == usual]

    for down in by("down") or linears[-1:]:
        both = [
            n for n in linears if n.endswith("gate_up_proj") and size(n) == (size(down)[1], 2 * size(down)[0])
        ]
        if both:
            return {"packed": both[0], "down": down}
        fits = [n for n in linears if n != down and size(n) == size(down)[::-1]]
        if len(fits) == 1:
            return {"up": fits[0], "down": down}
        gate = next((n for n in by("gate") if n in fits), None)
        up = next((n for n in by("up") if n in fits and n != gate), None)
        if up is not None:
            return {"up": up, "down": down} | ({"gate": gate} if gate else {})
    return {}


def _head_count(block: nn.Module, found: dict[str, str]) -> int:
    """Heads by what a module on the way to the projections says; 0 if none does."""
    if not found:
        return 0
    entry = found.get("q") or found.get("qkv") or found["o"]
    inner = features(get(block, found["o"]))[0]
    path = entry
    while path:
        path = path.rpartition(".")[0]
        module = get(block, path)
        for name in HEAD_COUNTS:
            value = getattr(module, name, None)
            if type(value) is int and value > 0 and inner % value == 0:
                return value
        for name in HEAD_SIZES:
            value = getattr(module, name, None)
            if type(value) is int and value > 0 and inner % value == 0:
                return inner // value
    return 0
