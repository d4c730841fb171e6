"""Exports an image tower: ``pixel_values [B, 3, H, W]`` (or packed patches) → one float32 output
per tap.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir
import torch

from primelens.export.registry import TowerSplit
from primelens.export.tower_attention import fuse_attention
from primelens.export.traced import traced

__all__ = ["build_tower"]

_MOST_PICTURES = 4096


def build_tower(split: TowerSplit, shape: tuple[int, ...]) -> ir.Model:
    """The tower's graph.

    Args:
        split: the tower, cut at its taps.
        shape: of one picture as the preprocessing makes it, ``(3, H, W)``.

    Raises:
        CheckpointError: torch cannot export the module.
    """
    example = torch.linspace(-1.0, 1.0, 2 * math.prod(shape)).reshape(2, *shape)
    model = traced(
        split.module,
        {"pixel_values": example},
        {"B": _MOST_PICTURES},
        list(split.taps),
        what="the image tower",
    )
    _means_as_products(model.graph)
    fuse_attention(model)
    return model


def _means_as_products(graph: ir.Graph) -> None:
    """Means over a picture's places ``[B, L, C]`` as products with 1/L.

    The engine adds up a mean in an order that depends on how many pictures there are; the rows of a
    product are added up one like the other.
    """
    for node in list(graph):
        length = _averaged(node)
        if length is None:
            continue
        old, states, axes = node.outputs[0], node.inputs[0], node.inputs[1]
        name = str(old.name)
        tensor = ir.tensor(np.full((1, 1, length), 1 / length, np.float32), name=f"{name}.share")
        kind = ir.TensorType(tensor.dtype)
        shape = ir.Shape((1, 1, length))
        share = ir.Value(name=tensor.name, shape=shape, type=kind, const_value=tensor)
        graph.register_initializer(share)
        made = [ir.node("MatMul", [share, states], name=f"{name}.product")]
        keep = node.attributes.get("keepdims")
        if keep is not None and not keep.as_int():
            made[0].outputs[0].name = f"{name}.kept"
            made.append(ir.node("Squeeze", [made[0].outputs[0], axes], name=f"{name}.mean"))
        new = made[-1].outputs[0]
        new.name, new.shape, new.type = name, old.shape, old.type
        ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
        graph.insert_before(node, made)
        graph.remove(node, safe=True)


def _averaged(node: ir.Node) -> int | None:
    """L of a mean over ``[B, L, C]``'s places; None of any other operator."""
    if node.op_type != "ReduceMean" or len(node.inputs) < 2:
        return None
    states, axes = node.inputs
    known = None if axes is None else ir.convenience.get_const_tensor(axes)
    if known is None or states is None or states.shape is None or len(states.shape) != 3:
        return None
    length = states.shape[1]
    fits = known.numpy().tolist() in ([1], [-2]) and isinstance(length, int)
    return int(str(length)) if fits else None
