"""How many bytes one decode step reads from memory, counted from the graph and the shapes.

Everything that a step reads and that cannot have stayed in a cache: the decoder's weights with
their scales and zero points, the past keys and values, the cross-attention keys and values.
Activations (some kilobytes) are left out, which makes the limit lower and the ratio to it larger.

* A table that is only looked up (``Gather``, ``GatherBlockQuantized``) counts the rows looked up; a
  tied head multiplies with the same table and reads all of it.
* A weight is counted in the type that is computed with: a float16 weight behind a ``Cast`` is
  widened once, when the graph is opened, so a step reads four bytes of it per value.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from primelens.manifest import DecoderSpec

__all__ = ["GraphWeights", "StepBytes", "graph_weights", "step_bytes"]

_LOOKUPS = ("Gather", "GatherBlockQuantized")
_BITS = {"FLOAT": 32, "INT32": 32, "FLOAT16": 16, "BFLOAT16": 16, "INT64": 64, "DOUBLE": 64}
_BITS |= {"UINT8": 8, "INT8": 8, "BOOL": 8, "UINT4": 4, "INT4": 4, "FLOAT8E4M3FN": 8}


@dataclass(frozen=True)
class GraphWeights:
    """A graph's constants by what a step reads of them.

    Attributes:
        whole: bytes of the constants that are read whole at every step.
        looked_up: bytes read per row of ``input_ids`` out of tables that are only looked up.
        tables: bytes of those tables as a whole.
    """

    whole: int
    looked_up: int
    tables: int


@dataclass(frozen=True)
class StepBytes:
    """What one decode step reads, in bytes."""

    weights: int
    self_cache: int
    cross_cache: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.self_cache + self.cross_cache


def graph_weights(path: Path) -> GraphWeights:
    """Classify the constants of an ONNX file; its external weights are not read.

    Raises:
        ValueError: a constant has a type whose size is not known here.
    """
    import onnx

    graph = onnx.load(str(path), load_external_data=False).graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    widened = _casts(graph.node, stored)
    whole = looked_up = tables = 0
    for name, tensor in stored.items():
        kind, bits = widened.get(name, (name, _bits(tensor.data_type)))
        uses = [node for node in graph.node if kind in node.input]
        if not uses:
            continue
        values = math.prod(tensor.dims)
        size = values * bits // 8
        if len(tensor.dims) > 1 and all(_only_looks_up(node, kind) for node in uses):
            tables += size
            looked_up += size // tensor.dims[0]
        else:
            whole += size
    return GraphWeights(whole, looked_up, tables)


def _casts(nodes: Iterable[Any], stored: Mapping[str, Any]) -> dict[str, tuple[str, int]]:
    """Constants that pass through a Cast first → the Cast's output and its bits per value."""
    found = {}
    for node in nodes:
        if node.op_type == "Cast" and node.input[0] in stored:
            target = next(a.i for a in node.attribute if a.name == "to")
            found[node.input[0]] = (node.output[0], _bits(target))
    return found


def _only_looks_up(node: Any, name: str) -> bool:
    """Whether ``node`` gathers rows of ``name`` (or reads their scales), instead of all of it."""
    if node.op_type not in _LOOKUPS:
        return False
    axis = next((a.i for a in node.attribute if a.name in ("axis", "gather_axis")), 0)
    return axis == 0 and node.input[1] != name


def _bits(data_type: int) -> int:
    from onnx import TensorProto

    kind = TensorProto.DataType.Name(data_type)
    if kind not in _BITS:
        raise ValueError(f"the size of the ONNX type {kind} is not known")
    return _BITS[kind]


def step_bytes(
    weights: GraphWeights,
    spec: DecoderSpec,
    cross: Iterable[int],
    *,
    past: int,
    rows: int = 1,
) -> StepBytes:
    """What a step of ``rows`` rows, each with ``past`` tokens behind it, reads.

    Args:
        weights: of the decoder graph.
        spec: the decoder's sizes.
        cross: bytes of each cross-attention buffer (all images of the batch together).
        past: tokens in the cache before this step; the step's own key and value are read too.
        rows: sequences.
    """
    position = 2 * spec.layers * spec.kv_heads * spec.head_dim * 4
    return StepBytes(
        weights=weights.whole + rows * weights.looked_up,
        self_cache=rows * (past + 1) * position,
        cross_cache=sum(cross),
    )
