"""RoBERTa as a text decoder with cross-attention (transformers ``RobertaForCausalLM``).

BERT's layers; positions start after the padding token's id, and padding tokens take no place: they
have a row of their own in the table.
"""

from __future__ import annotations

from typing import Any

from primelens.export.decoder_plan import DecoderPlan, Embedding, LmHead
from primelens.export.families.bert import bert_gaps, bert_layer
from primelens.export.layers import linear, norm, same
from primelens.export.registry import as_array, register_decoder

__all__ = ["RobertaDecoder"]


@register_decoder
class RobertaDecoder:
    """Normalisation after each residual sum; all tokens are of type 0."""

    name = "roberta"
    model_types = ("roberta",)

    def gaps(self, config: Any) -> list[str]:
        gaps = bert_gaps(config)
        if config.pad_token_id is None:
            gaps.append("decoder.pad_token_id is null: positions start after it")
        return gaps

    def plan(self, model: Any) -> DecoderPlan:
        config, embeddings, head = model.config, model.roberta.embeddings, model.lm_head
        tokens = as_array(embeddings.word_embeddings.weight)
        padding = int(config.pad_token_id)
        kind = as_array(embeddings.token_type_embeddings.weight)[0]
        table = as_array(embeddings.position_embeddings.weight) + kind
        return DecoderPlan(
            embedding=Embedding(
                tokens,
                table[padding + 1 :],
                norm=norm(embeddings.LayerNorm),
                padding=padding,
                unplaced=table[padding],
            ),
            layers=tuple(bert_layer(layer, config) for layer in model.roberta.encoder.layer),
            heads=config.num_attention_heads,
            head_dim=config.hidden_size // config.num_attention_heads,
            norm_first=False,
            final_norm=None,
            lm_head=LmHead(
                weight=same(as_array(head.decoder.weight), tokens),
                bias=as_array(head.decoder.bias),
                # The head's activation is always the exact one, whatever hidden_act says.
                transform=(linear(head.dense), "gelu", norm(head.layer_norm)),
            ),
        )
