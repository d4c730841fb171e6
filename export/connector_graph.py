"""Builds the connector graph: from the tower's tap to every layer's cross-attention keys and
values.

``<tap> [B, L, C]`` → ``cross_key.i``, ``cross_value.i`` ``[B, H, L, D]``, all float32. It runs
once per image and head; the decoder reads its outputs at every step.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from primelens.export.decoder_plan import CrossAttention, Linear
from primelens.export.graph import GraphBuilder
from primelens.export.stack_graph import cross_names, dense

__all__ = ["build_connector", "key_values"]


def build_connector(
    layers: Sequence[CrossAttention],
    *,
    tap: str,
    length: int,
    heads: int,
    projection: Linear | None = None,
    outputs: str = "cross",
) -> ir.Model:
    """The connector as an ONNX model.

    Args:
        layers: the decoder's cross-attention blocks, in order.
        tap: name of the graph's input.
        length: number L of image positions.
        heads: attention heads H.
        projection: applied to the tap first (``enc_to_dec_proj``), where widths differ.
        outputs: what the outputs' names start with: "cross" where the decoder reads them,
            "picture" where a question encoder does.
    """
    g = GraphBuilder("connector")
    first = projection or layers[0].key
    channels = first.weight.shape[0]
    states = g.input(tap, ir.DataType.FLOAT, ["B", length, channels])
    if projection is not None:
        states = dense(g, states, projection, "projection")
    names = cross_names(len(layers), outputs)
    return g.finish(key_values(g, states, layers, names=names, length=length, heads=heads))


def key_values(
    g: GraphBuilder,
    states: ir.Value,
    layers: Sequence[CrossAttention],
    *,
    names: Sequence[str],
    length: int | str,
    heads: int,
) -> list[tuple[ir.Value, ir.DataType, Sequence[int | str]]]:
    """Keys and values ``[B, H, L, D]`` of every layer, as outputs to finish a graph with.

    Args:
        g: the graph.
        states: ``[B, L, C]``.
        layers: the cross-attention blocks, in order.
        names: of the outputs.
        length: L, or the name of a dimension that varies.
        heads: attention heads H.
    """
    width = layers[0].key.weight.shape[1]
    shape = g.integers("heads.shape", [0, 0, heads, width // heads])
    outputs: list[tuple[ir.Value, ir.DataType, Sequence[int | str]]] = []
    pairs = zip(names[::2], names[1::2], strict=True)
    for index, (layer, pair) in enumerate(zip(layers, pairs, strict=True)):
        for name, part in zip(pair, _layer(g, states, layer, f"cross.{index}"), strict=True):
            split = g.op("Reshape", [part, shape], f"{name}.heads")
            output = g.op("Transpose", [split], name, perm=[0, 2, 1, 3])
            outputs.append((output, ir.DataType.FLOAT, ["B", heads, length, width // heads]))
    return outputs


def _layer(
    g: GraphBuilder, states: ir.Value, layer: CrossAttention, name: str
) -> Sequence[ir.Value]:
    """A layer's keys and values ``[B, L, H·D]``, by one product.

    One product for all layers is not faster, and holds everything twice before it is parted.
    """
    linears = (layer.key, layer.value)
    weight = np.concatenate([linear.weight for linear in linears], axis=1)
    product = g.op("MatMul", [states, g.weight(f"{name}.weight", weight)], f"{name}.product")
    if any(linear.bias is not None for linear in linears):
        size = weight.shape[1] // 2
        bias = np.concatenate(
            [np.zeros(size, np.float32) if one.bias is None else one.bias for one in linears]
        )
        product = g.op("Add", [product, g.weight(f"{name}.bias", bias)], f"{name}.sum")
    return g.ops("Split", [product], [f"{name}.key", f"{name}.value"], axis=2, num_outputs=2)
