"""Addition written as text: the formats, the draws and the answers (Lee et al., 2023, arXiv 2307.03381).

    held = hold_out(seed=0, count=500, digits=2)
    pairs = uniform(seed=1, count=3000, digits=2, without=held)
    texts = [write(a, b, "reverse") for a, b in pairs]
    answer("74$", "reverse")  # 47

Everything is a pure function of its seed, a whole number or a numpy Generator that is drawn on.
Of the paper's arithmetic only addition is here, which is what its claims on formats and balance rest on.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from lightformers.errors import UserError

Style = Literal["plain", "reverse", "simplified", "detailed"]
STYLES: tuple[Style, ...] = get_args(Style)
Seed = int | np.random.Generator
Pair = tuple[int, int]
#: The characters of each style; a model's token is the place of its character here.
SYMBOLS: dict[str, str] = {
    "plain": "\n0123456789+=",
    "reverse": "\n0123456789+=$",
    "simplified": "\n0123456789+Inputarge:->AC ,.T",
    "detailed": "\n0123456789+=Inputarge:->AC ,[]<>/schasdigTEND.",
}
SYMBOLS = {style: "".join(dict.fromkeys(signs)) for style, signs in SYMBOLS.items()}
#: Shares of one- and two-digit pairs in the paper's balanced draw; the rest has three digits.
BALANCE = (0.01, 0.09)


def prompt(a: int, b: int, style: Style) -> str:
    """What the model is given: up to "=", or in scratchpads up to "Target:" with its line end."""
    _checked(a, b, style)
    if style == "plain":
        return f"{a}+{b}="
    if style == "reverse":
        return f"${a}+{b}="
    return f"Input:\n{a}+{b}\nTarget:\n"


def completion(a: int, b: int, style: Style) -> str:
    """What the model has to write, the sign at which decoding stops (`STOP`) at its end; nothing is zero-padded.

    plain: "495" and a line end. reverse: "594$", units first. simplified: a line per digit from the right, "A->5 , C->1"
    (digit of the sum, carry), the last one ending in a full stop, then the sum. detailed: the lists of the digits as they
    are used up, then the sum with blanks. An operand with fewer digits runs out earlier and counts as 0; a carry that is
    left over is the first digit of the sum.
    """
    _checked(a, b, style)
    if style == "plain":
        return f"{a + b}\n"
    if style == "reverse":
        return f"{a + b}"[::-1] + "$"
    steps = _steps(a, b)
    if style == "simplified":
        lines = "\n".join(f"A->{digit} , C->{carry}" for _, _, _, digit, carry in steps)
        return f"{lines}.\n{a + b}\n"
    left, right = list(str(a)), list(str(b))
    text = "<scratch>\n" + "".join(f"{_list(x)} has {len(x)} digits.\n" for x in (left, right))
    done: list[str] = []
    for x, y, before, digit, carry in steps:
        text += f"{_list(left)} + {_list(right)} , A={_list(done)} , C={before} , {x}+{y}+{before}={x + y + before} , "
        text += f"A->{digit} , C->{carry}\n"
        left, right, done = left[:-1], right[:-1], [str(digit), *done]
    text += f"[] + [] , A={_list(done)} C={steps[-1][-1]} , END\n</scratch>\n"
    return text + " ".join(str(a + b)) + "\n"


def write(a: int, b: int, style: Style) -> str:
    """A whole training sample. The next one begins on a line of its own."""
    text = prompt(a, b, style) + completion(a, b, style)
    return text if text.endswith("\n") else text + "\n"


def stopped(text: str, style: Style) -> bool:
    """Whether decoding is to stop: `text`, what was written after the prompt, holds a whole answer."""
    if style == "plain":
        return "\n" in text
    if style == "reverse":
        return "$" in text
    end = ".\n" if style == "simplified" else "</scratch>\n"
    return end in text and "\n" in text.split(end, 1)[1]


def answer(text: str, style: Style) -> int | None:
    """The sum that a completion states, or None where it states none or does not come to its end. Blanks in the answers of
    scratchpads do not count."""
    if style not in STYLES:
        raise UserError(f"style {style!r} is not one of {', '.join(STYLES)}")
    if not stopped(text, style):
        return None
    if style == "simplified":
        text = text.partition(".\n")[2]
    elif style == "detailed":
        text = text.partition("</scratch>\n")[2].replace(" ", "")
    said = text.partition("$" if style == "reverse" else "\n")[0]
    said = said[::-1] if style == "reverse" else said
    return int(said) if said.isascii() and said.isdigit() else None


def encode(text: str, style: Style) -> list[int]:
    """Tokens. Raises UserError for characters that the style does not have."""
    if unknown := sorted(set(text) - set(SYMBOLS[style])):
        raise UserError(f"{style} has no {', '.join(map(repr, unknown))}")
    return [SYMBOLS[style].index(c) for c in text]


def decode(tokens: Iterable[int], style: Style) -> str:
    return "".join(SYMBOLS[style][t] for t in tokens)


def carries(a: int, b: int) -> int:
    """How many digits of the sum carry over."""
    return sum(carry for *_, carry in _steps(a, b))


def hold_out(seed: Seed, count: int, digits: int) -> list[Pair]:
    """`count` pairs below 10^digits, evenly drawn, no two the same or commuted: what a model is tested on."""
    top = 10**digits
    if not 1 <= count <= top * (top + 1) // 4:
        raise UserError(
            f"{count} held-out pairs: from 1 to half of the {top * (top + 1) // 2} that there are"
        )
    rng = np.random.default_rng(seed)
    found: dict[Pair, Pair] = {}
    while len(found) < count:
        a, b = rng.integers(0, top, 2).tolist()
        found.setdefault((min(a, b), max(a, b)), (a, b))
    return list(found.values())


def uniform(seed: Seed, count: int, digits: int, without: Iterable[Pair] = ()) -> list[Pair]:
    """`count` different ordered pairs below 10^digits. without: pairs that do not come, commuted ones neither."""
    return _draw(np.random.default_rng(seed), count, 0, 10**digits, set(), _shut(without))


def balanced(seed: Seed, count: int, digits: int = 3, without: Iterable[Pair] = ()) -> list[Pair]:
    """`count` different pairs as the paper balances them: a hundredth of one digit, nine hundredths of two, the rest of
    `digits`, there as many of each number of carries, 0 to `digits` (as far as there are so many).

    The paper's 10,000 of three digits hold 112, 971 and 8,917; where pairs of one digit run out, longer ones take their
    place. digits: 2 or 3; with 2, a tenth has one digit.
    """
    if digits not in (2, 3):
        raise UserError(f"balanced pairs have 2 or 3 digits, not {digits}")
    if count < 1:
        raise UserError(f"count must be at least 1, not {count}")
    rng, shut = np.random.default_rng(seed), _shut(without)
    shares = BALANCE if digits == 3 else (sum(BALANCE),)
    taken: set[Pair] = set()
    for length, share in enumerate(shares, 1):  # of `length` digits: the longer operand has so many
        most = (10 ** (2 * length) - 10 ** (2 * (length - 1)) * (length > 1)) // 2
        wanted = min(round(share * count), most - _within(shut, length))
        taken |= set(_draw(rng, max(wanted, 0), 10 ** (length - 1), 10**length, taken, shut))
    sizes = [(count - len(taken) + k) // (digits + 1) for k in range(digits + 1)]
    for number, wanted in enumerate(sizes):
        taken |= set(_draw(rng, wanted, 10 ** (digits - 1), 10**digits, taken, shut, number))
    pairs = sorted(taken)
    return [pairs[i] for i in rng.permutation(len(pairs))]


def complete(known: NDArray[np.float64], rank: int = 2, sweeps: int = 60, ridge: float = 1e-6) -> NDArray[np.float64]:  # fmt: skip
    """A table (n, m) with NaN where nothing is known, filled by a product of two factors of `rank`.

    Alternating least squares, what the paper compares with: the addition table a + b has rank 2, so about as many entries
    as the factors have numbers can decide it. A row or column of which nothing is known stays at the mean.
    """
    seen = ~np.isnan(known)
    if not seen.any() or not 1 <= rank <= min(known.shape):
        raise UserError(
            f"a table of {known.shape} with {int(seen.sum())} known entries has no factors of rank {rank}"
        )
    middle = float(known[seen].mean())
    scale = float(np.abs(known[seen]).max()) or 1.0
    values = np.where(seen, known, 0.0) / scale
    weight = seen.astype(float)
    rng = np.random.default_rng(0)
    left, right = (rng.normal(size=(size, rank)) for size in known.shape)
    for _ in range(sweeps):
        left = _solved(values, weight, right, ridge)
        right = _solved(values.T, weight.T, left, ridge)
    out = (left @ right.T) * scale
    out[~seen.any(1)] = middle
    out[:, ~seen.any(0)] = middle
    return np.asarray(out)


def _solved(values: NDArray[np.float64], seen: NDArray[np.float64], other: NDArray[np.float64], ridge: float) -> NDArray[np.float64]:  # fmt: skip
    rank = other.shape[1]
    squares = (other[:, :, None] * other[:, None, :]).reshape(len(other), -1)
    gram = (seen @ squares).reshape(-1, rank, rank) + ridge * np.eye(rank)
    return np.asarray(np.linalg.solve(gram, (values @ other)[..., None])[..., 0])


def _steps(a: int, b: int) -> list[tuple[int, int, int, int, int]]:
    """From the right: the two digits, the carry that comes, the digit of the sum, the carry that goes."""
    out, carry = [], 0
    for place in range(max(len(str(a)), len(str(b)))):
        x, y = a // 10**place % 10, b // 10**place % 10
        out.append((x, y, carry, (x + y + carry) % 10, (x + y + carry) // 10))
        carry = out[-1][-1]
    return out


def _list(digits: list[str]) -> str:
    return "[" + ",".join(digits) + "]"


def _shut(pairs: Iterable[Pair]) -> set[Pair]:
    return {pair for a, b in pairs for pair in ((a, b), (b, a))}


def _within(shut: set[Pair], length: int) -> int:
    return sum(10 ** (length - 1) * (length > 1) <= max(pair) < 10**length for pair in shut)


def _draw(
    rng: np.random.Generator, count: int, low: int, high: int, taken: set[Pair], shut: set[Pair], carried: int | None = None,
) -> list[Pair]:  # fmt: skip
    """Different pairs whose larger number is in [low, high), as many as wanted or an error where there are not so many.

    carried: only pairs with so many carries.
    """
    found: dict[Pair, None] = {}
    low = 0 if low == 1 else low
    for _ in range(200):
        if len(found) >= count:
            return list(found)[:count]
        a, b = rng.integers(0, high, (2, max(4 * count, 64)))
        keep = np.maximum(a, b) >= low
        for pair in zip(a[keep].tolist(), b[keep].tolist()):
            if pair in shut or pair in taken or pair in found:
                continue
            if carried is None or carries(*pair) == carried:
                found[pair] = None
    raise UserError(f"there are not {count} different pairs between {low} and {high} left to draw")


def _checked(a: int, b: int, style: str) -> None:
    if style not in STYLES:
        raise UserError(f"style {style!r} is not one of {', '.join(STYLES)}")
    if a < 0 or b < 0:
        raise UserError(f"only numbers from 0 are added, not {a} and {b}")
