"""Cut the vocabulary: rows of every tensor that has one per token, and the ids that configs and modules hold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from lightformers.anatomy.access import get
from lightformers.anatomy.cutting import Plan, chosen
from lightformers.anatomy.families import Family
from lightformers.anatomy.records import Anatomy
from lightformers.anatomy.settings import copies, open_up
from lightformers.anatomy.twin import changed, tensors, twin
from lightformers.errors import ModelError

_DROPPABLE = ("suppress_tokens", "begin_suppress_tokens", "bad_words_ids")  # ids that may go with their rows
_TABLES = ("lang_to_id", "task_to_id")
_PROBE = 8  # by how many rows the vocabulary of the twin differs


def keep_vocabulary(model: nn.Module, ids: Sequence[int]) -> None:
    """Keep these rows of the vocabulary: token `ids[i]` becomes token `i`. The caller renumbers the tokenizer.

    Embeddings, output layer and its biases, `vocab_size`, and the special ids in config and generation config
    all follow. Raises ModelError if a special token would go.
    """
    owner, row, anatomy = open_up(model, "vocabulary")
    config = _vocabulary_config(owner)
    size = int(config.vocab_size) if config is not None else _rows(owner, anatomy)
    kept = chosen(ids, size, "vocabulary", ascending=False)
    new_of = {old: new for new, old in enumerate(kept)}
    plan, touched = Plan(), set()
    live = tensors(owner)
    for name, dims in _vocabulary_tensors(owner, anatomy, config, size).items():
        tensor = live.get(name)
        for dim in dims:
            if tensor is not None and tensor.shape[dim] == size:
                plan.keep(tensor, dim, kept)
                touched.add(name)
    if not touched:
        raise ModelError(f"{type(owner).__name__} has no vocabulary: nothing has a row per token.")
    holders = _holders(owner, config)
    _check_ids(owner, row, holders, config, new_of, size)
    plan.apply(owner)
    for holder in holders:
        for name, value in list(vars(holder).items()):
            setattr_if(holder, name, _renumbered(name, value, new_of, size), value)
    if config is not None:
        for each in copies(owner, config):
            each.vocab_size = len(kept)
    _renumber_modules(owner, touched, new_of, size)


def setattr_if(holder: Any, name: str, new: Any, old: Any) -> None:
    if new is not old:
        setattr(holder, name, new)


def _vocabulary_config(owner: nn.Module) -> Any:
    config: Any = getattr(owner, "config", None)
    if config is None or isinstance(getattr(config, "vocab_size", None), int):
        return config
    section = getattr(config, "text_config", None)
    return section if isinstance(getattr(section, "vocab_size", None), int) else None


def _rows(owner: nn.Module, anatomy: Anatomy) -> int:
    if anatomy.embeddings is None:
        raise ModelError(f"{type(owner).__name__} has no vocabulary: no word embedding was found.")
    return int(get(owner, anatomy.embeddings).weight.shape[0])  # type: ignore[index]


def _vocabulary_tensors(owner: nn.Module, anatomy: Anatomy, config: Any, size: int) -> dict[str, list[int]]:
    """Names of the tensors with a row per token: what changes in a twin of another vocabulary size.

    A model without config, or whose config no longer builds, has its word embedding and its head.
    """
    if config is not None:
        section = "" if config is owner.config else "text_config"
        try:
            sizes = changed(twin(owner), twin(owner, {"vocab_size": size + _PROBE}, section))
            # a step may have given the head a bias that transformers does not build
            return {**sizes, **({f"{anatomy.head}.bias": [0]} if f"{anatomy.head}.weight" in sizes else {})}
        except ModelError:
            pass
    found: dict[str, list[int]] = {}
    for path in (anatomy.embeddings, anatomy.head):
        if path is not None:
            found.update({f"{path}.weight": [0], f"{path}.bias": [0]})
    return found


def _holders(owner: nn.Module, config: Any) -> list[Any]:
    holders: list[Any] = []
    root = getattr(owner, "config", None)
    for each in (root, config, getattr(owner, "generation_config", None)):
        if each is not None:
            holders += [c for c in copies(owner, each) if all(c is not h for h in holders)]
    return holders


def _is_id(name: str) -> bool:
    return name.endswith(("_token_id", "_token_ids", "_eos_token_id")) or name in ("forced_decoder_ids",)


def _check_ids(
    owner: nn.Module, row: Family, holders: list[Any], config: Any, new_of: dict[int, int], size: int
) -> None:
    missing = {}
    for holder in holders:
        for name, value in vars(holder).items():
            for number in _numbers(value) if _is_id(name) else ():
                if number < size and number not in new_of:
                    missing[name] = number
    if missing:
        named = ", ".join(f"{name.lstrip('_')} {number}" for name, number in sorted(missing.items()))
        raise ModelError(f"Special tokens must stay in the vocabulary: {named}.")
    pad = getattr(config, "pad_token_id", None)
    if row.pad_counts and isinstance(pad, int) and new_of.get(pad) != pad:
        raise ModelError(
            f"A {row.name} counts positions from its padding id: keep the ids 0 to {pad} first, so that padding stays {pad}."
        )
    if row.name == "clip":
        _check_clip(config, new_of, size)


def _check_clip(config: Any, new_of: dict[int, int], size: int) -> None:
    """clip pools at the end token; an end id of 2 means, by old custom, "the largest id there is"."""
    eos = getattr(config, "eos_token_id", None)
    kept = list(new_of)
    if eos == 2 and (kept != sorted(kept) or new_of.get(2) != 2 or size - 1 not in new_of):
        raise ModelError(
            "This clip finds the end of a text by its largest id: keep ids 0 to 2 and the last one, in ascending order."
        )
    if isinstance(eos, int) and eos != 2 and new_of.get(eos) == 2:
        raise ModelError(
            "The end token of a clip must not become id 2, which has a meaning of its own there."
        )


def _numbers(value: Any) -> list[int]:
    if isinstance(value, bool) or value is None:
        return []
    if isinstance(value, int):
        return [value] if value >= 0 else []
    if isinstance(value, (list, tuple)):
        return [number for item in value for number in _numbers(item)]
    return []


def _renumbered(name: str, value: Any, new_of: dict[int, int], size: int) -> Any:
    """The value with its token ids renumbered; the very same object if there is nothing to do."""
    if name in _TABLES and isinstance(value, dict):
        return {key: new_of[old] for key, old in value.items() if old in new_of}
    if name in _DROPPABLE and isinstance(value, (list, tuple)):
        if any(isinstance(item, (list, tuple)) for item in value):
            return [[new_of[i] for i in item] for item in value if all(i in new_of for i in item)] or None
        return [new_of.get(i, i) for i in value if i in new_of or not 0 <= i < size] or None
    if not _is_id(name):
        return value
    if name == "forced_decoder_ids" and isinstance(value, (list, tuple)):
        return [[place, new_of.get(i, i)] for place, i in value]
    if isinstance(value, int) and not isinstance(value, bool):
        return new_of.get(value, value) if new_of.get(value, value) != value else value
    if isinstance(value, (list, tuple)) and all(isinstance(i, int) for i in value):
        return type(value)(new_of.get(i, i) for i in value)
    return value


def _renumber_modules(owner: nn.Module, touched: set[str], new_of: dict[int, int], size: int) -> None:
    """Ids and sizes that modules keep: `vocab_size`, `padding_idx`, `eos_token_id`."""
    for path, module in owner.named_modules():
        kept = module.__dict__
        if kept.get("vocab_size") == size:
            module.vocab_size = len(new_of)
        if isinstance(module, nn.Embedding):
            if f"{path}.weight" in touched and module.padding_idx is not None:
                module.padding_idx = new_of.get(module.padding_idx)
            continue
        for name in ("padding_idx", "pad_token_id", "eos_token_id", "bos_token_id"):
            if type(kept.get(name)) is int:
                setattr(module, name, new_of.get(kept[name], kept[name]))
