"""Noisy gates on the units of a model, trained so that what is not needed turns to noise.

The variational information bottleneck of VTrans (Dutta et al., 2024, arXiv 2406.05276): a unit is multiplied with
`mean + deviation * noise`; units whose deviation outgrows their mean carry nothing and can go.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightformers import anatomy
from lightformers.anatomy.find import row_of
from lightformers.errors import ModelError

_TINY = 1e-8


def log_alpha(mean: Tensor, log_var: Tensor) -> Tensor:
    """Log of variance over squared mean: above 0 there is more noise than signal."""
    return log_var - (mean.square() + _TINY).log()


def divergence(mean: Tensor, log_var: Tensor) -> Tensor:
    """KL to a prior of the best variance, summed over units: `1/2 sum log(1 + mean^2 / variance)`."""
    return 0.5 * torch.log1p(mean.square() / (log_var.exp() + _TINY)).sum()


def survival(mean: Tensor, log_var: Tensor) -> Tensor:
    """A differentiable stand-in for `log_alpha < 0`, in (0, 1)."""
    return torch.sigmoid(-10.0 * log_alpha(mean, log_var))


class Gate(nn.Module):
    """`size` units. rate: how much faster its parameters learn than the optimizer's rate (Adam only: it is scale-free)."""

    def __init__(self, size: int, rate: float, generator: torch.Generator) -> None:
        super().__init__()
        self.rate = rate
        self.generator = generator
        self.noisy = True
        self.threshold = 0.0
        for name, centre in (("raw_mean", 1.0), ("raw_log_var", -9.0)):
            start = centre + 0.01 * torch.randn(size, generator=generator)
            parameter = nn.Parameter(start / rate)
            # scaled back, so that the clipping of gradients is not all about gates
            parameter.register_hook(lambda g: g / rate)
            self.register_parameter(name, parameter)

    @property
    def mean(self) -> Tensor:
        return self.raw_mean.float() * self.rate  # type: ignore[operator, return-value]

    @property
    def log_var(self) -> Tensor:
        value: Tensor = self.raw_log_var.float() * self.rate  # type: ignore[operator, assignment]
        return value.clamp(-20.0, 20.0)

    @property
    def log_alpha(self) -> Tensor:
        return log_alpha(self.mean, self.log_var)

    @property
    def survival(self) -> Tensor:
        return survival(self.mean, self.log_var)

    @property
    def kept(self) -> Tensor:
        """Which units stay, bool."""
        return (self.log_alpha < self.threshold).detach()

    def forward(self, batch: int) -> Tensor:
        """(batch, size): one draw per sequence in training; without noise, the mean of what stays."""
        if not self.noisy:
            return (self.mean * self.kept).expand(batch, -1)
        noise = torch.randn(batch, len(self.mean), generator=self.generator).to(self.mean.device)
        return self.mean + (0.5 * self.log_var).exp() * noise


@dataclass(frozen=True)
class Sites:
    """Where gates sit, and what a unit weighs.

    heads: place of a block -> name of its gate (blocks that share a position bias share one), key/value groups,
    weights per group. neurons: place -> weights per neuron. hidden: norms whose outputs blocks read, and the weights
    of the embeddings; empty where the hidden size is not gated.
    """

    heads: Mapping[int, tuple[str, int, int]]
    neurons: Mapping[int, tuple[int, int]]
    hidden: tuple[str, ...]
    embeddings: int
    width: int

    @property
    def total(self) -> int:
        """Weights that can go: of attention and feed-forward, and of the embeddings where the hidden size is gated."""
        attention = sum(count * each for _, count, each in self.heads.values())
        return attention + sum(count * each for count, each in self.neurons.values()) + self.embeddings

    def size(self, alive: Mapping[str, Tensor]) -> Tensor:
        """Weights that are left, for survivals in [0, 1] (or bools) of every gate; differentiable."""
        share = alive["hidden"].float().mean() if self.hidden else torch.ones(())
        total = self.embeddings * share
        for i, (name, _, each) in self.heads.items():
            total = (
                total + alive[f"attention/{i}"].float().squeeze() * alive[name].float().sum() * each * share
            )
        for i, (_, each) in self.neurons.items():
            total = (
                total
                + alive[f"ffn/{i}"].float().squeeze() * alive[f"neurons/{i}"].float().sum() * each * share
            )
        return total


def sites(model: nn.Module, hidden: bool) -> Sites:
    """Raises ModelError where there is nothing to gate, or the hidden size cannot be."""
    found = anatomy.of(model)
    row = row_of(model)
    shared = {s.name for s in row.stacks if s.head_bias or s.first_block_bias} if row else set()
    heads: dict[int, tuple[str, int, int]] = {}
    neurons: dict[int, tuple[int, int]] = {}
    for i, block in enumerate(found.blocks):
        if block.attention and block.attention.fused not in ("packed", "unknown"):
            weights = anatomy.parameters_of(model, block.attention.projections)
            name = f"heads/{block.stack}" if block.stack in shared else f"heads/{i}"
            heads[i] = (name, block.attention.kv_heads, weights // block.attention.kv_heads)
        if block.feed_forward:
            weights = anatomy.parameters_of(model, block.feed_forward.projections)
            neurons[i] = (block.feed_forward.width, weights // block.feed_forward.width)
    if not heads and not neurons:
        raise ModelError(f"this {found.family} model has neither heads nor feed-forward channels to gate")
    if not hidden:
        return Sites(heads, neurons, (), 0, found.width)
    if found.native.width is not None or len(found.stacks) != 1 or found.family.startswith("gemma"):
        reason = found.native.width or "its stacks share one hidden size, or its norms hold gain - 1"
        raise ModelError(
            f"the hidden size of this {found.family} model is not gated ({reason}): set hidden=False"
        )
    norms = [n for b in found.blocks for n in b.norms] + [
        n for n in (found.embedding_norm, found.final_norm) if n
    ]
    read = [
        n for n in dict.fromkeys(norms)
        if (w := getattr(anatomy.get(model, n), "weight", None)) is not None and tuple(w.shape) == (found.width,)
    ]  # fmt: skip
    words = anatomy.parameters_of(model, [p for p in (found.embeddings, found.positions) if p])
    return Sites(heads, neurons, tuple(read), words, found.width)


def make(where: Sites, rate: float, seed: int) -> nn.ModuleDict:
    """A gate for everything in `where`. Names hold no dots: they are keys of a ModuleDict."""
    generator = torch.Generator().manual_seed(seed)
    sizes: dict[str, int] = {}
    for i, (name, count, _) in where.heads.items():
        sizes[name] = count
        sizes[f"attention/{i}"] = 1
    for i, (count, _) in where.neurons.items():
        sizes[f"neurons/{i}"] = count
        sizes[f"ffn/{i}"] = 1
    if where.hidden:
        sizes["hidden"] = where.width
    return nn.ModuleDict({name: Gate(size, rate, generator) for name, size in sizes.items()})


@contextmanager
def installed(model: nn.Module, where: Sites, gates: nn.ModuleDict) -> Iterator[None]:
    """While the block runs, every forward of `model` is gated."""
    found = anatomy.of(model)

    def scaled(x: Tensor, gate: str, groups: int) -> Tensor:
        z = gates[gate](x.shape[0]).to(x.dtype)
        z = z.reshape(x.shape[0], *[1] * (x.dim() - 2), groups, 1)
        return (x.unflatten(-1, (groups, -1)) * z).flatten(-2)

    def before(gate: str, groups: int) -> Any:
        return lambda module, args: (scaled(args[0], gate, groups), *args[1:])

    def after(gate: str, groups: int) -> Any:
        return lambda module, args, output: scaled(output, gate, groups)

    with ExitStack() as stack:

        def hook(path: str, inputs: bool, gate: str, groups: int) -> None:
            module = anatomy.get(model, path)
            if inputs:
                stack.callback(module.register_forward_pre_hook(before(gate, groups)).remove)
            else:
                stack.callback(module.register_forward_hook(after(gate, groups)).remove)

        for i, (name, groups, _) in where.heads.items():
            path = found.blocks[i].attention.o  # type: ignore[union-attr]
            hook(path, True, name, groups)
            hook(path, False, f"attention/{i}", 1)
        for i, (count, _) in where.neurons.items():
            path = found.blocks[i].feed_forward.down  # type: ignore[union-attr]
            hook(path, True, f"neurons/{i}", count)
            hook(path, False, f"ffn/{i}", 1)
        for path in where.hidden:
            hook(path, False, "hidden", where.width)
        yield


def alive(gates: nn.ModuleDict, hard: bool = False) -> dict[str, Tensor]:
    """Survivals of every gate: in (0, 1), or bools."""
    return {name: gate.kept if hard else gate.survival for name, gate in gates.items()}  # type: ignore[misc]


def left(where: Sites, gates: nn.ModuleDict, multiple: int = 1) -> float:
    """Weights that a cut leaves: whole multiples of channels, and one head and `multiple` channels of what is closed
    beside something that stays (a block that is closed altogether goes)."""
    open_ = {name: int(kept.sum()) for name, kept in alive(gates, hard=True).items()}
    share = open_["hidden"] / where.width if where.hidden else 1.0
    total = 0.0
    for i in {*where.heads, *where.neurons}:
        heads = open_[where.heads[i][0]] * open_[f"attention/{i}"] if i in where.heads else 0
        neurons = open_[f"neurons/{i}"] * open_[f"ffn/{i}"] if i in where.neurons else 0
        if heads + neurons:
            total += max(heads, 1) * where.heads[i][2] if i in where.heads else 0
            total += (
                rounded(neurons, multiple, where.neurons[i][0]) * where.neurons[i][1]
                if i in where.neurons
                else 0
            )
    return share * (total + where.embeddings)


def rounded(number: int, multiple: int, most: int) -> int:
    """Down to whole multiples (up would break the budget), one multiple at least; all of them stay all."""
    return number if number == most else min(most, max(multiple, number // multiple * multiple))


@torch.no_grad()
def hold_budget(where: Sites, gates: nn.ModuleDict, keep: float, multiple: int = 1) -> None:
    """Move the common threshold of heads, neurons and hidden size so that at most `keep` of the weights are left, and as
    many as can be. Whole attentions and feed-forwards stay as the gates have them."""
    budget = keep * where.total
    free: list[Any] = [g for name, g in gates.items() if not name.startswith(("attention/", "ffn/"))]
    every = torch.cat([g.log_alpha for g in free]).sort().values.tolist()
    every.append(float("inf"))

    def fits(index: int) -> bool:
        for gate in free:
            gate.threshold = every[index]
        return left(where, gates, multiple) <= budget

    low, high = 0, len(every) - 1  # at index 0 nothing is below the threshold
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    fits(low)


@torch.no_grad()
def fold(model: nn.Module, where: Sites, gates: nn.ModuleDict) -> None:
    """Multiply the means of what stays into the weights that follow, and zero what goes; then gates do nothing more.

    Heads and neurons into the columns that read them, blocks into the whole of their last matrix, the hidden size into
    gain and bias of the norms. The model then gives what it gave with silent gates, exactly.
    """
    found = anatomy.of(model)

    def factor(name: str) -> Tensor:
        gate: Any = gates[name]
        return gate.mean * gate.kept

    for i, (name, groups, _) in where.heads.items():
        weight, bias = anatomy.linear(model, found.blocks[i].attention.o)  # type: ignore[union-attr]
        weight.mul_(factor(name).repeat_interleave(weight.shape[1] // groups).to(weight))
        _scale(weight, bias, factor(f"attention/{i}"))
    for i in where.neurons:
        weight, bias = anatomy.linear(model, found.blocks[i].feed_forward.down)  # type: ignore[union-attr]
        weight.mul_(factor(f"neurons/{i}").to(weight))
        _scale(weight, bias, factor(f"ffn/{i}"))
    for path in where.hidden:
        norm: Any = anatomy.get(model, path)
        for tensor in (norm.weight, getattr(norm, "bias", None)):
            if tensor is not None:
                tensor.mul_(factor("hidden").to(tensor))


def _scale(weight: Tensor, bias: Tensor | None, by: Tensor) -> None:
    weight.mul_(by.to(weight))
    if bias is not None:
        bias.mul_(by.to(bias))
