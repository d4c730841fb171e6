"""A small builder for ONNX graphs: operators in the order they run, weights stored once each.

Weights keep the memory they came with (a view of the source model's tensor is enough); bytes are
laid out when the graph is saved. Two uses of the same memory become one initializer, which is how
a tied embedding is stored once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

__all__ = ["IR_VERSION", "MICROSOFT", "OPSET", "GraphBuilder"]

OPSET = 23
IR_VERSION = 11
MICROSOFT = "com.microsoft"


class GraphBuilder:
    """Collects nodes and initializers of one graph.

    Args:
        name: the graph's name.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._inputs: list[ir.Value] = []
        self._tape = ir.tape.Tape()
        self._weights: dict[tuple[Any, ...], ir.Value] = {}
        self._names: set[str] = set()

    def input(self, name: str, dtype: ir.DataType, shape: Sequence[int | str]) -> ir.Value:
        """A graph input; a string names a free dimension."""
        value = ir.val(name, dtype=dtype, shape=shape)
        self._inputs.append(value)
        return value

    def weight(self, name: str, array: NDArray[Any]) -> ir.Value:
        """An initializer; the same memory seen the same way yields the first one again."""
        interface = array.__array_interface__
        key = (interface["data"][0], array.shape, array.strides, array.dtype.str)
        if key not in self._weights:
            if name in self._names:
                raise ValueError(f"two different weights are called {name!r}")
            self._names.add(name)
            self._weights[key] = self._tape.initializer(ir.Tensor(array, name=name))
        return self._weights[key]

    def integers(self, name: str, values: Sequence[int]) -> ir.Value:
        """An int64 vector."""
        self._names.add(name)
        return self._tape.initializer(ir.tensor(np.array(values, np.int64), name=name))

    def op(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        name: str,
        *,
        domain: str = "",
        **attributes: Any,
    ) -> ir.Value:
        """Append an operator with one output, which carries ``name``."""
        value = self._tape.op(op_type, inputs, attributes, domain=domain, name=name)
        value.name = name
        return value

    def ops(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        names: Sequence[str],
        *,
        domain: str = "",
        **attributes: Any,
    ) -> Sequence[ir.Value]:
        """Append an operator with several outputs; an empty name leaves an optional one out."""
        values = self._tape.op_multi_out(
            op_type, inputs, attributes, num_outputs=len(names), domain=domain, name=names[0]
        )
        for value, name in zip(values, names, strict=True):
            value.name = name
        return values

    def finish(
        self, outputs: Sequence[tuple[ir.Value, ir.DataType, Sequence[int | str]]]
    ) -> ir.Model:
        """The model with these outputs, dtypes and shapes."""
        for value, dtype, shape in outputs:
            value.type = ir.TensorType(dtype)
            value.shape = ir.Shape(shape)
        graph = ir.Graph(
            self._inputs,
            [value for value, _, _ in outputs],
            nodes=self._tape.nodes,
            initializers=self._tape.initializers,
            opset_imports={"": OPSET, MICROSOFT: 1},
            name=self._name,
        )
        return ir.Model(graph, ir_version=IR_VERSION, producer_name="primelens")
