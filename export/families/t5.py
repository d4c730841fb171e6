"""T5's two stacks (transformers ``T5ForConditionalGeneration``): RMS normalisation before every
block and at the end, no bias anywhere, attention scores that are not scaled, and no positions but a
bias for how far apart two tokens are, whose table the first layer has for all.

Not registered: a whole model's file puts the stacks in their places.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from primelens.export.decoder_plan import (
    CrossAttention,
    DecoderPlan,
    Embedding,
    FeedForward,
    Layer,
    LmHead,
    Norm,
    RelativeBias,
    SelfAttention,
    Stack,
    stack,
)
from primelens.export.layers import activation, activation_gap, linear, same
from primelens.export.registry import as_array

__all__ = ["t5_decoder", "t5_encoder", "t5_gaps"]

# T5 knows no last position. Of an encoder the bias has the square of this, for every head.
_LONGEST_QUESTION, _LONGEST_TEXT = 2048, 2**15


def t5_gaps(config: Any) -> list[str]:
    """What a ``T5Config`` asks for that the plans do not mirror."""
    gaps = activation_gap("text_config.dense_act_fn", config.dense_act_fn)
    encoder, decoder = config.num_layers, config.num_decoder_layers
    if decoder > encoder:  # its cache has as many layers as the encoder
        gaps.append(
            f"text_config.num_decoder_layers is {decoder}, more than num_layers {encoder}: "
            "transformers 5 cannot generate with it"
        )
    return gaps


def t5_encoder(model: Any) -> Stack:
    """The encoder: no cross-attention."""
    return Stack(**_stack(model, model.encoder, _LONGEST_QUESTION))


def t5_decoder(model: Any) -> DecoderPlan:
    """The decoder and its head, tied or not.

    transformers 5.23 says in ``scale_decoder_outputs`` whether states are scaled before the head,
    which does not depend on whether the loaded head is tied.
    """
    config = model.config
    parts = _stack(model, model.decoder, _LONGEST_TEXT)
    tokens = parts["embedding"].tokens
    scale = config.d_model**-0.5 if config.scale_decoder_outputs else 1.0
    head = LmHead(weight=same(as_array(model.lm_head.weight), tokens), scale=scale)
    return DecoderPlan(**parts, lm_head=head)


def _stack(model: Any, body: Any, longest: int) -> dict[str, Any]:
    config = model.config
    return {
        "embedding": Embedding(as_array(body.embed_tokens.weight), None),
        "layers": tuple(_layer(block, config) for block in body.block),
        "heads": config.num_heads,
        "head_dim": config.d_kv,
        "norm_first": True,
        "final_norm": _norm(body.final_layer_norm),
        "relative": _relative(body.block[0].layer[0].SelfAttention, longest),
    }


def _relative(attention: Any, longest: int) -> RelativeBias:
    """The table by distance: the source's own buckets of all distances that differ."""
    furthest = int(attention.relative_attention_max_distance)
    distances = torch.arange(-furthest, 1 if attention.is_decoder else furthest + 1)
    buckets = attention._relative_position_bucket(
        distances,
        bidirectional=not attention.is_decoder,
        num_buckets=attention.relative_attention_num_buckets,
        max_distance=furthest,
    )
    values = as_array(attention.relative_attention_bias.weight)[buckets.numpy()]
    return RelativeBias(np.ascontiguousarray(values), zero=furthest, longest=longest)


def _layer(block: Any, config: Any) -> Layer:
    attention, cross = block.layer[0].SelfAttention, None
    if len(block.layer) > 2:
        reader = block.layer[1].EncDecAttention
        cross = CrossAttention(
            query=linear(reader.q),
            key=linear(reader.k),
            value=linear(reader.v),
            out=linear(reader.o),
            scale=1.0,
            norm=_norm(block.layer[1].layer_norm),
        )
    return Layer(
        self_attention=SelfAttention(
            qkv=stack(*(linear(part) for part in (attention.q, attention.k, attention.v))),
            out=linear(attention.o),
            scale=1.0,
            norm=_norm(block.layer[0].layer_norm),
        ),
        cross_attention=cross,
        feed_forward=_feed_forward(block.layer[-1], config),
    )


def _feed_forward(layer: Any, config: Any) -> FeedForward:
    inner = layer.DenseReluDense
    up, gate = (inner.wi_1, linear(inner.wi_0)) if config.is_gated_act else (inner.wi, None)
    return FeedForward(
        up=linear(up),
        down=linear(inner.wo),
        activation=activation(config.dense_act_fn),
        norm=_norm(layer.layer_norm),
        gate=gate,
    )


def _norm(module: Any) -> Norm:
    return Norm(as_array(module.weight), None, float(module.variance_epsilon), centred=False)
