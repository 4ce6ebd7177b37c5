"""What every written Transformer Program begins and ends with (`transformer_programs_code.write`)."""

from __future__ import annotations

HEAD = '''"""A Transformer Program: what the network computes, written out. Made by lightformers; needs nothing but Python.

    python {file} {example}
"""

WORDS = {words}
LABELS = {labels}
LENGTH = {length}


def select_closest(keys, queries, predicate):
    """For every query the nearest matching key: itself last, the left of two, the first key where none matches."""
    chosen = []
    for i, query in enumerate(queries):
        found = [j for j in {reach} if predicate(query, keys[j])]
        chosen.append(min(found, key=lambda j: (len(keys) if j == i else abs(i - j), j)) if found else 0)
    return chosen


def select(keys, queries, predicate):
    """For every query all matching keys."""
    return [[j for j in {reach} if predicate(query, keys[j])] for i, query in enumerate(queries)]


def aggregate(chosen, values):
    return [values[j] for j in chosen]


def aggregate_sum(chosen, values):
    return [sum(values[j] for j in found) for found in chosen]


def add(logits, weights, values):
    for row, value in zip(logits, values):
        row[:] = [a + b for a, b in zip(row, weights[value])]


def add_counted(logits, weights, numbers):
    for row, number in zip(logits, numbers):
        row[:] = [a + number * b for a, b in zip(row, weights)]


def largest(scores):
    """Index of the largest, the first of several."""
    return max(range(len(scores)), key=scores.__getitem__)

'''


TAIL = """


def main():
    import sys

    lines = [sys.argv[1:]] if len(sys.argv) > 1 else (line.split() for line in sys.stdin)
    for tokens in lines:
        said = run(tokens)
        print(said if isinstance(said, str) else " ".join(said))


if __name__ == "__main__":
    main()
"""
