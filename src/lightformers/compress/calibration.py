"""The one calibration runner: what scores ask for, collected in one pass over a task's examples, and remembered.

Steps ask with `collect(bundle, task, ...)`. What was collected is kept for the last few models (known by their
weights, so that copies of one model share it), because a search calls many steps on the same model.
"""

from __future__ import annotations

import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lightformers import anatomy
from lightformers.bundle import Batch, Bundle, Example
from lightformers.compress.moments import Inputs, input_hook, real_tokens
from lightformers.errors import DataError, UserError
from lightformers.memory import release
from lightformers.steps import Run

#: Padded tokens in one calibration batch: large enough for the matrix units, small enough for any memory.
_BATCH_TOKENS = 2048
_REMEMBERED_MODELS = 3
#: Bytes of second moments that are held at a time; a model with more is run through once for each such group of layers.
_MOMENTS = 1 << 27


@dataclass
class Statistics:
    """What one or more calibration passes found out about one model.

    inputs: path of a layer -> moments of its input. similarity: path of a block -> mean cosine of its input and
    output, over tokens. notes: anything else that was derived from this model and these examples.
    """

    inputs: dict[str, Inputs] = field(default_factory=dict)
    similarity: dict[str, float] = field(default_factory=dict)
    notes: dict[Any, Any] = field(default_factory=dict)


_memory: OrderedDict[tuple[Any, ...], Statistics] = OrderedDict()


def forget() -> None:
    """Drop everything that was remembered."""
    _memory.clear()


def fingerprint(model: nn.Module) -> int:
    """A number that tells models apart by structure and weights; equal for copies of one model."""
    code = zlib.crc32(type(model).__name__.encode())
    for name, tensor in model.state_dict().items():
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        code = zlib.crc32(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode(), code)
        code = zlib.crc32(flat.view(torch.uint8).numpy().data, code) if flat.numel() else code
    return code


def examples_of(task: Any, n: int, seed: int = 0) -> list[Example]:
    """The calibration examples of a task. Raises UserError without a task, DataError if it has none."""
    if task is None:
        raise UserError(
            "this step looks at data: give a task (Recipe.apply(bundle, task)), or set the fields of the step that "
            "make it do without"
        )
    if n < 1:
        raise UserError(f"examples must be at least 1, got {n}")
    examples = list(task.calibration(n, seed=seed))
    if not examples:
        raise DataError("the task has no examples to calibrate on: its train split is empty")
    return examples


def batches(bundle: Bundle, examples: Sequence[Example], max_tokens: int = _BATCH_TOKENS) -> list[Batch]:
    """Padded batches of similar lengths, on the model's device, of at most `max_tokens` padded tokens each."""
    encoded = sorted(bundle.encode(examples), key=bundle.length)
    groups: list[list[Any]] = [[]]
    for item in encoded:
        # images count one each and have some hundred patches: 32 of them make a batch
        cost = bundle.length(item) if "input_ids" in item else max_tokens // 32
        if groups[-1] and cost * (len(groups[-1]) + 1) > max_tokens:
            groups.append([])
        groups[-1].append(item)
    device = next(bundle.model.parameters()).device
    return [bundle.pad(group).to(device) for group in groups]


def statistics(bundle: Bundle, task: Any, examples: int = 64, seed: int = 0) -> Statistics:
    """The remembered statistics of this very model and task, or new empty ones."""
    key = (
        fingerprint(bundle.model),
        getattr(task, "fingerprint", id(task)),
        examples,
        seed,
        bundle.max_length,
    )
    found = _memory.setdefault(key, Statistics())
    _memory.move_to_end(key)
    while len(_memory) > _REMEMBERED_MODELS:
        _memory.popitem(last=False)
    return found


def collect(
    bundle: Bundle,
    task: Any,
    inputs: Sequence[str] = (),
    grams: Sequence[str] = (),
    blocks: Sequence[str] = (),
    examples: int = 64,
    run: Run | None = None,
) -> Statistics:
    """Run the calibration examples through the model once, and collect what is asked for and not yet known.

    inputs: paths of layers whose input moments are wanted. grams: the same, second moments (h x h) too.
    blocks: paths of blocks whose input-output similarity is wanted. run: seed of the choice, and the precision.
    Raises UserError without a task.
    """
    run = run or Run()
    chosen = examples_of(task, examples, run.seed)
    found = statistics(bundle, task, examples, run.seed)
    full = [p for p in dict.fromkeys(grams) if p not in found.inputs or found.inputs[p].products is None]
    plain = [p for p in dict.fromkeys(inputs) if p not in found.inputs and p not in full]
    unseen = [p for p in dict.fromkeys(blocks) if p not in found.similarity]
    if not (full or plain or unseen):
        return found
    moments, similarity = _observe(bundle, chosen, plain, full, unseen, run.dtype)
    found.inputs.update(moments)
    found.similarity.update(similarity)
    return found


def second_moments(
    bundle: Bundle, task: Any, paths: Sequence[str], examples: int = 64, run: Run | None = None
) -> Iterator[tuple[str, Inputs]]:
    """(path, moments with `gram`) of each layer, in groups that fit into memory; use one before the next is asked for.

    What fits at once is remembered, as `collect` does. Else the last group comes first, so that layers whose moments were
    given may be replaced: nothing that is still to be seen depends on them. Raises as `collect`.
    """
    run = run or Run()
    groups = moment_groups(bundle, paths)
    if len(groups) == 1:
        known = collect(bundle, task, grams=groups[0], examples=examples, run=run).inputs
        yield from ((path, known[path]) for path in groups[0])
        return
    chosen = examples_of(task, examples, run.seed)
    for group in reversed(groups):
        moments, _ = _observe(bundle, chosen, (), group, (), run.dtype)
        for path in group:
            yield path, moments.pop(path)


def moment_groups(bundle: Bundle, paths: Sequence[str]) -> list[list[str]]:
    """Layers whose second moments are held at the same time: one at least, else as many as fit."""
    groups: list[list[str]] = [[]]
    held = 0
    for path in dict.fromkeys(paths):
        size = 4 * anatomy.linear(bundle.model, path)[0].shape[1] ** 2
        if groups[-1] and held + size > _MOMENTS:
            groups.append([])
            held = 0
        groups[-1].append(path)
        held += size
    return groups


def _observe(
    bundle: Bundle, chosen: Sequence[Example], plain: Sequence[str], full: Sequence[str], unseen: Sequence[str], dtype: str
) -> tuple[dict[str, Inputs], dict[str, float]]:  # fmt: skip
    """One pass: moments of what enters layers (with second ones for `full`), similarity of blocks."""
    moments: dict[str, Inputs] = {}
    similarity: dict[str, list[float]] = {p: [0.0, 0.0] for p in unseen}
    current: list[Tensor | None] = [None]
    with ExitStack() as stack:
        for path in (*plain, *full):
            hook = input_hook(moments, path, path in full, current)
            stack.callback(anatomy.get(bundle.model, path).register_forward_pre_hook(hook).remove)
        for path in unseen:
            hook = _similarity_hook(similarity[path], current)
            module = anatomy.get(bundle.model, path)
            stack.callback(module.register_forward_hook(hook, with_kwargs=True).remove)
        stack.enter_context(evaluating(bundle.model))
        stack.enter_context(fast_precision(next(bundle.model.parameters()).device, dtype))
        module = bundle.module().eval()
        for batch in batches(bundle, chosen):
            current[0] = batch.inputs.get("attention_mask")
            module(**batch.inputs)
    release()
    if missing := [p for p in (*plain, *full) if p not in moments]:
        raise UserError(
            f"the calibration examples never reach {', '.join(missing[:3])}: is it part of the model?"
        )
    return moments, {p: total / max(count, 1) for p, (total, count) in similarity.items()}


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """No gradients, no dropout, no cache of keys and values; everything is put back afterwards."""
    training = model.training
    config: Any = getattr(model, "config", None)
    caching = getattr(config, "use_cache", None)
    model.eval()
    if caching is not None:
        config.use_cache = False
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)
        if caching is not None:
            config.use_cache = caching


@contextmanager
def fast_precision(device: torch.device, dtype: str) -> Iterator[None]:
    """bf16 products where the run allows it and the processor has them; else nothing changes.

    On the CPU, products of float32 outside autocast also round their inputs (not their sums) to bf16.
    """
    if dtype != "bf16":
        yield
        return
    if device.type == "cpu":
        # private, but the only question that tells emulation from hardware; without it, full precision is safe
        supported = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)()
    else:
        supported = device.type == "cuda" and torch.cuda.is_bf16_supported()
    if not supported:
        yield
        return
    products: Any = getattr(torch.backends.mkldnn, "matmul", None)
    old = getattr(products, "fp32_precision", None)
    if device.type == "cpu" and old is not None:
        products.fp32_precision = "bf16"
    try:
        with torch.autocast(device.type, torch.bfloat16):
            yield
    finally:
        if device.type == "cpu" and old is not None:
            products.fp32_precision = old


def _similarity_hook(sums: list[float], current: list[Tensor | None]) -> Callable[..., None]:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        before = anatomy.entering(args, kwargs)
        after = output if isinstance(output, Tensor) else output[0]
        a, b = real_tokens(before, current[0]).float(), real_tokens(after, current[0]).float()
        cosine = nn.functional.cosine_similarity(a, b, dim=-1)
        sums[0] += float(cosine.sum())
        sums[1] += len(cosine)

    return hook
