"""Builds an ONNX function, node by node."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from primelens.export.graph import OPSET
from primelens.kernels import DOMAIN

__all__ = ["FunctionBody"]


class FunctionBody:
    """Collects the nodes of a function of the kernels' domain; ``inputs`` are its parameters."""

    def __init__(self, inputs: Sequence[str]) -> None:
        self.inputs = [ir.Value(name=name) for name in inputs]
        self._nodes: list[ir.Node] = []

    def op(self, op_type: str, inputs: Sequence[ir.Value], **attributes: Any) -> ir.Value:
        """A standard operator with one output."""
        node = ir.node(op_type, inputs, attributes)
        return self._append(node)

    def ops(self, op_type: str, inputs: Sequence[ir.Value], count: int) -> Sequence[ir.Value]:
        """A standard operator with several outputs."""
        node = ir.Node("", op_type, inputs, num_outputs=count)
        for i, value in enumerate(node.outputs):
            value.name = f"v{len(self._nodes)}_{i}"
        self._nodes.append(node)
        return node.outputs

    def constant(self, value: Any, dtype: Any = np.float32) -> ir.Value:
        """A constant of any shape."""
        return self.op("Constant", [], value=ir.tensor(np.array(value, dtype)))

    def binary(self, op_type: str, left: ir.Value | float, right: ir.Value | float) -> ir.Value:
        """An operator of two operands; numbers become float32 constants."""
        operands = [v if isinstance(v, ir.Value) else self.constant(v) for v in (left, right)]
        return self.op(op_type, operands)

    def polynomial(self, coefficients: Sequence[float], x: ir.Value) -> ir.Value:
        """By Horner's rule, in float32; powers ascend."""
        value = self.constant(coefficients[-1])
        for coefficient in coefficients[-2::-1]:
            value = self.binary("Add", self.op("Mul", [value, x]), coefficient)
        return value

    def integer(self, attribute: str) -> ir.Value:
        """The function's attribute as an int64 vector of one."""
        found = self._attribute("value_int", attribute, ir.AttributeType.INT)
        return self.op("Reshape", [found, self.constant([1], np.int64)])

    def number(self, attribute: str) -> ir.Value:
        """The function's attribute as a float32 scalar."""
        return self._attribute("value_float", attribute, ir.AttributeType.FLOAT)

    def _attribute(self, target: str, name: str, kind: ir.AttributeType) -> ir.Value:
        return self._append(ir.Node("", "Constant", [], [ir.RefAttr(target, name, kind)]))

    def _append(self, node: ir.Node) -> ir.Value:
        node.outputs[0].name = f"v{len(self._nodes)}"
        self._nodes.append(node)
        return node.outputs[0]

    def finish(
        self, name: str, outputs: Sequence[ir.Value], attributes: Sequence[ir.Attr] = ()
    ) -> ir.Function:
        """The function with these outputs and attributes."""
        graph = ir.Graph(
            self.inputs, outputs, nodes=self._nodes, opset_imports={"": OPSET}, name=name
        )
        return ir.Function(DOMAIN, name, "", graph=graph, attributes=attributes)
