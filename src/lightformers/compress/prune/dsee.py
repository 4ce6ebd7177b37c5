"""DSEE: tune by a small update of low rank plus a few free entries, and prune what is tuned."""

from __future__ import annotations

import itertools
import time
import zlib
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from lightformers import anatomy
from lightformers.bundle import Batch, Bundle
from lightformers.compress.distill import common
from lightformers.compress.layers import linears
from lightformers.compress.prune import masks, schedule
from lightformers.compress.prune.scopes import best
from lightformers.errors import DataError, ModelError, UserError
from lightformers.parts.sparse_low_rank import SparseLowRankLinear
from lightformers.runners.named import named, plain_arguments
from lightformers.steps import Run, Stage

Support = Literal["decompose", "magnitude", "random"]
Score = Literal["update", "low-rank", "weight", "sum", "random"]
#: The split behind "decompose": rounds, how much the rank grows in each, what counts as zero, and the share of the full
#: rank at which it ends. 100 rounds come to 496 of 768 in a BERT-base; a small matrix would be of low rank altogether.
_ROUNDS, _GROW, _ZERO, _RANKS = 100, 5, 0.01, 0.65


def sparse_part(weight: Tensor, generator: torch.Generator, rounds: int = _ROUNDS) -> Tensor:
    """S of a split W ~ U V + S into low rank and sparse, by alternating QR steps with growing rank: (out, in) float32."""
    w = weight.detach().float().cpu()
    right = torch.randn(1, w.shape[1], generator=generator)
    found = torch.zeros_like(w)
    for _ in range(rounds):
        sparse = torch.zeros_like(w)
        for _ in range(2):
            left = torch.linalg.qr((w - sparse) @ right.T).Q
            right = left.T @ (w - sparse)
            rest = w - left @ right
            sparse = rest.masked_fill(rest.abs() < _ZERO, 0.0)
        if not bool(sparse.any()):
            break
        found = sparse
        if len(right) + _GROW > _RANKS * min(w.shape):
            break
        error = w - left @ right - sparse
        right = torch.cat([right, torch.linalg.qr(error, mode="r").R[:_GROW]])
    return found


#: Where splits found their largest entries, for the last matrices: a search over steps splits the same ones again.
_known: OrderedDict[tuple[int, int], Tensor] = OrderedDict()
_REMEMBERED = 64


def support(weight: Tensor, entries: int, how: Support, seed: int) -> Tensor:
    """Flat positions (entries,) of the free entries, ascending; exactly that many, ties to the lower position."""
    if entries > weight.numel():
        raise UserError(f"{entries} free entries are more than the {weight.numel()} weights of a matrix")
    generator = torch.Generator().manual_seed(seed)
    if how == "random":
        return torch.randperm(weight.numel(), generator=generator)[:entries].sort().values
    if how == "magnitude" or not entries:
        return _largest(weight.detach().float().cpu())[:entries].sort().values
    key = (zlib.crc32(weight.detach().float().cpu().contiguous().numpy().tobytes()), seed)
    if key not in _known:
        _known[key] = _largest(sparse_part(weight, generator)).int()
    _known.move_to_end(key)
    while len(_known) > _REMEMBERED:
        _known.popitem(last=False)
    return _known[key][:entries].long().sort().values


def _largest(matrix: Tensor) -> Tensor:
    return matrix.abs().flatten().argsort(descending=True, stable=True)


@dataclass(frozen=True)
class DSEE:
    """Sparse low-rank tuning of a pruned model (Chen et al., 2021, arXiv 2111.00160).

    Query and value projections (or the fused one that holds them) get an update `alpha / rank (B A + S)`; everything
    else but the task's head is frozen. It is tuned on the task's labels, then weights are pruned, then tuned again. Only
    the frozen matrices are pruned: the update stays dense, and is not merged, which would undo the zeros.

    rank, entries, alpha: of the update; `entries` free values per matrix.
    support: where those stand: "decompose" (a split of the matrix into low rank and sparse), "magnitude", "random".
    sparsity: share of the query and value weights, by `score` over all layers together, and of the other projections,
        by magnitude over all of them, that goes; in [0, 1).
    score: "update" |B A + S| (the paper's scripts), "low-rank" |B A|, "weight" |W|, "sum" |W + update|, "random".
    heads: instead of single weights, remove so many heads of every block, those whose rows the update changes least.
    before, after: epochs of tuning before and after the pruning, where the run has no budget (else halves of it).
    lr, share, seconds, max_tokens, warmup, weight_decay: as in `Recover`.

    Deviations: a fused projection (gpt2) is updated as a whole, keys too; the pooler is not pruned;
    the split ends at 65 % of the full rank; head coefficients with
    an L1 penalty, whose weight is 0 in the published code, and the cut of feed-forward neurons are left out.
    """

    rank: int = 16
    entries: int = 64
    alpha: float = 32.0
    support: Support = "decompose"
    sparsity: float = 0.2
    score: Score = "update"
    heads: int = 0
    before: float = 3.0
    after: float = 3.0
    lr: float = 5e-4
    share: float = 1.0
    seconds: float | None = None
    max_tokens: int | None = None
    warmup: float = 0.05
    weight_decay: float = 0.01
    stage: ClassVar[Stage] = Stage.ADAPT

    def __post_init__(self) -> None:
        schedule.check_sparsity(self.sparsity)
        for name, kinds in (("support", Support), ("score", Score)):
            if getattr(self, name) not in get_args(kinds):
                raise UserError(f"{name} {getattr(self, name)!r} is not one of {', '.join(get_args(kinds))}")
        if self.rank < 1 or self.entries < 0 or self.heads < 0 or min(self.before, self.after) < 0:
            raise UserError("rank is at least 1; entries, heads, before and after are not negative")

    def apply(self, bundle: Bundle, task: Any, run: Run) -> Bundle:
        """Raises DataError without labels, UserError for ranks and entries that do not fit, ModelError for heads."""
        if task is None:
            raise UserError("tuning needs a task: its loss is what is trained on")
        if bundle.task not in common.LANGUAGE_MODELS and not run.use_labels:
            raise DataError("tuning needs labels: allow them with Run(use_labels=True)")
        places = self._check(bundle)
        run = replace(common.shared(run, self.share, self.seconds), use_labels=True)
        half = common.shared(run, 0.5) if self.before and self.after else run
        generator = torch.Generator().manual_seed(run.seed)
        for number, path in enumerate(places):
            weight, bias = anatomy.linear(bundle.model, path)
            chosen = support(weight, self.entries, self.support, run.seed * 1_000_003 + number)
            layer = SparseLowRankLinear.from_weight(
                weight.detach(), bias, self.rank, chosen, self.alpha, generator
            )
            anatomy.surgery.replace(bundle.model, path, layer)
        if self.before:
            self._tune(bundle, task, half, self.before)
        if self.heads:
            remove_heads(bundle, self.heads)
        elif self.sparsity:
            self._prune(bundle, places, generator)
        if self.after:
            self._tune(bundle, task, half, self.after)
        return bundle

    def _check(self, bundle: Bundle) -> list[str]:
        """Paths of the matrices that get an update."""
        found = anatomy.of(bundle.model)
        masks.weights(bundle.model, linears(found))
        attentions = [a for b in found.blocks for a in (b.attention, b.cross_attention) if a]
        places = list(
            dict.fromkeys(
                p for a in attentions for p in ((a.qkv,) if a.q is None else (a.q, a.v or a.qkv)) if p
            )
        )
        if not places:
            raise ModelError(f"this {found.family} model has no query and value projections to update")
        for path in places:
            shape = anatomy.linear(bundle.model, path)[0].shape
            if self.rank > min(shape) or self.entries > shape[0] * shape[1]:
                raise UserError(
                    f"rank {self.rank} and {self.entries} entries do not fit {path}, {shape[0]} x {shape[1]}"
                )
        if self.heads:
            for a in attentions:
                if (
                    a.q is None
                    or a.k is None
                    or a.v is None
                    or a.kv_heads != a.heads
                    or self.heads >= a.heads
                ):
                    raise ModelError(
                        f"{self.heads} heads cannot be removed from {a.path}: it needs more of them, with keys and values of "
                        "their own in unfused projections"
                    )
        return places

    def _tune(self, bundle: Bundle, task: Any, run: Run, epochs: float) -> None:
        started = time.monotonic()
        batches = common.feed(bundle, task, run, self.max_tokens)
        arguments = plain_arguments(bundle.module())

        def objective(module: nn.Module, batch: Batch) -> Tensor:
            loss: Tensor = task.loss(named(module(**batch.inputs, **arguments)), batch)
            return loss

        free = {id(p) for _, layer in updated(bundle.model) for p in layer.parameters()}
        trunk = _trunk(bundle.model)
        held = {id(p) for n, p in trunk.named_parameters() if "pooler" not in n}
        frozen = [n for n, p in bundle.module().named_parameters() if id(p) in held and id(p) not in free]
        plan = common.Plan(self.lr, epochs, self.warmup, self.weight_decay)
        common.train(bundle, batches, objective, plan, run, started, frozen)

    @torch.no_grad()
    def _prune(self, bundle: Bundle, places: list[str], generator: torch.Generator) -> None:
        layers = dict(updated(bundle.model))
        scores = {p: self.scored(layer, generator) for p, layer in layers.items()}
        for path, mask in schedule.choose(scores, self.sparsity).items():
            layers[path].base.mul_(mask)
        others = masks.weights(
            bundle.model, [p for p in linears(anatomy.of(bundle.model)) if p not in places]
        )
        if others:
            masks.hold(
                bundle.model, schedule.choose({p: w.detach().abs() for p, w in others.items()}, self.sparsity)
            )

    def scored(self, layer: SparseLowRankLinear, generator: torch.Generator) -> Tensor:
        """(out, in): how much each weight of the frozen matrix matters."""
        if self.score == "random":
            return torch.rand(layer.base.shape, generator=generator).to(layer.base.device)
        if self.score == "weight":
            return layer.base.abs()
        if self.score == "low-rank":
            return (layer.second @ layer.first).abs()
        return (layer.update() + layer.base).abs() if self.score == "sum" else layer.update().abs()


def updated(model: nn.Module) -> Iterator[tuple[str, SparseLowRankLinear]]:
    """Layers that hold an update, with their paths."""
    for path, module in model.named_modules():
        if isinstance(module, SparseLowRankLinear):
            yield path, module


def _trunk(model: nn.Module) -> nn.Module:
    """The smallest module that holds embeddings and all blocks: the model without its task's head."""
    found = anatomy.of(model)
    paths = [b.path.split(".") for b in found.blocks]
    paths += [p.split(".") for s in found.stacks for p in (s.embeddings, s.positions, s.final_norm) if p]
    same = [names[0] for names in itertools.takewhile(lambda names: len(set(names)) == 1, zip(*paths))]
    return anatomy.get(model, ".".join(same))


@torch.no_grad()
def remove_heads(bundle: Bundle, count: int) -> None:
    """Remove the `count` heads of every attention whose query and value rows the update changes least, in place."""
    model = bundle.model
    found = anatomy.of(model)
    old = dict(updated(model))
    kept: tuple[dict[int, list[int]], dict[int, list[int]]] = ({}, {})
    rows: dict[str, Tensor] = {}
    for place, block in enumerate(found.blocks):
        for own, a in enumerate((block.cross_attention, block.attention)):
            if a is None or a.q is None or a.v is None:
                continue
            change = sum(
                (old[p].update().abs().sum(1) for p in (a.q, a.v)), start=torch.zeros(a.out_features)
            )
            heads = best(change.reshape(a.heads, a.head_dim).sum(1), a.heads - count)
            kept[0 if own else 1][place] = heads
            index = (torch.tensor(heads)[:, None] * a.head_dim + torch.arange(a.head_dim)).flatten()
            rows |= {a.q: index, a.v: index}
    plain: dict[str, nn.Linear] = {}
    for path, layer in old.items():  # surgery cuts plain layers
        plain[path] = nn.Linear(layer.in_features, layer.out_features, layer.offset is not None)
        plain[path].weight.copy_(layer.base)
        if layer.offset is not None:
            plain[path].bias.copy_(layer.offset)
        anatomy.surgery.replace(model, path, plain[path])
    try:
        anatomy.surgery.keep_heads(model, kept[0], kept[1] or None)
    except ModelError:
        for path, layer in old.items():
            anatomy.surgery.replace(model, path, layer)
        raise
    for path, layer in old.items():
        weight, bias = anatomy.linear(model, path)
        anatomy.surgery.replace(model, path, _fewer_rows(layer, rows[path], weight.detach(), bias))


def _fewer_rows(
    layer: SparseLowRankLinear, keep: Tensor, weight: Tensor, bias: Tensor | None
) -> SparseLowRankLinear:
    """The layer around its cut matrix: rows of B, and of the free entries that are left, renumbered."""
    new = torch.full((layer.out_features,), -1, dtype=torch.long)
    new[keep] = torch.arange(len(keep))
    rows = new[layer.rows.long().cpu()]
    left = rows >= 0
    support = rows[left] * layer.in_features + layer.columns.long().cpu()[left]
    made = SparseLowRankLinear.from_weight(weight, bias, layer.rank, support.to(weight.device), layer.alpha)
    made.first.copy_(layer.first)
    made.second.copy_(layer.second[keep.to(layer.second.device)])
    made.values.copy_(layer.values[left.to(layer.values.device)])
    return made.to(layer.base.dtype)
