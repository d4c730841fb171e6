"""What the graphs over a `Stack` of layers have in common: the residual stream and its blocks.

Decoders, question encoders, prefixes and matchers are built on `StackBuilder`; each says what its
inputs are and what self-attention is. For cross-attention the queries of all rows of one image are
folded into one longer query, so that an image's keys and values are read once however many beams
or questions it has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from primelens.export.decoder_plan import (
    Activation,
    Array,
    CrossAttention,
    FeedForward,
    Layer,
    Linear,
    Norm,
    RelativeBias,
    SelfAttention,
    Stack,
)
from primelens.export.graph import MICROSOFT, GraphBuilder

__all__ = [
    "FLOAT",
    "INT32",
    "INT64",
    "MASKED",
    "StackBuilder",
    "Stream",
    "activate",
    "cross_names",
    "dense",
]

MASKED = -1e30  # added to a score: its share of the softmax is exactly 0
INT32, INT64, FLOAT = ir.DataType.INT32, ir.DataType.INT64, ir.DataType.FLOAT


def cross_names(layers: int, of: str = "cross") -> list[str]:
    """``cross_key.0, cross_value.0, cross_key.1, …``."""
    return [f"{of}_{kind}.{layer}" for layer in range(layers) for kind in ("key", "value")]


def dense(
    g: GraphBuilder, x: ir.Value, linear: Linear, name: str, *, add_bias: bool = True
) -> ir.Value:
    """``x @ weight (+ bias)``."""
    weight = g.weight(f"{name}.weight", linear.weight)
    y = g.op("MatMul", [x, weight], f"{name}.product")
    if not add_bias or linear.bias is None:
        return y
    return g.op("Add", [y, g.weight(f"{name}.bias", linear.bias)], f"{name}.sum")


def _blocks(layer: Layer) -> list[SelfAttention | CrossAttention | FeedForward]:
    """What a layer computes, in order."""
    cross = layer.cross_attention
    between = [] if cross is None else [cross]
    return [layer.self_attention, *between, layer.feed_forward]


@dataclass
class Stream:
    """The residual stream: ``value``, and ``normed``, what the next block reads."""

    value: ir.Value
    normed: ir.Value


class StackBuilder:
    """What all graphs over a `Stack` have in common: the residual stream and its blocks.

    A subclass declares the inputs (``_declare_inputs``) and says what self-attention is
    (``_self_attention``) and how many places a bias for distances looks at (``_keys``).
    """

    def __init__(self, plan: Stack, name: str, cross_length: int | None) -> None:
        self._plan = plan
        self._width = plan.heads * plan.head_dim
        self._length: int | str = cross_length or "L"
        self._g = GraphBuilder(name)
        self._lengths: ir.Value | None = None  # of cross-attention, where not all of it counts
        self._bias: ir.Value | None = None  # of self-attention
        self._ids: ir.Value
        self._positions: ir.Value

    def _states(self) -> ir.Value:
        """The last layer's states."""
        plan = self._plan
        self._declare_inputs()
        if plan.relative is not None:
            self._bias = self._distances(plan.relative)
        stream = self._embed()
        for index in range(len(plan.layers)):
            stream = self._layer(index, stream)
        hidden = stream.normed
        if plan.final_norm is not None and not plan.norm_first:
            hidden = self._norm(hidden, plan.final_norm, "final_norm")
        return hidden

    def _layer(self, index: int, stream: Stream) -> Stream:
        for block in _blocks(self._plan.layers[index]):
            branch, linear = self._block(block, stream, index)
            following = self._norm_after(index, block)
            stream = self._join(branch, linear, stream, following, f"layer.{index}")
        return stream

    def _declare_inputs(self) -> None:
        raise NotImplementedError

    def _self_attention(self, block: SelfAttention, x: ir.Value, index: int) -> ir.Value:
        raise NotImplementedError

    def _keys(self) -> ir.Value:
        """How many places self-attention sees at most: int64, a scalar."""
        raise NotImplementedError

    def _distances(self, relative: RelativeBias) -> ir.Value:
        """``[R, H, T, S]``, from where queries stand (``_positions [R, T]``) and keys are: once for
        all layers.
        """
        g, last = self._g, len(relative.table) - 1
        zero, one = (g.op("Constant", [], f"distance.{n}", value_int=n) for n in (0, 1))
        places = g.op("Range", [zero, self._keys(), one], "distance.keys")
        queries = g.op("Unsqueeze", [self._positions, g.integers("distance.axis", [2])],
                       "distance.queries")  # fmt: skip
        distance = g.op("Sub", [places, queries], "distance")  # [R, T, S]
        shift = g.op("Constant", [], "distance.zero", value_int=relative.zero)
        row = g.op("Add", [distance, shift], "distance.shifted")
        end = g.op("Constant", [], "distance.last", value_int=last)
        row = g.op("Clip", [row, zero, end], "distance.row")
        table = g.weight("distance.bias", relative.table)
        found = g.op("Gather", [table, row], "distance.found", axis=0)
        return g.op("Transpose", [found], "distance.all", perm=[0, 3, 1, 2])

    def _declare_cross(self, names: Sequence[str]) -> None:
        shape: list[int | str] = ["I", self._plan.heads, self._length, self._plan.head_dim]
        self._cross = [self._g.input(name, FLOAT, shape) for name in names]
        self._declare_folding()

    def _declare_folding(self) -> None:
        """The shapes ``[I, (R/I)·T, C]`` and ``[R, T, C]``, once for all layers."""
        g = self._g
        width = g.integers("fold.width", [self._width])
        images = g.op("Shape", [self._cross[0]], "fold.images", start=0, end=1)
        rest = g.integers("fold.rest", [-1])
        rows = g.op("Shape", [self._ids], "fold.rows")
        self._folded = g.op("Concat", [images, rest, width], "fold.folded", axis=0)
        self._unfolded = g.op("Concat", [rows, width], "fold.unfolded", axis=0)

    # The stream --------------------------------------------------------------------------------

    def _tokens(self) -> ir.Value:
        """Every token's vector."""
        g, embedding = self._g, self._plan.embedding
        table = g.weight("embedding.tokens", embedding.tokens)
        tokens = g.op("Gather", [table, self._ids], "embedding.token", axis=0)
        if embedding.scale != 1.0:
            tokens = self._times(tokens, embedding.scale, "embedding.scaled")
        return tokens

    def _embed(self) -> Stream:
        embedding, tokens = self._plan.embedding, self._tokens()
        places = None if embedding.positions is None else self._places(embedding.positions)
        first, name = self._plan.layers[0].self_attention.norm, "layer.0.attention.norm"
        if embedding.norm is None and self._plan.norm_first:
            normed, value = self._sum_norm(tokens, places, first, name)
            return Stream(value, normed)
        if embedding.norm is not None:
            value, _ = self._sum_norm(tokens, places, embedding.norm, "embedding.norm")
        elif places is not None:
            value = self._g.op("Add", [tokens, places], "embedding.sum")
        else:
            value = tokens
        return self._start(value)

    def _start(self, value: ir.Value) -> Stream:
        """The stream before the first layer."""
        if not self._plan.norm_first:
            return Stream(value, value)
        first = self._plan.layers[0].self_attention.norm
        return Stream(value, self._norm(value, first, "layer.0.attention.norm"))

    def _sum_norm(
        self, x: ir.Value, skip: ir.Value | None, norm: Norm, name: str
    ) -> tuple[ir.Value, ir.Value]:
        """``x + skip``, normalised and as it is."""
        if skip is None:
            return self._norm(x, norm, name), x
        return self._skip_norm(x, skip, norm, None, name)

    def _times(self, x: ir.Value, factor: float, name: str) -> ir.Value:
        constant = self._g.op("Constant", [], f"{name}.factor", value_float=float(factor))
        return self._g.op("Mul", [x, constant], name)

    def _places(self, table: Array) -> ir.Value:
        """Every token's position vector."""
        g, embedding = self._g, self._plan.embedding
        positions = self._positions
        if embedding.padding is not None:
            assert embedding.unplaced is not None
            # Row 0 is the padding token's; the others count from 1: those before this call (which
            # transformers counts whatever they were), and in it those that are no padding.
            table = np.concatenate([embedding.unplaced[None], table])
            padding = g.integers("embedding.padding", [embedding.padding])
            found = g.op("Equal", [self._ids, padding], "embedding.padded")
            placed = g.op("Not", [found], "embedding.placed")
            placed = g.op("Cast", [placed], "embedding.counted", to=INT64)
            axis = g.integers("embedding.axis", [1])
            count = g.op("CumSum", [placed, axis], "embedding.count")
            first = g.integers("embedding.first", [0])
            before = g.op("Gather", [self._positions, first], "embedding.before", axis=1)
            count = g.op("Add", [count, before], "embedding.place")
            positions = g.op("Mul", [count, placed], "embedding.row")
        weight = g.weight("embedding.positions", table)
        return g.op("Gather", [weight, positions], "embedding.position", axis=0)

    def _norm_after(
        self, index: int, block: SelfAttention | CrossAttention | FeedForward
    ) -> tuple[Norm | None, str]:
        """The normalisation that stands behind a block's residual sum, and its name."""
        plan, layer, name = self._plan, self._plan.layers[index], f"layer.{index}"
        names = {
            SelfAttention: f"{name}.attention.norm",
            CrossAttention: f"{name}.cross.norm",
            FeedForward: f"{name}.mlp.norm",
        }
        if not plan.norm_first:
            return block.norm, names[type(block)]
        if isinstance(block, SelfAttention) and layer.cross_attention is not None:
            return layer.cross_attention.norm, names[CrossAttention]
        if not isinstance(block, FeedForward):
            return layer.feed_forward.norm, names[FeedForward]
        if index + 1 < len(plan.layers):
            return plan.layers[index + 1].self_attention.norm, f"layer.{index + 1}.attention.norm"
        return plan.final_norm, "final_norm"

    def _join(
        self,
        branch: ir.Value,
        linear: tuple[Linear, str],
        stream: Stream,
        following: tuple[Norm | None, str],
        name: str,
    ) -> Stream:
        """Residual sum, the block's last bias and the normalisation that follows, as one
        operator.
        """
        (norm, norm_name), (out, out_name) = following, linear
        bias = None if out.bias is None else self._g.weight(f"{out_name}.bias", out.bias)
        if norm is None:
            if bias is not None:
                branch = self._g.op("Add", [branch, bias], f"{out_name}.sum")
            value = self._g.op("Add", [branch, stream.value], f"{name}.output")
            return Stream(value, value)
        normed, value = self._skip_norm(branch, stream.value, norm, bias, norm_name)
        return Stream(value, normed) if self._plan.norm_first else Stream(normed, normed)

    def _skip_norm(
        self, x: ir.Value, skip: ir.Value, norm: Norm, bias: ir.Value | None, name: str
    ) -> tuple[ir.Value, ir.Value]:
        g = self._g
        weight = g.weight(f"{name}.weight", norm.weight)
        shift = None if norm.bias is None else g.weight(f"{name}.bias", norm.bias)
        inputs: list[ir.Value | None] = [x, skip, weight]
        inputs += [shift] if norm.centred else []
        inputs += [] if bias is None else [bias]
        names = [name, "", "", f"{name}.stream"]
        kind = "SkipLayerNormalization" if norm.centred else "SkipSimplifiedLayerNormalization"
        outputs = g.ops(kind, inputs, names, domain=MICROSOFT, epsilon=float(norm.epsilon))
        return outputs[0], outputs[3]

    def _norm(self, x: ir.Value, norm: Norm, name: str) -> ir.Value:
        g = self._g
        inputs = [x, g.weight(f"{name}.weight", norm.weight)]
        if not norm.centred:
            return g.op("RMSNormalization", inputs, name, axis=-1, epsilon=float(norm.epsilon))
        if norm.bias is not None:
            inputs.append(g.weight(f"{name}.bias", norm.bias))
        return g.op("LayerNormalization", inputs, name, axis=-1, epsilon=float(norm.epsilon))

    # The blocks --------------------------------------------------------------------------------

    def _block(
        self, block: SelfAttention | CrossAttention | FeedForward, stream: Stream, index: int
    ) -> tuple[ir.Value, tuple[Linear, str]]:
        """The block up to its last product; its bias is left to the residual sum."""
        name = f"layer.{index}"
        if isinstance(block, SelfAttention):
            context = self._self_attention(block, stream.normed, index)
            last, last_name = block.out, f"{name}.attention.out"
        elif isinstance(block, CrossAttention):
            context = self._cross_attention(block, stream.normed, index)
            last, last_name = block.out, f"{name}.cross.out"
        else:
            context = self._feed_forward(block, stream.normed, f"{name}.mlp")
            last, last_name = block.down, f"{name}.mlp.down"
        product = dense(self._g, context, last, last_name, add_bias=False)
        return product, (last, last_name)

    def _feed_forward(self, block: FeedForward, x: ir.Value, name: str) -> ir.Value:
        """What the last product reads."""
        g = self._g
        gate, what = (block.up, "up") if block.gate is None else (block.gate, "gate")
        hidden = dense(g, x, gate, f"{name}.{what}", add_bias=False)
        active = self._activate(hidden, gate, block.activation, f"{name}.{what}")
        if block.gate is None:
            return active
        return g.op("Mul", [active, dense(g, x, block.up, f"{name}.up")], f"{name}.gated")

    def _cross_attention(self, block: CrossAttention, x: ir.Value, index: int) -> ir.Value:
        g, name = self._g, f"layer.{index}.cross"
        query = dense(g, x, block.query, f"{name}.query")
        query = g.op("Reshape", [query, self._folded], f"{name}.folded")
        context = g.op(
            "MultiHeadAttention",
            [query, *self._cross[2 * index : 2 * index + 2], *self._mask(self._lengths)],
            f"{name}.context",
            domain=MICROSOFT,
            num_heads=self._plan.heads,
            scale=float(block.scale),
            **({} if self._lengths is None else {"mask_filter_value": MASKED}),
        )
        return g.op("Reshape", [context, self._unfolded], f"{name}.unfolded")

    @staticmethod
    def _mask(lengths: ir.Value | None) -> list[ir.Value | None]:
        """The further inputs of MultiHeadAttention that leave out what is not in ``lengths``."""
        return [] if lengths is None else [None, lengths]

    def _activate(self, x: ir.Value, linear: Linear, activation: Activation, name: str) -> ir.Value:
        """Bias and activation, fused where an operator exists."""
        g = self._g
        bias = None if linear.bias is None else g.weight(f"{name}.bias", linear.bias)
        fused = {"gelu": "BiasGelu", "gelu_tanh": "FastGelu"}.get(activation)
        if fused is not None and bias is not None:
            return g.op(fused, [x, bias], f"{name}.active", domain=MICROSOFT)
        if bias is not None:
            x = g.op("Add", [x, bias], f"{name}.sum")
        return activate(g, x, activation, f"{name}.active")


def activate(g: GraphBuilder, x: ir.Value, activation: Activation, name: str) -> ir.Value:
    if activation == "gelu":
        return g.op("Gelu", [x], name)
    if activation == "gelu_tanh":
        return g.op("Gelu", [x], name, approximate="tanh")
    if activation == "relu":
        return g.op("Relu", [x], name)
    if activation == "quick_gelu":
        return g.op("QuickGelu", [x], name, domain=MICROSOFT, alpha=1.702)
    sigmoid = g.op("Sigmoid", [x], f"{name}.gate")
    return g.op("Mul", [x, sigmoid], name)
