"""Reference works of transformers' ``VisionEncoderDecoderModel``: towers and decoders of all kinds.

Published sizes are written out after the configuration of the checkpoint that ``like`` names, or
after the two checkpoints that it is put together from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from transformers import (
    BertConfig,
    GPT2Config,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
    ViTConfig,
)

from primelens.export.randomise import randomise
from primelens.export.work import Work, register_work

__all__ = ["vision_encoder_decoder"]

Configs = Callable[[], tuple[Any, Any]]

_TEXT = {
    "add_cross_attention": True,
    "is_decoder": True,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}


def vision_encoder_decoder(encoder: Any, decoder: Any, seed: int) -> Any:
    """A ``VisionEncoderDecoderModel`` of two configurations, randomised, start token 0."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
        config.decoder_start_token_id = 0
        model = VisionEncoderDecoderModel(config).eval()
    generation = model.generation_config
    generation.decoder_start_token_id, generation.bos_token_id = 0, 0
    generation.eos_token_id, generation.pad_token_id = 1, 2
    randomise(model, seed)
    return model


def _register(
    name: str,
    configs: Configs,
    *,
    picture: int | tuple[int, int],
    like: str = "",
    processor: Mapping[str, Any] | None = None,
    notes: str = "",
) -> None:
    encoder, decoder = configs()
    register_work(
        Work(
            name=name,
            family="vision_encoder_decoder",
            parts=(encoder.model_type, decoder.model_type),
            size="published" if like else "small",
            like=like,
            model=lambda seed: vision_encoder_decoder(*configs(), seed),
            picture=(picture, picture) if isinstance(picture, int) else picture,
            vocab_size=int(decoder.vocab_size),
            processor=processor or {},
            notes=notes,
        )
    )


# Towers -----------------------------------------------------------------------------------------


def _vit(**fields: Any) -> Any:
    base = {
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
        "image_size": 224,
        "patch_size": 16,
        "qkv_bias": True,
    }
    return ViTConfig(**{**base, **fields})


_TINY_VIT = {
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 96,
    "image_size": 32,
    "patch_size": 8,
}

# Decoders ---------------------------------------------------------------------------------------


def _gpt2(**fields: Any) -> Any:
    base = {
        **_TEXT,
        "vocab_size": 50257,
        "n_positions": 1024,
        "n_embd": 768,
        "n_layer": 12,
        "n_head": 12,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
    }
    return GPT2Config(**{**base, **fields})


def _bert(**fields: Any) -> Any:
    base = {
        **_TEXT,
        "vocab_size": 30522,
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
        "hidden_act": "gelu",
        "max_position_embeddings": 512,
        "type_vocab_size": 2,
        "layer_norm_eps": 1e-12,
    }
    return BertConfig(**{**base, **fields})


_TINY_GPT2 = {"vocab_size": 320, "n_positions": 64, "n_embd": 64, "n_layer": 3, "n_head": 4}
_TINY_BERT = {
    "vocab_size": 320,
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "max_position_embeddings": 64,
}

# Works ------------------------------------------------------------------------------------------

_register(
    "vitgpt2-base",
    lambda: (_vit(), _gpt2()),
    picture=224,
    like="google/vit-base-patch16-224-in21k + openai-community/gpt2",
)
_register(
    "vitbert-base",
    lambda: (_vit(), _bert()),
    picture=224,
    like="google/vit-base-patch16-224-in21k + google-bert/bert-base-uncased",
)
_register("tiny-vitgpt2", lambda: (_vit(**_TINY_VIT), _gpt2(**_TINY_GPT2)), picture=32)
_register("tiny-vitbert", lambda: (_vit(**_TINY_VIT), _bert(**_TINY_BERT)), picture=32)
