"""The kernels' cross-attention: as an ONNX function, and in the place of the engine's operator.

The function sums in float64 as the kernel does, in whatever order the engine likes: float32 comes
out of both, the same but for about one value in 10^7 (``kernels/src/attention.h``).
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from primelens.export.function_body import FunctionBody
from primelens.export.graph import MICROSOFT
from primelens.kernels import DOMAIN
from primelens.kernels.activations import EXPONENTIAL

__all__ = ["ATTENTION", "attend_in_kernel", "attention_function"]

# operator → whether it has a fourth input, how many keys of each picture count
ATTENTION = {"CrossAttention": False, "CrossAttentionRagged": True}

_FLOAT, _DOUBLE, _INT64 = ir.DataType.FLOAT.value, ir.DataType.DOUBLE.value, ir.DataType.INT64.value
_LOWEST = -3.402823466e38
_POWERS = 125  # exp(-86) > 2^-124.1


def attend_in_kernel(model: ir.Model) -> None:
    """Let the kernels attend to what stands in the graph's inputs, for every layer.

    Other attention, whose keys and values are computed in the graph, is left to the engine.
    """
    graph = model.graph
    for node in list(graph):
        if (node.domain, node.op_type) != (MICROSOFT, "MultiHeadAttention"):
            continue
        query, key, value, *further = node.inputs
        if key is None or value is None or not (key.is_graph_input() and value.is_graph_input()):
            continue
        lengths = further[1] if len(further) > 1 else None
        if any(item is not None for i, item in enumerate(further) if i != 1):
            continue  # a bias or a mask of another kind
        kind = "CrossAttention" if lengths is None else "CrossAttentionRagged"
        inputs = [query, key, value, *([] if lengths is None else [lengths])]
        scale = {"scale": node.attributes["scale"].as_float()}
        new = ir.node(kind, inputs, scale, domain=DOMAIN, name=node.name)
        old, output = node.outputs[0], new.outputs[0]
        output.name, output.type, output.shape = old.name, old.type, old.shape
        ir.convenience.replace_all_uses_with(old, output, replace_graph_outputs=True)
        graph.insert_before(node, new)
        graph.remove(node, safe=True)


def attention_function(name: str) -> ir.Function:
    """The function of an operator of `ATTENTION`."""
    ragged = ATTENTION[name]
    inputs = ("query", "key", "value", "lengths")
    body = FunctionBody(inputs[: 4 if ragged else 3])
    query, key, value = body.inputs[:3]
    scores = _scores(body, query, key)
    inside = _inside(body, key, body.inputs[3]) if ragged else None
    if inside is not None:
        scores = body.op("Where", [inside, scores, body.constant(_LOWEST)])
    axis = body.constant([2], np.int64)
    apart = body.op("Sub", [scores, body.op("ReduceMax", [scores, axis], keepdims=1)])
    shares = _exponential(body, apart)
    if inside is not None:
        shares = body.op("Where", [inside, shares, body.constant(0)])
    wide = body.op("Cast", [shares], to=_DOUBLE)  # [I, H, L, R]
    total = body.op("ReduceSum", [wide, axis], keepdims=1)
    if inside is not None:  # of no keys: zeros, not zero by zero
        none = body.op("Equal", [total, body.constant(0, np.float64)])
        total = body.op("Where", [none, body.constant(1, np.float64), total])
    turned, below = (body.op("Transpose", [part], perm=[0, 1, 3, 2]) for part in (wide, total))
    mixed = body.op("MatMul", [turned, body.op("Cast", [value], to=_DOUBLE)])
    context = body.op("Cast", [body.op("Div", [mixed, below])], to=_FLOAT)  # [I, H, R, D]
    joined = body.op("Transpose", [context], perm=[0, 2, 1, 3])
    y = body.op("Reshape", [joined, body.op("Shape", [query])])
    return body.finish(name, [y], [ir.Attr("scale", ir.AttributeType.FLOAT, None)])


def _scores(body: FunctionBody, query: ir.Value, key: ir.Value) -> ir.Value:
    """``[I, H, L, R]``: keys come first, because turning the few rows costs least."""
    heads, width = (body.op("Shape", [key], start=i, end=i + 1) for i in (1, 3))
    kept = body.constant([0, 0], np.int64)
    shape = body.op("Concat", [kept, heads, width], axis=0)
    split = body.op("Transpose", [body.op("Reshape", [query, shape])], perm=[0, 2, 3, 1])
    rows, keys = (body.op("Cast", [part], to=_DOUBLE) for part in (split, key))
    scale = body.op("Cast", [body.number("scale")], to=_DOUBLE)
    return body.op("Cast", [body.op("Mul", [body.op("MatMul", [keys, rows]), scale])], to=_FLOAT)


def _inside(body: FunctionBody, key: ir.Value, lengths: ir.Value) -> ir.Value:
    """``[I, 1, L, 1]``: which keys count."""
    zero, one = (body.constant(n, np.int64) for n in (0, 1))
    length = body.op("Squeeze", [body.op("Shape", [key], start=2, end=3)])
    place = body.op("Range", [zero, length, one])
    place = body.op("Unsqueeze", [place, body.constant([1], np.int64)])
    counts = body.op("Cast", [lengths], to=_INT64)
    counts = body.op("Unsqueeze", [counts, body.constant([1, 2, 3], np.int64)])
    return body.op("Less", [place, counts])


def _exponential(body: FunctionBody, d: ir.Value) -> ir.Value:
    """exp of 0 and less, operation by operation as `EXPONENTIAL`."""
    exp = EXPONENTIAL
    least, zero = body.constant(exp.least), body.constant(0)
    numbers = body.op("Where", [body.op("IsNaN", [d]), least, d])
    x = body.op("Clip", [numbers, least, zero])
    scaled = body.binary("Mul", x, exp.octaves)
    n = body.binary("Sub", body.binary("Add", scaled, exp.round_up), exp.round_up)
    r = body.binary("Sub", x, body.binary("Mul", n, exp.octave))
    r = body.binary("Sub", r, body.binary("Mul", n, exp.octave_rest))
    p = body.polynomial(exp.p, r)
    powers = body.constant(np.ldexp(np.float32(1), -np.arange(_POWERS)))
    place = body.op("Cast", [body.op("Neg", [n])], to=_INT64)
    whole = body.op("Mul", [p, body.op("Gather", [powers, place], axis=0)])
    return body.op("Add", [whole, body.op("Sub", [d, d])])  # d - d: 0, or NaN where d is not finite
