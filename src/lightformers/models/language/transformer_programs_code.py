"""A trained Transformer Program as Python source (arXiv 2306.01128): standard library only, equal to the network.

The source reads like a person's: every head is a predicate and a line that applies it, every table a function. Words
stay words as far as heads carry them. What a classifier adds up stands as tables of weights.
"""

from __future__ import annotations

import itertools
import keyword
import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightformers.files import write_text
from lightformers.models.language.transformer_programs import UNKNOWN, Layer, TransformerProgram
from lightformers.models.language.transformer_programs_text import HEAD, TAIL
from lightformers.parts.discrete import Rule, first_max

#: A table over numbers is written out where it has at most so many entries, else as the sum it is.
WRITTEN = 300


@dataclass(frozen=True)
class _Variable:
    """A variable as the source knows it: the list's name and what it says for each value, None for values that do not
    occur."""

    name: str
    values: tuple[Any, ...]


@dataclass(frozen=True)
class _Number:
    """A number as the source knows it: the list's name, and the least and the most it can be."""

    name: str
    least: int
    most: int


def write(model: TransformerProgram, path: str | Path | None = None) -> str:
    """The program's source; also written to `path` if given. It holds `run(tokens)`, which gives a list of labels, or one
    label if pooled, and raises ValueError for texts that are too long or have unknown words."""
    config = model.config
    variables, numbers = _inputs(model)
    body: list[str] = ["def run(tokens):", *_indent(_opening(model, variables))]
    functions: list[str] = []
    for depth, layer in enumerate(model.layers):
        assert isinstance(layer, Layer)
        made, lines = _layer(layer, depth, variables, numbers, config.length)
        functions += made
        body += _indent(lines)
    body += _indent(_closing(model, variables, numbers))
    reach = "range(i + 1)" if config.causal else "range(len(keys))"
    example = " ".join(config.words[1 : 1 + min(4, config.length)])
    file = Path(path).name if path else "program.py"
    head = HEAD.format(
        words=list(config.words), labels=list(config.labels), length=config.length, reach=reach, file=_plain(file),
        example=_plain(example),
    )  # fmt: skip
    weights = _weights(model, variables, numbers)
    source = head + "\n".join([*_embedding(model), *functions, "", "", *body, "", *weights]) + TAIL
    if path is not None:
        write_text(Path(path), source)
    return source


def _plain(text: str) -> str:
    """What may stand in a docstring without ending it."""
    return re.sub(r'["\\\s]+', " ", text).strip()


def _inputs(model: TransformerProgram) -> tuple[list[_Variable], list[_Number]]:
    config, size = model.config, model.config.size
    positions = _Variable("positions", _padded(range(config.length), size))
    if config.variables is None:
        words = [_Variable("tokens", _padded([None, *config.words[1:]], size))]
    else:
        words = [_Variable(f"embeddings_{v}", tuple(range(size))) for v in range(config.variables)]
    return [*words, positions], [_Number("ones", 1, 1)]


def _padded(values: Iterable[Any], size: int) -> tuple[Any, ...]:
    found = list(values)
    return (*found, *[None] * (size - len(found)))


def _opening(model: TransformerProgram, variables: list[_Variable]) -> list[str]:
    lines = ['"""tokens: a list of words. What the network says of them."""']
    lines += [
        "if len(tokens) > LENGTH:",
        '    raise ValueError(f"{len(tokens)} words are more than {LENGTH}")',
    ]
    if UNKNOWN in model.config.words:
        lines.append(f"tokens = [word if word in WORDS else {UNKNOWN!r} for word in tokens]")
    lines += [
        "for word in tokens:",
        "    if word not in WORDS[1:]:",
        '        raise ValueError(f"unknown word {word!r}")',
    ]
    if model.config.variables is not None:
        lines += [
            f"embeddings_{v} = [EMBEDDING[word][{v}] for word in tokens]"
            for v in range(model.config.variables)
        ]
    return [*lines, "positions = list(range(len(tokens)))", "ones = [1] * len(tokens)"]


def _layer(
    layer: Layer, depth: int, variables: list[_Variable], numbers: list[_Number], length: int
) -> tuple[list[str], list[str]]:
    """Functions of a layer, and lines that apply them. What it makes is appended to both lists."""
    functions: list[str] = []
    lines: list[str] = []
    seen, counted = list(variables), list(numbers)
    for i, rule in enumerate(layer.heads.rules() if layer.heads is not None else ()):
        name = f"attention_{depth}_{i}"
        functions += _predicate(name, rule, seen)
        value = seen[rule.value]
        chosen = f"select_closest({seen[rule.key].name}, {seen[rule.query].name}, {name}_predicate)"
        lines.append(f"{name} = aggregate({chosen}, {value.name})")
        variables.append(_Variable(name, value.values))
    for i, rule in enumerate(layer.number_heads.rules() if layer.number_heads is not None else ()):
        name = f"count_{depth}_{i}"
        functions += _predicate(name, rule, seen)
        number = counted[rule.value]
        chosen = f"select({seen[rule.key].name}, {seen[rule.query].name}, {name}_predicate)"
        lines.append(f"{name} = aggregate_sum({chosen}, {number.name})")
        numbers.append(_Number(name, 0, length * number.most))
    made = []
    for i, read in enumerate(layer.tables.reads() if layer.tables is not None else ()):
        assert layer.tables is not None
        name = f"table_{depth}_{i}"
        written, results = _table(name, layer.tables.lookup(i), [variables[r] for r in read])
        functions += written
        lines.append(_applied(name, [variables[r].name for r in read]))
        made.append(_Variable(name, _only(results, variables)))
    for i, read in enumerate(layer.number_tables.reads() if layer.number_tables is not None else ()):
        assert layer.number_tables is not None
        name = f"number_table_{depth}_{i}"
        written, results = _number_table(name, layer, i, [numbers[r] for r in read])
        functions += written
        lines.append(_applied(name, [numbers[r].name for r in read]))
        made.append(_Variable(name, _only(results, variables)))
    variables.extend(made)
    return functions, lines


def _only(results: Iterable[int], variables: list[_Variable]) -> tuple[int | None, ...]:
    """The values that occur, None at the others: what cannot be is not written."""
    return tuple(v if v in results else None for v in range(len(variables[0].values)))


def _applied(name: str, read: Sequence[str]) -> str:
    return f"{name} = [{name}_of(*read) for read in zip({', '.join(dict.fromkeys(read))})]"


def _predicate(name: str, rule: Rule, seen: list[_Variable]) -> list[str]:
    """Query values that look for the same key stand in one line."""
    wanted: dict[int, list[Any]] = {}
    for query, key in zip(seen[rule.query].values, rule.predicate):
        if query is not None and seen[rule.key].values[key] is not None:
            wanted.setdefault(key, []).append(query)
    lines = [f"def {name}_predicate(query, key):", f'    """query: of {seen[rule.query].name}; key: of {seen[rule.key].name}."""']  # fmt: skip
    for key, queries in wanted.items():
        lines += [
            f"    if query in {_set(queries)}:",
            f"        return key == {seen[rule.key].values[key]!r}",
        ]
    return ["", "", *lines, "    return False"]


def _set(values: Iterable[Any]) -> str:
    return "{" + ", ".join(repr(v) for v in values) + "}"


def _table(name: str, lookup: Tensor, read: list[_Variable]) -> tuple[list[str], Collection[int]]:
    """A table of variables, and its results. Combinations that cannot occur are left out; the commonest result needs no
    condition."""
    first = {
        v.name: i for i, v in reversed(list(enumerate(read)))
    }  # a variable that is read twice is one argument
    names = list(dict.fromkeys(v.name for v in read))
    entries: dict[int, list[Any]] = {}
    for place in itertools.product(*(range(len(v.values)) for v in read)):
        words = [v.values[i] for v, i in zip(read, place)]
        if None in words or any(place[i] != place[first[v.name]] for i, v in enumerate(read)):
            continue
        key = tuple(words[first[n]] for n in names)
        entries.setdefault(int(lookup[place]), []).append(key if len(names) > 1 else key[0])
    return _cases(name, names, entries), entries


def _cases(name: str, names: list[str], entries: dict[int, list[Any]]) -> list[str]:
    arguments = [_argument(n) for n in names]
    key = arguments[0] if len(arguments) == 1 else f"({', '.join(arguments)})"
    common = Counter({result: len(keys) for result, keys in entries.items()}).most_common(1)[0][0]
    lines = [f"def {name}_of({', '.join(arguments)}):"]
    for result, keys in sorted(entries.items()):
        if result != common:
            lines += [f"    if {key} in {_set(keys)}:", f"        return {result}"]
    return ["", "", *lines, f"    return {common}"]


def _argument(name: str) -> str:
    short = name.removesuffix("s")
    return f"{short}_" if keyword.iskeyword(short) else short


def _number_table(
    name: str, layer: Layer, which: int, read: list[_Number]
) -> tuple[list[str], Collection[int]]:
    """A table of numbers: every case if they are few, else the weighted sums, in the order in which the network adds."""
    tables = layer.number_tables
    assert tables is not None
    names = list(dict.fromkeys(n.name for n in read))
    ranges = [next(range(n.least, n.most + 1) for n in read if n.name == name) for name in names]
    count = 1
    for r in ranges:
        count *= len(r)
    if count <= WRITTEN:
        places = list(itertools.product(*ranges))
        columns = [torch.tensor([p[names.index(n.name)] for p in places]) for n in read]
        entries: dict[int, list[Any]] = {}
        for place, result in zip(places, tables.decide(which, columns).tolist()):
            entries.setdefault(result, []).append(place if len(names) > 1 else place[0])
        return _cases(name, names, entries), entries
    arguments = [_argument(n) for n in names]
    rows = [*tables.first[which].tolist(), tables.first_bias[which].tolist()]
    terms = [f"{_argument(n.name)} * w{i}" for i, n in enumerate(read)]
    weights = ", ".join([*(f"w{i}" for i in range(len(read))), "b"])
    upper = name.upper()
    lines = [
        "", "", f"{upper}_FIRST = {[list(row) for row in zip(*rows)]}", f"{upper}_SECOND = {tables.second[which].tolist()}",
        f"{upper}_BIAS = {tables.second_bias[which].tolist()}", "", "", f"def {name}_of({', '.join(arguments)}):",
        f"    scores = {upper}_BIAS", f"    for ({weights}), row in zip({upper}_FIRST, {upper}_SECOND):",
        f"        unit = max({' + '.join([*terms, 'b'])}, 0.0)",
        "        scores = [score + unit * weight for score, weight in zip(scores, row)]", "    return largest(scores)",
    ]  # fmt: skip
    return lines, range(tables.second.shape[-1])


def _weights(model: TransformerProgram, variables: list[_Variable], numbers: list[_Number]) -> list[str]:
    """What each value of each variable says for each label, and what each number does."""
    said = model.config.said
    lines = [
        "",
        "# what the classifier adds up: for every variable and value, one weight per label that may be said",
    ]
    lines += ["SAID = " + repr([model.config.labels[i] for i in said]), "WEIGHTS = {"]
    for variable, table in zip(variables, model.said[..., list(said)].double()):
        rows = {v: row for v, row in zip(variable.values, table.tolist()) if v is not None}
        lines += [
            f"    {variable.name!r}: {{",
            *(f"        {v!r}: {row}," for v, row in rows.items()),
            "    },",
        ]
    for number, row in zip(numbers, model.counted[:, list(said)].double().tolist()):
        lines.append(f"    {number.name!r}: {row},")
    return [*lines, "}"]


def _embedding(model: TransformerProgram) -> list[str]:
    if model.embedding is None:
        return []
    rows = first_max(model.embedding.detach()).tolist()
    lines = [f"    {word!r}: {tuple(row)!r}," for word, row in zip(model.config.words, rows)]
    return ["", "", "EMBEDDING = {", *lines, "}"]


def _closing(model: TransformerProgram, variables: list[_Variable], numbers: list[_Number]) -> list[str]:
    lines = ["logits = [[0.0] * len(SAID) for _ in tokens]"]
    for variable in variables:
        lines.append(f"add(logits, WEIGHTS[{variable.name!r}], {variable.name})")
    for number in numbers:
        lines.append(f"add_counted(logits, WEIGHTS[{number.name!r}], {number.name})")
    if not model.config.pooled:
        return [*lines, "return [SAID[largest(row)] for row in logits]"]
    return [
        *lines,
        "total = [0.0] * len(SAID)",
        "for row in logits:",
        "    total = [a + b for a, b in zip(total, row)]",
        "return SAID[largest([score / max(len(tokens), 1) for score in total])]",
    ]


def _indent(lines: Iterable[str]) -> list[str]:
    return [f"    {line}" for line in lines]
