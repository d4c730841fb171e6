"""The fused decoder graph against a float64 decoder written in NumPy, on random descriptions."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from primelens.decoding.session import DecoderSession, Step
from primelens.engine_onnx import OnnxEngine
from primelens.export.connector_graph import build_connector
from primelens.export.decoder_graph import build_decoder
from primelens.export.decoder_plan import (
    CrossAttention,
    DecoderPlan,
    Embedding,
    FeedForward,
    Layer,
    Linear,
    LmHead,
    Norm,
    RelativeBias,
    SelfAttention,
    stack,
)
from primelens.export.storage import save_graph
from primelens.manifest import DecoderSpec

Array = Any
VOCAB, POSITIONS, LENGTH, CHANNELS = 37, 24, 5, 12
PADDING = 1
_erf: Callable[[Array], Array] = np.vectorize(math.erf)


# The reference ----------------------------------------------------------------------------------


def gelu_tanh(x: Array) -> Array:
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": lambda x: 0.5 * x * (1 + _erf(x / math.sqrt(2))),
    "gelu_tanh": gelu_tanh,
    "relu": lambda x: np.maximum(x, 0),
    "silu": lambda x: x / (1 + np.exp(-x)),
    "quick_gelu": lambda x: x / (1 + np.exp(-1.702 * x)),
}


def affine(x: Array, linear: Linear) -> Array:
    y = x @ linear.weight.astype(np.float64)
    return y if linear.bias is None else y + linear.bias


def normed(x: Array, norm: Norm | None) -> Array:
    if norm is None:
        return x
    centred = x - x.mean(-1, keepdims=True) if norm.centred else x
    y = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + norm.epsilon) * norm.weight
    return y if norm.bias is None else y + norm.bias


def attend(
    q: Array, k: Array, v: Array, scale: float, *, causal: bool, bias: Array | float = 0.0
) -> Array:
    """``[H, T, D]`` queries over ``[H, S, D]`` keys and values, heads merged to ``[T, H·D]``."""
    scores = q @ k.transpose(0, 2, 1) * scale + bias
    if causal:
        scores = np.where(np.tril(np.ones(scores.shape[1:], bool)), scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    out = weights / weights.sum(-1, keepdims=True) @ v
    return out.transpose(1, 0, 2).reshape(len(out[0]), -1)


def split(x: Array, heads: int) -> Array:
    return x.reshape(len(x), heads, -1).transpose(1, 0, 2)


def places(plan: DecoderPlan, tokens: Array, first: int) -> Array:
    """``[T, C]`` position vectors, where the first call has ``first`` tokens and then each has one.

    Where the plan names a padding token, that one takes no place; but what came in earlier calls is
    counted whatever it was.
    """
    e, count = plan.embedding, len(tokens)
    if e.positions is None:
        return np.zeros((count, 1))
    if e.padding is None or e.unplaced is None:
        return e.positions[:count]
    taken = tokens != e.padding
    place = np.where(np.arange(count) < first, np.cumsum(taken), np.arange(count) + 1)
    return np.where(taken[:, None], e.positions[place - 1], e.unplaced)


def reference(plan: DecoderPlan, tokens: Array, states: Array, first: int = 0) -> Array:
    """``[T, V]`` logits of one row in float64."""
    e = plan.embedding
    x = e.scale * e.tokens[tokens].astype(np.float64) + places(plan, tokens, first)
    x = normed(x, e.norm)
    for layer in plan.layers:
        for block in (layer.self_attention, layer.cross_attention, layer.feed_forward):
            if block is None:
                continue
            if plan.norm_first:
                x = x + branch(plan, block, normed(x, block.norm), states)
            else:
                x = normed(x + branch(plan, block, x, states), block.norm)
    return logits_of(plan, normed(x, plan.final_norm))


def logits_of(plan: DecoderPlan, x: Array) -> Array:
    """``[T, V]`` from the last states ``[T, C]``."""
    head = plan.lm_head
    if head.transform is not None:
        linear, activation, norm = head.transform
        x = normed(ACTIVATIONS[activation](affine(x, linear)), norm)
    return affine(head.scale * x, Linear(head.weight.T, head.bias))


def distances(relative: RelativeBias | None, count: int) -> Array | float:
    """``[H, T, T]``, written place by place."""
    if relative is None:
        return 0.0
    table, last = relative.table.astype(np.float64), len(relative.table) - 1
    rows = [
        [table[min(max(key - query + relative.zero, 0), last)] for key in range(count)]
        for query in range(count)
    ]
    return np.array(rows).transpose(2, 0, 1)


def fed_forward(block: FeedForward, x: Array) -> Array:
    active = ACTIVATIONS[block.activation](affine(x, block.gate or block.up))
    return affine(active * affine(x, block.up) if block.gate else active, block.down)


def branch(plan: DecoderPlan, block: Any, x: Array, states: Array) -> Array:
    if isinstance(block, FeedForward):
        return fed_forward(block, x)
    bias: Array | float = 0.0
    if isinstance(block, SelfAttention):
        bias = distances(plan.relative, len(x))
        q, k, v = np.split(affine(x, block.qkv), 3, axis=1)
    else:
        q, k, v = affine(x, block.query), affine(states, block.key), affine(states, block.value)
    q, k, v = (split(part, plan.heads) for part in (q, k, v))
    causal = isinstance(block, SelfAttention)
    context = attend(q, k, v, block.scale, causal=causal, bias=bias)
    return affine(context, block.out)


# Random descriptions ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Shape:
    heads: int
    head_dim: int
    layers: int
    activation: str
    norm_first: bool
    biases: bool
    tied: bool
    transform: bool
    embedding_norm: bool
    final_norm: bool
    scale: float
    padding: bool = False
    centred: bool = True
    gated: bool = False
    relative: bool = False
    head_scale: float = 1.0


shapes = st.builds(
    Shape,
    heads=st.integers(1, 3),
    head_dim=st.sampled_from([8, 16]),
    layers=st.integers(1, 3),
    activation=st.sampled_from(sorted(ACTIVATIONS)),
    norm_first=st.booleans(),
    biases=st.booleans(),
    tied=st.booleans(),
    transform=st.booleans(),
    embedding_norm=st.booleans(),
    final_norm=st.booleans(),
    scale=st.sampled_from([1.0, 2.5]),
    padding=st.booleans(),
    centred=st.booleans(),
    gated=st.booleans(),
    relative=st.booleans(),
    head_scale=st.sampled_from([1.0, 0.3]),
)


def random_plan(shape: Shape, seed: int) -> DecoderPlan:
    rng = np.random.default_rng(seed)
    width = shape.heads * shape.head_dim

    def normal(*size: int, scale: float = 1.0) -> Array:
        return (scale * rng.standard_normal(size)).astype(np.float32)

    def linear(inner: int, outer: int) -> Linear:
        bias = normal(outer, scale=0.3) if shape.biases else None
        return Linear(normal(outer, inner, scale=inner**-0.5).T, bias)

    def norm() -> Norm:
        bias = normal(width, scale=0.3) if shape.biases else None
        weight, epsilon = 1 + normal(width, scale=0.3), float(rng.choice([1e-5, 1e-12]))
        return Norm(weight, bias if shape.centred else None, epsilon, shape.centred)

    def layer() -> Layer:
        attention_scale = float(rng.uniform(0.2, 0.6))
        return Layer(
            SelfAttention(
                stack(*(linear(width, width) for _ in range(3))),
                linear(width, width),
                attention_scale,
                norm(),
            ),
            CrossAttention(
                linear(width, width),
                linear(CHANNELS, width),
                linear(CHANNELS, width),
                linear(width, width),
                attention_scale,
                norm(),
            ),
            FeedForward(
                linear(width, 2 * width),
                linear(2 * width, width),
                shape.activation,  # type: ignore[arg-type]
                norm(),
                linear(width, 2 * width) if shape.gated else None,
            ),
        )

    tokens, padding = normal(VOCAB, width), shape.padding and not shape.relative
    relative = RelativeBias(normal(7, shape.heads), zero=5, longest=POSITIONS)
    return DecoderPlan(
        Embedding(
            tokens,
            None if shape.relative else normal(POSITIONS, width),
            shape.scale,
            norm() if shape.embedding_norm else None,
            PADDING if padding else None,
            normal(width) if padding else None,
        ),
        tuple(layer() for _ in range(shape.layers)),
        shape.heads,
        shape.head_dim,
        shape.norm_first,
        norm() if shape.final_norm else None,
        LmHead(
            tokens if shape.tied else normal(VOCAB, width),
            normal(VOCAB) if shape.biases else None,
            (linear(width, width), shape.activation, norm()) if shape.transform else None,  # type: ignore[arg-type]
            shape.head_scale,
        ),
        relative=relative if shape.relative else None,
    )


def open_graphs(plan: DecoderPlan, folder: Path) -> tuple[Any, Any]:
    blocks = [layer.cross_attention for layer in plan.layers]
    connector = build_connector(
        [block for block in blocks if block], tap="tap", length=LENGTH, heads=plan.heads
    )
    save_graph(connector, folder, "connector")
    save_graph(build_decoder(plan, LENGTH), folder, "decoder")
    engine = OnnxEngine(threads=1)
    return engine.open(folder / "connector.onnx"), engine.open(folder / "decoder.onnx")


def session_for(plan: DecoderPlan, graphs: tuple[Any, Any], states: Array, rows: int) -> Any:
    spec = DecoderSpec(
        "decoder.onnx",
        len(plan.layers),
        plan.heads,
        plan.head_dim,
        plan.vocab_size,
        plan.max_positions,
    )
    cross = graphs[0].run({"tap": states})
    return DecoderSession(graphs[1], spec, rows=rows, capacity=POSITIONS, cross=cross)


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(shape=shapes, seed=st.integers(0, 2**31))
def test_prefill_then_steps_equal_the_reference(
    tmp_path_factory: pytest.TempPathFactory, shape: Shape, seed: int
) -> None:
    """Two pictures with two rows each, ragged prompts, then four single steps."""
    plan = random_plan(shape, seed)
    rng = np.random.default_rng(seed)
    states = rng.standard_normal((2, LENGTH, CHANNELS)).astype(np.float32)
    graphs = open_graphs(plan, tmp_path_factory.mktemp("graphs"))
    session = session_for(plan, graphs, states, rows=4)
    tokens = rng.integers(0, VOCAB, (4, 12))
    tokens[rng.random(tokens.shape) < 0.2] = PADDING  # in prompts and among single tokens
    lengths = rng.integers(1, 8, 4)
    wanted = [reference(plan, tokens[r], states[r // 2], lengths[r]) for r in range(4)]
    width = int(lengths.max())
    padded = np.where(np.arange(width) < lengths[:, None], tokens[:, :width], 0)
    steps = [Step(padded.astype(np.int64), lengths.astype(np.int64))]
    steps += [
        Step(np.take_along_axis(tokens, (lengths + i)[:, None], 1), np.ones(4, np.int64))
        for i in range(4)
    ]
    for i, step in enumerate(steps):
        found = session.run(step)
        for row in range(4):
            exact = wanted[row][lengths[row] - 1 + i]
            np.testing.assert_allclose(found[row], exact, atol=2e-5 * np.abs(wanted[row]).max())


def base_shape(**changes: Any) -> Shape:
    shape = Shape(2, 8, 2, "gelu_tanh", True, True, True, False, False, True, 1.0)
    return replace(shape, **changes)


def test_a_row_does_not_depend_on_its_companions(tmp_path: Path) -> None:
    plan = random_plan(base_shape(), 3)
    graphs = open_graphs(plan, tmp_path)
    rng = np.random.default_rng(0)
    states = rng.standard_normal((3, LENGTH, CHANNELS)).astype(np.float32)
    tokens = rng.integers(0, VOCAB, (3, 6)).astype(np.int64)
    together = session_for(plan, graphs, states, rows=3)
    batch = together.run(Step(tokens, np.full(3, 6))).copy()
    for row in range(3):
        alone = session_for(plan, graphs, states[row : row + 1], rows=1)
        single = alone.run(Step(tokens[row : row + 1], np.array([6])))[0]
        np.testing.assert_allclose(single, batch[row], atol=1e-5)


def test_a_tied_table_is_stored_once() -> None:
    for tied, count in ((True, 1), (False, 2)):
        plan = random_plan(base_shape(tied=tied), 1)
        model = build_decoder(plan, LENGTH)
        shape = (VOCAB, plan.heads * plan.head_dim)
        tables = [
            value
            for value in model.graph.initializers.values()
            if value.const_value is not None and tuple(value.const_value.shape) == shape
        ]
        assert len(tables) == count


def test_the_step_has_no_needless_operators() -> None:
    """Per layer: six products, three norms, two attentions, one activation, two biases to add and
    two views; besides that a handful."""
    model = build_decoder(random_plan(base_shape(layers=3), 1), LENGTH)
    counts: dict[str, int] = {}
    for node in model.graph:
        counts[node.op_type] = counts.get(node.op_type, 0) + 1
    assert counts == {
        "MatMul": 18,
        "SkipLayerNormalization": 10,
        "GroupQueryAttention": 3,
        "MultiHeadAttention": 3,
        "FastGelu": 3,
        "Add": 6,
        "Reshape": 7,
        "Gather": 3,
        "Gemm": 1,
        "Shape": 2,
        "Concat": 2,
    }
    assert isinstance(model, ir.Model)
