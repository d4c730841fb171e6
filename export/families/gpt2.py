"""GPT-2 as a text decoder with cross-attention (transformers ``GPT2LMHeadModel``)."""

from __future__ import annotations

from typing import Any

import numpy as np

from primelens.export.decoder_plan import (
    CrossAttention,
    DecoderPlan,
    Embedding,
    FeedForward,
    Layer,
    Linear,
    LmHead,
    SelfAttention,
)
from primelens.export.layers import activation, activation_gap, norm, same
from primelens.export.registry import as_array, register_decoder

__all__ = ["Gpt2Decoder"]


@register_decoder
class Gpt2Decoder:
    """Normalisation first; ``Conv1D`` weights are stored ``[in, out]``."""

    name = "gpt2"
    model_types = ("gpt2",)

    def gaps(self, config: Any) -> list[str]:
        gaps = activation_gap("decoder.activation_function", config.activation_function)
        if not config.add_cross_attention:
            gaps.append("decoder.add_cross_attention is false: the text would not see the image")
        # reorder_and_upcast_attn only changes half precision; in float32 it is the same product.
        return gaps

    def plan(self, model: Any) -> DecoderPlan:
        config, body = model.config, model.transformer
        tokens = as_array(body.wte.weight)
        head = model.lm_head
        return DecoderPlan(
            embedding=Embedding(tokens, as_array(body.wpe.weight)),
            layers=tuple(_layer(block, config) for block in body.h),
            heads=config.num_attention_heads,
            head_dim=config.hidden_size // config.num_attention_heads,
            norm_first=True,
            final_norm=norm(body.ln_f),
            lm_head=LmHead(
                weight=same(as_array(head.weight), tokens),
                bias=None if head.bias is None else as_array(head.bias),
            ),
        )


def _conv1d(module: Any, part: slice | None = None) -> Linear:
    part = part or slice(None)
    return Linear(as_array(module.weight)[:, part], as_array(module.bias)[part])


def _layer(block: Any, config: Any) -> Layer:
    width = config.hidden_size
    cross = block.crossattention
    return Layer(
        self_attention=SelfAttention(
            qkv=_conv1d(block.attn.c_attn),
            out=_conv1d(block.attn.c_proj),
            scale=_scale(block.attn, config),
            norm=norm(block.ln_1),
        ),
        cross_attention=CrossAttention(
            query=_conv1d(cross.q_attn),
            key=_conv1d(cross.c_attn, slice(0, width)),
            value=_conv1d(cross.c_attn, slice(width, 2 * width)),
            out=_conv1d(cross.c_proj),
            scale=_scale(cross, config),
            norm=norm(block.ln_cross_attn),
        ),
        feed_forward=FeedForward(
            up=_conv1d(block.mlp.c_fc),
            down=_conv1d(block.mlp.c_proj),
            activation=activation(config.activation_function),
            norm=norm(block.ln_2),
        ),
    )


def _scale(attention: Any, config: Any) -> float:
    """``scale_attn_weights`` and ``scale_attn_by_inverse_layer_idx`` as one factor."""
    head_dim = config.hidden_size // config.num_attention_heads
    scale = head_dim**-0.5 if config.scale_attn_weights else 1.0
    if config.scale_attn_by_inverse_layer_idx:
        scale /= float(attention.layer_idx + 1)
    return float(np.float32(scale))
