"""Encoders of unlike layers as graphs, how far apart two are, and points that keep those distances (arXiv 2205.11656)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lightformers.errors import UserError
from lightformers.models.language.flexibert import VARIANTS, Layer

Architecture = tuple[Layer, ...]
_EDGE = 0.1  # what adding or taking away an edge costs


@dataclass(frozen=True)
class Graph:
    """labels: of the nodes, in order from the input. edges: pairs of nodes."""

    labels: tuple[str, ...]
    edges: tuple[tuple[int, int], ...]


def graph(architecture: Architecture) -> Graph:
    """Input; per layer a node for each head, add_norm, one for each inner width, add_norm; output; residual edges."""
    labels, last = ["input"], 0
    edges: list[tuple[int, int]] = []

    def node(label: str, *sources: int) -> int:
        labels.append(label)
        edges.extend((source, len(labels) - 1) for source in sources)
        return len(labels) - 1

    for layer in architecture:
        heads = [node(layer.label, last) for _ in range(layer.heads)]
        mixed = place = node("add_norm", *heads, last)
        for width in layer.hidden:
            place = node(f"f{width}", place)
        last = node("add_norm", place, mixed)
    node("output", last)
    return Graph(tuple(labels), tuple(edges))


def operations(architectures: Sequence[Architecture]) -> tuple[str, ...]:
    """The labels of a space in the order that makes costs: near ones are alike. "" stands between families.

    Feed-forwards by width; linear mixers, attention, convolutions, each by width and then variant.
    """
    layers = {layer for architecture in architectures for layer in architecture}

    def place(layer: Layer) -> tuple[int, int]:
        known = VARIANTS[layer.operation]
        return layer.width, known.index(str(layer.variant)) if known else int(layer.variant)

    order = [
        "input",
        "output",
        "add_norm",
        "",
        *(f"f{w}" for w in sorted({w for x in layers for w in x.hidden})),
    ]
    for operation in ("l", "sa", "c"):
        rows = sorted((x for x in layers if x.operation == operation), key=place)
        order += ["", *dict.fromkeys(row.label for row in rows)]
    return tuple(order)


def distance(a: Graph, b: Graph, order: Sequence[str]) -> float:
    """Edit distance of two graphs, networkx' first approximation as in the paper (an upper bound).

    Changing a node costs the difference of the places of its labels in `order` (`operations`), adding or taking one its
    place; an edge costs 0.1. Raises UserError for a label that `order` lacks.
    """
    import networkx as nx

    cost = {label: index for index, label in enumerate(order)}
    if unknown := sorted({*a.labels, *b.labels} - cost.keys()):
        raise UserError(f"the order of operations lacks {', '.join(unknown)}")

    def made(one: Graph) -> nx.DiGraph:
        net = nx.DiGraph()
        net.add_nodes_from((i, {"label": label}) for i, label in enumerate(one.labels))
        net.add_edges_from(one.edges)
        return net

    found = nx.optimize_graph_edit_distance(
        made(a),
        made(b),
        node_subst_cost=lambda x, y: abs(cost[x["label"]] - cost[y["label"]]),
        node_del_cost=lambda x: cost[x["label"]],
        node_ins_cost=lambda x: cost[x["label"]],
        edge_del_cost=lambda _: _EDGE,
        edge_ins_cost=lambda _: _EDGE,
    )
    return float(next(found))


def some_pairs(count: int, share: float, seed: int = 0) -> list[tuple[int, int]]:
    """A random share of all pairs of `count` items, and a ring through all of them, so that none hangs free."""
    if not 0 < share <= 1:
        raise UserError(f"the share of pairs must lie in (0, 1], got {share}")
    rng = np.random.default_rng(seed)
    ring = rng.permutation(count)
    pairs = {(min(a, b), max(a, b)) for a, b in zip(ring.tolist(), np.roll(ring, 1).tolist()) if a != b}
    every = count * (count - 1) // 2
    for flat in rng.choice(every, round(share * every), replace=False).tolist():
        high = int((1 + math.isqrt(1 + 8 * flat)) // 2)
        pairs.add((flat - high * (high - 1) // 2, high))
    return sorted(pairs)


def embed(
    pairs: Sequence[tuple[int, int]], distances: Sequence[float], count: int, width: int = 16,
    steps: int = 2000, rate: float = 2e-3, batch: int = 2048, seed: int = 0,
) -> Tensor:  # fmt: skip
    """Points (count, width) whose distances are near those given, by Adam on their squared differences.

    Distances are scaled to a mean of sqrt(2 * width), that of the normal points it starts from; the paper's code takes
    them as they are, and fills in the pairs that it has not measured.
    """
    if len(pairs) != len(distances) or not len(pairs):
        raise UserError(f"{len(distances)} distances for {len(pairs)} pairs")
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(count, width, generator=generator).requires_grad_()
    index, wanted = torch.tensor(pairs), torch.tensor(distances, dtype=torch.float32)
    wanted = wanted * (math.sqrt(2 * width) / wanted.mean().clamp(min=1e-12))
    optimizer = torch.optim.Adam([points], lr=rate)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        rows: Tensor | slice = slice(None)
        if len(index) > batch:
            rows = torch.randint(len(index), (batch,), generator=generator)
        a, b = index[rows].unbind(-1)
        loss = (torch.nn.functional.pairwise_distance(points[a], points[b]) - wanted[rows]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        decay.step()
    return points.detach()


def learned_points(
    architectures: Sequence[Architecture],
    share: float = 0.01,
    width: int = 16,
    steps: int = 2000,
    seed: int = 0,
) -> Tensor:
    """Learned points (n, width) of a library: graphs, distances of a share of the pairs, `embed`."""
    order, graphs = operations(architectures), [graph(a) for a in architectures]
    pairs = some_pairs(len(graphs), share, seed)
    away = [distance(graphs[a], graphs[b], order) for a, b in pairs]
    return embed(pairs, away, len(graphs), width, steps, seed=seed)
