"""What the tokens of a tokenizer stand for, in bytes, and how a tokenizer splits bytes that are no text of its own.

A leading space says that a token begins a word, whatever sign a tokenizer has for it ("Ġ", "▁", or none where "##" marks
what goes on), so that tokens of different tokenizers can be compared.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cached_property
from typing import Any

from lightformers.compress import tokenizer_json
from lightformers.errors import ModelError

_MARK = "\u2581"


def byte_letters() -> dict[int, str]:
    """The letter that byte-level tokenizers write for each byte: itself where it is printable, else one from 256 on."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = {b: chr(b) for b in plain}
    rest = (b for b in range(256) if b not in letters)
    letters.update({b: chr(256 + i) for i, b in enumerate(rest)})
    return letters


_LETTER = byte_letters()
_BYTE = {letter: b for b, letter in _LETTER.items()}


class Speller:
    """Bytes of every token of a fast tokenizer, and tokens of any bytes."""

    def __init__(self, tokenizer: Any) -> None:
        """Raises ModelError for slow tokenizers and kinds that are not known."""
        if not getattr(tokenizer, "is_fast", False):
            raise ModelError(f"tokens are spelled through a fast tokenizer, not a {type(tokenizer).__name__}")
        self.tokenizer = tokenizer
        self.data: Mapping[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
        tokenizer_json.check(self.data)
        self.names = tokenizer_json.tokens(self.data)
        self.special = tokenizer_json.added(self.data) | set(tokenizer.all_special_ids)
        model = self.data["model"]
        steps = json.dumps([self.data.get("pre_tokenizer"), self.data.get("decoder")])
        if model["type"] == "WordPiece":
            self.kind = "wordpiece"
        elif '"ByteLevel"' in steps:
            self.kind = "bytes"
        elif '"Metaspace"' in steps or _MARK in json.dumps(self.data.get("normalizer"), ensure_ascii=False):
            self.kind = "metaspace"
        else:
            raise ModelError(
                f"how this {model['type']} tokenizer marks the beginning of a word is not known: WordPiece, byte-level "
                "and metaspace tokenizers are"
            )
        self.prefix: str = model.get("continuing_subword_prefix") or "##"

    def spell(self, token: int) -> bytes | None:
        """The bytes of a token, with a leading space where it begins a word; None for special and added tokens."""
        if token in self.special or token not in self.names:
            return None
        name = self.names[token]
        if self.kind == "bytes":
            return bytes(_BYTE[c] for c in name) if all(c in _BYTE for c in name) else name.encode()
        if self.kind == "metaspace":
            if len(name) == 6 and name.startswith("<0x") and name.endswith(">"):
                return bytes([int(name[3:5], 16)])
            return name.replace(_MARK, " ").encode()
        if name.startswith(self.prefix) and len(name) > len(self.prefix):
            return name[len(self.prefix) :].encode()
        # punctuation stands alone in WordPiece, and says nothing of a space before it
        return (" " + name if name.isalnum() else name).encode()

    def split(self, spelled: bytes) -> list[int]:
        """Tokens of these bytes, without pre-tokenization; unknown tokens where there is no other. Never empty."""
        if self.kind == "bytes":
            return self._model("".join(_LETTER[b] for b in spelled))
        try:
            text = spelled.decode()
        except UnicodeDecodeError:  # a part of a character
            return self._bytes(spelled)
        if self.kind == "metaspace":
            found = self._model(text.replace(" ", _MARK))
            return found if self._unknown not in found else self._bytes(spelled) if self._has_bytes else found
        normalizer = self.tokenizer.backend_tokenizer.normalizer
        if normalizer is not None:
            text = normalizer.normalize_str(text)
        word = text.strip()
        return self._pieces(word, begin=text.startswith(" ") or not word.isalnum()) if word else self._none

    def _model(self, text: str) -> list[int]:
        return [t.id for t in self.tokenizer.backend_tokenizer.model.tokenize(text)] or self._none

    def _pieces(self, word: str, begin: bool) -> list[int]:
        """The longest piece first, as WordPiece does; in the middle of a word from the first piece on."""
        out, at = [], 0
        while at < len(word):
            mark = "" if begin and at == 0 else self.prefix
            ends = (e for e in range(len(word), at, -1) if mark + word[at:e] in self._numbers)
            if (end := next(ends, None)) is None:
                return self._none
            out.append(self._numbers[mark + word[at:end]])
            at = end
        return out

    def _bytes(self, spelled: bytes) -> list[int]:
        return [self._numbers.get(f"<0x{b:02X}>", self._none[0]) for b in spelled] or self._none

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {name: i for i, name in self.names.items()}

    @cached_property
    def _has_bytes(self) -> bool:
        return all(f"<0x{b:02X}>" in self._numbers for b in range(256))

    @cached_property
    def _unknown(self) -> int | None:
        found: int | None = self.tokenizer.unk_token_id
        return found

    @cached_property
    def _none(self) -> list[int]:
        if self._unknown is None:
            raise ModelError("this tokenizer cannot split every byte and has no unknown token")
        return [self._unknown]
