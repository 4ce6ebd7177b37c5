"""A cascade as one OpenVINO graph: rows that the first model is not sure of are gathered, answered and put back."""

from __future__ import annotations

from typing import Any

import numpy as np


def joined(first: Any, second: Any, sure: float) -> Any:
    """One `openvino.Model` of two that take the same inputs and give logits; it has the inputs of the first.

    Where all rows are sure the second one runs on a batch of none, which costs nothing.
    """
    import openvino
    from openvino import opset13 as op

    held = {name: port.get_node().output(0) for port in first.inputs for name in port.get_names()}
    logits, asked = (model.outputs[0].get_node().input_value(0) for model in (first, second))
    likeliest = op.reduce_max(op.softmax(logits, -1), np.int64(-1), keep_dims=False)
    rows = op.squeeze(op.non_zero(op.less(likeliest, np.float32(sure)), "i64"), np.int64(0))
    for port in second.inputs:
        (source,) = {held[name] for name in port.get_names() if name in held}
        gathered = op.gather(source, rows, np.int64(0)).output(0)
        for reader in list(port.get_node().output(0).get_target_inputs()):
            reader.replace_source_output(gathered)
    mixed = op.scatter_nd_update(logits, op.unsqueeze(rows, np.int64(1)), asked)
    mixed.output(0).get_tensor().set_names({"logits"})
    return openvino.Model([op.result(mixed)], first.get_parameters(), "cascade")
