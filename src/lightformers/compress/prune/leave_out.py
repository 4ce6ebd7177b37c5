"""Leave blocks out, one after the other, and see how far the output moves. Nothing is cut."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from lightformers import anatomy
from lightformers.bundle import Batch, Bundle
from lightformers.compress import calibration
from lightformers.compress.prune.scores import output_distance
from lightformers.memory import release
from lightformers.steps import Run

#: Rows of an output (tokens of a language model) that are compared per batch: logits of all would not fit.
_ROWS = 512


def removal_order(
    bundle: Bundle, task: Any, blocks: Sequence[anatomy.Block], count: int, examples: int, run: Run
) -> list[int]:
    """The first `count` blocks of a stack to remove, greedily by output distance; remembered for the next call.

    Each round runs the model once without the blocks that are gone, then from each candidate on: what comes before a
    candidate is the same for all, so it is not computed again.
    """
    known = calibration.statistics(bundle, task, examples, run.seed)
    order: list[int] = known.notes.setdefault(("removal_order", blocks[0].stack, len(blocks)), [])
    if len(order) >= count:
        return order[:count]
    chosen = calibration.examples_of(task, examples, run.seed)
    paths = [b.path for b in blocks]
    modules = [anatomy.get(bundle.model, p) for p in paths]
    module = bundle.module().eval()
    with ExitStack() as stack:
        stack.enter_context(calibration.evaluating(bundle.model))
        stack.enter_context(calibration.fast_precision(next(bundle.model.parameters()).device, run.dtype))
        data = calibration.batches(bundle, chosen)
        references: list[tuple[Tensor, bool]] = []
        if order:
            references = [rows(module(**b.inputs), b) for b in data]
        while len(order) < count:
            distance = dict.fromkeys((i for i in range(len(blocks)) if i not in order), 0.0)
            for place, batch in enumerate(data):
                outputs, states = _pass(module, modules, order, batch)
                if not order:  # nothing is gone yet: this is the reference
                    references.append(rows(outputs, batch))
                reference, distribution = references[place]
                for i in distance:
                    with _without(modules, order, i, states):
                        new, _ = rows(module(**batch.inputs), batch)
                    distance[i] += output_distance(new, reference, distribution) * len(reference)
            order.append(min(distance, key=lambda i: (distance[i], i)))
            release()
    return order[:count]


def outputs(bundle: Bundle, task: Any, examples: int, run: Run) -> list[tuple[Tensor, bool]]:
    """What a bundle gives for calibration examples, batch by batch, as `rows` takes it."""
    chosen = calibration.examples_of(task, examples, run.seed)
    module = bundle.module().eval()
    with ExitStack() as stack:
        stack.enter_context(calibration.evaluating(bundle.model))
        stack.enter_context(calibration.fast_precision(next(bundle.model.parameters()).device, run.dtype))
        return [rows(module(**b.inputs), b) for b in calibration.batches(bundle, chosen)]


def distance(new: Sequence[tuple[Tensor, bool]], old: Sequence[tuple[Tensor, bool]]) -> float:
    """Mean distance over all rows of what two models give for the same examples; 0 is equal."""
    total = sum(output_distance(a, b, distribution) * len(b) for (a, _), (b, distribution) in zip(new, old))
    return float(total / sum(len(b) for b, _ in old))


def rows(outputs: Any, batch: Batch) -> tuple[Tensor, bool]:
    """(rows, width) of what a model gives, and whether the rows are logits of a distribution."""
    fields: Mapping[str, Any] = outputs
    for name in (
        "prediction",
        "prediction_outputs",
    ):  # of a window or a table's row: a number or more, one row
        if isinstance(value := fields.get(name), Tensor):
            return value.reshape(len(value), -1).float().clone(), False
    for name, distribution in (("embedding", False), ("logits", True), ("last_hidden_state", False)):
        if isinstance(value := fields.get(name), Tensor):
            rows = calibration.real_tokens(value, batch.inputs.get("attention_mask"))
            return rows[:: -(-len(rows) // _ROWS)].float().clone(), distribution
    raise TypeError(
        f"the model gives {', '.join(fields)}: no embedding, logits, prediction or last_hidden_state among them"
    )


def _pass(
    module: nn.Module, modules: Sequence[nn.Module], gone: Sequence[int], batch: Batch
) -> tuple[Any, dict[int, Tensor]]:
    """Outputs without the blocks in `gone`, and what enters each block (none if blocks hand on more than states)."""
    states: dict[int, Tensor] = {}
    again: set[int] = set()  # blocks that are run more than once: of what enters them only the last is known
    plain = True

    def watch(index: int) -> Callable[..., None]:
        def hook(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            again.update({index} & states.keys())
            nonlocal plain
            plain = plain and isinstance(output, Tensor)
            states[index] = anatomy.entering(args, kwargs)

        return hook

    with _without(modules, gone, None, {}), ExitStack() as stack:
        for i, block in enumerate(modules):
            stack.callback(block.register_forward_hook(watch(i), with_kwargs=True).remove)
        outputs = module(**batch.inputs)
    return outputs, states if plain and not again else {}


@contextmanager
def _without(
    modules: Sequence[nn.Module], gone: Sequence[int], candidate: int | None, states: Mapping[int, Tensor]
) -> Iterator[None]:
    """Let blocks hand on what they are given. With known states, everything before the candidate is skipped too."""
    skipped = {*gone} if candidate is None else {*gone, candidate}
    with ExitStack() as stack:
        if candidate is not None and states:
            for i, block in enumerate(modules[: candidate + 1]):
                stack.callback(_override(block, states[candidate] if i == candidate else None))
        for i in skipped:
            if not states or (candidate is not None and i > candidate):
                # the block still runs: what it hands on beside the states (a t5's position bias) may be needed
                stack.callback(modules[i].register_forward_hook(_hand_on, with_kwargs=True).remove)
        yield


def _override(block: nn.Module, states: Tensor | None) -> Callable[[], None]:
    def forward(*args: Any, **kwargs: Any) -> Tensor:
        return anatomy.entering(args, kwargs) if states is None else states

    block.forward = forward
    return lambda: delattr(block, "forward")


def _hand_on(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
    before = anatomy.entering(args, kwargs)
    return before if isinstance(output, Tensor) else (before, *output[1:])
