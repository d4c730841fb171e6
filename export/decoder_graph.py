"""Builds the fused decoder graph from a `DecoderPlan`: one graph for prefill, step, beams and
questions.

Graph contract (see ARCHITECTURE.md): R rows of T new tokens each, over I images.

========================= ======= ============ =================================================
input_ids, position_ids   int64   [R, T]       positions count from 0
seqlens_k                 int32   [R]          valid length after this call, minus 1
total_sequence_length     int32   []           the longest of those lengths
logits_rows               int64   [N]          which of the R·T positions to compute logits for
past_key.i, past_value.i  float32 [R, H, S, D] padded on the right; may be the present's buffers
cross_key.i, …value.i     float32 [I, H, L, D] row r reads image r // (R / I)
cross_lengths             int32   [I]          how many of the L count; where they may differ
logits                    float32 [N, V]
present_key.i, …value.i   float32 [R, H, S, D]
========================= ======= ============ =================================================

Self-attention is GroupQueryAttention, which writes the cache in place and knows ragged rows. For
cross-attention the queries of all rows of one image are folded into one longer query, so that an
image's keys and values are read once however many beams or questions it has.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from primelens.errors import UnsupportedError
from primelens.export.decoder_plan import DecoderPlan, LmHead, SelfAttention
from primelens.export.graph import MICROSOFT
from primelens.export.stack_graph import FLOAT, INT32, INT64, StackBuilder, cross_names, dense

__all__ = ["DecoderBuilder", "build_decoder", "check_heads"]


def build_decoder(
    plan: DecoderPlan, cross_length: int | None = None, *, ragged_cross: bool = False
) -> ir.Model:
    """The decoder as an ONNX model.

    Args:
        plan: weights and sizes.
        cross_length: the number L of image positions, where it is fixed; for shape checks only.
        ragged_cross: the input ``cross_lengths`` says how many of the L positions count.

    Raises:
        UnsupportedError: the fused attention does not take heads of this width.
    """
    check_heads(plan)
    return DecoderBuilder(plan, cross_length, ragged_cross=ragged_cross).build()


def check_heads(plan: DecoderPlan) -> None:
    """Raises `UnsupportedError` where the fused attention does not take heads of this width."""
    if plan.head_dim % 8:
        raise UnsupportedError(
            f"The decoder's attention heads are {plan.head_dim} wide; the fused operator takes "
            "multiples of 8.",
            remedy="Tune a decoder with another number of heads.",
        )


class DecoderBuilder(StackBuilder):
    """The decoder: causal self-attention with a cache, and logits of the asked positions."""

    def __init__(
        self, plan: DecoderPlan, cross_length: int | None, *, ragged_cross: bool = False
    ) -> None:
        super().__init__(plan, "decoder", cross_length)
        self._head, self._ragged_cross = plan.lm_head, ragged_cross
        self._presents: list[ir.Value] = []
        self._cache: list[int | str] = ["R", plan.heads, "S", plan.head_dim]

    def build(self) -> ir.Model:
        logits = self._logits(self._states(), self._head)
        shape: list[int | str] = ["N", int(self._head.weight.shape[0])]
        outputs = [(logits, FLOAT, shape)]
        outputs += [(present, FLOAT, self._cache) for present in self._presents]
        return self._g.finish(outputs)

    def _declare_inputs(self) -> None:
        g, layers = self._g, len(self._plan.layers)
        self._ids = g.input("input_ids", INT64, ["R", "T"])
        self._positions = g.input("position_ids", INT64, ["R", "T"])
        self._seqlens = g.input("seqlens_k", INT32, ["R"])
        self._total = g.input("total_sequence_length", INT32, [])
        self._rows = g.input("logits_rows", INT64, ["N"])
        self._past = [
            g.input(f"past_{kind}.{layer}", FLOAT, self._cache)
            for layer in range(layers)
            for kind in ("key", "value")
        ]
        if any(layer.cross_attention for layer in self._plan.layers):
            self._declare_cross(cross_names(layers))
        if self._ragged_cross:
            self._lengths = g.input("cross_lengths", INT32, ["I"])

    def _self_attention(self, block: SelfAttention, x: ir.Value, index: int) -> ir.Value:
        name = f"layer.{index}.attention"
        qkv = dense(self._g, x, block.qkv, f"{name}.qkv")
        past = self._past[2 * index : 2 * index + 2]
        context, *present = self._g.ops(
            "GroupQueryAttention",
            [qkv, None, None, *past, self._seqlens, self._total, *self._further()],
            [f"{name}.context", f"present_key.{index}", f"present_value.{index}"],
            domain=MICROSOFT,
            num_heads=self._plan.heads,
            kv_num_heads=self._plan.heads,
            scale=float(block.scale),
        )
        self._presents += present
        return context

    def _further(self) -> list[ir.Value | None]:
        """Further inputs of the operator."""
        return [] if self._bias is None else [None, None, None, self._bias]

    def _keys(self) -> ir.Value:
        return self._g.op("Cast", [self._total], "distance.end", to=INT64)

    def _logits(self, hidden: ir.Value, head: LmHead) -> ir.Value:
        g, channels = self._g, self._head.weight.shape[1]
        flat = g.op("Reshape", [hidden, g.integers("head.shape", [-1, channels])], "head.flat")
        chosen = g.op("Gather", [flat, self._rows], "head.chosen", axis=0)
        if head.transform is not None:
            linear, activation, norm = head.transform
            product = dense(g, chosen, linear, "head.transform", add_bias=False)
            active = self._activate(product, linear, activation, "head.transform")
            chosen = self._norm(active, norm, "head.norm")
        if head.scale != 1.0:
            chosen = self._times(chosen, head.scale, "head.scaled")
        inputs: Sequence[ir.Value] = [chosen, g.weight("head.weight", head.weight)]
        if head.bias is not None:
            inputs = [*inputs, g.weight("head.bias", head.bias)]
        return g.op("Gemm", inputs, "logits", transB=1)
