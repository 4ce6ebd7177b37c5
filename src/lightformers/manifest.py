"""The manifest: structures that a plain transformers config cannot express.

`lightformers.json` stands beside `model.safetensors` and holds the structure as differences from the model that
`config.json` builds: modules of another shape or kind (from the closed table `KINDS`, never an import path), cached
integers such as head counts, modules that are gone, tied names and buffers that the config does not determine.
Weights go by `state_dict()` names, because `save_pretrained` renames keys for some families (vit, deit, dinov2).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from lightformers import __version__
from lightformers.errors import ModelError, reason
from lightformers.files import read_json, replacing, write_json
from lightformers.kinds import KINDS
from lightformers.models.registry import class_named
from lightformers.parts.attention import swapped
from lightformers.parts.attention.interface import ATTRIBUTE, AttentionSettings, use

FILE = "lightformers.json"
WEIGHTS = "model.safetensors"
FORMAT = 1


@dataclass
class Structure:
    """Differences of a model from the one that its config builds; all paths dotted. Empty: the config says it all."""

    modules: dict[str, dict[str, Any]] = field(default_factory=dict)
    added: dict[str, dict[str, Any]] = field(default_factory=dict)
    attributes: dict[str, dict[str, int | float]] = field(default_factory=dict)
    removed: list[str] = field(default_factory=list)
    buffers: list[str] = field(default_factory=list)
    was: dict[str, str] = field(default_factory=dict)
    attention: dict[str, Any] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return any((self.modules, self.added, self.attributes, self.removed, self.buffers, self.attention))

    def reasons(self) -> list[str]:
        """Each difference in plain words."""
        out = [
            f"{path} is {_words(what)}; the config builds {self.was[path]}"
            for path, what in self.modules.items()
        ]
        out += [
            f"{path} is {_words(what)}; the config builds nothing there" for path, what in self.added.items()
        ]
        out += [f"{path} is gone; the config builds it" for path in self.removed]
        out += [f"buffer {name} is not what the config gives" for name in self.buffers]
        out += ["the attention is not the plain one of transformers"] if self.attention else []
        if not out:
            out = [
                f"{path} has other sizes ({_words(a)}) than the config gives"
                for path, a in self.attributes.items()
            ]
        return out


def _words(what: Mapping[str, Any]) -> str:
    rest = " ".join(f"{k}={v}" for k, v in what.items() if k != "kind")
    return f"{what.get('kind', '')} {rest}".strip()


def structure(model: nn.Module) -> Structure:
    """How `model` differs from what its config builds. Raises ModelError where no manifest could say it."""
    found = Structure(attention=dict(getattr(model.config, ATTRIBUTE, None) or {}))
    reference = _skeleton(_model_class(type(model).__name__, model), model.config)
    _compare(reference, model, "", found)
    held = dict(reference.named_buffers())
    persistent = model.state_dict().keys()
    replaced = tuple(f"{p}." for p in (*found.modules, *found.added))
    for name, buffer in model.named_buffers():
        if name in persistent or (replaced and name.startswith(replaced)):
            continue
        other = held.get(name)
        if other is None or other.shape != buffer.shape or not torch.equal(other.to(buffer), buffer):
            found.buffers.append(name)
    return found


def _compare(reference: nn.Module, model: nn.Module, path: str, found: Structure) -> None:
    kind = _kind(model)
    args = KINDS[kind].args(model) if kind else {}
    same = type(reference) is type(model) or _alike(reference, model)
    if kind and not (same and KINDS[kind].args(reference) == args):
        found.modules[path] = {"kind": kind, **args}
        found.was[path] = (
            _words({"kind": kind, **KINDS[kind].args(reference)}) if same else type(reference).__name__
        )
        return
    if not same:
        raise ModelError(
            f"{path or 'the model'} is a {type(model).__name__}, which cannot be saved: a manifest knows "
            f"{', '.join(KINDS)}. Merge or replace it first"
        )
    for name, parameter in model._parameters.items():
        other = reference._parameters.get(name)
        if getattr(parameter, "shape", None) != getattr(other, "shape", None):
            raise ModelError(
                f"{path}.{name} has another shape than the config builds, and a {type(model).__name__} "
                f"of another size cannot be saved (a manifest knows {', '.join(KINDS)})"
            )
    if changed := {k: v for k, v in _sizes(model) if vars(reference).get(k) != v}:
        found.attributes[path] = changed
    theirs = {k: v for k, v in reference._modules.items() if v is not None}
    ours = {k: v for k, v in model._modules.items() if v is not None}
    for name in sorted(ours.keys() - theirs.keys()):
        kind = _kind(ours[name])
        if kind is None or not KINDS[kind].beside:
            raise ModelError(
                f"{_join(path, name)} is not in the model that the config builds: it cannot be saved"
            )
        found.added[_join(path, name)] = {"kind": kind, **KINDS[kind].args(ours.pop(name))}
    found.removed += [_join(path, name) for name in theirs if name not in ours]
    for name, child in ours.items():
        _compare(theirs[name], child, _join(path, name), found)


def _kind(module: nn.Module) -> str | None:
    return next((name for name, kind in KINDS.items() if kind.matches(module)), None)


def _alike(one: nn.Module, other: nn.Module) -> bool:
    """Whether both are the same module with the same parametrizations: each such module has a class of its own."""
    if not (is_parametrized(one) and is_parametrized(other)):
        return False
    kinds = []
    for module in (one, other):
        made: Any = module.parametrizations
        kinds.append(
            (type(module).__bases__, {name: [type(p) for p in parts] for name, parts in made.items()})
        )
    return kinds[0] == kinds[1]


def _sizes(module: nn.Module) -> Iterator[tuple[str, int | float]]:
    """The plain numbers that a module caches (heads, head size, scale); dropout and flags change no inference."""
    for name, value in vars(module).items():
        if type(value) in (int, float) and not name.startswith("_") and "drop" not in name and name != "p":
            yield name, value


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _skeleton(cls: type[nn.Module], config: Any) -> nn.Module:
    """What the config builds, without memory for parameters. Buffers are real: some are not in any file."""
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=False):
        return cls(copy.deepcopy(config))


def _model_class(name: str, model: nn.Module | None = None) -> type[nn.Module]:
    import transformers

    cls = class_named(name)
    if cls is None or (model is not None and type(model) is not cls):
        raise ModelError(
            f"{name} is no model class of transformers {transformers.__version__}: it has no manifest form"
        )
    return cls


def write_manifest(model: Any, folder: str | Path) -> Structure:
    """Write `lightformers.json` and `model.safetensors` of a model (or bundle) into `folder`; both appear whole."""
    from safetensors.torch import save_file

    model = getattr(model, "model", model) if not isinstance(model, nn.Module) else model
    found = structure(model)
    tied = _tied(model)
    tensors = {k: v for k, v in model.state_dict().items() if k not in tied}
    if strange := [k for k, v in tensors.items() if not isinstance(v, Tensor)]:
        raise ModelError(f"{strange[0]} is no tensor: only tensors can be saved")
    buffers = dict(model.named_buffers())
    tensors |= {name: buffers[name] for name in found.buffers}
    with replacing(Path(folder) / WEIGHTS) as temporary:
        # clones: safetensors refuses tensors that share memory, such as views of one fused weight
        save_file(
            {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()},
            temporary,
            {"format": "pt"},
        )
    kinds = {what["kind"] for what in (*found.modules.values(), *found.added.values())}
    write_json(
        Path(folder) / FILE,
        {
            "format": FORMAT,
            "lightformers": __version__,
            "needs": max((KINDS[k].since for k in kinds), key=_version, default="0.1.0"),
            "class": type(model).__name__,
            "modules": found.modules,
            "attributes": found.attributes,
            "removed": found.removed,
            "buffers": found.buffers,
            "tied": tied,
            **({"attention": found.attention} if found.attention else {}),
            **({"added": found.added} if found.added else {}),
        },
    )
    return found


def _tied(model: nn.Module) -> dict[str, str]:
    """alias -> the name under which the same parameter is saved."""
    first: dict[int, str] = {}
    out = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if (held := first.setdefault(id(parameter), name)) != name:
            out[name] = held
    return out


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(p) for p in text.split(".") if p.isdigit())


def build_from_manifest(folder: str | Path, config: Any) -> nn.Module:
    """Rebuild the model that `write_manifest` saved in `folder`; `config` is the one saved beside it.

    Raises ModelError for an unknown kind or format (and says which lightformers is needed) and damaged folders.
    """
    from safetensors.torch import load_file

    folder = Path(folder)
    manifest = read_json(folder / FILE)
    modules = [*manifest.get("modules", {}).values(), *manifest.get("added", {}).values()]
    strange = sorted({what["kind"] for what in modules} - KINDS.keys())
    if manifest.get("format", 0) > FORMAT or strange:
        what = f"uses {', '.join(strange)}" if strange else f"has format {manifest['format']}"
        raise ModelError(
            f"{folder / FILE} {what}, which lightformers {__version__} does not know: it needs lightformers "
            f">= {manifest.get('needs', manifest.get('lightformers'))} (pip install -U lightformers)"
        )
    config = copy.deepcopy(config)
    vars(config).pop("quantization_config", None)  # there to keep plain transformers from opening the folder
    try:
        model = _skeleton(_model_class(manifest["class"]), config)
        _reshape(model, manifest)
        tensors = load_file(folder / WEIGHTS)
        for name in manifest["buffers"]:
            owner, _, leaf = name.rpartition(".")
            model.get_submodule(owner).register_buffer(leaf, tensors.pop(name), persistent=False)
        tensors |= {alias: tensors[name] for alias, name in manifest["tied"].items()}
        model.load_state_dict(tensors, assign=True)
        for alias, name in manifest["tied"].items():
            owner, _, leaf = alias.rpartition(".")
            setattr(model.get_submodule(owner), leaf, model.get_parameter(name))
        if attention := manifest.get("attention"):
            use(model, AttentionSettings(**attention))
        if swapped.cores(model):
            swapped.use(model)
    except (KeyError, AttributeError, TypeError, RuntimeError, OSError) as error:
        raise ModelError(f"{folder} is damaged: {reason(error)}") from error
    model.tie_weights()  # type: ignore[operator]
    return model.eval()


def _made(what: Mapping[str, Any]) -> nn.Module:
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=False):
        return KINDS[what["kind"]].make({k: v for k, v in what.items() if k != "kind"})


def _reshape(model: nn.Module, manifest: Mapping[str, Any]) -> None:
    added = manifest.get("added", {})
    for path, what in {**manifest["modules"], **added}.items():
        owner, _, leaf = path.rpartition(".")
        parent = model.get_submodule(owner)
        free = not hasattr(parent, leaf) and KINDS[what["kind"]].beside
        if not (free if path in added else parent._modules.get(leaf) is not None):
            raise ModelError(f"{path} is no place for {what['kind']}: the manifest is damaged")
        setattr(parent, leaf, _made(what))
    for path in reversed(manifest["removed"]):
        owner, _, leaf = path.rpartition(".")
        parent = model.get_submodule(owner)
        if isinstance(parent, (nn.ModuleList, nn.Sequential, nn.ModuleDict)):
            delattr(parent, leaf)
        else:  # models ask `if self.pooler is not None`
            setattr(parent, leaf, None)
    for path, values in manifest["attributes"].items():
        module = model.get_submodule(path)
        for name, value in values.items():
            # only numbers that the module has already: a file cannot plant anything else
            if name.startswith("_") or not {type(vars(module).get(name)), type(value)} <= {int, float}:
                raise ModelError(f"{manifest['class']} has no number {path}.{name}: the manifest is damaged")
            setattr(module, name, value)
