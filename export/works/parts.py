"""The parts that works are put together from: configurations written out, published and tiny.

A published part has every size of the checkpoint that the works' ``like`` names. The tiny ones have
settings that reach what the published ones leave out.
"""

from __future__ import annotations

from typing import Any

from primelens.towers import FeatureMapTowerConfig

Settings = dict[str, Any]

# Towers -----------------------------------------------------------------------------------------

VIT: Settings = {
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
TINY_VIT: Settings = {
    **VIT,
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 96,
    "image_size": 32,
    "patch_size": 8,
}
BEIT: Settings = {
    **{name: value for name, value in VIT.items() if name != "qkv_bias"},
    "use_relative_position_bias": True,
    "use_absolute_position_embeddings": False,
    "use_shared_relative_position_bias": False,
    "use_mean_pooling": True,
    "use_mask_token": False,
    "layer_scale_init_value": 0.1,
}
TINY_BEIT: Settings = {
    **BEIT,
    **{name: value for name, value in TINY_VIT.items() if name != "qkv_bias"},
    "use_absolute_position_embeddings": True,
    "use_shared_relative_position_bias": True,
    "use_mean_pooling": False,
}
SWIN: Settings = {
    "image_size": 224,
    "patch_size": 4,
    "embed_dim": 128,
    "depths": [2, 2, 18, 2],
    "num_heads": [4, 8, 16, 32],
    "window_size": 7,
    "mlp_ratio": 4.0,
    "qkv_bias": True,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-5,
}
SWIN_TINY: Settings = {**SWIN, "embed_dim": 96, "depths": [2, 2, 6, 2], "num_heads": [3, 6, 12, 24]}
# Small ones: windows of 3 that do not fit into 8 x 8 patches, so that maps are padded and shifted.
TINY_SWIN: Settings = {
    **SWIN,
    "image_size": 32,
    "embed_dim": 24,
    "depths": [2, 2],
    "num_heads": [2, 4],
    "window_size": 3,
    "use_absolute_embeddings": True,
}
DONUT_SWIN: Settings = {
    **SWIN,
    "image_size": [1280, 960],
    "depths": [2, 2, 14, 2],
    "window_size": 10,
}
TINY_DONUT_SWIN: Settings = {
    **TINY_SWIN,
    "image_size": [40, 24],
    "use_absolute_embeddings": False,
}
RESNET: Settings = {
    "embedding_size": 64,
    "hidden_sizes": [256, 512, 1024, 2048],
    "depths": [3, 4, 6, 3],
    "layer_type": "bottleneck",
    "hidden_act": "relu",
}
TINY_RESNET: Settings = {
    "embedding_size": 16,
    "hidden_sizes": [24, 40],
    "depths": [2, 1],
    "layer_type": "bottleneck",
}
CONVNEXT: Settings = {
    "patch_size": 4,
    "hidden_sizes": [96, 192, 384, 768],
    "depths": [3, 3, 9, 3],
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
}
TINY_CONVNEXT: Settings = {**CONVNEXT, "num_stages": 2, "hidden_sizes": [16, 32], "depths": [1, 2]}


def map_tower(backbone: Any, side: int) -> FeatureMapTowerConfig:
    return FeatureMapTowerConfig(backbone_config=backbone, grid_size=(side, side))


# Decoders ---------------------------------------------------------------------------------------

TEXT: Settings = {
    "add_cross_attention": True,
    "is_decoder": True,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
FAIRSEQ_TEXT: Settings = {**TEXT, "eos_token_id": 2, "pad_token_id": 1}
GPT2: Settings = {
    **TEXT,
    "vocab_size": 50257,
    "n_positions": 1024,
    "n_embd": 768,
    "n_layer": 12,
    "n_head": 12,
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
}
TINY_GPT2: Settings = {
    **GPT2,
    "vocab_size": 320,
    "n_positions": 64,
    "n_embd": 64,
    "n_layer": 3,
    "n_head": 4,
}
BERT: Settings = {
    **TEXT,
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
TINY: Settings = {
    "vocab_size": 320,
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "max_position_embeddings": 64,
}
ROBERTA: Settings = {
    **BERT,
    **FAIRSEQ_TEXT,
    "vocab_size": 50265,
    "max_position_embeddings": 514,
    "type_vocab_size": 1,
    "layer_norm_eps": 1e-5,
}
BART: Settings = {
    **FAIRSEQ_TEXT,
    "vocab_size": 50265,
    "d_model": 768,
    "decoder_layers": 6,
    "decoder_attention_heads": 12,
    "decoder_ffn_dim": 3072,
    "activation_function": "gelu",
    "max_position_embeddings": 1024,
    "scale_embedding": False,
}
DONUT_TEXT: Settings = {
    **BART,
    "vocab_size": 57525,
    "d_model": 1024,
    "decoder_layers": 4,
    "decoder_attention_heads": 16,
    "decoder_ffn_dim": 4096,
    "max_position_embeddings": 1536,
    "scale_embedding": True,
}
TROCR: Settings = {
    **BART,
    "d_model": 1024,
    "decoder_layers": 12,
    "decoder_attention_heads": 16,
    "decoder_ffn_dim": 4096,
    "max_position_embeddings": 512,
    "cross_attention_hidden_size": 768,
    "use_learned_position_embeddings": True,
    "layernorm_embedding": True,
}
TINY_BART: Settings = {
    "vocab_size": 320,
    "d_model": 64,
    "decoder_layers": 3,
    "decoder_attention_heads": 4,
    "decoder_ffn_dim": 128,
    "max_position_embeddings": 64,
}

# Preprocessors ----------------------------------------------------------------------------------

IMAGENET: Settings = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
BICUBIC = 3
BEIT_PICTURES: Settings = {"image_processor_type": "BeitImageProcessor", "do_center_crop": False}


def deit_pictures(resized: int, cropped: int) -> dict[str, Any]:
    return {
        **IMAGENET,
        "image_processor_type": "DeiTImageProcessor",
        "resample": BICUBIC,
        "size": {"height": resized, "width": resized},
        "do_center_crop": True,
        "crop_size": {"height": cropped, "width": cropped},
    }


def convnext_pictures(side: int) -> dict[str, Any]:
    return {
        **IMAGENET,
        "image_processor_type": "ConvNextImageProcessor",
        "resample": BICUBIC,
        "size": {"shortest_edge": side},
        "crop_pct": 0.875,
    }


def donut_pictures(*, align: bool) -> dict[str, Any]:
    return {
        "image_processor_type": "DonutImageProcessor",
        "do_thumbnail": True,
        "do_align_long_axis": align,
        "do_pad": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
