"""Reference works of BLIP-2: full widths, fewer layers; and small ones."""

from __future__ import annotations

from typing import Any

import torch
from transformers import Blip2Config, Blip2ForConditionalGeneration, OPTConfig, T5Config

from primelens.export.randomise import randomise
from primelens.export.work import Work, register_work

__all__: list[str] = []

_VISION = {
    "hidden_size": 1408,
    "intermediate_size": 6144,
    "num_hidden_layers": 4,
    "num_attention_heads": 16,
    "image_size": 224,
    "patch_size": 14,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-6,
    "qkv_bias": True,
}
_QFORMER = {
    "vocab_size": 30523,
    "hidden_size": 768,
    "num_hidden_layers": 2,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "cross_attention_frequency": 2,
}
_OPT_SIZES: dict[str, Any] = {
    "vocab_size": 50304,
    "hidden_size": 2560,
    "word_embed_proj_dim": 2560,
    "num_hidden_layers": 2,
    "num_attention_heads": 32,
    "ffn_dim": 10240,
    "max_position_embeddings": 2048,
    "activation_function": "relu",
    "do_layer_norm_before": True,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
_FLAN_T5: dict[str, Any] = {
    "vocab_size": 32128,
    "d_model": 2048,
    "d_kv": 64,
    "d_ff": 5120,
    "num_layers": 2,
    "num_decoder_layers": 2,
    "num_heads": 32,
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "layer_norm_epsilon": 1e-6,
    "feed_forward_proj": "gated-gelu",
    "dense_act_fn": "gelu",  # as the published checkpoint has it, over gated-gelu's tanh form
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 1,
    "pad_token_id": 0,
    "decoder_start_token_id": 0,
}
_TINY_VISION = {
    **_VISION,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "image_size": 32,
    "patch_size": 8,
}
_TINY_QFORMER = {
    **_QFORMER,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "intermediate_size": 48,
}
_TINY_OPT_SIZES: dict[str, Any] = {
    **_OPT_SIZES,
    "vocab_size": 320,
    "hidden_size": 64,
    "word_embed_proj_dim": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "ffn_dim": 128,
    "max_position_embeddings": 96,
}
_TINY_FLAN_T5: dict[str, Any] = {
    **_FLAN_T5,
    "vocab_size": 320,
    "d_model": 64,
    "d_kv": 24,  # so that the heads together are wider than the stream
    "d_ff": 128,
    "num_layers": 3,
    "num_decoder_layers": 3,
    "num_heads": 4,
    "relative_attention_num_buckets": 12,
    "relative_attention_max_distance": 20,  # shorter than the texts
}
_TINY_T5: dict[str, Any] = {
    **_TINY_FLAN_T5,
    "feed_forward_proj": "relu",
    "dense_act_fn": "relu",
    "num_decoder_layers": 2,
    "tie_word_embeddings": True,
}
# The tokenizer's first ids: padding, the token behind every text, one that T5 has no use for.
_T5_SPECIAL = ("<pad>", "</s>", "<s>")
# Of token vectors, and how strong the decoder's attention to its text is, by whether the head has
# the same table: it would repeat what was just read.
_SPREAD, _ATTENDING = {False: 0.5, True: 0.15}, {False: 1.0, True: 2.0}
_PICTURES = {
    "image_processor_type": "BlipImageProcessor",
    "resample": 3,
    "do_convert_rgb": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}


def _blip2(
    seed: int,
    vision: dict[str, Any],
    qformer: dict[str, Any],
    text: dict[str, Any],
    queries: int,
) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = Blip2Config(
            vision_config=vision,
            qformer_config=qformer,
            text_config=text,
            num_query_tokens=queries,
            image_token_index=int(text["vocab_size"]) - 1,
        )
        made = Blip2ForConditionalGeneration(config).eval()
    randomise(made, seed, text="language_model.", even=text["model_type"] == "opt")
    if text["model_type"] == "t5":
        _randomise_t5(made.language_model, seed)
    return made


@torch.no_grad()
def _randomise_t5(model: Any, seed: int) -> None:
    """What T5 calls by names of its own. Its scores are not scaled, so they vary by the root of a
    head's width as they are: sharp enough for a decoder, too sharp for an encoder.
    """
    generator = torch.Generator().manual_seed(seed + 2)

    def noise(parameter: torch.Tensor) -> torch.Tensor:
        return torch.randn(parameter.shape, generator=generator)

    config = model.config
    tied = config.scale_decoder_outputs
    model.shared.weight.copy_(_SPREAD[tied] * noise(model.shared.weight))
    if not tied:  # transformers ties every T5 but one whose file has two different tables
        head = 4.0 / config.d_model**0.5 * noise(model.shared.weight)
        model.lm_head.weight = torch.nn.Parameter(head)
    for stack in (model.encoder, model.decoder):
        table = stack.block[0].layer[0].SelfAttention.relative_attention_bias.weight
        table.copy_(noise(table))
    if not config.is_gated_act:  # the mean of what relu leaves would drown the rest
        for stack in (model.encoder, model.decoder):
            for block in stack.block:
                down = block.layer[-1].DenseReluDense.wo.weight
                down.sub_(down.mean(dim=1, keepdim=True))
    for block in model.encoder.block:
        block.layer[0].SelfAttention.q.weight.div_(config.d_kv**0.5)
    table.mul_(_ATTENDING[tied])  # the decoder's
    for block in model.decoder.block:
        block.layer[0].SelfAttention.o.weight.mul_(_ATTENDING[tied])
        block.layer[1].EncDecAttention.o.weight.mul_(0.4)


def _register(
    name: str, vision: dict[str, Any], qformer: dict[str, Any], text: dict[str, Any], **more: Any
) -> None:
    queries, side = int(more.pop("queries", 32)), int(vision["image_size"])
    kind = str(text["model_type"])
    if kind == "t5":
        more |= {"special": _T5_SPECIAL, "tokenizer": {"frame": "$A </s>"}}
    register_work(
        Work(
            name=name,
            family="blip_2",
            parts=("blip_2_vision_model", kind),
            size="published" if "like" in more else "small",
            model=lambda seed: _blip2(seed, vision, qformer, text, queries),
            picture=(side, side),
            vocab_size=int(text["vocab_size"]),
            processor=_PICTURES,
            **more,
        )
    )


_OPT, _TINY_OPT = (OPTConfig(**settings).to_dict() for settings in (_OPT_SIZES, _TINY_OPT_SIZES))
_register(
    "blip2-opt-2.7b-short",
    _VISION,
    _QFORMER,
    _OPT,
    like="Salesforce/blip2-opt-2.7b",
    notes="full widths; 4, 2 and 2 of 39, 12 and 32 layers",
)
_register(
    "blip2-flan-t5-xl-short",
    _VISION,
    _QFORMER,
    T5Config(**_FLAN_T5).to_dict(),
    like="Salesforce/blip2-flan-t5-xl",
    notes="full widths; 4, 2 and 2 + 2 of 39, 12 and 24 + 24 layers",
)
_register("tiny-blip2-opt", _TINY_VISION, _TINY_QFORMER, _TINY_OPT, queries=8)
_register("tiny-blip2-t5", _TINY_VISION, _TINY_QFORMER, T5Config(**_TINY_T5).to_dict(), queries=8)
_register(
    "tiny-blip2-flan-t5",
    _TINY_VISION,
    _TINY_QFORMER,
    T5Config(**_TINY_FLAN_T5).to_dict(),
    queries=8,
)
