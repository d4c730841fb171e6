"""Quantisation recipes: what happens to the graphs between building and writing.

A `Recipe` is a named list of rewrites, each for certain graphs. The float32 recipe has none. The
``int8`` recipe holds to one rule: what is computed for a row must not depend on the rows beside it.
So no operator that scales activations over a whole batch is used.

* Decoder products become MatMulNBits: weights of 8 bits in blocks of 32, activations rounded to 8
  bits in blocks of 32 *within their row*. The token table is quantised once and read by both its
  users, the lookup and the head.
* Tower and connector keep computing in float32 with weights that are *stored* as 8 bits per output
  channel: ``Cast`` and ``Mul`` widen them, and the engine folds both when it opens the graph.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from primelens.export.graph import MICROSOFT

__all__ = ["FLOAT32", "INT8", "Recipe", "Rewrite", "quantise_decoder", "recipe", "store_in_int8"]

Rewrite = Callable[[ir.Model], None]
Array = NDArray[Any]

BLOCK = 32
_ZERO_POINT = 128  # of unsigned 8-bit weights; the operators' default
_LEAST = 4096  # values; smaller weights are not worth it
# Operator → input that holds its weight → axis of the output channels.
_CHANNEL_AXES = {"MatMul": {1: 1}, "Conv": {1: 0}}


@dataclass(frozen=True)
class Recipe:
    """How a bundle's graphs are quantised.

    Attributes:
        name: the precision that heads declare.
        variant: what the tower declares; part of a kept embedding's key.
        rewrites: pattern of graph names (``*.decoder``) → what is done to those graphs.
    """

    name: str
    variant: str
    rewrites: tuple[tuple[str, Rewrite], ...] = ()

    def apply(self, graphs: Mapping[str, ir.Model]) -> None:
        """Rewrite the graphs in place."""
        for pattern, rewrite in self.rewrites:
            for name, graph in graphs.items():
                if fnmatchcase(name, pattern):
                    rewrite(graph)


# Blocks within rows: the decoder --------------------------------------------------------------


def quantise_blocks(weight: Array) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """``[N, K]`` → values ``[N, K]`` around 128 and scales ``[N, K / 32]``; K a multiple of 32."""
    blocks = np.ascontiguousarray(weight, np.float32).reshape(len(weight), -1, BLOCK)
    scales = np.abs(blocks).max(axis=2) / np.float32(127)
    scales[scales == 0] = 1
    values = np.rint(blocks / scales[..., None]) + _ZERO_POINT
    return values.astype(np.uint8).reshape(weight.shape), scales.astype(np.float32)


def quantise_decoder(model: ir.Model) -> None:
    """Products and token table of a decoder graph to 8 bits; see the module's docstring.

    A weight whose inner width is no multiple of 32 keeps its precision.
    """
    graph = model.graph
    for value in list(graph.initializers.values()):
        uses = _weight_uses(value)
        if not uses:
            continue
        tables = [node for node, kind in uses if kind in ("Gather", "Gemm")]
        if tables:
            _quantise_table(graph, value, tables)
        else:
            (node,) = (node for node, _ in uses)
            _quantise_product(graph, value, node)


def _weight_uses(value: ir.Value) -> list[tuple[ir.Node, str]]:
    """The operators that multiply with or look up in a matrix of quantisable shape, else nothing.

    Position tables are looked up too, but never multiplied with: they stay as they are.
    """
    tensor = value.const_value
    if tensor is None or tensor.dtype != ir.DataType.FLOAT or len(tensor.shape) != 2:
        return []
    uses = [(node, node.op_type) for node, _ in value.uses()]
    kinds = {kind for _, kind in uses}
    rows, columns = tensor.shape.numpy()
    inner = rows if kinds == {"MatMul"} else columns
    known = kinds == {"MatMul"} or kinds <= {"Gather", "Gemm"}
    if not known or inner % BLOCK or tensor.size < _LEAST:
        return []
    return [] if str(value.name).endswith("positions") else uses


def _quantise_product(graph: ir.Graph, value: ir.Value, node: ir.Node) -> None:
    assert value.const_value is not None
    weight = value.const_value.numpy()  # [K, N]
    values, scales = quantise_blocks(weight.T)
    inner, width = weight.shape
    name = str(value.name)
    packed = values.reshape(width, inner // BLOCK, BLOCK)
    inputs = [
        node.inputs[0],
        _initializer(graph, f"{name}.values", packed),
        _initializer(graph, f"{name}.scales", scales),
    ]
    _replace(graph, node, "MatMulNBits", inputs, _product(inner, width), domain=MICROSOFT)
    del graph.initializers[name]


def _product(inner: int, width: int) -> dict[str, Any]:
    """Attributes of a product; accuracy level 4 rounds activations within row and block."""
    return {"K": inner, "N": width, "bits": 8, "block_size": BLOCK, "accuracy_level": 4}


def _quantise_table(graph: ir.Graph, value: ir.Value, nodes: list[ir.Node]) -> None:
    assert value.const_value is not None
    weight = value.const_value.numpy()  # [V, C]
    width, inner = weight.shape
    name = str(value.name)
    values, scales = quantise_blocks(weight)
    table = _initializer(graph, f"{name}.values", values)
    scale = _initializer(graph, f"{name}.scales", scales)
    for node in nodes:
        if node.op_type == "Gather":
            attributes = {"bits": 8, "block_size": BLOCK, "gather_axis": 0, "quantize_axis": 1}
            inputs = [table, node.inputs[1], scale]
            _replace(graph, node, "GatherBlockQuantized", inputs, attributes, domain=MICROSOFT)
            continue
        # The product wants the blocks as an axis of their own; the engine folds the reshape.
        shape = _initializer(
            graph, f"{name}.blocks", np.array([width, inner // BLOCK, BLOCK], np.int64)
        )
        blocks = ir.node("Reshape", [table, shape], name=f"{name}.packed")
        blocks.outputs[0].name = f"{name}.packed"
        graph.insert_before(node, blocks)
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        inputs = [node.inputs[0], blocks.outputs[0], scale]
        inputs += [] if bias is None else [None, None, bias]
        _replace(graph, node, "MatMulNBits", inputs, _product(inner, width), domain=MICROSOFT)
    del graph.initializers[name]


# Channels: tower and connector ----------------------------------------------------------------


def quantise_channels(weight: Array, axis: int) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Values in -127..127 of ``weight``'s shape, and scales that broadcast along ``axis``."""
    others = tuple(i for i in range(weight.ndim) if i != axis)
    scales = np.abs(weight).max(axis=others, keepdims=True) / np.float32(127)
    scales[scales == 0] = 1
    return np.rint(weight / scales).astype(np.int8), scales.astype(np.float32)


def store_in_int8(model: ir.Model) -> None:
    """Store large weights as 8 bits per output channel; the graph computes in float32 as before."""
    graph = model.graph
    for value in list(graph.initializers.values()):
        axis = _channel_axis(value)
        if axis is None:
            continue
        assert value.const_value is not None
        values, scales = quantise_channels(value.const_value.numpy(), axis)
        name = str(value.name)
        inputs = [_initializer(graph, f"{name}.values", values)]
        widen = ir.node("Cast", inputs, {"to": ir.DataType.FLOAT.value}, name=f"{name}.widen")
        widen.outputs[0].name = f"{name}.wide"
        scale = _initializer(graph, f"{name}.scales", scales)
        scaled = ir.node("Mul", [widen.outputs[0], scale], name=f"{name}.scale")
        scaled.outputs[0].name = f"{name}.scaled"
        value.replace_all_uses_with(scaled.outputs[0])
        del graph.initializers[name]
        graph.insert_before(graph[0], [widen, scaled])


def _channel_axis(value: ir.Value) -> int | None:
    """The axis of the output channels, where all users agree on it."""
    tensor = value.const_value
    if tensor is None or tensor.dtype != ir.DataType.FLOAT or tensor.size < _LEAST:
        return None
    axes: set[int | None] = set()
    for node, index in value.uses():
        if node.op_type == "Gemm" and index == 1:
            transposed = node.attributes.get("transB")
            axes.add(0 if transposed is not None and transposed.as_int() else 1)
        else:
            axes.add(_CHANNEL_AXES.get(node.op_type, {}).get(index))
    return axes.pop() if len(axes) == 1 else None


def _initializer(graph: ir.Graph, name: str, array: Array) -> ir.Value:
    tensor = ir.Tensor(array, name=name)
    value = ir.Value(
        name=name,
        shape=ir.Shape(array.shape),
        type=ir.TensorType(tensor.dtype),
        const_value=tensor,
    )
    graph.register_initializer(value)
    return value


def _replace(
    graph: ir.Graph,
    node: ir.Node,
    op_type: str,
    inputs: list[ir.Value | None],
    attributes: dict[str, Any],
    *,
    domain: str,
) -> None:
    """Put another operator in a node's place, under the same output name."""
    new = ir.node(op_type, inputs, attributes, domain=domain, name=node.name)
    old = node.outputs[0]
    output = new.outputs[0]
    output.name, output.type, output.shape = old.name, old.type, old.shape
    ir.convenience.replace_all_uses_with(old, output, replace_graph_outputs=True)
    graph.insert_before(node, new)
    graph.remove(node, safe=True)


FLOAT32 = Recipe("fp32", "fp32")
INT8 = Recipe(
    "int8",
    "int8-weights",
    (
        ("*.decoder", quantise_decoder),
        ("*.connector", store_in_int8),
        ("*.question", store_in_int8),
        ("*.image", store_in_int8),
        ("*.text", store_in_int8),
        ("*.match", store_in_int8),
        ("tower", store_in_int8),
    ),
)


def recipe(precision: str) -> Recipe:
    """The recipe for a precision; raises KeyError for an unknown one."""
    return {"fp32": FLOAT32, "int8": INT8}[precision]
