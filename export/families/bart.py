"""BART's and mBART's decoders with cross-attention (``BartForCausalLM``, ``MBartForCausalLM``).

Donut's text side is an ``MBartForCausalLM``. Positions are learned and start at row 2 of their
table; token vectors may be scaled by the root of the width; their sum is normalised.
"""

from __future__ import annotations

from typing import Any

from primelens.export.decoder_plan import (
    CrossAttention,
    DecoderPlan,
    Embedding,
    FeedForward,
    Layer,
    LmHead,
    Norm,
    SelfAttention,
    stack,
)
from primelens.export.layers import activation, activation_gap, linear, norm, same
from primelens.export.registry import as_array, register_decoder

__all__ = ["POSITION_OFFSET", "BartDecoder", "MBartDecoder", "bart_layer"]

POSITION_OFFSET = 2  # transformers' embed_positions.offset


class _Bart:
    norm_first: bool

    def gaps(self, config: Any) -> list[str]:
        return activation_gap("decoder.activation_function", config.activation_function)

    def plan(self, model: Any) -> DecoderPlan:
        config, body = model.config, model.model.decoder
        tokens = as_array(body.embed_tokens.weight)
        return DecoderPlan(
            embedding=Embedding(
                tokens,
                as_array(body.embed_positions.weight)[POSITION_OFFSET:],
                scale=float(body.embed_tokens.embed_scale),
                norm=norm(body.layernorm_embedding),
            ),
            layers=tuple(bart_layer(layer, config.activation_function) for layer in body.layers),
            heads=config.decoder_attention_heads,
            head_dim=config.d_model // config.decoder_attention_heads,
            norm_first=self.norm_first,
            final_norm=self._final_norm(body),
            lm_head=LmHead(weight=same(as_array(model.lm_head.weight), tokens)),
        )

    def _final_norm(self, body: Any) -> Norm | None:
        return norm(body.layer_norm) if self.norm_first else None


@register_decoder
class BartDecoder(_Bart):
    """Normalisation after each residual sum, none at the end."""

    name = "bart"
    model_types = ("bart",)
    norm_first = False


@register_decoder
class MBartDecoder(_Bart):
    """Normalisation first, and at the end."""

    name = "mbart"
    model_types = ("mbart",)
    norm_first = True


def bart_layer(layer: Any, activation_name: str) -> Layer:
    """A decoder layer under BART's names."""
    attention, cross = layer.self_attn, layer.encoder_attn
    projections = (attention.q_proj, attention.k_proj, attention.v_proj)
    return Layer(
        self_attention=SelfAttention(
            qkv=stack(*(linear(projection) for projection in projections)),
            out=linear(attention.out_proj),
            scale=float(attention.scaling),
            norm=norm(layer.self_attn_layer_norm),
        ),
        cross_attention=CrossAttention(
            query=linear(cross.q_proj),
            key=linear(cross.k_proj),
            value=linear(cross.v_proj),
            out=linear(cross.out_proj),
            scale=float(cross.scaling),
            norm=norm(layer.encoder_attn_layer_norm),
        ),
        feed_forward=FeedForward(
            up=linear(layer.fc1),
            down=linear(layer.fc2),
            activation=activation(activation_name),
            norm=norm(layer.final_layer_norm),
        ),
    )
