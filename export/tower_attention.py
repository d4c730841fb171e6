"""Attention of a traced tower as one fused operator.

torch.onnx writes attention as it finds it: as ONNX's ``Attention`` over transposed heads where the
model calls torch's own, and as MatMul, Softmax, MatMul where it does not (BLIP, GIT). ONNX
Runtime's ``MultiHeadAttention`` reads queries, keys and values ``[B, L, C]`` where the products
left them, and keeps no scores: nothing is transposed, and less memory is written. Attention with a
mask or a bias is left as it is, because the operator is not faster there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from primelens.export.graph import MICROSOFT

__all__ = ["fuse_attention"]

_HEADS_FIRST = (0, 2, 1, 3)  # [B, L, H, D] ↔ [B, H, L, D]
_PACKED = (2, 0, 3, 1, 4)  # [B, L, 3, H, D] → [3, B, H, L, D]
_RANK = 3  # of [B, L, C]


def fuse_attention(model: ir.Model) -> int:
    """Rewrite what `MultiHeadAttention` can do, in place; returns how many there were."""
    graph = model.graph
    found = 0
    for node in list(graph):
        attention = _attention(node)
        if attention is not None:
            _replace(graph, attention)
            found += 1
    if found:
        model.opset_imports[MICROSOFT] = 1
        RemoveUnusedNodesPass()(model)
    return found


@dataclass(frozen=True)
class _Heads:
    """Heads ``[B, H, L, D]`` and where they come from.

    Attributes:
        states: ``[B, L, H·D]``, or ``[B, L, 3·H·D]`` where queries, keys and values are packed.
        heads: H.
        part: which third of packed states it is, None of others.
    """

    states: ir.Value
    heads: int
    part: int | None = None


_Inputs: TypeAlias = "tuple[tuple[_Heads | None, _Heads | None, _Heads | None], float]"


@dataclass(frozen=True)
class _Attention:
    """What is computed: of which heads, scaled by what, and the value ``[B, L, C]`` it ends in."""

    query: _Heads
    key: _Heads
    value: _Heads
    scale: float
    end: ir.Node


def _attention(node: ir.Node) -> _Attention | None:
    """The attention whose last operator over heads ``node`` is."""
    inputs, end = _fused(node) or _unfused(node), _joined(node)
    if inputs is None or end is None:
        return None
    (query, key, value), scale = inputs
    if query is None or key is None or value is None:
        return None
    alike = query.heads == key.heads == value.heads
    return _Attention(query, key, value, scale, end) if alike else None


def _fused(node: ir.Node) -> _Inputs | None:
    """Queries, keys and values, and the scale, of ONNX's operator without a mask."""
    if node.op_type != "Attention" or node.domain or len(node.outputs) != 1:
        return None
    query, key, value, *others = node.inputs
    mask = others[0] if others else None
    scale = node.attributes.get("scale")
    plain = not any(_number(node, name) for name in ("is_causal", "softcap"))
    if any(other is not None for other in others[1:]) or not (mask is None or _lets_all(mask)):
        return None
    if scale is None or not plain:
        return None
    return (_heads(query), _heads(key), _heads(value)), scale.as_float()


def _unfused(node: ir.Node) -> _Inputs | None:
    """The same of the second product in MatMul, Mul, Softmax, MatMul."""
    if node.op_type != "MatMul":
        return None
    shares, value = node.inputs
    softmax = _made_by(shares, "Softmax")
    scaled = None if softmax is None else _made_by(softmax.inputs[0], "Mul")
    if softmax is None or scaled is None or _number(softmax, "axis", -1) != -1:
        return None
    scores, factor = scaled.inputs
    constant = None if factor is None else ir.convenience.get_const_tensor(factor)
    product = _made_by(scores, "MatMul")
    if product is None or constant is None or constant.size != 1:
        return None
    query, turned = product.inputs
    return (_heads(query), _turned(turned), _heads(value)), float(constant.numpy().item())


def _turned(value: ir.Value | None) -> _Heads | None:
    """Where keys come from that scores are computed with: ``[B, H, D, L]``."""
    node = _made_by(value, "Transpose")
    if node is None:
        return None
    if _perm(node) == (0, 2, 3, 1):  # straight from [B, L, H, D]
        return _reshaped(node.inputs[0], None)
    return _heads(node.inputs[0]) if _perm(node) == (0, 1, 3, 2) else None


def _heads(value: ir.Value | None) -> _Heads | None:
    """Where heads come from; None where they are made in another way than towers do."""
    transposed = _made_by(value, "Transpose")
    if transposed is not None:
        fits = _perm(transposed) == _HEADS_FIRST
        return _reshaped(transposed.inputs[0], None) if fits else None
    gather = _made_by(value, "Gather")
    packed = None if gather is None else _made_by(gather.inputs[0], "Transpose")
    if gather is None or packed is None or _perm(packed) != _PACKED or _number(gather, "axis"):
        return None
    index = None if gather.inputs[1] is None else ir.convenience.get_const_tensor(gather.inputs[1])
    if index is None or index.size != 1:
        return None
    return _reshaped(packed.inputs[0], int(index.numpy().item()))


def _reshaped(value: ir.Value | None, part: int | None) -> _Heads | None:
    """The states ``[B, L, C]`` that were given an axis of heads (and of parts)."""
    node = _made_by(value, "Reshape")
    if node is None or value is None or value.shape is None or node.inputs[0] is None:
        return None
    states = node.inputs[0]
    sizes = value.shape[-2:] if part is None else value.shape[-3:]
    rank = _RANK + len(sizes) - 1
    if not all(isinstance(size, int) for size in sizes) or len(value.shape) != rank:
        return None
    width = int(np.prod([int(str(size)) for size in sizes]))
    if states.shape is None or len(states.shape) != _RANK or states.shape[-1] != width:
        return None
    if part is not None and sizes[0] != 3:
        return None
    return _Heads(states, int(str(sizes[-2])), part)


def _joined(node: ir.Node) -> ir.Node | None:
    """The Reshape that makes ``[B, L, C]`` of the context ``[B, H, L, D]`` of ``node``."""
    transposed = _only_user(node, "Transpose")
    if transposed is None or _perm(transposed) != _HEADS_FIRST:
        return None
    end = _only_user(transposed, "Reshape")
    shape = None if end is None else end.outputs[0].shape
    return end if shape is not None and len(shape) == _RANK else None


def _replace(graph: ir.Graph, found: _Attention) -> None:
    end = found.end
    inputs = [_states(graph, end, heads) for heads in (found.query, found.key, found.value)]
    attributes = {"num_heads": found.query.heads, "scale": found.scale}
    new = ir.node("MultiHeadAttention", inputs, attributes, domain=MICROSOFT)
    old, output = end.outputs[0], new.outputs[0]
    new.name = f"{old.name}.attention"
    output.name, output.type, output.shape = old.name, old.type, old.shape
    ir.convenience.replace_all_uses_with(old, output, replace_graph_outputs=True)
    graph.insert_before(end, new)
    graph.remove(end, safe=True)


def _states(graph: ir.Graph, place: ir.Node, heads: _Heads) -> ir.Value:
    """``[B, L, C]`` of one part: packed states come from a product of their own each.

    A product's columns are added up one like the other, so the parts are the same bits.
    """
    if heads.part is None:
        return heads.states
    added = _made_by(heads.states, "Add")
    product, bias = (heads.states, None) if added is None else (added.inputs[0], added.inputs[1])
    if added is not None and not _constant(bias):
        product, bias = bias, product
    node = _made_by(product, "MatMul")
    fits = node is not None and _constant(node.inputs[1]) and (added is None or _constant(bias))
    if node is None or product is None or not fits:
        split = ir.node("Split", [heads.states], {"axis": 2, "num_outputs": 3}, num_outputs=3)
        for number, value in enumerate(split.outputs):
            value.name = f"{heads.states.name}.part.{heads.part}.{number}"
        split.name = str(split.outputs[0].name)
        graph.insert_before(place, split)
        return split.outputs[heads.part]
    made = ir.node("MatMul", [node.inputs[0], _third(graph, node.inputs[1], heads.part)])
    nodes = [made]
    made.outputs[0].name = f"{product.name}.{heads.part}"
    if bias is not None:
        nodes.append(ir.node("Add", [made.outputs[0], _third(graph, bias, heads.part)]))
        nodes[-1].outputs[0].name = f"{heads.states.name}.{heads.part}"
    for one in nodes:
        one.name = one.outputs[0].name
        one.outputs[0].type = heads.states.type
        shape = heads.states.shape
        assert shape is not None
        one.outputs[0].shape = ir.Shape([*shape[:-1], int(str(shape[-1])) // 3])
    graph.insert_before(place, nodes)
    return nodes[-1].outputs[0]


def _third(graph: ir.Graph, value: ir.Value | None, part: int) -> ir.Value:
    """One third of a constant along its last axis, stored by itself."""
    assert value is not None
    tensor = ir.convenience.get_const_tensor(value)
    assert tensor is not None
    array = np.ascontiguousarray(np.split(tensor.numpy(), 3, axis=-1)[part])
    name = f"{value.name}.{part}"
    known = graph.initializers.get(name)
    if known is not None:
        return known
    new = ir.Value(
        name=name,
        shape=ir.Shape(array.shape),
        type=ir.TensorType(tensor.dtype),
        const_value=ir.Tensor(array, name=name),
    )
    graph.register_initializer(new)
    return new


def _lets_all(mask: ir.Value) -> bool:
    """Whether a mask is one constant that masks nothing: True, or 0 that would be added."""
    expand = _made_by(mask, "Expand")
    inner = mask if expand is None else expand.inputs[0]
    tensor = None if inner is None else ir.convenience.get_const_tensor(inner)
    if tensor is None:
        return False
    values = tensor.numpy()
    return bool(values.all()) if values.dtype == np.bool_ else not values.any()


def _made_by(value: ir.Value | None, op_type: str) -> ir.Node | None:
    node = None if value is None else value.producer()
    return node if node is not None and node.op_type == op_type and not node.domain else None


def _only_user(node: ir.Node, op_type: str) -> ir.Node | None:
    output = node.outputs[0]
    users = [user for user, _ in output.uses()]
    fits = len(users) == 1 and users[0].op_type == op_type and not output.is_graph_output()
    return users[0] if fits else None


def _perm(node: ir.Node) -> tuple[int, ...]:
    given = node.attributes.get("perm")
    return () if given is None else tuple(given.as_ints())


def _constant(value: ir.Value | None) -> bool:
    return value is not None and ir.convenience.get_const_tensor(value) is not None


def _number(node: ir.Node, name: str, default: float = 0) -> float:
    given = node.attributes.get(name)
    return default if given is None else float(given.value)
