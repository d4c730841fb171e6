"""Builds the graph of a question encoder: questions and what they read of their picture → the keys
and values that the answer's decoder reads.

Graph contract (see ARCHITECTURE.md): Q questions of T tokens each, over I images.

========================= ======= ============= ================================================
input_ids                 int64   [Q, T]        padded on the right
question_lengths          int32   [Q]           how many of the T tokens count
picture_key.i, …value.i   float32 [I, H, L, D]  question q reads image q // (Q / I); or, where the
picture_states            float32 [I, P, C]     picture stands before the question, its states
cross_key.i, …value.i     float32 [Q, H, K, D]  one pair per layer of the decoder; K is P + T
========================= ======= ============= ================================================

Attention among a question's tokens, and the states before them, is bidirectional and leaves the
padding out; positions count from 0. What the graph says about padding is for the reader of its
outputs to leave out. The questions of one image are folded into one longer query where they read
it by cross-attention, as the rows of a decoder are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from primelens.export.connector_graph import key_values
from primelens.export.decoder_plan import CrossAttention, SelfAttention, Stack
from primelens.export.graph import MICROSOFT
from primelens.export.stack_graph import (
    FLOAT,
    INT32,
    INT64,
    MASKED,
    StackBuilder,
    Stream,
    cross_names,
    dense,
)

__all__ = ["PICTURE", "QuestionPlan", "ReaderBuilder", "build_question_encoder", "read_by"]

PICTURE = "picture_states"


@dataclass(frozen=True)
class QuestionPlan:
    """A question encoder.

    Attributes:
        stack: embedding and layers; their cross-attention reads the picture.
        pad_token: what questions may be filled up with.
        unasked: ids that stand for no question, where the source can do without; else None.
    """

    stack: Stack
    pad_token: int
    unasked: tuple[int, ...] | None = None


def read_by(stack: Stack) -> list[CrossAttention]:
    """The cross-attention blocks of a stack, in order."""
    blocks = [layer.cross_attention for layer in stack.layers]
    return [block for block in blocks if block is not None]


def build_question_encoder(
    stack: Stack,
    readers: Sequence[CrossAttention],
    heads: int,
    picture_length: int,
    *,
    before: bool = False,
) -> ir.Model:
    """The question encoder as an ONNX model.

    Args:
        stack: its embedding and layers.
        readers: the decoder's cross-attention blocks, in order.
        heads: the decoder's attention heads.
        picture_length: number of image positions: L of the tap, or P of the states.
        before: the picture's states stand before the question's tokens, which have neither
            positions nor a normalisation of their own.
    """
    if before and (stack.embedding.positions is not None or stack.embedding.norm is not None):
        raise ValueError("states stand before tokens that are nothing but their vectors")
    kind = _AfterPicture if before else _QuestionBuilder
    return kind(stack, "question", picture_length).build(readers, heads)


class ReaderBuilder(StackBuilder):
    """A text encoder that reads padded texts in both directions, and a picture.

    Its inputs are ``input_ids``, ``<name>_lengths`` and the picture's keys and values.
    """

    def __init__(self, stack: Stack, name: str, picture_length: int) -> None:
        super().__init__(stack, name, picture_length)
        self._counts = f"{name}_lengths"

    def _declare_inputs(self) -> None:
        g = self._g
        self._ids = g.input("input_ids", INT64, ["Q", "T"])
        self._counted = g.input(self._counts, INT32, ["Q"])
        self._end = g.op("Squeeze", [self._width_of_ids()], "positions.end")
        first = g.op("Constant", [], "positions.first", value_int=0)
        step = g.op("Constant", [], "positions.step", value_int=1)
        counted = g.op("Range", [first, self._end, step], "positions.counted")
        axis = g.integers("positions.axis", [0])
        self._positions = g.op("Unsqueeze", [counted, axis], "positions")  # [1, T]
        self._declare_picture()

    def _width_of_ids(self) -> ir.Value:
        return self._g.op("Shape", [self._ids], "positions.width", start=1, end=2)

    def _declare_picture(self) -> None:
        g = self._g
        shape = g.op("Shape", [self._ids], "positions.shape")
        self._positions = g.op("Expand", [self._positions, shape], "positions.all")
        self._declare_cross(cross_names(len(self._plan.layers), "picture"))

    def _keys(self) -> ir.Value:
        return self._end

    def _self_attention(self, block: SelfAttention, x: ir.Value, index: int) -> ir.Value:
        g, name = self._g, f"layer.{index}.attention"
        qkv = dense(g, x, block.qkv, f"{name}.qkv")
        parts = [f"{name}.{part}" for part in ("query", "key", "value")]
        query, key, value = g.ops("Split", [qkv], parts, axis=2, num_outputs=3)
        bias = [] if self._bias is None else [self._bias]
        return g.op(
            "MultiHeadAttention",
            [query, key, value, *self._mask(self._counted), *bias],
            f"{name}.context",
            domain=MICROSOFT,
            num_heads=self._plan.heads,
            scale=float(block.scale),
            mask_filter_value=MASKED,
        )


class _QuestionBuilder(ReaderBuilder):
    def build(self, readers: Sequence[CrossAttention], heads: int) -> ir.Model:
        states, names = self._states(), cross_names(len(readers))
        outputs = key_values(self._g, states, readers, names=names, length="K", heads=heads)
        return self._g.finish([(v, dtype, ["Q", *shape[1:]]) for v, dtype, shape in outputs])


class _AfterPicture(_QuestionBuilder):
    """The picture's states stand in the sequence itself, before the question's tokens."""

    def _declare_picture(self) -> None:
        g, before = self._g, int(self._length)
        channels = int(self._plan.embedding.tokens.shape[1])
        self._picture = g.input(PICTURE, FLOAT, ["I", before, channels])
        length = g.op("Constant", [], "picture.length", value=ir.tensor(before, INT32))
        self._counted = g.op("Add", [self._counted, length], "picture.counted")

    def _width_of_ids(self) -> ir.Value:
        g = self._g
        length = g.integers("picture.places", [int(self._length)])
        return g.op("Add", [super()._width_of_ids(), length], "picture.width")

    def _embed(self) -> Stream:
        return self._start(self._g.op("Concat", [self._before(), self._tokens()], "stream", axis=1))

    def _before(self) -> ir.Value:
        """Every question's copy of its picture's states, ``[Q, P, C]``."""
        g, length = self._g, int(self._length)
        channels = int(self._plan.embedding.tokens.shape[1])
        questions = g.op("Shape", [self._ids], "picture.questions", start=0, end=1)
        pictures = g.op("Shape", [self._picture], "picture.count", start=0, end=1)
        each = g.op("Div", [questions, pictures], "picture.each")
        rest = g.integers("picture.rest", [length, channels])
        shape = g.op("Concat", [pictures, each, rest], "picture.spread", axis=0)
        row = g.op("Unsqueeze", [self._picture, g.integers("picture.axis", [1])], "picture.row")
        spread = g.op("Expand", [row, shape], "picture.copies")
        whole = g.op("Concat", [questions, rest], "picture.whole", axis=0)
        return g.op("Reshape", [spread, whole], "picture.before")
