"""Reference works of dual encoders: LiT's form, CLIP, SigLIP and SigLIP 2, published and small."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from transformers import (
    BeitConfig,
    BertConfig,
    CLIPConfig,
    CLIPModel,
    ResNetConfig,
    RobertaConfig,
    Siglip2Config,
    Siglip2Model,
    SiglipConfig,
    SiglipModel,
    SwinConfig,
    VisionTextDualEncoderConfig,
    VisionTextDualEncoderModel,
    ViTConfig,
)

from primelens.export.randomise import randomise
from primelens.export.work import Work, register_work
from primelens.export.works.parts import (
    BEIT_PICTURES,
    BERT,
    ROBERTA,
    TINY,
    TINY_BEIT,
    TINY_RESNET,
    TINY_SWIN,
    TINY_VIT,
    VIT,
    convnext_pictures,
    map_tower,
)
from primelens.towers import PooledTowerConfig

__all__ = ["register_dual_encoder"]

Make = Callable[[], Any]

_LIKE_A_TUNED_SCALE = math.log(30.0)
_READER = {"is_decoder": False, "add_cross_attention": False}
_CLIP_TEXT = {
    "vocab_size": 49408,
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "max_position_embeddings": 77,
    "projection_dim": 512,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
_VISION = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 224,
    "patch_size": 16,
}
_SIGLIP_TEXT = {
    **_CLIP_TEXT,
    "vocab_size": 32000,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_attention_heads": 12,
    "max_position_embeddings": 64,
}
_SMALL = {
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
}
_SMALL_VISION = {**_VISION, **_SMALL, "image_size": 32, "patch_size": 8}
_SMALL_TEXT = {**_SMALL, "vocab_size": 320, "max_position_embeddings": 24}
_TINY_READER = {**TINY, **_READER, "max_position_embeddings": 40}
_FRAME = "<s> $A </s>"
# transformers takes its own class for `siglip2`, whatever the checkpoint says: it writes spaces so,
# and letters in lower case.
_GEMMA = {
    "frame": "$A </s>",
    "padding_side": "left",
    "space": "▁",
    "unk_token": "<pad>",
    "mask_token": "<pad>",
}
_OPENAI = {
    "image_processor_type": "CLIPImageProcessor",
    "do_center_crop": True,
    "resample": 3,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}


def _clip_pictures(side: int) -> dict[str, Any]:
    return {
        **_OPENAI,
        "size": {"shortest_edge": side},
        "crop_size": {"height": side, "width": side},
    }


def _siglip_pictures(side: int) -> dict[str, Any]:
    half = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
    size = {"height": side, "width": side}
    return {"image_processor_type": "SiglipImageProcessor", "resample": 3, "size": size, **half}


def _naflex_pictures(patch: int, most: int) -> dict[str, Any]:
    half = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
    budget = {"patch_size": patch, "max_num_patches": most}
    return {"image_processor_type": "Siglip2ImageProcessor", "resample": 2, **budget, **half}


def _randomised(make: Make, seed: int, *, identity: bool = False) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = make().eval()
    randomise(model, seed, text="text_model.")
    state = dict(model.named_parameters())
    with torch.no_grad():
        state["logit_scale"].fill_(_LIKE_A_TUNED_SCALE)
        for name, table in state.items():
            if name.startswith("text_model.") and "_embedding" in name and table.ndim == 2:
                table.mul_(0.6 / table.std())  # else positions drown what a text says
            elif name.endswith("probe"):
                table.mul_(4.0 / table.std())  # else it attends to all patches alike
        if identity:
            weight = state["visual_projection.weight"]
            weight.copy_(torch.eye(len(weight)))
    return model


def register_dual_encoder(
    name: str, make: Make, *, side: int, identity: bool = False, **more: Any
) -> None:
    """Register a dual encoder that ``make`` makes; ``more`` are fields of `Work`; one that is
    `like` nothing published is small.

    Args:
        name: of the work.
        make: the model, freshly initialised.
        side: of its pictures.
        identity: the image is not projected, as in LiT.
        more: fields of `Work`.
    """
    register_work(
        Work(
            name=name,
            size="published" if "like" in more else "small",
            model=lambda seed: _randomised(make, seed, identity=identity),
            picture=(side, side),
            prompt=None,
            **more,
        )
    )


def _pair(vision: Any, text: Any, width: int) -> Any:
    config = VisionTextDualEncoderConfig.from_vision_text_configs(
        vision, text, projection_dim=width
    )
    return VisionTextDualEncoderModel(config)


def _clip(text: dict[str, Any], vision: dict[str, Any], width: int) -> Any:
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=width))


def _siglip(text: dict[str, Any], vision: dict[str, Any]) -> Any:
    return SiglipModel(SiglipConfig(text_config=text, vision_config=vision))


def _naflex(text: dict[str, Any], vision: dict[str, Any], patches: int) -> Any:
    sizes = {name: value for name, value in vision.items() if name != "image_size"}
    config = Siglip2Config(text_config=text, vision_config={**sizes, "num_patches": patches})
    return Siglip2Model(config)


register_dual_encoder(
    "lit-base",
    lambda: _pair(ViTConfig(**VIT), BertConfig(**{**BERT, **_READER}), 768),
    side=224,
    identity=True,
    family="vision_text_dual_encoder",
    parts=("vit", "bert"),
    vocab_size=30522,
    tokenizer={"frame": _FRAME, "model_max_length": 16},
    like="LiT-B16B (google/vit-base-patch16-224-in21k + google-bert/bert-base-uncased)",
)
register_dual_encoder(
    "clip-base",
    lambda: _clip(_CLIP_TEXT, _VISION, 512),
    side=224,
    family="clip",
    parts=("clip_vision_model", "clip_text_model"),
    vocab_size=49408,
    processor=_clip_pictures(224),
    tokenizer={"frame": _FRAME, "model_max_length": 77},
    like="openai/clip-vit-base-patch16",
)
register_dual_encoder(
    "siglip-base",
    lambda: _siglip(_SIGLIP_TEXT, _VISION),
    side=224,
    family="siglip",
    parts=("siglip_vision_model", "siglip_text_model"),
    vocab_size=32000,
    processor=_siglip_pictures(224),
    tokenizer={
        "frame": "$A </s>",
        "model_max_length": 64,
        "pad_token": "</s>",
        "model_input_names": ["input_ids"],
    },
    like="google/siglip-base-patch16-224",
)
register_dual_encoder(
    "siglip2-base",
    lambda: _siglip({**_SIGLIP_TEXT, "vocab_size": 256000}, _VISION),
    side=224,
    family="siglip",
    parts=("siglip_vision_model", "siglip_text_model"),
    vocab_size=256000,
    processor=_siglip_pictures(224),
    tokenizer={
        "frame": "$A </s>",
        "model_max_length": 64,
        "model_input_names": ["input_ids"],
    },
    like="google/siglip2-base-patch16-224",
)
register_dual_encoder(
    "tiny-lit",
    lambda: _pair(ViTConfig(**TINY_VIT), BertConfig(**{**BERT, **_TINY_READER}), 48),
    side=32,
    identity=True,
    family="vision_text_dual_encoder",
    parts=("vit", "bert"),
    vocab_size=320,
    tokenizer={"frame": _FRAME, "model_max_length": 16},
)
register_dual_encoder(
    "tiny-beitroberta",
    lambda: _pair(
        BeitConfig(**{**TINY_BEIT, "use_mean_pooling": True}),
        RobertaConfig(**{**ROBERTA, **_TINY_READER}),
        40,
    ),
    side=32,
    family="vision_text_dual_encoder",
    parts=("beit", "roberta"),
    vocab_size=320,
    special=("<s>", "<pad>", "</s>"),
    processor=BEIT_PICTURES,
    tokenizer={"frame": _FRAME, "model_max_length": 1 << 60},
)
register_dual_encoder(
    "tiny-swinbert-rank",
    lambda: _pair(SwinConfig(**TINY_SWIN), BertConfig(**{**BERT, **_TINY_READER}), 40),
    side=32,
    family="vision_text_dual_encoder",
    parts=("swin", "bert"),
    vocab_size=320,
    tokenizer={"frame": _FRAME},
)
register_dual_encoder(
    "tiny-pooledbert",
    lambda: _pair(
        PooledTowerConfig(map_tower(ResNetConfig(**TINY_RESNET), 4), pooling_heads=4),
        BertConfig(**{**BERT, **_TINY_READER}),
        32,
    ),
    side=32,
    family="vision_text_dual_encoder",
    parts=("feature_map_tower", "bert"),
    vocab_size=320,
    processor=convnext_pictures(32),
    tokenizer={"frame": _FRAME},
)
register_dual_encoder(
    "tiny-clip",
    lambda: _clip({**_CLIP_TEXT, **_SMALL_TEXT}, _SMALL_VISION, 32),
    side=32,
    family="clip",
    parts=("clip_vision_model", "clip_text_model"),
    vocab_size=320,
    processor=_clip_pictures(32),
    tokenizer={"frame": _FRAME, "model_max_length": 24},
)
register_dual_encoder(
    "tiny-siglip",
    lambda: _siglip({**_SIGLIP_TEXT, **_SMALL_TEXT}, _SMALL_VISION),
    side=32,
    family="siglip",
    parts=("siglip_vision_model", "siglip_text_model"),
    vocab_size=320,
    processor=_siglip_pictures(32),
    tokenizer={
        "frame": "$A </s>",
        "model_max_length": 24,
        "pad_token": "</s>",
        "model_input_names": ["input_ids"],
    },
)
register_dual_encoder(
    "tiny-siglip2",
    lambda: _siglip({**_SIGLIP_TEXT, **_SMALL_TEXT}, _SMALL_VISION),
    side=32,
    family="siglip",
    parts=("siglip_vision_model", "siglip_text_model"),
    vocab_size=320,
    processor=_siglip_pictures(32),
    tokenizer={"frame": "$A </s>", "model_max_length": 1 << 60, "padding_side": "left"},
)
register_dual_encoder(
    "siglip2-naflex-base",
    lambda: _naflex({**_SIGLIP_TEXT, "vocab_size": 256000}, _VISION, 256),
    side=224,
    family="siglip2",
    parts=("siglip2_vision_model", "siglip2_text_model"),
    vocab_size=256000,
    processor=_naflex_pictures(16, 256),
    tokenizer={**_GEMMA, "model_max_length": 64},
    like="google/siglip2-base-patch16-naflex",
)
register_dual_encoder(
    "tiny-siglip2-naflex",
    # 6 x 6 positions: the budget of 24 patches makes them fewer in one direction at least.
    lambda: _naflex({**_SIGLIP_TEXT, **_SMALL_TEXT}, _SMALL_VISION, 36),
    side=32,
    family="siglip2",
    parts=("siglip2_vision_model", "siglip2_text_model"),
    vocab_size=320,
    processor=_naflex_pictures(8, 24),
    tokenizer={**_GEMMA, "model_max_length": 24},
)
