"""Builds the graph of image-text matching: texts and what they read of their picture → two logits.

Graph contract (see ARCHITECTURE.md): Q texts of T tokens each, over I images.

========================= ======= ============= ================================================
input_ids                 int64   [Q, T]        padded on the right
text_lengths              int32   [Q]           how many of the T tokens count
picture_key.i, …value.i   float32 [I, H, L, D]  text q reads image q // (Q / I)
match_logits              float32 [Q, 2]        of no match, and of a match
========================= ======= ============= ================================================

The encoder is a question encoder's (`primelens.export.question_graph`); the logits come from its
first token's state.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from primelens.export.decoder_plan import Linear, Stack
from primelens.export.question_graph import ReaderBuilder
from primelens.export.stack_graph import FLOAT, dense

__all__ = ["MatchingPlan", "build_matching"]


@dataclass(frozen=True)
class MatchingPlan:
    """A text encoder that reads the picture, and what its first state becomes.

    Attributes:
        stack: embedding and layers; their cross-attention reads the picture.
        head: from the first token's state to two logits: no match, and match.
    """

    stack: Stack
    head: Linear


def build_matching(plan: MatchingPlan, picture_length: int) -> ir.Model:
    """The matching as an ONNX model; ``picture_length`` is the number L of image positions."""
    return _MatchingBuilder(plan.stack, "text", picture_length).build(plan.head)


class _MatchingBuilder(ReaderBuilder):
    def build(self, head: Linear) -> ir.Model:
        g, states = self._g, self._states()
        # All states and not the first alone: one row would be multiplied otherwise than several.
        logits = dense(g, states, head, "match.head")
        first = g.integers("match.first", [0])
        chosen = g.op("Gather", [logits, first], "match.chosen", axis=1)
        axis = g.integers("match.axis", [1])
        value = g.op("Squeeze", [chosen, axis], "match_logits")
        return g.finish([(value, FLOAT, ["Q", 2])])
