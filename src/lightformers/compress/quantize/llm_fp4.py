"""LLM-FP4: weights and activations in four-bit floats, with searched ranges and formats."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor

from lightformers import anatomy
from lightformers.bundle import Bundle
from lightformers.compress.layers import linears
from lightformers.compress.quantize import lookup
from lightformers.compress.quantize.observers import Rows, observe
from lightformers.errors import ModelError, UserError
from lightformers.memory import release
from lightformers.parts.activation_quantizer import ActivationQuantizer
from lightformers.parts.number_formats import NumberFormat, float_formats, number_format
from lightformers.parts.packed_layers import PackedEmbedding, PackedLinear
from lightformers.steps import Run, Stage

Search = Literal["maximum", "bias"]
#: Rows of an embedding table that candidates are judged on.
_SAMPLE = 4096


def bias_of(peak: Tensor, form: NumberFormat) -> Tensor:
    """The real exponent bias at which `peak` is the format's largest number; infinity for 0.

    `2^E - log2(peak) + log2(2 - 2^-M) - 1`, section 3 of the paper; integers count as E = 1 with M = bits - 2.
    """
    return math.log2(form.max) + 1 - _mantissa(form) - torch.log2(peak.float())


def step_of(bias: Tensor, form: NumberFormat) -> Tensor:
    """The smallest positive number at this exponent bias, `2^(1 - M - b)`."""
    return torch.exp2(1 - _mantissa(form) - bias.float())


def _mantissa(form: NumberFormat) -> int:
    return form.mantissa if form.exponent else int(math.log2(form.max + 1)) - 1


def factors(candidates: int, low: float = 0.01, high: float = 1.2) -> list[float]:
    """`low + i (high - low) / k` for i = 0 ... k - 1, and 1 (the range as it is) if it is not among them."""
    grid = [low + i * (high - low) / candidates for i in range(candidates)] if candidates else []
    return grid if 1.0 in grid else [*grid, 1.0]


def candidates(peak: Tensor, form: NumberFormat, grid: Sequence[float], search: Search) -> list[Tensor]:
    """Biases to try. "bias": factors of the bias of the maximum (the paper). "maximum": factors of the maximum.

    A factor of the bias moves the range the wrong way where the bias is negative (maxima beyond the format's own
    range), and hardly at all where it is near 0.
    """
    bias = bias_of(peak, form)
    if search == "bias":
        return [bias * f for f in grid]
    return [bias - math.log2(f) for f in grid]


def preshifted(bias: Tensor, rho: Tensor, start: Tensor, form: NumberFormat) -> Tensor:
    """Per-channel biases that differ from one real number by whole numbers: equation 12 of the paper.

    `clamp(round(b_j), round(rho), round(rho) + 2^E - 1) - round(rho_0) + rho`: bias (h,) of each channel's maximum,
    rho the searched bias of the tensor, start (rho_0) its first value, the least b_j. Dead channels (infinite bias)
    get the largest finite one.
    """
    finite = torch.isfinite(bias)
    largest = bias[finite].max() if bool(finite.any()) else torch.zeros((), device=bias.device)
    whole = torch.where(finite, bias, largest).round()
    low = rho.round()
    levels = 2 ** (form.exponent or 1) - 1
    return torch.minimum(torch.maximum(whole, low), low + levels) - start.round() + rho


def quantize(x: Tensor, bias: Tensor, form: NumberFormat) -> Tensor:
    """x rounded to the format at an exponent bias (broadcast against x), float32."""
    step = torch.where(torch.isfinite(bias), step_of(bias, form), torch.ones_like(bias))
    rounded: Tensor = form.round(x.float() / step) * step
    return rounded


@dataclass(frozen=True)
class Choice:
    """What a search found: a format and its biases, (out, 1) of weights, (1,) or (h,) of activations."""

    form: NumberFormat
    bias: Tensor
    error: float


def choose_weight(
    weight: Tensor, inputs: Tensor, target: Tensor, forms: Sequence[NumberFormat], grid: Sequence[float],
    search: Search = "maximum",
) -> Choice:  # fmt: skip
    """The bias of each output channel, and the format, with the least squared error of the layer's output.

    weight (o, h), inputs (n, h) as the layer will see them, target (n, o). One candidate at a time is in memory.
    """
    best: Choice | None = None
    peak = weight.abs().amax(1, keepdim=True)
    for form in forms:
        least = torch.full((len(weight),), math.inf, device=weight.device)
        chosen = torch.zeros_like(peak)
        for bias in candidates(peak, form, grid, search):
            error = (inputs @ quantize(weight, bias, form).t() - target).square().sum(0)
            better = error < least
            least = torch.where(better, error, least)
            chosen = torch.where(better[:, None], bias, chosen)
        total = float(least.sum())
        if best is None or total < best.error:
            best = Choice(form, chosen, total)
    assert best is not None
    return best


def choose_input(
    x: Tensor, peak: Tensor, weight: Tensor, target: Tensor, forms: Sequence[NumberFormat], grid: Sequence[float],
    search: Search = "maximum", shift: bool = True,
) -> Choice:  # fmt: skip
    """The bias of the inputs, and their format, with the least squared error of the layer's output.

    x (n, h), peak (h,) of the calibration data, weight (o, h) as rounded, target (n, o).
    shift: one whole-number shift per channel (the paper's), else one bias for the tensor (its baseline).
    """
    if not float(peak.max()):  # only zeros came in
        return Choice(forms[0], torch.zeros(1, device=x.device), 0.0)
    best: Choice | None = None
    for form in forms:
        per_channel, start = bias_of(peak, form), bias_of(peak.max(), form)
        for rho in candidates(peak.max(), form, grid, search):
            bias = preshifted(per_channel, rho, start, form) if shift else rho.reshape(1)
            error = float((quantize(x, bias, form) @ weight.t() - target).square().sum())
            if best is None or error < best.error:
                best = Choice(form, bias, error)
    assert best is not None
    return best


@dataclass(frozen=True)
class FloatQuantize:
    """Post-training quantization to small floats (Liu et al., 2023, arXiv 2310.16836).

    Every linear layer of attention and feed-forward, the head and the embedding tables become packed ones: 4-bit
    weights take an eighth of fp32, two to a byte. Activations are rounded before every product. Scores, softmax and
    norms stay floats. Runs from the packed form in torch; no fast kernel exists yet, so it is slower than fp32.

    weights: formats to choose from, per layer. Four-bit floats by default; ("int4",) with candidates=0 is plain
        round-to-nearest with one step per output channel.
    activations: the same for what enters the layers; () leaves activations alone (and needs no task).
    shift: activations get one power of two per channel, moved into the weights by an exact kernel (the paper's
        pre-shifted exponent bias); False: one step per layer (its baseline). Activations in integers are never shifted.
    candidates: how many ranges are tried, 0 for none but the maximum. search: "maximum" tries factors of 0.01 to 1.2 of
        the maximum; "bias" those factors of the exponent bias (the paper), which fails where it is not positive.
    rounds: of choosing weights for the present activations, and activations for the present weights.
    examples: how many are calibrated on, on full-precision inputs. rows: how many of their tokens are kept.
    head, embeddings: whether these are quantized; word embeddings with one step in all, range and format by their own
        squared error. A table that several modules share (t5's) stays.
    Deviations: `search`; candidates include the maximum itself; the range and the format of one side are chosen
    before the other side's; weights are stored unshifted, the channels' powers of two in the layer's `input.step`.
    """

    weights: tuple[str, ...] = ("e3m0", "e2m1", "e1m2")
    activations: tuple[str, ...] = ("e3m0", "e2m1", "e1m2")
    shift: bool = True
    candidates: int = 100
    search: Search = "maximum"
    rounds: int = 3
    examples: int = 32
    rows: int = 512
    head: bool = True
    embeddings: bool = True
    stage: ClassVar[Stage] = Stage.QUANTIZE

    def __post_init__(self) -> None:
        object.__setattr__(self, "weights", tuple(self.weights))
        object.__setattr__(self, "activations", tuple(self.activations))
        if not self.weights:
            raise UserError("weights needs at least one format, such as e2m1")
        for name in (*self.weights, *self.activations):
            if name in ("ternary", "binary"):
                raise UserError(f"{name} is too coarse to be had without training: see TeacherIntervention")
            number_format(name)
        if self.candidates < 0 or self.rounds < 1 or self.rows < 1 or self.examples < 1:
            raise UserError("candidates must not be negative; rounds, rows and examples are at least 1")
        if self.search not in get_args(Search):
            raise UserError(f"search {self.search!r} is not one of {', '.join(get_args(Search))}")

    @classmethod
    def of_bits(cls, weights: int, activations: int | None, **fields: Any) -> FloatQuantize:
        """All float formats of so many bits; activations None: they stay floats."""
        return cls(
            float_formats(weights), () if activations is None else float_formats(activations), **fields
        )

    @property
    def looks_at_data(self) -> bool:
        """Whether calibration examples are needed: not for weights alone at their maxima in one format."""
        return bool(self.activations) or self.candidates > 0 or len(self.weights) > 1

    def apply(self, bundle: Bundle, task: Any, run: Run) -> Bundle:
        """Raises UserError without a task where data is looked at, ModelError for layers that are replaced already."""
        model, found = bundle.model, anatomy.of(bundle.model)
        paths = list(linears(found))
        top = lookup.head(model) if self.head else None
        paths += [top] if top and top not in paths else []
        for path in paths:
            if not bool(torch.isfinite(anatomy.linear(model, path)[0]).all()):
                raise ModelError(f"the weights of {path} hold NaN or infinity: the checkpoint is damaged")
        tables = [p for p in lookup.tables(model) if p == found.embeddings] if self.embeddings else []
        seen = None
        if self.looks_at_data:
            seen = observe(bundle, task, paths, lambda: Rows(self.rows, run.seed), self.examples, run)
            release()
        if found.tied and (top or tables):
            lookup.untie(model)
        with torch.no_grad():
            for path in paths:  # each takes its place at once: whole and packed layers together would not fit
                weight, bias = anatomy.linear(model, path)
                made = self._layer(weight.detach().float(), bias, None if seen is None else seen[path])
                anatomy.surgery.replace(model, path, made)
                del weight, bias
                release()  # the search makes and drops matrices of the layer's size by the hundred
            seen = None
            for path in tables:
                table = self._table(anatomy.get(model, path).weight)  # type: ignore[arg-type]
                anatomy.surgery.replace(model, path, table)
        return bundle

    def _layer(self, weight: Tensor, bias: Tensor | None, seen: Rows | None) -> PackedLinear:
        w, a = self.choose(weight, seen)
        step = torch.where(torch.isfinite(w.bias), step_of(w.bias, w.form), torch.ones_like(w.bias))
        levels = w.form.round(weight / step)
        reader = None if a is None else ActivationQuantizer.fixed(a.form.name, step_of(a.bias, a.form))
        return PackedLinear.from_levels(levels, step, bias, w.form.name, (1, 0), input=reader)

    def choose(self, weight: Tensor, seen: Rows | None) -> tuple[Choice, Choice | None]:
        """Formats and biases of one layer: weight (o, h) -> those of the weight, and of the input if it is rounded."""
        forms = [number_format(n) for n in self.weights]
        grid = factors(self.candidates)
        if seen is None:
            return Choice(forms[0], bias_of(weight.abs().amax(1, keepdim=True), forms[0]), 0.0), None
        assert seen.rows is not None and seen.peak is not None
        x, peak = seen.rows, seen.peak
        target = x @ weight.t()
        if not self.activations:
            return choose_weight(weight, x, target, forms, grid, self.search), None
        inputs = [number_format(n) for n in self.activations]
        first = next((f for f in inputs if f.name == "e2m1"), inputs[0])  # where the paper starts
        shift = self.shift and bool(first.exponent)
        current = choose_input(x, peak, weight, target, [first], [1.0], self.search, shift)
        for _ in range(self.rounds):
            rounded = quantize(x, current.bias, current.form)
            chosen = choose_weight(weight, rounded, target, forms, grid, self.search)
            kept = quantize(weight, chosen.bias, chosen.form)
            current = choose_input(x, peak, kept, target, inputs, grid, self.search, shift)
        return chosen, current

    def _table(self, weight: Tensor) -> PackedEmbedding:
        """One step for the table; of all formats and ranges the one with the least squared error."""
        flat = weight.detach().float()
        sample = flat[:: -(-len(flat) // _SAMPLE)]  # some thousand rows tell as much as thirty thousand
        peak = torch.maximum(flat.max(), -flat.min())
        best: tuple[float, NumberFormat, Tensor] | None = None
        for name in self.weights:
            form = number_format(name)
            for bias in candidates(peak, form, factors(self.candidates), self.search):
                error = float((quantize(sample, bias, form) - sample).square().sum())
                if best is None or error < best[0]:
                    best = (error, form, bias)
        assert best is not None
        _, form, bias = best
        step = torch.where(torch.isfinite(bias), step_of(bias, form), torch.ones_like(bias)).reshape(1, 1)
        release()
        # whole numbers: small ones in a byte each, until they are packed
        levels = torch.empty_like(flat, dtype=torch.int8 if form.max < 128 else torch.float32)
        for rows, place in zip(
            flat.split(_SAMPLE), levels.split(_SAMPLE)
        ):  # what rounding takes is several times as large
            place.copy_(form.round(rows / step))
        return PackedEmbedding.from_levels(levels, step, form.name, (0, 0), dtype=weight.dtype)
