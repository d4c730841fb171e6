"""The mutation table: every way to get an export wrong that we could think of.

Each mutation changes the built graphs or the manifest, as a defect of the exporter would, and
leaves the source model alone.
"""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir

from primelens.export.connector_graph import build_connector
from primelens.export.decoder_graph import build_decoder
from primelens.export.decoder_plan import CrossAttention, DecoderPlan, Layer
from primelens.export.draft import Draft

from .conftest import Work

Mutation = Callable[[Draft, Work], None]
_replace: Any = dataclasses.replace

# Changing the description of the decoder ---------------------------------------------------------


def _cross(plan: DecoderPlan) -> list[CrossAttention]:
    return [layer.cross_attention for layer in plan.layers if layer.cross_attention is not None]


def in_plan(change: Callable[[DecoderPlan], DecoderPlan]) -> Mutation:
    """Build decoder and connector from a changed plan."""

    def mutate(draft: Draft, work: Work) -> None:
        plan = change(work.split.heads["caption"].plan)
        (length, _) = draft.tower.taps["last_hidden_state"].shape
        draft.graphs["caption.decoder"] = build_decoder(plan, length)
        draft.graphs["caption.connector"] = build_connector(
            _cross(plan),
            tap="last_hidden_state",
            length=length,
            heads=plan.heads,
            projection=work.split.heads["caption"].projection,
        )

    return mutate


def in_layer(index: int, change: Callable[[Layer], Layer]) -> Mutation:
    """Change one layer of the plan."""

    def apply(plan: DecoderPlan) -> DecoderPlan:
        layers = list(plan.layers)
        layers[index] = change(layers[index])
        return _replace(plan, layers=tuple(layers))

    return in_plan(apply)


def at(*path: str, by: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A change of the field that ``path`` leads to."""

    def change(owner: Any) -> Any:
        value = getattr(owner, path[0])
        value = by(value) if len(path) == 1 else at(*path[1:], by=by)(value)
        return _replace(owner, **{path[0]: value})

    return change


def none(_: Any) -> None:
    return None


def times(factor: float) -> Callable[[Any], Any]:
    return lambda value: value * factor


def zeroed(part: int) -> Callable[[Any], Any]:
    """The ``part``-th third of a packed bias set to zero."""

    def change(bias: Any) -> Any:
        bias = bias.copy()
        third = len(bias) // 3
        bias[part * third : (part + 1) * third] = 0
        return bias

    return change


def rolled(by: int) -> Callable[[Any], Any]:
    return lambda table: np.roll(table, by, axis=0)


def swapped_layers(plan: DecoderPlan) -> DecoderPlan:
    first, second, *rest = plan.layers
    return _replace(plan, layers=(second, first, *rest))


def swapped_cross(layer: Layer) -> Layer:
    cross = layer.cross_attention
    assert cross is not None
    changed = _replace(cross, key=cross.value, value=cross.key)
    return _replace(layer, cross_attention=changed)


def borrowed_cross(plan: DecoderPlan) -> DecoderPlan:
    """Layer 1 reads the keys and values that belong to layer 2."""
    layers, lender = list(plan.layers), plan.layers[2].cross_attention
    assert lender is not None
    cross = _replace(layers[1].cross_attention, key=lender.key, value=lender.value)
    layers[1] = _replace(layers[1], cross_attention=cross)
    return _replace(plan, layers=tuple(layers))


def other_gelu(name: str) -> str:
    return {"gelu": "gelu_tanh", "gelu_tanh": "gelu", "relu": "gelu"}[name]


# Changing the graphs themselves -----------------------------------------------------------------


def _nodes(draft: Draft, graph: str, op_type: str) -> list[ir.Node]:
    return [node for node in draft.graphs[graph].graph if node.op_type == op_type]


def in_attributes(graph: str, op_type: str, **attributes: Any) -> Mutation:
    """Set attributes on every operator of a type."""

    def mutate(draft: Draft, work: Work) -> None:
        draft.graphs[graph] = copy_of(draft.graphs[graph])
        nodes = _nodes(draft, graph, op_type)
        assert nodes
        for node in nodes:
            for name, value in attributes.items():
                node.attributes[name] = ir.convenience.convert_attribute(name, value)

    return mutate


def copy_of(model: ir.Model) -> ir.Model:
    return ir.from_proto(ir.to_proto(model))


def in_input(graph: str, name: str, insert: Callable[[ir.Graph, ir.Value], ir.Value]) -> Mutation:
    """Compute something from an input and let all its readers read that instead."""

    def mutate(draft: Draft, work: Work) -> None:
        model = draft.graphs[graph] = copy_of(draft.graphs[graph])
        (value,) = [value for value in model.graph.inputs if value.name == name]
        readers = list(value.uses())
        assert readers
        changed = insert(model.graph, value)
        for node, index in readers:
            node.replace_input_with(index, changed)

    return mutate


def _prepend(graph: ir.Graph, op_type: str, inputs: list[ir.Value], **attributes: Any) -> ir.Value:
    node = ir.node(op_type, inputs, attributes)
    node.outputs[0].name = f"mutated_{op_type}_{len(list(graph))}"
    graph.insert_before(graph[0], node)
    return node.outputs[0]


def _constant(graph: ir.Graph, value: Any) -> ir.Value:
    tensor = ir.tensor(value, name=f"mutated_{len(graph.initializers)}")
    initializer = ir.Value(
        name=tensor.name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor
    )
    graph.register_initializer(initializer)
    return initializer


def minus_one(graph: ir.Graph, value: ir.Value) -> ir.Value:
    one = _constant(graph, np.array(1, np.int32))
    zero = _constant(graph, np.array(0, np.int32))
    less = ir.node("Sub", [value, one])
    clipped = ir.node("Max", [less.outputs[0], zero])
    less.outputs[0].name, clipped.outputs[0].name = "mutated_less", "mutated_clipped"
    graph.insert_before(graph[0], [less, clipped])
    return clipped.outputs[0]


def next_image(graph: ir.Graph, value: ir.Value) -> ir.Value:
    """Every row reads the picture after its own."""
    ints = [_constant(graph, np.array([n], np.int64)) for n in (0, 1, 2**31)]
    first = ir.node("Slice", [value, ints[0], ints[1], ints[0]])
    rest = ir.node("Slice", [value, ints[1], ints[2], ints[0]])
    joined = ir.node("Concat", [rest.outputs[0], first.outputs[0]], {"axis": 0})
    for node, name in ((first, "first"), (rest, "rest"), (joined, "joined")):
        node.outputs[0].name = f"mutated_{name}_{value.name}"
    graph.insert_before(graph[0], [first, rest, joined])
    return joined.outputs[0]


def reversed_axis(axis: int) -> Callable[[ir.Graph, ir.Value], ir.Value]:
    """Colours in the order BGR, or the picture upside down."""

    def insert(graph: ir.Graph, value: ir.Value) -> ir.Value:
        ints = [_constant(graph, np.array([n], np.int64)) for n in (-1, -(2**31), axis, -1)]
        return _prepend(graph, "Slice", [value, *ints])

    return insert


def without_first_state(graph: ir.Graph, value: ir.Value) -> ir.Value:
    """The connector reads the second state in place of the first (a class token, often)."""
    order = np.arange(value.shape[1])  # type: ignore[index]
    order[0] = 1
    return _prepend(graph, "Gather", [value, _constant(graph, order.astype(np.int64))], axis=1)


def in_tower(change: Callable[[list[ir.Value]], None]) -> Mutation:
    """Change the tower's float initializers."""

    def mutate(draft: Draft, work: Work) -> None:
        model = draft.graphs["tower"] = copy_of(draft.graphs["tower"])
        values = model.graph.initializers.values()
        change([value for value in values if value.dtype == ir.DataType.FLOAT])

    return mutate


def _set(value: ir.Value, array: Any) -> None:
    value.const_value = ir.Tensor(np.ascontiguousarray(array), name=value.name)


def _array(value: ir.Value) -> Any:
    assert value.const_value is not None
    return value.const_value.numpy().copy()


def last_vector_changed(values: list[ir.Value]) -> None:
    vector = [value for value in values if len(value.shape or ()) == 1][-1]
    _set(vector, _array(vector) * 1.001)


def layers_swapped(values: list[ir.Value]) -> None:
    """Two layers exchange the vectors that both have."""
    groups: dict[Any, list[ir.Value]] = {}
    for value in values:
        if len(value.shape or ()) == 1 and "." in str(value.name):
            key = re.sub(r"\.\d+\.", ".#.", str(value.name)), tuple(value.shape or ())
            groups.setdefault(key, []).append(value)
    pairs = [group[:2] for group in groups.values() if len(group) > 1]
    assert pairs
    for first, second in pairs:
        first.const_value, second.const_value = second.const_value, first.const_value


def matrices_swapped(values: list[ir.Value]) -> None:
    """Two matrices (or kernels) of one shape change places."""
    groups: dict[Any, list[ir.Value]] = {}
    for value in values:
        shape = tuple(value.shape or ())
        if len(shape) in (2, 4) and 1 not in shape[:2]:
            groups.setdefault(shape, []).append(value)
    first, second = next(group for group in groups.values() if len(group) > 1)[:2]
    first.const_value, second.const_value = second.const_value, first.const_value


def relative_positions_shifted(values: list[ir.Value]) -> None:
    """What attention adds for relative positions, one place to the side."""
    tables = [v for v in values if len(v.shape or ()) == 4 and v.shape[0] == 1]  # type: ignore[index]
    assert tables
    for value in tables:
        _set(value, np.roll(_array(value), 1, axis=-1))


def shifted_windows_unmasked(values: list[ir.Value]) -> None:
    """Windows that wrap around the border see what lies beyond it."""
    masks = [value for value in values if (_array(value) <= -90).any()]
    assert masks
    for value in masks:
        array = _array(value)
        array[array <= -90] = 0
        _set(value, array)


def without_projection_bias(draft: Draft, work: Work) -> None:
    head = work.split.heads["caption"]
    assert head.projection is not None
    (length, _) = draft.tower.taps["last_hidden_state"].shape
    draft.graphs["caption.connector"] = build_connector(
        _cross(head.plan),
        tap="last_hidden_state",
        length=length,
        heads=head.plan.heads,
        projection=_replace(head.projection, bias=None),
    )


# Changing the manifest --------------------------------------------------------------------------


def in_generation(**changes: Callable[[Any], Any]) -> Mutation:
    def mutate(draft: Draft, work: Work) -> None:
        head = draft.heads["caption"]
        changed = {name: by(getattr(head.generation, name)) for name, by in changes.items()}
        generation = _replace(head.generation, **changed)
        draft.heads["caption"] = _replace(head, generation=generation)

    return mutate


def in_preprocessing(change: Callable[[dict[str, Any]], None]) -> Mutation:
    def mutate(draft: Draft, work: Work) -> None:
        settings = copy.deepcopy(dict(draft.tower.preprocessing))
        change(settings)
        draft.tower = _replace(draft.tower, preprocessing=settings)

    return mutate


def other_mean(settings: dict[str, Any]) -> None:
    settings["normalize"]["mean"][1] += 1 / 255


def other_filter(settings: dict[str, Any]) -> None:
    step = next(step for step in settings["steps"] if "resample" in step)
    step["resample"] = "hamming"


def one_pixel_larger(settings: dict[str, Any]) -> None:
    step = next(step for step in settings["steps"] if "resample" in step)
    for side in step.keys() & {"edge", "height", "width"}:
        step[side] += 1


def not_turned(settings: dict[str, Any]) -> None:
    (turn,) = [step for step in settings["steps"] if step["op"] == "align_long_axis"]
    settings["steps"].remove(turn)


# The tables -------------------------------------------------------------------------------------

Table = dict[str, Mutation]

DECODER: Table = {
    "query bias dropped": in_layer(0, at("self_attention", "qkv", "bias", by=zeroed(0))),
    "value bias dropped": in_layer(1, at("self_attention", "qkv", "bias", by=zeroed(2))),
    "attention output bias dropped": in_layer(2, at("self_attention", "out", "bias", by=none)),
    "cross query bias dropped": in_layer(1, at("cross_attention", "query", "bias", by=none)),
    "cross value bias dropped": in_layer(0, at("cross_attention", "value", "bias", by=none)),
    "cross output bias dropped": in_layer(2, at("cross_attention", "out", "bias", by=none)),
    "mlp up bias dropped": in_layer(0, at("feed_forward", "up", "bias", by=none)),
    "mlp down bias dropped": in_layer(1, at("feed_forward", "down", "bias", by=none)),
    "two layers swapped": in_plan(swapped_layers),
    "position one late": in_plan(at("embedding", "positions", by=rolled(1))),
    "position one early": in_plan(at("embedding", "positions", by=rolled(-1))),
    "norm epsilon": in_layer(0, at("self_attention", "norm", "epsilon", by=lambda _: 1e-3)),
    "norm bias dropped": in_layer(1, at("feed_forward", "norm", "bias", by=none)),
    "other gelu": in_layer(1, at("feed_forward", "activation", by=other_gelu)),
    "embedding scaled": in_plan(at("embedding", "scale", by=times(1.01))),
    "cross key and value swapped": in_layer(0, swapped_cross),
    "another layer's cross attention": in_plan(borrowed_cross),
    "self attention scale": in_layer(0, at("self_attention", "scale", by=times(1.01))),
    "cross attention scale": in_layer(1, at("cross_attention", "scale", by=times(1.01))),
    "another embedding in the head": in_plan(at("lm_head", "weight", by=rolled(1))),
    "no causal mask": in_attributes("caption.decoder", "GroupQueryAttention", causal=0),
    "past one short": in_input("caption.decoder", "seqlens_k", minus_one),
    "another image's keys": in_input("caption.decoder", "cross_key.1", next_image),
    "another image's values": in_input("caption.decoder", "cross_value.2", next_image),
    "start token": in_generation(start_tokens=lambda tokens: (tokens[0] + 3,)),
    "end token ignored": in_generation(eos_tokens=lambda _: ()),
    "one token more": in_generation(max_new_tokens=lambda count: count + 1),
}
TOWER: Table = {
    "first state dropped": in_input("caption.connector", "last_hidden_state", without_first_state),
    "blue before red": in_input("tower", "pixel_values", reversed_axis(1)),
    "upside down": in_input("tower", "pixel_values", reversed_axis(2)),
    "tower layers swapped": in_tower(layers_swapped),
    "tower matrices swapped": in_tower(matrices_swapped),
    "tower vector changed": in_tower(last_vector_changed),
    "mean": in_preprocessing(other_mean),
    "resize filter": in_preprocessing(other_filter),
}
TOWER_NORM: Table = {
    "tower norm epsilon": in_attributes("tower", "LayerNormalization", epsilon=1e-3)
}
PROJECTION: Table = {"projection bias dropped": without_projection_bias}
RELATIVE: Table = {"relative positions shifted": in_tower(relative_positions_shifted)}
WINDOWS: Table = {**RELATIVE, "shifted windows unmasked": in_tower(shifted_windows_unmasked)}
CROPPED: Table = {"resized one pixel larger": in_preprocessing(one_pixel_larger)}
NORM_FIRST: Table = {
    "final norm missing": in_plan(at("final_norm", by=none)),
    "final norm epsilon": in_plan(at("final_norm", "epsilon", by=lambda _: 1e-2)),
    "norm after": in_plan(at("norm_first", by=lambda _: False)),
}
NORM_AFTER: Table = {"norm first": in_plan(at("norm_first", by=lambda _: True))}
EMBEDDING_NORM: Table = {"embedding norm missing": in_plan(at("embedding", "norm", by=none))}
HEAD: Table = {
    "head bias dropped": in_plan(at("lm_head", "bias", by=none)),
    "head transform dropped": in_plan(at("lm_head", "transform", by=none)),
}
SCALED: Table = {"embedding unscaled": in_plan(at("embedding", "scale", by=lambda _: 1.0))}

VIT = {**TOWER, **TOWER_NORM}
BERT = {**DECODER, **NORM_AFTER, **EMBEDDING_NORM, **HEAD}
# Every tower and every decoder meets all that applies to it, once.
TABLES: dict[str, Table] = {
    "tiny-vitgpt2": {**VIT, **PROJECTION, **DECODER, **NORM_FIRST},
    "tiny-vitbert": BERT,
    "tiny-beitbart": {
        **VIT, **PROJECTION, **RELATIVE, **DECODER, **NORM_AFTER, **EMBEDDING_NORM, **SCALED,
    },
    "tiny-deitroberta": {**VIT, **PROJECTION, **CROPPED, **BERT},
    "tiny-swingpt2": {**VIT, **PROJECTION, **WINDOWS},
    "tiny-trocr": {**DECODER, **NORM_AFTER, **EMBEDDING_NORM, **SCALED},
    "tiny-trocr-sinusoidal": {**DECODER, **NORM_AFTER},
    "tiny-donut": {
        **VIT, **PROJECTION, **WINDOWS, **CROPPED,
        "picture not turned": in_preprocessing(not_turned),
        **DECODER, **NORM_FIRST, **EMBEDDING_NORM, **SCALED,
    },
    "tiny-resnetgpt2": {**TOWER, **CROPPED},
    "tiny-convnextbert": {**VIT, **CROPPED},
}  # fmt: skip
