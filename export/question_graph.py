"""Builds the graph of a question encoder: questions and what they read of their picture → the keys
and values that the answer's decoder reads.

Graph contract (see ARCHITECTURE.md): Q questions of T tokens each, over I images.

========================= ======= ============= ================================================
input_ids                 int64   [Q, T]        padded on the right
question_lengths          int32   [Q]           how many of the T tokens count
picture_key.i, …value.i   float32 [I, H, L, D]  question q reads image q // (Q / I)
cross_key.i, …value.i     float32 [Q, H, T, D]  one pair per layer of the decoder
========================= ======= ============= ================================================

Attention among a question's tokens is bidirectional and leaves the padding out; positions count
from 0. What the graph says about padding is for the reader of its outputs to leave out. The
questions of one image are folded into one longer query, as the rows of a decoder are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from primelens.export.connector_graph import key_values
from primelens.export.decoder_graph import (
    INT32,
    INT64,
    MASKED,
    StackBuilder,
    cross_names,
    dense,
)
from primelens.export.decoder_plan import CrossAttention, SelfAttention, Stack
from primelens.export.graph import MICROSOFT

__all__ = ["QuestionPlan", "build_question_encoder", "read_by"]


@dataclass(frozen=True)
class QuestionPlan:
    """A question encoder.

    Attributes:
        stack: embedding and layers; their cross-attention reads the picture.
        pad_token: what questions may be filled up with.
    """

    stack: Stack
    pad_token: int


def read_by(stack: Stack) -> list[CrossAttention]:
    """The cross-attention blocks of a stack, in order."""
    blocks = [layer.cross_attention for layer in stack.layers]
    return [block for block in blocks if block is not None]


def build_question_encoder(
    stack: Stack, readers: Sequence[CrossAttention], heads: int, picture_length: int
) -> ir.Model:
    """The question encoder as an ONNX model.

    Args:
        stack: its embedding and layers.
        readers: the decoder's cross-attention blocks, in order.
        heads: the decoder's attention heads.
        picture_length: number L of image positions.
    """
    builder = _QuestionBuilder(stack, picture_length)
    return builder.build(readers, heads)


class _QuestionBuilder(StackBuilder):
    def __init__(self, stack: Stack, picture_length: int) -> None:
        super().__init__(stack, "question", picture_length)

    def build(self, readers: Sequence[CrossAttention], heads: int) -> ir.Model:
        states, names = self._states(), cross_names(len(readers))
        outputs = key_values(self._g, states, readers, names=names, length="T", heads=heads)
        return self._g.finish([(v, dtype, ["Q", *shape[1:]]) for v, dtype, shape in outputs])

    def _declare_inputs(self) -> None:
        g = self._g
        self._ids = g.input("input_ids", INT64, ["Q", "T"])
        self._counted = g.input("question_lengths", INT32, ["Q"])
        width = g.op("Shape", [self._ids], "positions.width", start=1, end=2)
        end = g.op("Squeeze", [width], "positions.end")
        first = g.op("Constant", [], "positions.first", value_int=0)
        step = g.op("Constant", [], "positions.step", value_int=1)
        counted = g.op("Range", [first, end, step], "positions.counted")
        axis = g.integers("positions.axis", [0])
        self._positions = g.op("Unsqueeze", [counted, axis], "positions")  # [1, T]
        shape = g.op("Shape", [self._ids], "positions.shape")
        self._positions = g.op("Expand", [self._positions, shape], "positions.all")
        self._declare_cross(cross_names(len(self._plan.layers), "picture"))

    def _self_attention(self, block: SelfAttention, x: ir.Value, index: int) -> ir.Value:
        g, name = self._g, f"layer.{index}.attention"
        qkv = dense(g, x, block.qkv, f"{name}.qkv")
        parts = [f"{name}.{part}" for part in ("query", "key", "value")]
        query, key, value = g.ops("Split", [qkv], parts, axis=2, num_outputs=3)
        return g.op(
            "MultiHeadAttention",
            [query, key, value, *self._mask(self._counted)],
            f"{name}.context",
            domain=MICROSOFT,
            num_heads=self._plan.heads,
            scale=float(block.scale),
            mask_filter_value=MASKED,
        )
