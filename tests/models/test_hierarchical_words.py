"""Words of bytes: the splitter's published examples, and what the model relies on."""

from __future__ import annotations

import pytest

from lightformers.errors import UserError
from lightformers.models.language.words import END, PAD, cut, split, stack, unfinished, words_of

STRANGE = "𓀀✨𝒜𝓁 شْء 你好吗 こんにちは 안녕하세요 𝔽(λx.𝑥²) 🤖🍕⟨𝛴, 𝜋⟩ 🛠️Ҁ±(Δ𝓧)   can't 3.14\r\n\n\tx_y--z e.g. URLsAreÜberall!?"


@pytest.mark.parametrize(
    "text, words",
    [
        ("Hello, world!", ["Hello,", " world!"]),
        ("", []),
        ("howAreYou", ["how", "Are", "You"]),
        ("how_are_you", ["how_", "are_", "you"]),
        ("a  b", ["a", "  ", "b"]),
        ("one two", ["one", " two"]),
        ("end. \n next", ["end.", " ", "\n", " next"]),
        (" (x)", [" (", "x)"]),
    ],
)
def test_published_examples_and_rules(text: str, words: list[str]) -> None:
    assert split(text) == words


def test_words_are_the_text_and_a_beginning_has_the_same() -> None:
    assert "".join(split(STRANGE)) == STRANGE
    whole = words_of(STRANGE, 1024)
    for i in range(len(STRANGE)):
        part = words_of(STRANGE[:i], 1024)
        assert part[:-1] == whole[: max(len(part) - 1, 0)]
        assert not part or whole[len(part) - 1].startswith(part[-1])


def test_long_words_are_cut_between_characters() -> None:
    assert cut("verylongword", 10) == [b"verylongwo", b"rd"]
    assert cut("für", 2) == [b"f", "ü".encode(), b"r"]
    assert len(cut("🌝", 2)) == 2 and b"".join(cut("🌝", 2)) == "🌝".encode()
    assert b"".join(words_of(STRANGE, 3)) == STRANGE.encode() and max(map(len, words_of(STRANGE, 3))) == 3
    with pytest.raises(UserError, match="at least one byte"):
        cut("abc", 0)


def test_a_word_is_unfinished_within_a_character() -> None:
    for letter in "aü€🌝":
        whole = letter.encode()
        assert not unfinished(b"x" + whole)
        for i in range(1, len(whole)):
            assert unfinished(b"x" + whole[:i])
    assert not unfinished(b"")


def test_words_are_stacked() -> None:
    made = stack([[b"ab", b"c"], []], end=True)
    assert made.tolist() == [[[97, 98], [99, PAD], [END, PAD]], [[END, PAD], [PAD, PAD], [PAD, PAD]]]
    assert stack([[], []]).shape == (2, 0, 1)
    with pytest.raises(UserError, match="without bytes"):
        stack([[b"a", b""]])
