"""Builds both graphs of a decoder that reads its picture as a prefix of the text.

The connector runs the picture through the decoder's own layers, once, and gives out what they keep
of it; the decoder's queries are all sequences of a picture, as one tree over one cache.

Graph contract (see ARCHITECTURE.md): I images, of which Q tokens are fed in a call; P positions of
the prefix, S of the cache.

============================ ======= ============ ================================================
<tap>                        float32 [I, …]       the connector's only input
prefix_key.i, prefix_value.i float32 [I, H, P, D] its outputs, for every layer
============================ ======= ============ ================================================

============================ ======= ============ ================================================
input_ids, position_ids      int64   [I, Q]       packed, padded on the right; positions count from
                                                  0 behind the prefix
seqlens_k                    int32   [I]          filled slots after this call, minus 1
query_seqlens                int32   [I]          how many of the Q tokens count
total_sequence_length        int32   []           S
attention_bias               float32 [I, 1, Q, S] 0 where a token sees a slot, else very negative
logits_rows                  int64   [N]          which of the I·Q positions to compute logits for
past_key.i, past_value.i     float32 [I, H, S, D] the prefix first; the present's buffers
logits                       float32 [N, V]
present_key.i, …value.i      float32 [I, H, S, D]
============================ ======= ============ ================================================
"""

from __future__ import annotations

import onnx_ir as ir
import torch

from primelens.export.decoder_graph import DecoderBuilder, check_heads
from primelens.export.decoder_plan import DecoderPlan, SelfAttention
from primelens.export.graph import MICROSOFT
from primelens.export.registry import Prefix
from primelens.export.stack_graph import (
    FLOAT,
    INT32,
    INT64,
    StackBuilder,
    Stream,
    cross_names,
    dense,
)
from primelens.export.traced import traced

__all__ = ["build_prefix_connector", "build_prefix_layers", "build_projector", "build_tree_decoder"]

_UNUSED = 5  # inputs of the operator between the bias and the number of queries


def build_tree_decoder(plan: DecoderPlan) -> ir.Model:
    """The decoder as an ONNX model; raises UnsupportedError as `build_decoder` does."""
    check_heads(plan)
    if plan.embedding.padding is not None:
        raise ValueError("tokens of several sequences lie in one row: none can be without a place")
    if plan.relative is not None:
        raise ValueError("tokens of several sequences lie in one row: slots are no distances")
    return _TreeBuilder(plan, None).build()


def build_prefix_connector(
    plan: DecoderPlan, prefix: Prefix, tap: str, shape: tuple[int, ...]
) -> ir.Model:
    """The connector as an ONNX model.

    Args:
        plan: the decoder; its arrays become the connector's weights.
        prefix: how the tap becomes what the first layer reads.
        tap: name of the graph's input.
        shape: of the tap, without the batch.

    Raises:
        UnsupportedError: as `build_decoder`.
        CheckpointError: torch cannot export the projector.
    """
    check_heads(plan)
    projector = build_projector(prefix, tap, shape, "prefix_states")
    return _chained(projector, build_prefix_layers(plan, prefix.length, causal=prefix.causal))


def build_projector(prefix: Prefix, tap: str, shape: tuple[int, ...], output: str) -> ir.Model:
    """The tap → what stands in the picture's place, ``[I, P, C]``, under the name ``output``;
    arguments and errors as of `build_prefix_connector`.
    """
    size = shape if prefix.frames is None else (prefix.frames, *shape)
    example = torch.linspace(-1.0, 1.0, 2 * int(torch.Size(size).numel())).reshape(2, *size)
    return traced(prefix.module, {tap: example}, {"I": 4096}, [output], what="the projector")


def build_prefix_layers(plan: DecoderPlan, length: int, *, causal: bool) -> ir.Model:
    """``prefix_states [I, P, C]`` → the connector's outputs: the decoder's layers over the prefix,
    up to the last one's keys and values.
    """
    return _PrefixBuilder(plan, length, causal).build()


class _TreeBuilder(DecoderBuilder):
    """Self-attention by a mask over the slots of one cache row per picture."""

    def _declare_inputs(self) -> None:
        g, layers = self._g, len(self._plan.layers)
        self._cache = ["I", self._plan.heads, "S", self._plan.head_dim]
        self._ids = g.input("input_ids", INT64, ["I", "Q"])
        self._positions = g.input("position_ids", INT64, ["I", "Q"])
        self._seqlens = g.input("seqlens_k", INT32, ["I"])
        self._queries = g.input("query_seqlens", INT32, ["I"])
        self._total = g.input("total_sequence_length", INT32, [])
        self._bias = g.input("attention_bias", FLOAT, ["I", 1, "Q", "S"])
        self._rows = g.input("logits_rows", INT64, ["N"])
        self._past = [g.input(name, FLOAT, self._cache) for name in cross_names(layers, "past")]

    def _further(self) -> list[ir.Value | None]:
        return [None, None, None, self._bias, *[None] * _UNUSED, self._queries]


class _PrefixBuilder(StackBuilder):
    def __init__(self, plan: DecoderPlan, length: int, causal: bool) -> None:
        super().__init__(plan, "connector", None)
        self._prefix, self._causal = length, causal
        self._kept: list[ir.Value] = []

    def build(self) -> ir.Model:
        self._declare_inputs()
        stream = self._embed()
        for index in range(len(self._plan.layers) - 1):
            stream = self._layer(index, stream)
        last = len(self._plan.layers) - 1
        self._keep_last(self._plan.layers[last].self_attention, stream.normed, last)
        shape: list[int | str] = ["I", self._plan.heads, self._prefix, self._plan.head_dim]
        return self._g.finish([(value, FLOAT, shape) for value in self._kept])

    def _declare_inputs(self) -> None:
        g, length = self._g, self._prefix
        channels = self._plan.embedding.tokens.shape[1]
        self._inputs = g.input("prefix_states", FLOAT, ["I", length, channels])
        images = g.op("Shape", [self._inputs], "prefix.images", start=0, end=1)
        last = g.op("Constant", [], "prefix.last", value=ir.tensor([length - 1], INT32))
        self._seqlens = g.op("Expand", [last, images], "prefix.seqlens")
        self._total = g.op("Constant", [], "prefix.total", value=ir.tensor(length, INT32))

    def _embed(self) -> Stream:
        first = self._plan.layers[0].self_attention.norm
        if not self._plan.norm_first:
            return Stream(self._inputs, self._inputs)
        return Stream(self._inputs, self._norm(self._inputs, first, "layer.0.attention.norm"))

    def _self_attention(self, block: SelfAttention, x: ir.Value, index: int) -> ir.Value:
        g, name = self._g, f"layer.{index}.attention"
        qkv = dense(g, x, block.qkv, f"{name}.qkv")
        # Without a past the operator's present is what is to be kept.
        context, *kept = g.ops(
            "GroupQueryAttention",
            [qkv, None, None, None, None, self._seqlens, self._total],
            [f"{name}.context", f"prefix_key.{index}", f"prefix_value.{index}"],
            domain=MICROSOFT,
            num_heads=self._plan.heads,
            kv_num_heads=self._plan.heads,
            scale=float(block.scale),
            causal=int(self._causal),
        )
        self._kept += kept
        return context

    def _keep_last(self, block: SelfAttention, x: ir.Value, index: int) -> None:
        """Nothing reads the last layer's states: of it keys and values are enough."""
        g, name = self._g, f"layer.{index}.attention"
        qkv = dense(g, x, block.qkv, f"{name}.qkv")
        names = [f"{name}.query", f"{name}.key", f"{name}.value"]
        parts = g.ops("Split", [qkv], names, axis=2, num_outputs=3)
        sizes = [0, self._prefix, self._plan.heads, self._plan.head_dim]
        shape = g.integers("heads.shape", sizes)
        for kind, part in zip(("key", "value"), parts[1:], strict=True):
            split = g.op("Reshape", [part, shape], f"{name}.{kind}.heads")
            kept = g.op("Transpose", [split], f"prefix_{kind}.{index}", perm=[0, 2, 1, 3])
            self._kept.append(kept)


def _chained(front: ir.Model, back: ir.Model) -> ir.Model:
    """One model of two: the first one's output is the second one's only input."""
    (read,), (written,) = back.graph.inputs, front.graph.outputs
    values = [*front.graph.initializers.values()]
    values += [value for node in front.graph.all_nodes() for value in node.outputs]
    for value in values:
        value.name = f"projector.{value.name}"
    inputs = list(front.graph.inputs)
    nodes, initializers = list(front.graph), list(front.graph.initializers.values())
    front.graph.outputs.clear()
    front.graph.inputs.clear()
    front.graph.remove(nodes)
    front.graph.initializers.clear()
    read.replace_all_uses_with(written)
    graph = back.graph
    graph.inputs.clear()
    graph.inputs.extend(inputs)
    for initializer in initializers:
        graph.register_initializer(initializer)
    graph.insert_before(graph[0], nodes)
    graph.opset_imports.update(
        {
            domain: v
            for domain, v in front.graph.opset_imports.items()
            if domain not in graph.opset_imports
        }
    )
    back.functions.update(front.functions)
    return back
