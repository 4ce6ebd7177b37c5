"""What each compression method can do to a model, in one table: how it comes to a size, what it needs, what it costs.

`compare` and `slim` choose from `METHODS`; the steps themselves know nothing of it. A method becomes steps by
`method.make(ratio, bundle)`, where `ratio` is the share of the blocks' bytes that shall be left, as stored. Sizes come
in whole blocks, heads and bytes, so a method may miss the ratio a little (`weights.TOLERANCE`) or, where `sized` is
False, altogether; what came out is to be counted with `weights.block_bytes`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lightformers import anatomy
from lightformers.bundle import Bundle
from lightformers.compress import method_makers as makers
from lightformers.compress import method_refusals as refusals
from lightformers.compress.distill.common import LANGUAGE_MODELS
from lightformers.errors import UserError
from lightformers.steps import Step

Kind = Literal["prune", "quantize", "factorize", "distil", "fold", "vocabulary"]

_DENSE = "Faster everywhere in proportion to what is gone: smaller dense matrices, on any runtime."
_SHALLOW = "Faster everywhere in proportion to the blocks that are gone, on any runtime."
_UNEVEN = "Faster in torch in proportion to what is gone: dense matrices, of different widths in each block."
_PAIRS = "Faster in torch where ranks are well below the break-even rank; two thin products instead of one."
_SPARSE = "No faster: no sparse kernel exists here yet, the matrix is written out and multiplied densely."
_PACKED = "Slower than fp32: runs from its packed form, no fast kernel exists yet."


@dataclass(frozen=True)
class Method:
    """One way to make a model smaller.

    name: what a user types. kind: what it does. make: (ratio of the blocks' bytes, bundle) -> steps, without the
        recovery that follows a method which does not train; raises UserError where the ratio cannot be reached.
    needs_training: whether it trains inside, on the run's budget; others are followed by recovery if `kind` is prune,
        factorize or distil. needs_labels: whether the task's labels are looked at (`Run(use_labels=True)`).
    native: whether the result loads in plain transformers, where the family allows the cut at all.
    speed: in one sentence, where it is faster. refuses: why it can do nothing with a model, or None.
    sized: whether `ratio` steers the size; others come to a size of their own.
    """

    name: str
    kind: Kind
    make: Callable[[float, Bundle], Sequence[Step]]
    needs_training: bool
    needs_labels: bool
    native: bool
    speed: str
    refuses: Callable[[Bundle], str | None]
    sized: bool = True

    @property
    def recovers(self) -> bool:
        """Whether recovery is to follow: something was taken away, and nothing was learnt yet."""
        return self.kind in ("prune", "factorize", "distil") and not self.needs_training

    @property
    def faster(self) -> bool:
        """Whether less is computed somewhere, not only stored."""
        return self.speed.startswith("Faster")


def _row(
    name: str, kind: Kind, make: Callable[[float, Bundle], Sequence[Step]], speed: str, *,
    refuses: Callable[[Bundle], None] | None = None, trains: bool = False, labels: bool = False,
    native: bool = False, sized: bool = True,
) -> Method:  # fmt: skip
    def made(ratio: float, bundle: Bundle) -> Sequence[Step]:
        if not 0 < ratio < 1:
            raise UserError(f"ratio is the share of the blocks' bytes that is left, in (0, 1); got {ratio}")
        return make(ratio, bundle)

    def refused(bundle: Bundle) -> str | None:
        try:
            anatomy.of(bundle.model)
            if refuses is not None:
                refuses(bundle)
        except UserError as error:
            return str(error)
        return None

    return Method(name, kind, made, trains, labels, native, speed, refused, sized)


METHODS: tuple[Method, ...] = (
    _row("drop-blocks", "prune", makers.drop_blocks, _SHALLOW, refuses=refusals.blocks, native=True),
    _row("prune-channels", "prune", makers.prune_channels, _DENSE, refuses=refusals.channels, native=True),
    _row("prune-heads", "prune", makers.prune_heads, _DENSE, refuses=refusals.heads, native=True),
    _row("prune-width", "prune", makers.prune_width, _DENSE, refuses=refusals.width, native=True),
    _row("minitron", "prune", makers.minitron, _DENSE, refuses=refusals.channels, native=True),
    _row("vtrans", "prune", makers.vtrans, _UNEVEN, refuses=refusals.gates, trains=True),
    _row("axformer", "prune", makers.axformer, _UNEVEN, refuses=refusals.gates, labels=True, sized=False),
    _row("essential-sparsity", "prune", makers.essential_sparsity, _SPARSE, refuses=refusals.plain),
    _row("n-of-m", "prune", makers.n_of_m, _SPARSE, refuses=refusals.plain),
    _row("obert", "prune", makers.obert, _SPARSE, refuses=refusals.plain),
    _row("gradual-magnitude", "prune", makers.gradual_magnitude, _SPARSE, refuses=refusals.plain, trains=True),
    _row("dsee", "prune", makers.dsee, _SPARSE, refuses=refusals.plain, trains=True, labels=True),
    _row("low-rank", "factorize", makers.low_rank, _PAIRS, refuses=refusals.plain),
    _row("greenformers", "factorize", makers.greenformers, _PAIRS, refuses=refusals.plain),
    _row("pela", "factorize", makers.pela, _PAIRS, refuses=refusals.plain, trains=True),
    _row("dsformer", "factorize", makers.dsformer, _SPARSE, refuses=refusals.plain, trains=True),
    _row("minilm", "distil", makers.minilm, _SHALLOW, refuses=refusals.blocks, trains=True, native=True),
    _row("fusegpt", "fold", makers.fusegpt, _SHALLOW, refuses=refusals.fusing, trains=True, native=True),
    _row(
        "pre-crmsnorm", "fold", makers.to_rms_norm, refuses=refusals.stream, sized=False,
        speed="Hardly faster on a CPU, where torch's LayerNorm is one fused kernel: the gain is on other hardware.",
    ),
    _row(
        "llm-int8", "quantize", makers.llm_int8, refuses=refusals.plain,
        speed="Faster in torch where the processor has 8-bit instructions (VNNI, AMX) and outliers are few.",
    ),
    _row("llm-fp4", "quantize", makers.float_quantize, _PACKED, refuses=refusals.plain),
    _row("bct", "quantize", makers.blockwise_quantize, _PACKED, refuses=refusals.attention),
    _row("teacher-intervention", "quantize", makers.teacher_intervention, _PACKED, refuses=refusals.watched, trains=True),
    _row(
        "trim-vocabulary", "vocabulary", makers.trim_vocabulary, refuses=refusals.vocabulary, native=True, sized=False,
        speed="Faster only where a head gives logits over the vocabulary; else smaller, not faster.",
    ),
)  # fmt: skip


def named(names: Iterable[str]) -> tuple[Method, ...]:
    """The methods of these names, in the order of the names, each once. Raises UserError for unknown ones."""
    known = {m.name: m for m in METHODS}
    wanted = list(dict.fromkeys(names))
    if strange := [n for n in wanted if n not in known]:
        raise UserError(f"unknown method {', '.join(strange)}; known methods: {', '.join(known)}")
    return tuple(known[n] for n in wanted)


def applicable(bundle: Bundle, task: Any = None) -> tuple[tuple[Method, ...], dict[str, str]]:
    """Methods that can work on a model with a task's data, and why the others cannot: name -> reason.

    task None: nothing is known of the data, and only the model is asked.
    """
    fit: list[Method] = []
    reasons: dict[str, str] = {}
    for method in METHODS:
        reason = method.refuses(bundle)
        if reason is None and method.needs_labels and task is not None:
            reason = _no_labels(bundle, task)
        if reason is None:
            fit.append(method)
        else:
            reasons[method.name] = reason
    return tuple(fit), reasons


def _no_labels(bundle: Bundle, task: Any) -> str | None:
    if bundle.task in LANGUAGE_MODELS:
        return None  # the text is the label
    try:
        return None if task.training_examples(True) else "it needs labels, and the train split is empty"
    except UserError as error:
        return f"it needs labels: {error}"
