"""Cut the hidden size and keep every attention head: queries, keys and values map fewer channels to heads * size.

In most families the config has no head size of its own, so the result needs `lightformers.json`. Hidden dimensions
are found as in `width`, by twins; what belongs to the heads is known from the anatomy and stays.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from lightformers.anatomy import convolution
from lightformers.anatomy.access import find, get, is_conv1d
from lightformers.anatomy.cutting import Plan, chosen
from lightformers.anatomy.families import Family
from lightformers.anatomy.records import Anatomy, Attention
from lightformers.anatomy.settings import attentions, copies, open_up, section, sync
from lightformers.anatomy.twin import shapes, tensors, twin
from lightformers.errors import ModelError

#: Their sizes are read off their weights after a cut (`cutting.refit`).
_REFITTED = (nn.Linear, nn.Embedding, nn.LayerNorm, nn.RMSNorm, nn.Conv1d, nn.Conv2d, nn.Conv3d)
#: Numbers of an attention module that are the width of its output, not of its heads.
_GIVEN = ("embed_dim", "dim")


def narrow(model: nn.Module, keep: Sequence[int]) -> None:
    """Keep these channels of the hidden size, ascending, and all heads; in place.

    The config gets the new width, and where it can't name a head size a number of heads that divides the width:
    plain transformers needs one to build the model that `lightformers.json` then corrects.
    Raises ModelError, before anything is changed, where parts of the model are not what its family builds.
    """
    owner, row, anatomy = open_up(model, "width", custom=True)
    kept = chosen(keep, anatomy.width, "hidden channels")
    if not row.model_types or len(row.stacks) != 1:
        raise ModelError(
            f"The hidden size is cut in one-stack families of the table; {row.name} is none of them."
        )
    sync(owner, row)
    hidden = _hidden(owner, row, anatomy)
    live = convolution.plainly(tensors(owner))
    here = set(convolution.plainly(dict.fromkeys(owner.state_dict())))
    if here != hidden.names:
        raise ModelError(
            f"Cut the width first: {min(here ^ hidden.names)} is not what transformers builds here."
        )
    stay = _of_heads(owner, anatomy)
    plan, convolutions = Plan(), {}
    for name, dim in hidden.dims:
        if (id(live[name]), dim) in stay:
            continue
        groups = getattr(get(owner, name.rpartition(".")[0]), "groups", 1)
        if groups > 1 and name.endswith(".weight"):
            path = name.removesuffix(".weight")
            convolutions[path] = convolution.columns(kept, anatomy.width, groups, path)
        elif live[name].shape[dim] == anatomy.width:
            plan.keep(live[name], dim, kept)
        else:
            raise ModelError(f"How {name} depends on the hidden size is not understood.")
    numbers = _numbers(owner, anatomy, hidden)

    split = convolution.composed(owner)
    for path, inputs in convolutions.items():
        weight: Any = get(owner, path).weight
        plan.keep(weight, 0, kept)
        plan.keep(weight, 1, inputs)
    plan.apply(owner)
    convolution.norm_again(owner, split)
    for module, name in numbers:
        setattr(module, name, len(kept))
    fields = _fields(owner, row, anatomy, len(kept))
    heads = attentions(anatomy.blocks[0])[0].heads
    if not row.stacks[0].head_dim:
        fields[row.stacks[0].heads] = max(n for n in range(1, heads + 1) if len(kept) % n == 0)
    for config in copies(owner, section(owner, row.stacks[0])):
        for name, value in fields.items():
            setattr(config, name, value)
    sync(owner, row)


def _fields(owner: nn.Module, row: Family, anatomy: Anatomy, width: int) -> dict[str, Any]:
    """The config fields that make a model so wide, its head size kept where the config has one."""
    names = row.stacks[0]
    target = section(owner, names)
    fields: dict[str, Any] = {names.width: width}
    fields.update({name: width for name in row.follows if getattr(target, name, None) == anatomy.width})
    found = [a for block in anatomy.blocks for a in attentions(block)]
    if not found:
        raise ModelError(f"This {row.name} has no attention: there are no heads to keep.")
    if names.head_dim:
        fields[names.head_dim] = found[0].head_dim
    return fields


@dataclass(frozen=True)
class _Hidden:
    """What depends on the hidden size in a model that a config builds.

    names: of all stored tensors. dims: (tensor, dimension). numbers: (module, attribute) that are the size;
    strange: those that depend on it in another way. Normed weights are named as if they were composed.
    """

    names: frozenset[str]
    dims: tuple[tuple[str, int], ...]
    numbers: tuple[tuple[str, str], ...]
    strange: tuple[tuple[str, str], ...]


#: Twins take longer to build than all the rest of a cut, and elastic models are cut the same way again and again.
_KNOWN: OrderedDict[Any, _Hidden] = OrderedDict()


def _hidden(owner: nn.Module, row: Family, anatomy: Anatomy) -> _Hidden:
    """Told by the twins of this width and of twice this width with as many heads."""
    config: Any = owner.config
    fields = [_fields(owner, row, anatomy, width) for width in (anatomy.width, 2 * anatomy.width)]
    pooled = getattr(owner, "pooler", True) is not None
    key = (type(owner), pooled, config.to_json_string(use_diff=False), tuple(fields[0].items()))
    if key not in _KNOWN:
        before, wider = (twin(owner, field, row.stacks[0].config) for field in fields)
        old, new = (convolution.plainly(shapes(made)) for made in (before, wider))
        dims = [(n, d) for n, s in old.items() for d in range(len(s)) if s[d] != new[n][d]]
        numbers: dict[bool, list[tuple[str, str]]] = {True: [], False: []}
        modules = dict(wider.named_modules())
        for path, module in before.named_modules():
            if isinstance(module, _REFITTED) or is_conv1d(module):
                continue
            for name, value in vars(module).items():
                other = vars(modules[path]).get(name)
                if type(value) in (int, float, tuple) and other != value:
                    plain = (value, other) == (anatomy.width, 2 * anatomy.width)
                    numbers[plain].append((path, name))
        _KNOWN[key] = _Hidden(frozenset(old), tuple(dims), tuple(numbers[True]), tuple(numbers[False]))
        if len(_KNOWN) > 16:
            _KNOWN.popitem(last=False)
    return _KNOWN[key]


def _of_heads(owner: nn.Module, anatomy: Anatomy) -> set[tuple[int, int]]:
    """(id of tensor, dimension) of everything that runs over heads and not over hidden channels."""
    stay: set[tuple[int, int]] = set()

    def linear(path: str, output: bool) -> None:
        module: Any = get(owner, path)
        stay.add((id(module.weight), int(output == is_conv1d(module))))
        if output and module.bias is not None:
            stay.add((id(module.bias), 0))

    def attention(found: Attention) -> None:
        for path in (found.q, found.k, found.v, found.qkv):
            if path is not None:
                linear(path, True)
        linear(found.o, False)
        for norm in (found.q_norm, found.k_norm):
            module = find(owner, norm) if norm else None
            stay.update((id(p), 0) for p in (module.parameters() if module else ()))

    for block in anatomy.blocks:
        for found in attentions(block):
            attention(found)
    return stay


def _numbers(owner: nn.Module, anatomy: Anatomy, hidden: _Hidden) -> list[tuple[nn.Module, str]]:
    """(module, attribute) of every number that is the hidden size. Raises ModelError for what is not understood."""
    inside = tuple(f"{a.path}." for block in anatomy.blocks for a in attentions(block))
    modules = dict(owner.named_modules())
    found: list[tuple[nn.Module, str]] = []
    for path, name in hidden.strange:
        if path in modules and not f"{path}.".startswith(inside):
            raise ModelError(f"How {path}.{name} depends on the hidden size is not understood.")
    for path, name in hidden.numbers:
        # an attention's are of the heads, but for those that say what it puts out
        if path in modules and (name in _GIVEN or not f"{path}.".startswith(inside)):
            found.append((modules[path], name))
    return found
