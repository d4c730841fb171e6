"""The mutation table: every way to get an export wrong that we could think of must fail the gate.

Each mutation changes the built graphs or the manifest, as a defect of the exporter would, and
leaves the source model alone. The unmutated draft must pass.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from primelens.errors import GateError
from primelens.export.bundle_writer import write_draft
from primelens.export.connector_graph import build_connector
from primelens.export.decoder_graph import build_decoder
from primelens.export.decoder_plan import CrossAttention, DecoderPlan, Layer
from primelens.export.draft import Draft
from primelens.export.pipeline import prove
from primelens.export.quantise import INT8

from .conftest import OPTIONS, Work

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
    return {"gelu": "gelu_tanh", "gelu_tanh": "gelu"}[name]


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


def without_class_token(graph: ir.Graph, value: ir.Value) -> ir.Value:
    """The connector reads the first patch in place of the class token."""
    order = np.arange(value.shape[1])  # type: ignore[index]
    order[0] = 1
    return _prepend(graph, "Gather", [value, _constant(graph, order.astype(np.int64))], axis=1)


def in_tower_weight(index: int, change: Callable[[Any], Any]) -> Mutation:
    """Change the ``index``-th float initializer that has a vector's shape (a bias or a norm)."""

    def mutate(draft: Draft, work: Work) -> None:
        model = draft.graphs["tower"] = copy_of(draft.graphs["tower"])
        vectors = [
            value
            for value in model.graph.initializers.values()
            if value.dtype == ir.DataType.FLOAT and len(value.shape or ()) == 1
        ]
        value = vectors[index]
        assert value.const_value is not None
        array = change(value.const_value.numpy().copy())
        value.const_value = ir.Tensor(array, name=value.name)

    return mutate


def swapped_tower_layers(draft: Draft, work: Work) -> None:
    """The MLPs of the tower's two layers change places."""
    model = draft.graphs["tower"] = copy_of(draft.graphs["tower"])
    first, second = (
        [
            value
            for value in model.graph.initializers.values()
            if "mlp.fc" in str(value.name) and key in str(value.name)
        ]
        for key in ("layers.0.", "layers.1.")
    )
    assert first
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        a.const_value, b.const_value = b.const_value, a.const_value


# Changing the manifest --------------------------------------------------------------------------


def in_generation(**changes: Any) -> Mutation:
    def mutate(draft: Draft, work: Work) -> None:
        head = draft.heads["caption"]
        generation = _replace(head.generation, **changes)
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
    settings["steps"][0]["resample"] = "bicubic"


COMMON: dict[str, Mutation] = {
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
    "embedding scaled": in_plan(at("embedding", "scale", by=lambda _: 1.01)),
    "cross key and value swapped": in_layer(0, swapped_cross),
    "another layer's cross attention": in_plan(borrowed_cross),
    "self attention scale": in_layer(0, at("self_attention", "scale", by=times(1.01))),
    "cross attention scale": in_layer(1, at("cross_attention", "scale", by=times(1.01))),
    "another embedding in the head": in_plan(at("lm_head", "weight", by=rolled(1))),
    "no causal mask": in_attributes("caption.decoder", "GroupQueryAttention", causal=0),
    "past one short": in_input("caption.decoder", "seqlens_k", minus_one),
    "another image's keys": in_input("caption.decoder", "cross_key.1", next_image),
    "another image's values": in_input("caption.decoder", "cross_value.2", next_image),
    "class token dropped": in_input("caption.connector", "last_hidden_state", without_class_token),
    "blue before red": in_input("tower", "pixel_values", reversed_axis(1)),
    "upside down": in_input("tower", "pixel_values", reversed_axis(2)),
    "tower norm epsilon": in_attributes("tower", "LayerNormalization", epsilon=1e-3),
    "tower layers swapped": swapped_tower_layers,
    "tower vector changed": in_tower_weight(-1, times(1.001)),
    "start token": in_generation(start_tokens=(2,)),
    "end token ignored": in_generation(eos_tokens=()),
    "one token more": in_generation(max_new_tokens=21),
    "mean": in_preprocessing(other_mean),
    "resize filter": in_preprocessing(other_filter),
}
GPT2: dict[str, Mutation] = {
    "final norm missing": in_plan(at("final_norm", by=none)),
    "final norm epsilon": in_plan(at("final_norm", "epsilon", by=lambda _: 1e-3)),
    "norm after": in_plan(at("norm_first", by=lambda _: False)),
}
BERT: dict[str, Mutation] = {
    "head bias dropped": in_plan(at("lm_head", "bias", by=none)),
    "head transform dropped": in_plan(at("lm_head", "transform", by=none)),
    "embedding norm missing": in_plan(at("embedding", "norm", by=none)),
    "norm first": in_plan(at("norm_first", by=lambda _: True)),
}
TABLE = [
    *(("tiny-vitgpt2", name, mutation) for name, mutation in {**COMMON, **GPT2}.items()),
    *(("tiny-vitbert", name, mutation) for name, mutation in {**COMMON, **BERT}.items()),
]


def _gate(draft: Draft, work: Work, folder: Path) -> None:
    write_draft(draft, folder, OPTIONS)
    prove(folder, work.split, work.answers, OPTIONS.gate)


@pytest.mark.parametrize("name", ["tiny-vitgpt2", "tiny-vitbert"])
def test_the_unmutated_draft_passes(
    works: Callable[[str], Work], name: str, tmp_path: Path
) -> None:
    work = works(name)
    _gate(work.draft, work, tmp_path)


@pytest.mark.parametrize(
    ("name", "mutation"),
    [pytest.param(name, change, id=f"{name}-{what}") for name, what, change in TABLE],
)
def test_the_gate_catches(
    works: Callable[[str], Work], name: str, mutation: Mutation, tmp_path: Path
) -> None:
    work = works(name)
    draft = dataclasses.replace(
        work.draft, graphs=dict(work.draft.graphs), heads=dict(work.draft.heads)
    )
    mutation(draft, work)
    with pytest.raises(GateError) as caught:
        _gate(draft, work, tmp_path)
    assert caught.value.problems


EIGHT_BITS = (
    "two layers swapped",
    "position one late",
    "cross key and value swapped",
    "another image's keys",
    "no causal mask",
    "past one short",
    "start token",
    "end token ignored",
    "mean",
)


@pytest.mark.parametrize("what", EIGHT_BITS)
def test_the_gate_catches_in_eight_bits(
    works: Callable[[str], Work], what: str, tmp_path: Path
) -> None:
    """Random weights agree to some 95 %; what breaks a decoder brings that far below 90 %."""
    work = works("tiny-vitgpt2")
    gate = dataclasses.replace(OPTIONS.gate, agreement=0.9)
    head = _replace(work.draft.heads["caption"], precision="int8")
    for mutation, passes in ((lambda draft, work: None, True), (COMMON[what], False)):
        draft = _replace(work.draft, graphs=dict(work.draft.graphs), heads={"caption": head})
        mutation(draft, work)
        draft.graphs = {name: copy_of(graph) for name, graph in draft.graphs.items()}
        INT8.apply(draft.graphs)
        folder = tmp_path / str(passes)
        folder.mkdir()
        write_draft(draft, folder, OPTIONS)
        if passes:
            prove(folder, work.split, work.answers, gate)
            continue
        with pytest.raises(GateError):
            prove(folder, work.split, work.answers, gate)


@pytest.mark.parametrize("name", ["tiny-vitgpt2", "tiny-vitbert"])
def test_the_gate_can_see(works: Callable[[str], Work], name: str) -> None:
    """Varied text, another one for every picture, and some of them reach the end token."""
    answers = works(name).answers["caption"]
    texts = [tuple(tokens) for tokens in answers.forced]
    assert len(set(texts)) == len(texts)
    assert np.mean([len(set(text)) for text in texts]) >= 12
    lengths = [len(tokens) for tokens in answers.natural]
    assert min(lengths) < 20
    assert max(lengths) == 20
