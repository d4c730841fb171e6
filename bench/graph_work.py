"""How many operations a graph does: multiplications and additions of its products and convolutions.

Counted from the graph's own shapes, one multiply-add as two operations; normalisations, activations
and sums are left out (below one in a hundred of a tower), which makes a share of the peak smaller.
So are a convolution's products with the zeros around a map: engines skip them, and on the small
maps of a CNN they are every sixth.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["graph_operations", "weight_operations"]

Shapes = Mapping[str, list[int]]

_KERNELS = "primelens.kernels"  # domain of Linear and Linear4, whose weights lie in panels
_PANEL = 16  # columns of one, filled up with zeros


def graph_operations(path: Path, batch: int = 1) -> int:
    """Operations of one run of an ONNX file over ``batch`` items; 0 where shapes are not known."""
    import onnx
    from onnx import shape_inference

    model = onnx.load(str(path), load_external_data=False)
    for value in model.graph.input:
        for size in value.type.tensor_type.shape.dim:
            if not size.HasField("dim_value"):
                size.dim_value = batch
                break  # the first free side is the batch
    graph = shape_inference.infer_shapes(model, data_prop=True).graph
    shapes: dict[str, list[int]] = {t.name: list(t.dims) for t in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        sizes = [d.dim_value or batch for d in value.type.tensor_type.shape.dim]
        shapes.setdefault(value.name, sizes)
    return sum(_operations(node, shapes) for node in graph.node)


def _operations(node: Any, shapes: Shapes) -> int:
    if any(name and name not in shapes for name in (*node.input[:2], node.output[0])):
        return 0
    out = math.prod(shapes[node.output[0]])
    if node.op_type in ("MatMul", "MatMulInteger"):
        return 2 * out * shapes[node.input[0]][-1]
    if _is_linear(node):
        return 2 * out * shapes[node.input[0]][-1]
    if node.op_type == "Gemm":
        transposed = next((a.i for a in node.attribute if a.name == "transA"), 0)
        return 2 * out * shapes[node.input[0]][0 if transposed else -1]
    if node.op_type == "Conv":
        return _convolution(node, shapes)
    if node.op_type in ("Attention", "MultiHeadAttention"):
        return _attention(shapes[node.input[0]], shapes[node.input[1]])
    return 0


def _is_linear(node: Any) -> bool:
    """Whether it is a product with a packed weight; the kernels' attention has none."""
    return node.domain == _KERNELS and str(node.op_type).startswith("Linear")


def _convolution(node: Any, shapes: Shapes) -> int:
    """Products with what lies inside of the map, for every output value."""
    source, weight, out = (shapes[name] for name in (node.input[0], node.input[1], node.output[0]))
    axes = len(weight) - 2
    given = {a.name: list(a.ints) for a in node.attribute}
    pads = given.get("pads", [0] * axes)
    strides, dilations = (given.get(name, [1] * axes) for name in ("strides", "dilations"))
    inside: int = math.prod(
        sum(
            0 <= place * strides[axis] - pads[axis] + tap * dilations[axis] < source[axis + 2]
            for place in range(out[axis + 2])
            for tap in range(weight[axis + 2])
        )
        for axis in range(axes)
    )
    return 2 * out[0] * out[1] * weight[1] * inside


def _attention(query: list[int], key: list[int]) -> int:
    """Scores and their weighted sum: two products of [L, C] with [M, C], over all heads."""
    if len(query) == 4:
        batch, heads, length, width = query
        return 4 * batch * heads * length * key[2] * width
    batch, length, width = query
    return 4 * batch * length * key[1] * width


def weight_operations(path: Path) -> int:
    """Operations that one row spends on the constant matrices of an ONNX file, quantised or not."""
    import onnx

    graph = onnx.load(str(path), load_external_data=False).graph
    sizes = {tensor.name: math.prod(tensor.dims) for tensor in graph.initializer}
    for node in graph.node:  # a narrow weight is widened first
        if node.op_type == "Cast" and node.input[0] in sizes:
            sizes[node.output[0]] = sizes[node.input[0]]
    total = 0
    for node in graph.node:
        if node.op_type in ("MatMul", "Gemm", "MatMulInteger"):
            total += 2 * sizes.get(node.input[1], 0)
        elif node.op_type == "MatMulNBits":
            shape = {a.name: a.i for a in node.attribute if a.name in ("K", "N")}
            total += 2 * shape["K"] * shape["N"]
        elif _is_linear(node):
            total += 2 * _kernel_weight(node, sizes)
    return total


def _kernel_weight(node: Any, sizes: Mapping[str, int]) -> int:
    """Values of a packed weight, without the zeros that fill its last panel."""
    width = sizes[node.input[2]]
    stored = sizes[node.input[1]] * (2 if node.op_type == "Linear4" else 1)
    return stored * width // (-(-width // _PANEL) * _PANEL)
