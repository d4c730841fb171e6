"""Reference works of BLIP-2: full widths, fewer layers; and small ones."""

from __future__ import annotations

from typing import Any

import torch
from transformers import Blip2Config, Blip2ForConditionalGeneration, OPTConfig

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
_OPT = {
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
_TINY_OPT = {
    **_OPT,
    "vocab_size": 320,
    "hidden_size": 64,
    "word_embed_proj_dim": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "ffn_dim": 128,
    "max_position_embeddings": 96,
}
_PICTURES = {
    "image_processor_type": "BlipImageProcessor",
    "resample": 3,
    "do_convert_rgb": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}


def _register(
    name: str, vision: dict[str, Any], qformer: dict[str, Any], opt: dict[str, Any], **more: Any
) -> None:
    queries = int(more.pop("queries", 32))

    def model(seed: int) -> Any:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            config = Blip2Config(
                vision_config=vision,
                qformer_config=qformer,
                text_config=OPTConfig(**opt).to_dict(),
                num_query_tokens=queries,
                image_token_index=int(opt["vocab_size"]) - 1,
            )
            made = Blip2ForConditionalGeneration(config).eval()
        randomise(made, seed, text="language_model.")
        return made

    side = int(vision["image_size"])
    register_work(
        Work(
            name=name,
            family="blip_2",
            parts=("blip_2_vision_model", "opt"),
            size="published" if "like" in more else "small",
            model=model,
            picture=(side, side),
            vocab_size=int(opt["vocab_size"]),
            processor=_PICTURES,
            **more,
        )
    )


_register(
    "blip2-opt-2.7b-short",
    _VISION,
    _QFORMER,
    _OPT,
    like="Salesforce/blip2-opt-2.7b",
    notes="full widths; 4, 2 and 2 of 39, 12 and 32 layers",
)
_register("tiny-blip2-opt", _TINY_VISION, _TINY_QFORMER, _TINY_OPT, queries=8)
