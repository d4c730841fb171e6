"""The kernels' operators as ONNX functions of standard operators.

A graph that uses `primelens.kernels` carries these. Where the compiled library is registered, the
engine runs its operators; where it is not, the engine puts the functions in their place and folds
the unpacking of weights when it opens the graph. Both compute the same integers and the same
float32 operations in the same order, so both give the same bits (see ``kernels/src/linear.h``);
only the log-sum-exp of ``TopLogits`` is the engine's own there and agrees to about 1e-6, and
attention sums in float64 in an order of its own (`primelens.export.attention_function`).
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from primelens.export.attention_function import ATTENTION, attention_function
from primelens.export.function_body import FunctionBody
from primelens.kernels import DOMAIN
from primelens.kernels.activations import (
    ACTIVATIONS,
    CUBIC,
    LOGISTIC,
    NORMAL,
    QUICK,
    TANH_SLOPE,
    Sigmoid,
)

__all__ = ["add_functions", "operator_name"]


def operator_name(bits: int, activation: str = "none") -> str:
    """The kernels' product of rows with weights of 8 or 4 bits, followed by an activation.

    An activation is part of the name and not an attribute, because a function has no branches.

    Raises:
        KeyError: `primelens.kernels.activations.ACTIVATIONS` does not hold the activation.
        ValueError: other bits.
    """
    if bits not in (8, 4):
        raise ValueError(f"the kernels multiply with 8 or 4 bits, not {bits}")
    return ("Linear" if bits == 8 else "Linear4") + ACTIVATIONS[activation]


def add_functions(model: ir.Model) -> None:
    """Give a model the functions of the kernels' operators that it uses."""
    used = {node.op_type for node in model.graph if node.domain == DOMAIN}
    for bits in (8, 4):
        for activation in ACTIVATIONS:
            if (name := operator_name(bits, activation)) in used:
                _add(model, _linear(name, bits, activation))
        if (name := "TopLogits" if bits == 8 else "TopLogits4") in used:
            _add(model, _top_logits(name, bits))
    for name in ATTENTION:
        if name in used:
            _add(model, attention_function(name))
    if used:
        model.opset_imports[DOMAIN] = 1


def _add(model: ir.Model, function: ir.Function) -> None:
    model.functions[function.identifier()] = function


_INPUTS = ("x", "weight", "scale", "bias", "multiplier")


def _linear(name: str, bits: int, activation: str) -> ir.Function:
    body = FunctionBody(_INPUTS[: 4 if bits == 8 else 5])
    return body.finish(name, [_activated(body, _logits(body, bits), activation)])


def _top_logits(name: str, bits: int) -> ir.Function:
    """Equal logits in the order of their columns, as TopK has it; the sum is the engine's own."""
    body = FunctionBody(_INPUTS[: 4 if bits == 8 else 5])
    logits = _logits(body, bits)
    lowest = body.constant(-np.inf)
    keys = body.op("Where", [body.op("IsNaN", [logits]), lowest, logits])
    _, ids = body.ops("TopK", [keys, body.integer("k")], 2)
    best = body.op("GatherElements", [logits, ids], axis=-1)
    last = body.constant([-1], np.int64)
    most = body.op("ReduceMax", [logits, last], keepdims=1)
    terms = body.op("Exp", [body.op("Sub", [logits, most])])
    total = body.op("Log", [body.op("ReduceSum", [terms, last], keepdims=1)])
    log_sum_exp = body.op("Squeeze", [body.op("Add", [total, most]), last])
    attribute = ir.Attr("k", ir.AttributeType.INT, None)
    return body.finish(name, [ids, best, log_sum_exp], [attribute])


def _logits(body: FunctionBody, bits: int) -> ir.Value:
    x, weight, scale, bias = body.inputs[:4]
    whole = _unpacked8(body, weight) if bits == 8 else _unpacked4(body, weight, body.inputs[4])
    return _product(body, (x, whole, scale, bias))


def _activated(body: FunctionBody, y: ir.Value, activation: str) -> ir.Value:
    """The operations of `primelens.kernels.activations.activate`, in the same order."""
    if activation == "none":
        return y
    zero = body.constant(0)
    if activation == "relu":
        return body.op("Where", [body.op("Less", [y, zero]), zero, y])
    if activation == "gelu":
        rise = _sigmoid(body, y, NORMAL)
    elif activation == "gelu_tanh":
        cube = body.op("Mul", [body.op("Mul", [y, y]), y])
        inner = body.op("Add", [y, body.binary("Mul", float(CUBIC), cube)])
        rise = _sigmoid(body, body.binary("Mul", inner, float(TANH_SLOPE)), LOGISTIC)
    else:
        rise = _sigmoid(body, body.binary("Mul", float(QUICK), y), LOGISTIC)
    return body.op("Mul", [y, body.binary("Add", 0.5, rise)])


def _sigmoid(body: FunctionBody, t: ir.Value, function: Sigmoid) -> ir.Value:
    limits = [body.constant(-function.limit), body.constant(function.limit)]
    t = body.op("Clip", [t, *limits])
    square = body.op("Mul", [t, t])
    above, below = (body.polynomial(part, square) for part in (function.p, function.q))
    quotient = body.op("Div", [body.op("Mul", [t, above]), below])
    return body.op("Clip", [quotient, body.constant(-0.5), body.constant(0.5)])


def _unpacked8(body: FunctionBody, weight: ir.Value) -> ir.Value:
    """``[panel, K/4, column, 4]`` → ``[K, columns]``."""
    lying = body.op("Transpose", [weight], perm=[1, 3, 0, 2])
    return body.op("Flatten", [lying], axis=2)


def _unpacked4(body: FunctionBody, weight: ir.Value, multiplier: ir.Value) -> ir.Value:
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
    return body.op("Flatten", [lying], axis=3)


def _product(
    body: FunctionBody, operands: tuple[ir.Value, ir.Value, ir.Value, ir.Value]
) -> ir.Value:
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
    # Sum, because the engine would fuse an Add with what follows, and add in another order.
    return body.op("Sum", [y, bias])
