"""Quantisation recipes: what happens to the graphs between building and writing.

A `Recipe` is a named list of rewrites, each for certain graphs. The float32 recipe has none. The
others hold to one rule: what is computed for a row must not depend on the rows beside it. So no
operator that scales activations over a whole batch is used.

* Products with constant weights, of tower, connector and decoder, become the operators of
  `primelens.kernels`: weights of 8 bits with one scale per column, activations rounded to 8 bits
  with one scale per row, sums that are exact. The token table is rounded once and read by both its
  users, the lookup and the head.
* A decoder's cross-attention becomes the kernels' own: float32 keys and values as before, sums in
  float64.
* Convolutions keep computing in float32 with weights that are *stored* as 8 bits per output
  channel: ``Cast`` and ``Mul`` widen them, and the engine folds both when it opens the graph.
  Tables that are only looked up in are stored as 8 bits per row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from primelens.export.attention_function import attend_in_kernel
from primelens.export.calibration import Observed
from primelens.export.linear_functions import add_functions
from primelens.export.products import add_initializer, find_products
from primelens.export.rounding import calibrated4, round4, round8
from primelens.kernels.layout import BLOCK

__all__ = [
    "FLOAT32",
    "INT4",
    "INT8",
    "RECIPES",
    "Recipe",
    "Rewrite",
    "quantise_products",
    "quantise_to_four",
    "recipe",
    "recipe_of_variant",
    "store_in_int8",
    "store_tables",
]

Rewrite = Callable[[ir.Model], None]
Array = NDArray[Any]

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
        four: pattern of the graphs whose products have 4 bits where that is possible; before the
            other rewrites.
    """

    name: str
    variant: str
    rewrites: tuple[tuple[str, Rewrite], ...] = ()
    four: str = ""

    def precision_of(self, graphs: Iterable[str]) -> str:
        """What a head with these graphs declares: nothing of a rank head has 4 bits."""
        four = any(fnmatchcase(name, self.four) for name in graphs)
        return INT8.name if self.four and not four else self.name

    def apply(
        self, graphs: Mapping[str, ir.Model], observed: Mapping[str, Observed] | None = None
    ) -> None:
        """Rewrite the graphs in place.

        Args:
            graphs: by name.
            observed: of graphs with 4 bits, what their products are fed with; of others, and
                where it is absent, weights are rounded to the nearest.
        """
        for name, graph in graphs.items():
            if fnmatchcase(name, self.four):
                quantise_to_four(graph, (observed or {}).get(name, Observed()))
        for pattern, rewrite in self.rewrites:
            for name, graph in graphs.items():
                if fnmatchcase(name, pattern):
                    rewrite(graph)


def quantise_products(model: ir.Model) -> None:
    """Products with constant weights, and token tables, to the kernels' 8 bits.

    A weight whose inner width is no multiple of 4 keeps its precision.
    """
    for product in find_products(model.graph):
        product.replace(round8(product.values()))
    add_functions(model)


def quantise_to_four(model: ir.Model, observed: Observed) -> None:
    """Products and their token tables to the kernels' 4 bits.

    A weight whose inner width is no multiple of 32 is left as it is.
    """
    for product in find_products(model.graph, BLOCK):
        hessian = observed.mean(str(product.rows.name))
        weight = product.values()
        product.replace(round4(weight) if hessian is None else calibrated4(weight, hessian))


# Weights that are stored narrow and computed with in float32 ------------------------------------


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
        inputs = [add_initializer(graph, f"{name}.values", values)]
        widen = ir.node("Cast", inputs, {"to": ir.DataType.FLOAT.value}, name=f"{name}.widen")
        widen.outputs[0].name = f"{name}.wide"
        scale = add_initializer(graph, f"{name}.scales", scales)
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


def store_tables(model: ir.Model) -> None:
    """Store large tables that are only looked up in as 8 bits per row; positions stay as they
    are.
    """
    graph = model.graph
    for value in list(graph.initializers.values()):
        tensor, uses = value.const_value, value.uses()
        if tensor is None or tensor.dtype != ir.DataType.FLOAT or tensor.size < _LEAST:
            continue
        looked_up = all(node.op_type == "Gather" and index == 0 for node, index in uses)
        if not (uses and looked_up and len(tensor.shape) == 2) or "position" in str(value.name):
            continue
        values, scales = quantise_channels(tensor.numpy(), 0)
        name = str(value.name)
        table = add_initializer(graph, f"{name}.values", values)
        scale = add_initializer(graph, f"{name}.scales", scales)
        for node, _ in list(uses):
            _look_up(graph, node, table, scale)
        del graph.initializers[name]


def _look_up(graph: ir.Graph, node: ir.Node, table: ir.Value, scale: ir.Value) -> None:
    """Rows of a table of integers, widened and scaled, in the place of ``node``."""
    name, ids = str(node.outputs[0].name), node.inputs[1]
    rows = ir.node("Gather", [table, ids], {"axis": 0}, name=f"{name}.rows")
    wide = ir.node("Cast", rows.outputs, {"to": ir.DataType.FLOAT.value}, name=f"{name}.wide")
    scales = ir.node("Gather", [scale, ids], {"axis": 0}, name=f"{name}.row_scales")
    whole = ir.node("Mul", [wide.outputs[0], scales.outputs[0]], name=f"{name}.scaled")
    new, old = whole.outputs[0], node.outputs[0]
    new.type, new.shape = old.type, old.shape
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
    graph.insert_before(node, [rows, wide, scales, whole])
    graph.remove(node, safe=True)
    for part in (rows, wide, scales):
        part.outputs[0].name = part.name
    new.name = name


_ROWS = (quantise_products, store_tables, store_in_int8)

FLOAT32 = Recipe("fp32", "fp32")
INT8 = Recipe(
    "int8",
    "int8-rows",
    (("*.decoder", attend_in_kernel), *(("*", rewrite) for rewrite in _ROWS)),
)
INT4 = replace(INT8, name="int4", four="*.decoder")
RECIPES = {each.name: each for each in (FLOAT32, INT8, INT4)}
# What towers of earlier bundles declare; their graphs are made again where a tap is added.
_EARLIER = (Recipe("int8", "int8-weights", (("tower", store_in_int8),)),)


def recipe(precision: str) -> Recipe:
    """The recipe for a precision; raises KeyError for an unknown one."""
    return RECIPES[precision]


def recipe_of_variant(variant: str) -> Recipe:
    """The recipe that a tower's variant names; raises KeyError for an unknown one."""
    return {each.variant: each for each in (*_EARLIER, *RECIPES.values())}[variant]
