"""LayerNorm to RMSNorm without changing what a pre-norm model computes (Jiang et al., 2023, arXiv 2305.14858).

Only LayerNorms read the residual stream of a pre-norm model, so its mean never matters. Once everything that writes to
the stream is re-centred, LayerNorm subtracts nothing and RMSNorm does the same; and of d entries that sum to zero one
need not be kept (CRMSNorm, a stream of d - 1).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from lightformers import anatomy
from lightformers.anatomy.access import is_conv1d
from lightformers.anatomy.find import host
from lightformers.bundle import Bundle
from lightformers.compress.fold import stream
from lightformers.errors import ModelError, UserError, reason
from lightformers.parts.zero_mean import CRMSNorm, RMSNorm, StreamEntry, ZeroMeanLinear
from lightformers.steps import Run, Stage

Kind = Literal["rms", "crms"]
Matrix = tuple[Tensor, Tensor | None]
#: Largest difference of outputs, relative to the largest output, that rounding may make.
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 2e-3, torch.float16: 0.05, torch.bfloat16: 0.1}


def fold(weight: Tensor, bias: Tensor | None, gain: Tensor | None, offset: Tensor | None) -> Matrix:
    """Take a norm's gain (in,) and offset (in,) into the layer that reads it: W diag(gain), b + W offset."""
    if offset is not None and bool(offset.any()):
        more = weight @ offset
        bias = more if bias is None else bias + more
    return (weight if gain is None else weight * gain), bias


def recentre(weight: Tensor, bias: Tensor | None) -> Matrix:
    """A writer (out, in) whose output has mean zero: the mean over the outputs is taken off."""
    return weight - weight.mean(0), None if bias is None else bias - bias.mean()


def drop_output(weight: Tensor, bias: Tensor | None) -> Matrix:
    """A re-centred writer without its last output, which is minus the sum of the others."""
    return weight[:-1], None if bias is None else bias[:-1]


def drop_input(weight: Tensor) -> Tensor:
    """A reader (out, d) of zero-mean vectors as a reader (out, d - 1) of all entries but the last."""
    return weight[:, :-1] - weight[:, -1:]


@dataclass(frozen=True)
class ToRMSNorm:
    """Turn the LayerNorms of a pre-norm model into RMSNorm or CRMSNorm; the outputs stay the same.

    kind: "rms" keeps the width; "crms" stores one entry less per token (a width such as 767, which kernels like less).
    keep_zero_mean: layers that write to the stream re-centre their weights at each forward, so that training goes on
        as that of the LayerNorm model; for "rms" only. Without it, training is that of an RMSNorm model.

    Gains and offsets of the blocks' norms are folded into the layers that read them (which get a bias where they had
    none), per-channel scales into the layer before. What differs from the paper: embeddings are re-centred where they
    enter the stream, by one part in the place of their dropout, instead of table by table, so tied tables stay tied;
    the final norm keeps gain and offset, and with "crms" gives the full width again, so heads and last states stay as
    they are. Where the model does not allow that (gpt2 gives its states the width of the stream), the head reads
    d - 1 entries; a tied head is untied then and the model becomes larger by one matrix.
    Dropout on a residual branch breaks the zero mean while it is on. Outputs are compared before and after, on
    made-up inputs; the result needs lightformers to load. On a CPU, torch's LayerNorm is one fused kernel and the
    norms here are several operations: measure before you expect a gain.
    """

    kind: Kind = "rms"
    keep_zero_mean: bool = False
    stage: ClassVar[Stage] = Stage.FACTORIZE

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise UserError(f"kind {self.kind!r} is not one of {', '.join(get_args(Kind))}")
        if self.keep_zero_mean and self.kind == "crms":
            raise UserError(
                "a stream of d - 1 entries has nothing to keep at zero: keep_zero_mean is for 'rms'"
            )

    def apply(self, bundle: Bundle, task: Any, run: Run) -> Bundle:
        """Raises ModelError, with the reason, for post-norm models and those without LayerNorms."""
        model = bundle.model
        found = stream.find(model, bundle.module())
        inputs = stream.made_up(model)
        before = stream.outputs(bundle.module(), inputs)
        limit = _TOLERANCE.get(next(model.parameters()).dtype, 0.1)
        tied = anatomy.of(model).tied
        why = ""
        for expand in (True, False) if self.kind == "crms" and found.head else (True,):
            old = _put(model, self._parts(model, found, expand))
            try:
                after = stream.outputs(bundle.module(), inputs)
                gap = _difference(after, before)
                why = f"outputs differ by {gap:.1e} of the largest (allowed {limit:.0e})"
                if gap <= limit:
                    if not expand and tied:
                        _untie(model)
                    return bundle
            except RuntimeError as error:  # a model that reshapes its last states to the width of the stream
                why = reason(error)
            _put(model, old)
        raise ModelError(
            f"the {self.kind} form of this {anatomy.of(model).family} model does not work: {why}"
        )

    def _parts(self, model: nn.Module, found: stream.Stream, expand: bool) -> dict[str, nn.Module]:
        """Path -> what is to stand there."""
        narrow = self.kind == "crms"
        parts: dict[str, nn.Module] = {}
        entry = anatomy.get(model, found.entry)
        parts[found.entry] = StreamEntry(float(entry.p), narrow)  # type: ignore[arg-type]
        for path, readers in found.readers.items():
            norm: Any = anatomy.get(model, path)
            parts[path] = _norm(norm, narrow, expand=False, affine=False)
            for reader in readers:
                weight, bias = fold(*_wide(model, reader), *_affine(norm))
                parts[reader] = _linear(model, reader, drop_input(weight) if narrow else weight, bias)
        scale_of = {writer: scale for scale, writer in found.scales.items()}
        for path in found.writers:
            weight, bias = _wide(model, path)
            if path in scale_of:
                scale: Any = next(anatomy.get(model, scale_of[path]).parameters()).detach().double()
                weight, bias = weight * scale[:, None], None if bias is None else bias * scale
                parts[scale_of[path]] = nn.Identity()
            if self.keep_zero_mean:
                parts[path] = _zero_mean(model, path, weight, bias)
                continue
            weight, bias = recentre(weight, bias)
            parts[path] = _linear(model, path, *(drop_output(weight, bias) if narrow else (weight, bias)))
        final: Any = anatomy.get(model, found.final)
        parts[found.final] = _norm(final, narrow, expand, affine=expand)
        if not expand:
            assert found.head is not None
            weight, bias = fold(*_wide(model, found.head), *_affine(final))
            parts[found.head] = _linear(model, found.head, drop_input(weight), bias)
        return parts


def _wide(model: nn.Module, path: str) -> Matrix:
    """Weight (out, in) and bias in float64: the arithmetic is exact to the last bit of the result."""
    weight, bias = anatomy.linear(model, path)
    return weight.detach().double(), None if bias is None else bias.detach().double()


def _affine(norm: nn.LayerNorm) -> tuple[Tensor | None, Tensor | None]:
    gain, offset = norm.weight, norm.bias
    return (
        None if gain is None else gain.detach().double(),
        None if offset is None else offset.detach().double(),
    )


def _norm(old: nn.LayerNorm, narrow: bool, expand: bool, affine: bool) -> nn.Module:
    width, eps = old.normalized_shape[0], old.eps
    has_gain, has_bias = old.weight is not None, old.bias is not None
    new = (
        CRMSNorm(width, eps, expand, affine and has_gain, has_bias)
        if narrow
        else RMSNorm(width, eps, affine and has_gain, has_bias)
    )
    if new.weight is not None:
        new.weight, new.bias = old.weight, old.bias
    return new.train(old.training)


def _linear(model: nn.Module, path: str, weight: Tensor, bias: Tensor | None) -> nn.Module:
    """A layer of the old one's kind, device and dtype with this weight (out, in) and bias."""
    old: Any = anatomy.get(model, path)
    with torch.device("meta"):
        new: Any = (
            type(old)(weight.shape[0], weight.shape[1])
            if is_conv1d(old)
            else nn.Linear(weight.shape[1], weight.shape[0], bias is not None)
        )
    stored = weight.T if is_conv1d(old) else weight
    learns = old.weight.requires_grad
    new.weight = nn.Parameter(stored.to(old.weight.dtype).contiguous().clone(), requires_grad=learns)
    if new.bias is not None:
        value = weight.new_zeros(len(weight)) if bias is None else bias
        new.bias = nn.Parameter(value.to(old.weight.dtype).clone(), requires_grad=learns)
    return new.train(old.training)


def _zero_mean(model: nn.Module, path: str, weight: Tensor, bias: Tensor | None) -> nn.Module:
    old: Any = anatomy.get(model, path)
    with torch.device("meta"):
        new = ZeroMeanLinear(weight.shape[1], weight.shape[0], bias is not None)
    new.raw = nn.Parameter(
        weight.to(old.weight.dtype).contiguous().clone(), requires_grad=old.weight.requires_grad
    )
    if bias is not None:
        new.bias = nn.Parameter(bias.to(old.weight.dtype).clone(), requires_grad=old.weight.requires_grad)
    return new.train(old.training)


def _put(model: nn.Module, parts: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """Put parts in their places; returns what stood there."""
    return {path: anatomy.surgery.replace(model, path, part) for path, part in parts.items()}


def _difference(new: Mapping[str, Tensor], old: Mapping[str, Tensor]) -> float:
    gaps = [0.0]
    for name, value in old.items():
        if new[name].shape != value.shape:
            raise RuntimeError(f"{name} has shape {tuple(new[name].shape)} instead of {tuple(value.shape)}")
        size = value.double().abs().max().clamp(min=1e-12)
        gaps.append(float((new[name].double() - value.double()).abs().max() / size))
    return max(gaps)


def _untie(model: nn.Module) -> None:
    owner: Any = host(model)[1]
    owner.config.tie_word_embeddings = False
