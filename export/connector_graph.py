"""Builds the connector graph: from the tower's tap to every layer's cross-attention keys and
values.

``<tap> [B, L, C]`` → ``cross_key.i``, ``cross_value.i`` ``[B, H, L, D]``, all float32. It runs
once per image and head; the decoder reads its outputs at every step.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from primelens.export.decoder_graph import cross_names, dense
from primelens.export.decoder_plan import CrossAttention, Linear
from primelens.export.graph import GraphBuilder

__all__ = ["build_connector"]


def build_connector(
    layers: Sequence[CrossAttention],
    *,
    tap: str,
    length: int,
    heads: int,
    projection: Linear | None = None,
) -> ir.Model:
    """The connector as an ONNX model.

    Args:
        layers: the decoder's cross-attention blocks, in order.
        tap: name of the graph's input.
        length: number L of image positions.
        heads: attention heads H.
        projection: applied to the tap first (``enc_to_dec_proj``), where widths differ.
    """
    g = GraphBuilder("connector")
    first = projection or layers[0].key
    channels = first.weight.shape[0]
    states = g.input(tap, ir.DataType.FLOAT, ["B", length, channels])
    if projection is not None:
        states = dense(g, states, projection, "projection")
    head_dim = layers[0].key.weight.shape[1] // heads
    shape = g.integers("heads.shape", [0, length, heads, head_dim])
    linears = [linear for layer in layers for linear in (layer.key, layer.value)]
    outputs = []
    for name, linear in zip(cross_names(len(layers)), linears, strict=True):
        flat = dense(g, states, linear, f"{name}.projection")
        split = g.op("Reshape", [flat, shape], f"{name}.heads")
        output = g.op("Transpose", [split], name, perm=[0, 2, 1, 3])
        outputs.append((output, ir.DataType.FLOAT, ["B", heads, length, head_dim]))
    return g.finish(outputs)
