"""The kernels' operators as ONNX functions of standard operators.

A graph that uses `primelens.kernels` carries these. Where the compiled library is registered, the
engine runs its operators; where it is not, the engine puts the functions in their place and folds
the unpacking of weights when it opens the graph. Both compute the same integers and the same
float32 operations in the same order, so both give the same bits (see ``kernels/src/linear.h``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from primelens.export.graph import OPSET
from primelens.kernels import DOMAIN

__all__ = ["add_functions"]


def add_functions(model: ir.Model) -> None:
    """Give a model the functions of the kernels' operators that it uses."""
    used = {node.op_type for node in model.graph if node.domain == DOMAIN}
    for name, build in (("Linear", _linear8), ("Linear4", _linear4)):
        if name in used:
            function = build()
            model.functions[function.identifier()] = function
    if used:
        model.opset_imports[DOMAIN] = 1


class _Body:
    """Collects the nodes of a function."""

    def __init__(self, inputs: Sequence[str]) -> None:
        self.inputs = [ir.Value(name=name) for name in inputs]
        self._nodes: list[ir.Node] = []

    def op(self, op_type: str, inputs: Sequence[ir.Value], **attributes: Any) -> ir.Value:
        node = ir.node(op_type, inputs, attributes)
        node.outputs[0].name = f"v{len(self._nodes)}"
        self._nodes.append(node)
        return node.outputs[0]

    def constant(self, value: Any, dtype: Any = np.float32) -> ir.Value:
        return self.op("Constant", [], value=ir.tensor(np.array(value, dtype)))

    def finish(self, name: str, output: ir.Value) -> ir.Function:
        output.name = "y"
        graph = ir.Graph(
            self.inputs, [output], nodes=self._nodes, opset_imports={"": OPSET}, name=name
        )
        return ir.Function(DOMAIN, name, "", graph=graph, attributes=[])


def _linear8() -> ir.Function:
    body = _Body(["x", "weight", "scale", "bias"])
    x, weight, scale, bias = body.inputs
    # [panel, K/4, column, 4] → [K, columns]
    lying = body.op("Transpose", [weight], perm=[1, 3, 0, 2])
    return _product(body, "Linear", (x, body.op("Flatten", [lying], axis=2), scale, bias))


def _linear4() -> ir.Function:
    body = _Body(["x", "weight", "scale", "bias", "multiplier"])
    x, weight, scale, bias, multiplier = body.inputs
    low = body.op("BitwiseAnd", [weight, body.constant(15, np.uint8)])
    high = body.op("BitShift", [weight, body.constant(4, np.uint8)], direction="RIGHT")
    pairs = body.op("Concat", [low, high], axis=2)  # [panel, block, group, 64]
    shape = body.constant([0, 0, 8, 16, 4], np.int64)
    parts = body.op("Cast", [body.op("Reshape", [pairs, shape])], to=ir.DataType.FLOAT.value)
    values = body.op("Sub", [parts, body.constant(8)])
    wide = body.op("Cast", [multiplier], to=ir.DataType.FLOAT.value)
    wide = body.op("Unsqueeze", [wide, body.constant([2, 4], np.int64)])
    whole = body.op("Add", [body.op("Mul", [values, wide]), body.constant(128)])
    bytes_ = body.op("Cast", [whole], to=ir.DataType.UINT8.value)
    lying = body.op("Transpose", [bytes_], perm=[1, 2, 4, 0, 3])
    return _product(body, "Linear4", (x, body.op("Flatten", [lying], axis=3), scale, bias))


def _product(
    body: _Body, name: str, operands: tuple[ir.Value, ir.Value, ir.Value, ir.Value]
) -> ir.Function:
    """Rows rounded one by one, times ``[K, columns]`` of unsigned weights around 128."""
    x, weight, scale, bias = operands
    first, one = body.constant([0], np.int64), body.constant([1], np.int64)
    weight = body.op("Slice", [weight, first, body.op("Shape", [scale]), one])
    full, middle = body.constant(127), body.constant(128)
    zero_point = body.constant(128, np.uint8)
    last = body.constant([-1], np.int64)
    most = body.op("ReduceMax", [body.op("Abs", [x]), last], keepdims=1)
    most = body.op("Max", [most, body.constant(1e-30)])
    scaled = body.op("Mul", [x, body.op("Div", [full, most])])
    shifted = body.op("Add", [body.op("Round", [scaled]), middle])
    rows = body.op("Cast", [shifted], to=ir.DataType.UINT8.value)
    total = body.op("MatMulInteger", [rows, weight, zero_point, zero_point])
    wide = body.op("Cast", [total], to=ir.DataType.FLOAT.value)
    y = body.op("Mul", [wide, body.op("Div", [most, full])])
    y = body.op("Mul", [y, scale])
    return body.finish(name, body.op("Add", [y, bias]))
