"""Where the time of a forward goes: by block and kind, in PyTorch and in OpenVINO."""

from __future__ import annotations

import re
import time
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from lightformers import anatomy
from lightformers.bundle import Batch, Bundle, Example
from lightformers.errors import ModelError

#: OpenVINO node types -> what they are in a transformer.
_KINDS = {
    "FullyConnected": "matrix products", "MatMul": "matrix products", "Convolution": "matrix products",
    "QKVProjection": "matrix products", "LLMMLP": "matrix products",
    "ScaledDotProductAttention": "attention", "ScaledDotProductAttentionWithKVCache": "attention",
    "Softmax": "attention", "MVN": "norms", "RMS": "norms", "GroupNorm": "norms",
    "Gather": "embeddings", "Eltwise": "elementwise", "Subgraph": "elementwise", "Math": "elementwise",
    "FakeQuantize": "quantizing", "Quantize": "quantizing", "Convert": "layout", "Reorder": "layout",
    "Transpose": "layout", "Reshape": "layout", "Concatenation": "layout", "Split": "layout", "StridedSlice": "layout",
}  # fmt: skip


def profile(bundle: Bundle, batch: Batch, rounds: int = 3) -> list[dict[str, Any]]:
    """Time per part of one eager forward in PyTorch, the time of the modules inside a part counted in it.

    -> rows {"name", "kind", "ms", "share"} in the order of execution; kinds: embeddings, attention, feed-forward,
    norm, head, other (pooling, residual sums, glue). ms is the median of the rounds; shares add up to 1.
    """
    module, model = bundle.module(), bundle.model
    table = _table(model)
    labels = {m: _label(path, m, table) for path, m in model.named_modules()}
    order: dict[tuple[str, str], None] = {}
    spent: dict[tuple[str, str], float] = defaultdict(float)
    stack: list[list[float]] = []

    def enter(m: nn.Module, _: Any) -> None:
        order.setdefault(labels[m])
        stack.append([time.perf_counter(), 0.0])

    def leave(m: nn.Module, *_: Any) -> None:
        start, inside = stack.pop()
        whole = time.perf_counter() - start
        spent[labels[m]] += whole - inside
        if stack:
            stack[-1][1] += whole

    handles = []
    for m in labels:
        handles += [m.register_forward_pre_hook(enter), m.register_forward_hook(leave, always_call=True)]
    training = [m for m in module.modules() if m.training]
    module.eval()
    times: dict[tuple[str, str], list[float]] = defaultdict(list)
    try:
        with torch.inference_mode():
            for r in range(rounds + 1):  # the first only warms up
                spent.clear()
                stack.clear()
                start = time.perf_counter()
                module(**batch.inputs)
                rest = time.perf_counter() - start - sum(spent.values())
                spent[("outside the model", "other")] += max(rest, 0.0)
                if r:
                    for key, seconds in spent.items():
                        times[key].append(seconds)
    finally:
        for handle in handles:
            handle.remove()
        for m in training:
            m.training = True
    rows = [(*key, 1000 * float(np.median(times[key]))) for key in [*order, ("outside the model", "other")]]
    return _rows(rows)


def _rows(rows: Sequence[tuple[str, str, float]]) -> list[dict[str, Any]]:
    total = sum(ms for _, _, ms in rows) or 1.0
    return [{"name": n, "kind": k, "ms": ms, "share": ms / total} for n, k, ms in rows]


def _table(model: nn.Module) -> dict[str, tuple[str, str]]:
    """Path -> (name, kind); a module belongs to the longest path that it lies under. Empty for unknown models."""
    try:
        found = anatomy.of(model)
    except ModelError:
        return {}
    table: dict[str, tuple[str, str]] = {"": ("other", "other")}
    for stack in found.stacks:
        name = "embeddings" if len(found.stacks) == 1 else f"{stack.name} embeddings"
        for path in (stack.embeddings, stack.positions):
            if path:
                parent = path.rpartition(".")[0]
                inside = any(b.path.startswith(f"{parent}.") for b in found.blocks) or not parent
                table[path if inside else parent] = (name, "embeddings")
        for path in (stack.embedding_norm, stack.final_norm):
            if path:
                table[path] = ("outer norms", "norm")
    if found.embeddings:
        table.setdefault(found.embeddings, ("embeddings", "embeddings"))
    if found.head:
        table[found.head] = ("head", "head")
    for block in found.blocks:
        name = f"block {block.index}" if len(found.stacks) == 1 else f"{block.stack} block {block.index}"
        table[block.path] = (f"{name} glue", "other")
        for attention in (block.attention, block.cross_attention):
            if attention:
                for path in (attention.path, *attention.projections):
                    table[path] = (f"{name} attention", "attention")
        if block.feed_forward:
            for path in block.feed_forward.projections:
                table[path] = (f"{name} feed-forward", "feed-forward")
            if block.feed_forward.path != block.path:
                table.setdefault(block.feed_forward.path, (f"{name} feed-forward", "feed-forward"))
        for path in block.norms:
            table[path] = (f"{name} norms", "norm")
    return table


def _label(path: str, module: nn.Module, table: dict[str, tuple[str, str]]) -> tuple[str, str]:
    if not table:
        return type(module).__name__, "other"
    at = path
    while at not in table:
        at = at.rpartition(".")[0]
    name, kind = table[at]
    if name.endswith(" glue") and re.search(
        r"GELU|SiLU|ReLU|Activation|Tanh|Mish", type(module).__name__, re.I
    ):
        return name.replace(" glue", " feed-forward"), "feed-forward"
    return name, kind


def profile_openvino(runner: Any, examples: Sequence[Example], rounds: int = 3) -> list[dict[str, Any]]:
    """Time per block and kind of node of an OpenVINO runner over one batch of `examples`.

    -> rows {"name", "kind", "ms", "share", "how"}; how: the kernels that ran, such as brgemm_avx512_amx_i8.
    The graph is compiled anew with profiling, on one stream.
    """
    import dataclasses

    from lightformers.runners.openvino_runner import compile_model

    deploy = dataclasses.replace(runner.deploy, streams=1)
    request = compile_model(runner.model, deploy, {"PERF_COUNT": True}).create_infer_request()
    feed = runner.feed(runner.encode(list(examples)))
    times: dict[tuple[str, str], list[float]] = defaultdict(list)
    how: dict[tuple[str, str], set[str]] = defaultdict(set)
    for r in range(rounds + 1):
        request.infer(feed)
        spent: dict[tuple[str, str], float] = defaultdict(float)
        for node in request.profiling_info:
            ms = node.real_time.total_seconds() * 1000
            key = (_block_of(node.node_name), _KINDS.get(node.node_type, node.node_type))
            spent[key] += ms
            if ms:
                how[key].add(node.exec_type)
        for key, ms in spent.items():
            if r:
                times[key].append(ms)
    rows = _rows([(*key, float(np.median(ms))) for key, ms in times.items() if np.median(ms) > 0])
    return [{**row, "how": ", ".join(sorted(how[row["name"], row["kind"]]))} for row in rows]


def _block_of(node: str) -> str:
    found = re.search(r"(?:layers?|blocks?|h)[._](\d+)[._/]", node)
    return f"block {found.group(1)}" if found else "outside blocks"
