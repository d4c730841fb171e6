"""BERT as a text decoder with cross-attention (transformers ``BertLMHeadModel``)."""

from __future__ import annotations

from typing import Any

from primelens.export.decoder_plan import (
    CrossAttention,
    DecoderPlan,
    Embedding,
    FeedForward,
    Layer,
    LmHead,
    SelfAttention,
    stack,
)
from primelens.export.layers import activation, activation_gap, linear, norm, same
from primelens.export.registry import as_array, register_decoder

__all__ = ["BertDecoder", "bert_gaps", "bert_layer"]


@register_decoder
class BertDecoder:
    """Normalisation after each residual sum; all tokens are of type 0."""

    name = "bert"
    model_types = ("bert",)

    def gaps(self, config: Any) -> list[str]:
        return bert_gaps(config)

    def plan(self, model: Any) -> DecoderPlan:
        config, embeddings = model.config, model.bert.embeddings
        head = model.cls.predictions
        tokens = as_array(embeddings.word_embeddings.weight)
        # transformers adds the token type to the token before the position; folding it into the
        # positions moves the sum by at most a rounding.
        kind = as_array(embeddings.token_type_embeddings.weight)[0]
        act = activation(config.hidden_act)
        return DecoderPlan(
            embedding=Embedding(
                tokens,
                as_array(embeddings.position_embeddings.weight) + kind,
                norm=norm(embeddings.LayerNorm),
            ),
            layers=tuple(bert_layer(layer, config) for layer in model.bert.encoder.layer),
            heads=config.num_attention_heads,
            head_dim=config.hidden_size // config.num_attention_heads,
            norm_first=False,
            final_norm=None,
            lm_head=LmHead(
                weight=same(as_array(head.decoder.weight), tokens),
                bias=as_array(head.decoder.bias),
                transform=(linear(head.transform.dense), act, norm(head.transform.LayerNorm)),
            ),
        )


def bert_gaps(config: Any) -> list[str]:
    """What a BERT-like configuration asks for that the plan does not mirror."""
    gaps = activation_gap("decoder.hidden_act", config.hidden_act)
    positions = getattr(config, "position_embedding_type", "absolute")
    if positions != "absolute":
        gaps.append(f"decoder.position_embedding_type is {positions!r}, not 'absolute'")
    if not config.is_decoder:
        gaps.append("decoder.is_decoder is false: the attention would not be causal")
    if not config.add_cross_attention:
        gaps.append("decoder.add_cross_attention is false: the text would not see the image")
    return gaps


def bert_layer(layer: Any, config: Any) -> Layer:
    """A decoder layer under BERT's names, with or without cross-attention."""
    attention = layer.attention
    scale = (config.hidden_size // config.num_attention_heads) ** -0.5
    projections = (attention.self.query, attention.self.key, attention.self.value)
    return Layer(
        self_attention=SelfAttention(
            qkv=stack(*(linear(projection) for projection in projections)),
            out=linear(attention.output.dense),
            scale=scale,
            norm=norm(attention.output.LayerNorm),
        ),
        cross_attention=_cross_attention(getattr(layer, "crossattention", None), scale),
        feed_forward=FeedForward(
            up=linear(layer.intermediate.dense),
            down=linear(layer.output.dense),
            activation=activation(config.hidden_act),
            norm=norm(layer.output.LayerNorm),
        ),
    )


def _cross_attention(cross: Any, scale: float) -> CrossAttention | None:
    if cross is None:
        return None
    return CrossAttention(
        query=linear(cross.self.query),
        key=linear(cross.self.key),
        value=linear(cross.self.value),
        out=linear(cross.output.dense),
        scale=scale,
        norm=norm(cross.output.LayerNorm),
    )
