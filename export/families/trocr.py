"""TrOCR's decoder (transformers ``TrOCRForCausalLM``): BART's, with a choice of positions.

Learned positions start at row 2 of their table. Sinusoidal ones start after the padding token's id;
padding tokens take no place and get the zero vector.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from primelens.export.decoder_plan import DecoderPlan, Embedding, LmHead
from primelens.export.families.bart import POSITION_OFFSET, bart_layer
from primelens.export.layers import activation_gap, norm, same
from primelens.export.registry import as_array, register_decoder

__all__ = ["TrOcrDecoder"]


@register_decoder
class TrOcrDecoder:
    """Normalisation after each residual sum, none at the end."""

    name = "trocr"
    model_types = ("trocr",)

    def gaps(self, config: Any) -> list[str]:
        gaps = activation_gap("decoder.activation_function", config.activation_function)
        if not config.is_decoder:
            gaps.append("decoder.is_decoder is false: the text would not see the image")
        if not config.use_learned_position_embeddings and config.pad_token_id is None:
            gaps.append("decoder.pad_token_id is null: sinusoidal positions start after it")
        return gaps

    def complete(self, model: Any) -> None:
        """Compute the table of sinusoids, which transformers 5.23 leaves without data when it loads
        a checkpoint: it is neither a parameter nor a buffer.
        """
        places = model.model.decoder.embed_positions
        if not model.config.use_learned_position_embeddings and places.weights.is_meta:
            rows, width = places.weights.shape
            places.weights = places.get_embedding(rows, width, places.padding_idx)

    def plan(self, model: Any) -> DecoderPlan:
        config, body = model.config, model.model.decoder
        tokens = as_array(body.embed_tokens.weight)
        name = config.activation_function
        return DecoderPlan(
            embedding=_embedding(body, config, tokens),
            layers=tuple(bart_layer(layer, name) for layer in body.layers),
            heads=config.decoder_attention_heads,
            head_dim=config.d_model // config.decoder_attention_heads,
            norm_first=False,
            final_norm=None,
            lm_head=LmHead(weight=same(as_array(model.output_projection.weight), tokens)),
        )


def _embedding(body: Any, config: Any, tokens: Any) -> Embedding:
    shared: dict[str, Any] = {
        "tokens": tokens,
        "scale": float(body.embed_tokens.embed_scale),
        "norm": None if body.layernorm_embedding is None else norm(body.layernorm_embedding),
    }
    places = body.embed_positions
    if config.use_learned_position_embeddings:
        return Embedding(positions=as_array(places.weight)[POSITION_OFFSET:], **shared)
    # Computed anew: the module's own table is no parameter and is not in the checkpoint.
    padding = int(config.pad_token_id)
    rows = config.max_position_embeddings + padding + 1
    table = as_array(places.get_embedding(rows, config.d_model, padding))
    return Embedding(
        positions=np.ascontiguousarray(table[padding + 1 :]),
        padding=padding,
        unplaced=np.ascontiguousarray(table[padding]),
        **shared,
    )
