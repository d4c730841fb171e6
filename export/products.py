"""The products of a graph with constant weights, and the kernels' operators in their place.

A product is a ``MatMul`` or ``Gemm`` of activations with a weight ``[K, N]``; a token table is one
that rows are looked up in as well. `find_products` lists them, `Product.replace` puts
`primelens.kernels` operators there. Rounding the weights is somebody else's work
(`primelens.export.rounding`): here they come as integers and scales.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from primelens.export.linear_functions import operator_name
from primelens.export.rounding import Rounded
from primelens.kernels import DOMAIN, layout
from primelens.kernels.activations import QUICK

__all__ = ["Product", "add_initializer", "find_products", "replace_node"]

Array = NDArray[Any]

_LEAST = 4096  # values; smaller weights are not worth it
_OPERANDS = 2
_ALIKE = 1e-6
# The engine's operators of a sum and an activation.
_BIAS_ACTIVATIONS = {"BiasGelu": "gelu", "FastGelu": "gelu_tanh"}
_GROUP = 4  # K is a multiple of this at 8 bits


@dataclass(frozen=True)
class Product:
    """A weight and the operators that use it.

    Attributes:
        graph: where it is.
        weight: the initializer, float32.
        node: the ``MatMul`` or ``Gemm``.
        lookups: the ``Gather`` operators that read rows of the same table.
        transposed: the initializer is ``[N, K]``.
    """

    graph: ir.Graph
    weight: ir.Value
    node: ir.Node
    lookups: tuple[ir.Node, ...]
    transposed: bool

    @property
    def name(self) -> str:
        """The initializer's."""
        return str(self.weight.name)

    @property
    def rows(self) -> ir.Value:
        """The activations ``[..., K]``."""
        value = self.node.inputs[0]
        assert value is not None
        return value

    @property
    def shape(self) -> tuple[int, int]:
        """(K, N)."""
        tensor = self.weight.const_value
        assert tensor is not None
        first, second = (int(size) for size in tensor.shape.numpy())
        return (second, first) if self.transposed else (first, second)

    def values(self) -> Array:
        """The weight as it is multiplied with, float32 ``[K, N]``."""
        tensor = self.weight.const_value
        assert tensor is not None
        values = tensor.numpy()
        return values.T if self.transposed else values

    def replace(self, rounded: Rounded) -> None:
        """Multiply with, and look up in, the rounded weight instead; it is stored once."""
        graph, name = self.graph, self.name
        scale = add_initializer(graph, f"{name}.scale", rounded.scale)
        if rounded.multipliers is None:
            packed = [layout.pack8(rounded.integers)]
        else:
            packed = [*layout.pack4(rounded.integers, rounded.multipliers)]
        arrays = [
            add_initializer(graph, f"{name}.{kind}", array)
            for kind, array in zip(("packed", "multipliers"), packed, strict=False)
        ]
        lookup = _Lookup(graph, name, arrays, scale)
        for node in self.lookups:
            lookup.replace(node)
        nodes, bias, activation = self._followers()
        inputs = [self.rows, arrays[0], scale, self._bias(bias), *arrays[1:]]
        kind = operator_name(8 if rounded.multipliers is None else 4, activation)
        replace_node(graph, nodes[-1], kind, inputs, domain=DOMAIN)
        for node in reversed(nodes[:-1]):
            graph.remove(node, safe=True)
        del graph.initializers[name]

    def _bias(self, given: ir.Value | None) -> ir.Value:
        """What is added to the product, as the operator's input ``[N]``."""
        if given is not None:
            return given
        zeros = np.zeros(self.shape[1], np.float32)
        return add_initializer(self.graph, f"{self.name}.no_bias", zeros)

    def _followers(self) -> tuple[list[ir.Node], ir.Value | None, str]:
        """The nodes that the operator stands for, from the product on; bias; and activation."""
        nodes = [self.node]
        bias: ir.Value | None = None
        if self.node.op_type == "Gemm" and len(self.node.inputs) > 2:
            bias = self.node.inputs[2]
        elif (found := self._added(nodes[-1], "Add")) is not None:
            nodes, bias = [*nodes, found[0]], found[1]
        if bias is None:
            for kind, activation in _BIAS_ACTIVATIONS.items():
                if (found := self._added(nodes[-1], kind)) is not None:
                    return [*nodes, found[0]], found[1], activation
        last = _only_user(nodes[-1])
        activation = "none" if last is None else _activation_of(last)
        return (nodes if last is None or activation == "none" else [*nodes, last]), bias, activation

    def _added(self, node: ir.Node, kind: str) -> tuple[ir.Node, ir.Value] | None:
        """The operator of a kind that alone reads ``node``, with a constant ``[N]`` besides."""
        user = _only_user(node)
        if user is None or user.op_type != kind or len(user.inputs) != _OPERANDS:
            return None
        other = next(value for value in user.inputs if value is not node.outputs[0])
        tensor = None if other is None or not other.is_initializer() else other.const_value
        if other is None or tensor is None or tuple(tensor.shape.numpy()) != (self.shape[1],):
            return None
        return user, other


def _only_user(node: ir.Node) -> ir.Node | None:
    uses = node.outputs[0].uses()
    alone = len(uses) == 1 and not node.outputs[0].is_graph_output()
    return next(iter(uses)).node if alone else None


def _activation_of(node: ir.Node) -> str:
    """The kernels' name for what a node does, or "none"."""
    if node.op_type == "Relu" and not node.domain:
        return "relu"
    if node.op_type == "Gelu" and not node.domain:
        given = node.attributes.get("approximate")
        tanh = given is not None and given.as_string() == "tanh"
        return "gelu_tanh" if tanh else "gelu"
    quick = node.op_type == "QuickGelu" and abs(_number(node, "alpha", 1.702) - QUICK) < _ALIKE
    return "quick_gelu" if quick else "none"


def find_products(graph: ir.Graph, multiple: int = _GROUP) -> list[Product]:
    """The products whose K is a multiple of ``multiple`` and whose weight is worth rounding."""
    found = []
    for value in graph.initializers.values():
        tensor = value.const_value
        if tensor is None or tensor.dtype != ir.DataType.FLOAT or len(tensor.shape) != 2:
            continue
        product = _product(graph, value)
        if product is None or tensor.size < _LEAST or product.shape[0] % multiple:
            continue
        found.append(product)
    return found


def _product(graph: ir.Graph, value: ir.Value) -> Product | None:
    """What the value is a weight of, where all its uses are of a known kind."""
    nodes: list[tuple[ir.Node, bool]] = []
    lookups = []
    for node, index in value.uses():
        if node.op_type == "Gather" and index == 0 and _is_lookup(node):
            lookups.append(node)
        elif node.op_type == "MatMul" and index == 1:
            nodes.append((node, False))
        elif node.op_type == "Gemm" and index == 1 and _plain(node):
            nodes.append((node, bool(_number(node, "transB", 0))))
        else:
            return None
    if len(nodes) != 1:  # a table of positions is looked up in, but never multiplied with
        return None
    node, transposed = nodes[0]
    if lookups and not transposed:
        return None
    return Product(graph, value, node, tuple(lookups), transposed)


def _is_lookup(node: ir.Node) -> bool:
    """Rows of a table for ids ``[R, T]``."""
    ids = node.inputs[1]
    flat = ids is not None and ids.shape is not None and len(ids.shape) == 2
    return flat and not _number(node, "axis", 0)


def _plain(node: ir.Node) -> bool:
    """A Gemm that is ``x @ weight + bias``."""
    given = len(node.inputs) > 2 and node.inputs[2] is not None
    bias = node.inputs[2].const_value if given and node.inputs[2] is not None else None
    weight = node.inputs[1]
    assert weight is not None
    assert weight.const_value is not None
    width = weight.const_value.shape.numpy()[0 if _number(node, "transB", 0) else 1]
    fits = not given or (bias is not None and tuple(bias.shape.numpy()) == (width,))
    factors = _number(node, "alpha", 1) == 1 and (not given or _number(node, "beta", 1) == 1)
    return fits and factors and not _number(node, "transA", 0)


def _number(node: ir.Node, name: str, default: float) -> float:
    attribute = node.attributes.get(name)
    return default if attribute is None else float(attribute.value)


def _second_size(constant: ir.Value) -> int:
    assert constant.const_value is not None
    return int(constant.const_value.shape.numpy()[1])


class _Lookup:
    """Rows of a packed table: the bytes of a row do not lie together, `GatherND` collects them."""

    def __init__(
        self, graph: ir.Graph, name: str, arrays: Sequence[ir.Value], scale: ir.Value
    ) -> None:
        self._graph, self._name, self._arrays, self._scale = graph, name, arrays, scale
        self._nodes: list[ir.Node] = []

    def replace(self, gather: ir.Node) -> None:
        """The same rows, from the packed table."""
        self._nodes, self._prefix = [], f"{gather.outputs[0].name}.lookup"
        ids = gather.inputs[1]
        assert ids is not None
        axes = self._integers("axes", [-2, -1])
        wide = self._op("Unsqueeze", [ids, axes])
        width = self._integers("width", layout.PANEL)
        panel, column = self._op("Div", [wide, width]), self._op("Mod", [wide, width])
        values = (
            self._bytes(panel, column) if len(self._arrays) == 1 else self._halves(panel, column)
        )
        scale = self._op(
            "Unsqueeze",
            [self._op("Gather", [self._scale, ids], axis=0), self._integers("last", [-1])],
        )
        result = self._op("Mul", [values, scale])
        old, new = gather.outputs[0], self._nodes[-1].outputs[0]
        new.type, new.shape = old.type, old.shape
        name = old.name
        ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
        self._graph.insert_before(gather, self._nodes)
        self._graph.remove(gather, safe=True)
        result.name = name

    def _bytes(self, panel: ir.Value, column: ir.Value) -> ir.Value:
        """8 bits: [panel, K/4, 16, 4] → [..., K]."""
        places = np.zeros((_second_size(self._arrays[0]), 3), np.int64)
        places[:, 1] = np.arange(len(places))
        found = self._gathered("bytes", self._arrays[0], (panel, column), places, (0, 2, 1))
        return self._flat(self._op("Sub", [self._float(found), self._number("middle", 128)]))

    def _halves(self, panel: ir.Value, column: ir.Value) -> ir.Value:
        """4 bits: [panel, K/32, 4, 64] and [panel, K/32, 16] → [..., K]."""
        packed, multipliers = self._arrays
        blocks = _second_size(packed)
        block, group, part = np.meshgrid(
            np.arange(blocks), np.arange(4), np.arange(4), indexing="ij"
        )
        places = np.stack([0 * block, block, group, part], axis=-1).reshape(-1, 4)
        found = self._gathered("bytes", packed, (panel, column), places, (0, 3, 4))
        shape = self._integers("blocks", [0, 0, blocks, 1, 16])
        both = self._op("Reshape", [found, shape])
        fifteen, four = self._byte("fifteen", 15), self._byte("four", 4)
        low = self._op("BitwiseAnd", [both, fifteen])
        high = self._op("BitShift", [both, four], direction="RIGHT")
        values = self._float(self._op("Concat", [low, high], axis=3))  # [..., block, half, 16]
        values = self._op("Sub", [values, self._number("eight", 8)])
        places = np.stack([0 * np.arange(blocks), np.arange(blocks), 0 * np.arange(blocks)], -1)
        found = self._gathered("multipliers", multipliers, (panel, column), places, (0, 2, 1))
        times = self._op("Unsqueeze", [self._float(found), self._integers("axes", [-2, -1])])
        return self._flat(self._op("Mul", [values, times]))

    def _gathered(
        self,
        what: str,
        data: ir.Value,
        cell: tuple[ir.Value, ir.Value],
        places: NDArray[np.int64],
        at: tuple[int, int, int],
    ) -> ir.Value:
        """``data`` at ``places`` moved by the panel and by so many times the column."""
        across, along, step = at
        index = self._integers(f"{what}.places", places)
        for value, axis, factor in ((cell[0], across, 1), (cell[1], along, step)):
            unit = np.zeros(places.shape[1], np.int64)
            unit[axis] = factor
            moved = self._op("Mul", [value, self._integers(f"{what}.unit.{axis}", unit)])
            index = self._op("Add", [moved, index])
        return self._op("GatherND", [data, index])

    def _flat(self, values: ir.Value) -> ir.Value:
        return self._op("Reshape", [values, self._integers("flat", [0, 0, -1])])

    def _float(self, value: ir.Value) -> ir.Value:
        return self._op("Cast", [value], to=ir.DataType.FLOAT.value)

    def _integers(self, name: str, values: Any) -> ir.Value:
        return self._constant(name, np.array(values, np.int64))

    def _number(self, name: str, value: float) -> ir.Value:
        return self._constant(name, np.array(value, np.float32))

    def _byte(self, name: str, value: int) -> ir.Value:
        return self._constant(name, np.array(value, np.uint8))

    def _constant(self, name: str, array: Array) -> ir.Value:
        full = f"{self._name}.lookup.{name}"
        known = self._graph.initializers.get(full)
        return known if known is not None else add_initializer(self._graph, full, array)

    def _op(self, op_type: str, inputs: Sequence[ir.Value], **attributes: Any) -> ir.Value:
        node = ir.node(op_type, inputs, attributes)
        node.name = node.outputs[0].name = f"{self._prefix}.{len(self._nodes)}"
        self._nodes.append(node)
        return node.outputs[0]


def add_initializer(graph: ir.Graph, name: str, array: Array) -> ir.Value:
    """Register a constant."""
    tensor = ir.Tensor(array, name=name)
    value = ir.Value(
        name=name,
        shape=ir.Shape(array.shape),
        type=ir.TensorType(tensor.dtype),
        const_value=tensor,
    )
    graph.register_initializer(value)
    return value


def replace_node(
    graph: ir.Graph,
    node: ir.Node,
    op_type: str,
    inputs: Sequence[ir.Value | None],
    *,
    domain: str,
) -> None:
    """Put another operator in a node's place, under the same output name."""
    new = ir.node(op_type, inputs, domain=domain, name=node.name)
    old = node.outputs[0]
    output = new.outputs[0]
    output.name, output.type, output.shape = old.name, old.type, old.shape
    ir.convenience.replace_all_uses_with(old, output, replace_graph_outputs=True)
    graph.insert_before(node, new)
    graph.remove(node, safe=True)
