"""Surgery on `tokenizer.json`: keep some tokens of a WordPiece, BPE or Unigram tokenizer, and renumber them.

Pure functions on the parsed file. Whatever the old tokenizer splits into kept tokens, the new one splits alike:
greedy longest match (WordPiece) and best path (Unigram) find the same pieces among fewer rivals, and BPE does the
same merges in the same order, because every merge on the way to a kept token is kept too (`derivation`).
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from lightformers.errors import ModelError

KINDS = ("WordPiece", "BPE", "Unigram")


def check(data: Mapping[str, Any]) -> None:
    """ModelError if this kind of tokenizer cannot be cut."""
    kind = data["model"].get("type")
    if kind not in KINDS:
        raise ModelError(f"a {kind} tokenizer has no pieces that can be left out; {', '.join(KINDS)} have")
    if kind == "BPE" and data["model"].get("continuing_subword_prefix"):
        raise ModelError("BPE with a prefix for continuing pieces is not supported")


def tokens(data: Mapping[str, Any]) -> dict[int, str]:
    """Id -> token, added tokens included."""
    vocabulary = data["model"]["vocab"]
    if data["model"]["type"] == "Unigram":
        found = {i: piece for i, (piece, _) in enumerate(vocabulary)}
    else:
        found = {i: token for token, i in vocabulary.items()}
    found.update({t["id"]: t["content"] for t in data.get("added_tokens") or ()})
    return found


def added(data: Mapping[str, Any]) -> set[int]:
    """Ids of added tokens (special ones, sentinels) and of the unknown token."""
    model, ids = data["model"], {t["id"] for t in data.get("added_tokens") or ()}
    if model["type"] == "Unigram":
        return ids if model.get("unk_id") is None else ids | {int(model["unk_id"])}
    unknown = model["vocab"].get(model.get("unk_token"))
    return ids if unknown is None else ids | {int(unknown)}


def character(data: Mapping[str, Any], token: str) -> str | None:
    """The one character (or byte) that a piece stands for, or None if it is longer."""
    model = data["model"]
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        return token
    if model["type"] == "WordPiece":
        token = token.removeprefix(model.get("continuing_subword_prefix") or "##")
    elif model["type"] == "BPE" and model.get("end_of_word_suffix"):
        token = token.removesuffix(model["end_of_word_suffix"])
    elif model["type"] == "Unigram" and len(token) == 2:
        token = token.removeprefix("\u2581")
    return token if len(token) == 1 else None


def merges(data: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The merges of a BPE tokenizer, first the earliest."""
    listed = data["model"].get("merges") or []
    return [tuple(m.split(" ", 1)) if isinstance(m, str) else (m[0], m[1]) for m in listed]  # type: ignore[misc]


def derivation(token: str, ranks: Mapping[tuple[str, str], int], suffix: str = "") -> set[str]:
    """Every piece on BPE's way from single characters to `token`: those, and each merge's product."""
    body = token[: len(token) - len(suffix)] if suffix and token.endswith(suffix) else token
    pieces = list(body)
    if body != token and pieces:
        pieces[-1] += suffix
    seen = set(pieces)
    while len(pieces) > 1:
        pairs = [(ranks.get(pair, len(ranks)), i) for i, pair in enumerate(pairwise(pieces))]
        rank, place = min(pairs)
        if rank == len(ranks):
            break
        pieces[place : place + 2] = [pieces[place] + pieces[place + 1]]
        seen.add(pieces[place])
    # a token that merges do not lead to (taken whole from the vocabulary) needs nothing on the way
    return seen if pieces == [token] else {token}


def closure(data: Mapping[str, Any], wanted: Iterable[int]) -> dict[int, set[int]]:
    """Id -> ids that must be there for it to be found (itself included): for BPE, those of its derivation."""
    if data["model"]["type"] != "BPE":
        return {i: {i} for i in wanted}
    names, own = tokens(data), added(data)
    ranks = {pair: i for i, pair in enumerate(merges(data))}
    number, suffix = data["model"]["vocab"], data["model"].get("end_of_word_suffix") or ""
    return {
        i: {i}
        if i in own
        else {i, *(number[piece] for piece in derivation(names[i], ranks, suffix) if piece in number)}
        for i in wanted
    }


def keep(data: Mapping[str, Any], ids: Sequence[int]) -> dict[str, Any]:
    """A new tokenizer.json with the tokens `ids` (ascending); token `ids[i]` gets id i.

    Merges whose parts or product are gone are left out. Scores, normalizer, pre-tokenizer and decoder stay.
    Raises ModelError if added tokens or the unknown token would go.
    """
    check(data)
    new_of = {old: new for new, old in enumerate(ids)}
    if gone := sorted(added(data) - set(new_of)):
        names = tokens(data)
        raise ModelError(f"special tokens must stay: {', '.join(names[i] for i in gone[:5])}")
    out = copy.deepcopy(dict(data))
    model = out["model"]
    if model["type"] == "Unigram":
        model["vocab"] = [entry for i, entry in enumerate(model["vocab"]) if i in new_of]
        if model.get("unk_id") is not None:
            model["unk_id"] = new_of[model["unk_id"]]
    else:
        model["vocab"] = {token: new_of[i] for token, i in model["vocab"].items() if i in new_of}
    if model["type"] == "BPE":
        left = model["vocab"]
        model["merges"] = [
            listed
            for listed, (a, b) in zip(model.get("merges") or [], merges(data))
            if a in left and b in left and a + b in left
        ]
    for token in out.get("added_tokens") or ():
        token["id"] = new_of[token["id"]]
    _renumber(out.get("post_processor"), new_of)
    if out.get("padding"):
        out["padding"]["pad_id"] = new_of.get(out["padding"]["pad_id"], 0)
    return out


def _renumber(processor: Any, new_of: Mapping[int, int]) -> None:
    if not processor:
        return
    for inner in processor.get("processors") or ():
        _renumber(inner, new_of)
    for special in (processor.get("special_tokens") or {}).values():
        special["ids"] = [new_of[i] for i in special["ids"]]
    for name in ("sep", "cls"):
        if processor.get(name):
            processor[name] = [processor[name][0], new_of[processor[name][1]]]
