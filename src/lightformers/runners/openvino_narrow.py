"""The rows that are read: where a head looks at one token, the last block of an OpenVINO graph computes that token alone.

Queries, attention's output and the feed-forward of the other tokens of the last block reach nobody. Nothing is approximated:
keys and values are still those of all tokens. OpenVINO 2026.4 does not do this by itself.
"""

from __future__ import annotations

from typing import Any

import numpy as np

#: Node types whose output row depends on the same row of their first input.
_BY_ROW = {
    "Abs", "Clamp", "Convert", "Elu", "Erf", "Exp", "FakeQuantize", "Gelu", "HSwish", "Mish", "Negative", "Relu", "Sigmoid",
    "SoftPlus", "Sqrt", "Swish", "Tanh",
}  # fmt: skip
#: Node types of two inputs that are broadcast against each other.
_BROADCAST = {"Add", "Divide", "Maximum", "Minimum", "Multiply", "Power", "SquaredDifference", "Subtract"}
#: Sizes of axes that move, to follow them through reshapes.
PRIMES = (7, 11, 13)
#: Node types that work along the axes that their second input names.
_ALONG = {"MVN", "ReduceMax", "ReduceMean", "ReduceSum"}


def narrowed(model: Any) -> Any:
    """The graph, edited in place, in which every node whose only row that is read is one computes that row alone.

    The readers are gathers of the first or last index of an axis, as classifiers look at their first token. A graph
    without any, or whose reader stands right behind what mixes tokens, stays as it is.
    """
    for reader in [op for op in model.get_ordered_ops() if _one_row(op) is not None]:
        if shapes := _shapes(model):
            _narrow(model, reader, shapes)
    return model


def _shapes(model: Any) -> dict[str, tuple[list[int], list[int]]]:
    """Reshapes: node -> its shapes before and after where batch and length are different primes, so that sizes which are
    equal are the same axis. Empty where they cannot be known."""
    trial = model.clone()
    try:
        trial.reshape(
            {
                port: [
                    PRIMES[i] if d.is_dynamic else d.get_length()
                    for i, d in enumerate(port.get_partial_shape())
                ]
                for port in trial.inputs
            }
        )
    except (RuntimeError, IndexError):
        return {}
    found = {}
    for node, known in zip(model.get_ordered_ops(), trial.get_ordered_ops()):
        if node.get_type_name() == "Reshape":
            before, after = known.input_value(0).get_partial_shape(), known.output(0).get_partial_shape()
            if before.is_static and after.is_static:
                found[node.get_name()] = ([*before.to_shape()], [*after.to_shape()])
    return found


def _one_row(node: Any) -> tuple[int, int] | None:
    """(axis, index) of a gather of one row of at least three axes, or None."""
    if node.get_type_name() != "Gather" or _rank(node.input_value(0)) < 3:
        return None
    index, axis = (_constant(node.input_value(i)) for i in (1, 2))
    if index is None or axis is None or index.ndim or int(index) not in (0, -1):
        return None
    return int(axis) % _rank(node.input_value(0)), int(index)


def _narrow(model: Any, reader: Any, shapes: dict[str, tuple[list[int], list[int]]]) -> None:
    from openvino import opset13 as op

    axis, index = _one_row(reader) or (0, 0)
    held: dict[str, int] = {}  # node -> the axis of its output of which one row is read
    nodes = {}

    def asked(port: Any) -> int | None:
        """The axis of which a consumer reads one row, or None where it reads them all."""
        node, i = port.get_node(), port.get_index()
        if node.get_name() == reader.get_name():
            return axis if i == 0 else None
        return _along(node, i, held[node.get_name()], shapes) if node.get_name() in held else None

    for node in reversed(model.get_ordered_ops()):
        if node.get_output_size() != 1 or not node.get_input_size() or node.get_type_name() == "Result":
            continue
        found = {asked(port) for port in node.output(0).get_target_inputs()}
        if len(found) == 1 and None not in found:
            wanted = found.pop() or 0
            if any(_along(node, i, wanted, shapes) is not None for i in range(node.get_input_size())):
                held[node.get_name()], nodes[node.get_name()] = wanted, node
    if not any(node.get_type_name() == "MatMul" for node in nodes.values()):
        return  # nothing that costs time
    for name, node in nodes.items():
        for i in range(node.get_input_size()):
            source, along = node.input_value(i), _along(node, i, held[name], shapes)
            if along is not None and source.get_node().get_name() not in held:
                row = op.gather(source, np.array([index], np.int64), np.int64(along))
                node.input(i).replace_source_output(row.output(0))
        if node.get_type_name() == "Reshape":
            sizes = [*node.output(0).get_partial_shape()]
            pattern = [-1 if d.is_dynamic else d.get_length() for d in sizes]
            pattern[held[name]] = 1
            node.input(1).replace_source_output(op.constant(np.array(pattern, np.int64)).output(0))
    model.validate_nodes_and_infer_types()


def _along(node: Any, i: int, axis: int, shapes: dict[str, tuple[list[int], list[int]]]) -> int | None:
    """The axis of input `i` of which one row is enough for one row along `axis` of the output; None: all are needed, or
    the input has no such axis."""
    kind, source = node.get_type_name(), node.input_value(i)
    rank, whole = _rank(source), _rank(node.output(0))
    if not rank or not whole:
        return None
    if kind in _BROADCAST or (kind == "FakeQuantize" and i > 0):
        along = axis - (whole - rank)
        return along if along >= 0 and not _is(source, along, 1) else None
    if kind == "ScaledDotProductAttention":
        # where attention is causal by itself, a query that stands alone would be taken for the first
        if axis != whole - 2 or node.get_attributes()["causal"]:
            return None
        if i == 3:  # the mask has a row for each query, or one for all
            return rank - 2 if rank >= 2 and not _is(source, rank - 2, 1) else None
        return axis if i == 0 else None
    if i > 0:
        return None
    if kind in _BY_ROW:
        return axis
    if kind in _ALONG:
        axes = _constant(node.input_value(1))
        apart = axes is not None and axis not in {int(a) % rank for a in axes.reshape(-1)}
        return axis if apart and rank == whole else None
    if kind == "Softmax":
        return axis if int(node.get_attributes()["axis"]) % rank != axis else None
    if kind == "MatMul":
        rows = axis == whole - 2 or (axis < whole - 2 and _rank(node.input_value(1)) == 2)
        return axis if rows and rank == whole and not node.get_attributes()["transpose_a"] else None
    if kind == "Transpose":
        order = _constant(node.input_value(1))
        return int(order[axis]) if order is not None else None
    if kind == "Reshape" and node.get_name() in shapes:
        before, after = shapes[node.get_name()]
        moving = [j for j, d in enumerate(node.output(0).get_partial_shape()) if d.is_dynamic and j != axis]
        known = not moving or (len(moving) == 1 and moving[0] < axis)  # the batch
        return axis if known and before[: axis + 1] == after[: axis + 1] else None
    return None


def _rank(output: Any) -> int:
    """How many axes, 0 where that is not known."""
    shape = output.get_partial_shape()
    return len(shape) if shape.rank.is_static else 0


def _is(output: Any, axis: int, size: int) -> bool:
    found = output.get_partial_shape()[axis]
    return bool(found.is_static and found.get_length() == size)


def _constant(output: Any) -> np.ndarray | None:
    node = output.get_node()
    return np.asarray(node.data) if node.get_type_name() == "Constant" else None
