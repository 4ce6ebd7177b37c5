"""Trim the vocabulary to what a task's texts use."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from lightformers import anatomy
from lightformers.bundle import Bundle
from lightformers.compress import tokenizer_json
from lightformers.errors import DataError, ModelError, UserError
from lightformers.memo import Memo
from lightformers.steps import Run, Stage
from lightformers.telemetry import quiet

#: Counting a corpus takes seconds, and every finalist of a search asks for the same.
_COUNTS: Memo[np.ndarray] = Memo()
_TEXT_FIELDS = ("text", "text_pair", "query", "document", "words")


@dataclass(frozen=True)
class TrimVocabulary:
    """Keep the embedding rows and tokenizer pieces that occur in the task's texts (idT5, Fuadi et al., 2023,
    arXiv 2302.00856; the same procedure is known from Dale's mT5 recipe and vocabtrimmer, arXiv 2305.15020).

    No weight changes: a text that the new tokenizer splits as the old one did gives the very same states. Texts with
    a dropped piece are split into smaller ones, never into unknowns where all characters are kept. Special and added
    tokens always stay; ids keep their order. The bundle gets a tokenizer of its own.

    size: how many tokens stay, the most frequent first; None: all that occur often enough. min_count: how often.
    keep_first: so many ids from the front stay in any case. characters: "all" keeps every single-character and byte
        piece, "corpus" only those whose character occurs (others then become unknown tokens).
    splits: the task's splits that are counted; a count over "verify" would see the test.
    multiple: round the vocabulary up to a multiple of this, with the next most frequent tokens (no rows are made up).
    """

    size: int | None = None
    min_count: int = 1
    keep_first: int = 0
    characters: Literal["all", "corpus"] = "all"
    splits: tuple[str, ...] = ("train",)
    multiple: int = 1
    stage: ClassVar[Stage] = Stage.VOCABULARY

    def __post_init__(self) -> None:
        object.__setattr__(self, "splits", tuple(self.splits))
        if self.size is not None and self.size < 1:
            raise UserError(f"size must be at least 1 token, got {self.size}: nothing would be left")
        if self.min_count < 0 or self.keep_first < 0 or self.multiple < 1:
            raise UserError("min_count and keep_first must be at least 0, multiple at least 1")
        if self.characters not in ("all", "corpus"):
            raise UserError(f"characters must be 'all' or 'corpus', got {self.characters!r}")

    def apply(self, bundle: Bundle, task: Any, run: Run) -> Bundle:
        """Raises ModelError for models without vocabulary and slow tokenizers, UserError for impossible sizes."""
        tokenizer = bundle.processor
        if not getattr(tokenizer, "is_fast", False):
            kind = type(tokenizer).__name__ if tokenizer is not None else "no tokenizer"
            raise ModelError(
                f"the vocabulary is cut through a fast tokenizer (tokenizer.json); the bundle has {kind}"
            )
        if task is None:
            raise UserError("which tokens are needed is counted in a task's texts: give a task")
        data = json.loads(tokenizer.backend_tokenizer.to_str())
        tokenizer_json.check(data)
        key = (task.fingerprint, self.splits, tuple(sorted(bundle.prompts.items())))
        texts, rows = texts_of(bundle, task, self.splits), 1 + max(tokenizer_json.tokens(data))
        counts = _COUNTS(tokenizer, key, lambda: count(tokenizer, texts, rows))
        kept = self.select(data, counts, needed(bundle, data))
        old = bundle.origin.vocabulary
        if len(kept) == len(tokenizer_json.tokens(data)) == _rows(bundle):
            return bundle
        processor = trimmed(tokenizer, kept)
        anatomy.surgery.keep_vocabulary(bundle.model, kept)
        bundle.processor = processor
        bundle.origin = replace(bundle.origin, vocabulary=tuple(old[i] for i in kept) if old else tuple(kept))
        return bundle

    def select(self, data: dict[str, Any], counts: np.ndarray, must: set[int]) -> list[int]:
        """Which ids stay, ascending. counts: occurrences per id. must: ids that stay in any case.

        Raises UserError if nothing was counted, or if `size` is more than there is or less than what must stay.
        """
        names = tokenizer_json.tokens(data)
        if not counts.any() and self.min_count > 0:
            raise DataError(
                f"no token occurs in the splits {', '.join(self.splits)}: there is no text in them"
            )
        if self.size is not None and self.size > len(names):
            raise UserError(f"size {self.size} is more than the {len(names)} tokens of the vocabulary")
        kept = set(must) | {i for i in range(self.keep_first) if i in names}
        kept |= self._characters(data, names, counts)
        kept = set().union(*tokenizer_json.closure(data, kept).values())
        if self.size is not None and len(kept) > self.size:
            raise UserError(
                f"{len(kept)} tokens must stay (special tokens, characters, keep_first): size {self.size} is too "
                "small; raise it, or keep only the characters that occur (characters='corpus')"
            )
        # the most frequent first; of equally frequent ones the earlier, which in most vocabularies is the commoner
        order = [int(i) for i in np.lexsort((np.arange(len(counts)), -counts)) if int(i) in names]
        needs = tokenizer_json.closure(data, (i for i in order if counts[i] >= max(self.min_count, 1)))
        if self.min_count == 0:
            needs = tokenizer_json.closure(data, order)
        for group in needs.values():
            if self.size is not None and len(kept | group) > self.size:
                if self.size == len(kept):
                    break
                continue
            kept |= group
        target = min(-(-len(kept) // self.multiple) * self.multiple, len(names))
        for i in order:
            if len(kept) >= target:
                break
            group = tokenizer_json.closure(data, [i])[i]
            if len(kept | group) <= target:
                kept |= group
        return sorted(kept)

    def _characters(self, data: dict[str, Any], names: dict[int, str], counts: np.ndarray) -> set[int]:
        single = {
            i: c for i, name in names.items() if (c := tokenizer_json.character(data, name)) is not None
        }
        if self.characters == "all":
            return set(single)
        seen = {c for i in np.flatnonzero(counts) if int(i) in names for c in names[int(i)]}
        return {i for i, c in single.items() if c in seen or len(c) > 1}


def texts_of(bundle: Bundle, task: Any, splits: Iterable[str]) -> Iterator[str]:
    """Every text of the splits, and the prompts of the bundle. Raises DataError for a split that is not there."""
    for name in splits:
        if name not in task.splits:
            raise DataError(f"the task has no split {name!r}; it has {', '.join(task.splits)}")
        for example in task.splits[name]:
            for key in _TEXT_FIELDS:
                if (value := example.get(key)) is not None:
                    yield value if isinstance(value, str) else " ".join(value)
    yield from (p for p in bundle.prompts.values() if p)


def count(tokenizer: Any, texts: Iterable[str], size: int, batch: int = 1000) -> np.ndarray:
    """How often each id occurs, special tokens off: (size,) integers."""
    total = np.zeros(size, dtype=np.int64)

    def add(group: list[str]) -> None:
        found = tokenizer(group, add_special_tokens=False, return_attention_mask=False, verbose=False)
        flat = np.fromiter((i for ids in found["input_ids"] for i in ids), dtype=np.int64)
        total[:] += np.bincount(flat, minlength=size)[:size]

    group: list[str] = []
    for text in texts:
        group.append(text)
        if len(group) == batch:
            add(group)
            group = []
    if group:
        add(group)
    return total


def needed(bundle: Bundle, data: dict[str, Any]) -> set[int]:
    """Ids that must stay: added and special tokens, the unknown token, and every token id that configs name."""
    names = tokenizer_json.tokens(data)
    must = tokenizer_json.added(data) | {int(i) for i in bundle.processor.all_special_ids}
    for config in (getattr(bundle.model, "config", None), getattr(bundle.model, "generation_config", None)):
        for key, value in vars(config).items() if config is not None else ():
            if key.endswith(("_token_id", "_token_ids")):
                must |= {
                    i for i in (value if isinstance(value, (list, tuple)) else [value]) if type(i) is int
                }
    family = anatomy.of(bundle.model).family
    if any(row.pad_counts for row in anatomy.FAMILIES if row.name == family):
        # positions are counted from the padding id, so it keeps its number
        must |= set(range(int(bundle.processor.pad_token_id) + 1))
    return {i for i in must if i in names}


def trimmed(tokenizer: Any, ids: list[int]) -> Any:
    """A new tokenizer of the same class that has only the tokens `ids` (ascending); the old one stays as it is.

    Written to disk and read back, so it is what a later reload gives. Raises ModelError if it comes back different.
    """
    with tempfile.TemporaryDirectory() as folder, quiet():
        tokenizer.save_pretrained(folder)
        file = Path(folder) / "tokenizer.json"
        if not file.is_file():
            raise ModelError(f"a {type(tokenizer).__name__} writes no tokenizer.json: it cannot be cut")
        data = json.loads(file.read_text(encoding="utf-8"))
        names = tokenizer_json.tokens(data)
        file.write_text(json.dumps(tokenizer_json.keep(data, ids), ensure_ascii=False), encoding="utf-8")
        settings = Path(folder) / "tokenizer_config.json"
        config = json.loads(settings.read_text(encoding="utf-8"))
        if table := config.get("added_tokens_decoder"):
            new_of = {str(old): str(new) for new, old in enumerate(ids)}
            config["added_tokens_decoder"] = {new_of[k]: v for k, v in table.items() if k in new_of}
            settings.write_text(json.dumps(config, ensure_ascii=False), encoding="utf-8")
        for other in Path(folder).iterdir():  # vocab.txt, merges.txt, ...: the old pieces
            if other.suffix != ".json" or other.name in ("vocab.json", "added_tokens.json"):
                other.unlink()
        new = type(tokenizer).from_pretrained(folder)
    new.name_or_path = tokenizer.name_or_path
    new.init_kwargs.pop("name_or_path", None)
    found = new.convert_ids_to_tokens(list(range(len(ids))))
    if len(new) != len(ids) or found != [names[i] for i in ids]:
        raise ModelError(
            f"a {type(tokenizer).__name__} does not come back as it was cut; its vocabulary stays"
        )
    return new


def _rows(bundle: Bundle) -> int:
    path = anatomy.of(bundle.model).embeddings
    if path is None:
        raise ModelError("this model has no word embedding: there is no vocabulary to trim")
    return int(anatomy.get(bundle.model, path).weight.shape[0])  # type: ignore[index]
