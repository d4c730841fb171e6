"""Tables of mutations as test cases, and a mutation that several tables share."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest


def cases(tables: Mapping[str, Mapping[str, Any]], slow: Collection[str] = ()) -> list[Any]:
    """(name of a work, mutation) for every entry; those of ``slow`` names are slow tests."""
    return [
        pytest.param(name, change, id=f"{name}-{what}", marks=[pytest.mark.slow] * (what in slow))
        for name, table in tables.items()
        for what, change in table.items()
    ]


def counting(graph: ir.Graph, value: ir.Value, least: int) -> ir.Value:
    """Lengths of at least ``least``: the mask leaves nothing out of what is shorter."""
    big = ir.tensor(np.array(least, np.int32), name="least")
    constant = ir.Value(
        name="least", shape=big.shape, type=ir.TensorType(big.dtype), const_value=big
    )
    graph.register_initializer(constant)
    node = ir.node("Max", [value, constant])
    node.outputs[0].name = "mutated_lengths"
    graph.insert_before(graph[0], node)
    return node.outputs[0]
