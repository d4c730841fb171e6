"""Reference works of GIT: captions, and videos of six frames."""

from __future__ import annotations

from typing import Any

import torch
from transformers import GitConfig, GitForCausalLM, ResNetConfig

from primelens.export.randomise import randomise
from primelens.export.work import Work, register_work
from primelens.export.works.parts import TINY_RESNET, map_tower
from primelens.towers import PrefixedConfig, PrefixedModel

__all__ = ["clip_pictures", "video_pictures"]

_VISION = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 224,
    "patch_size": 16,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}
_TEXT = {
    "vocab_size": 30522,
    "hidden_size": 768,
    "num_hidden_layers": 6,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "max_position_embeddings": 1024,
    "layer_norm_eps": 1e-12,
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
_TINY_TEXT = {
    **_TEXT,
    "vocab_size": 320,
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "max_position_embeddings": 64,
}


def clip_pictures(side: int) -> dict[str, Any]:
    """Preprocessor settings of CLIP for square pictures."""
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_center_crop": True,
        "do_convert_rgb": True,
        "resample": 3,
        "size": {"shortest_edge": side},
        "crop_size": {"height": side, "width": side},
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
    }


def video_pictures(side: int) -> dict[str, Any]:
    """Preprocessor settings of VideoMAE for square frames."""
    return {
        **clip_pictures(side),
        "image_processor_type": "VideoMAEImageProcessor",
        "resample": 2,
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
    }


def _register(name: str, vision: dict[str, Any], text: dict[str, Any], **more: Any) -> None:
    def model(seed: int) -> Any:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            made = GitForCausalLM(GitConfig(vision_config=vision, **text)).eval()
        randomise(made, seed, text=("git.embeddings.", "git.encoder.", "output."))
        return made

    side = int(vision["image_size"])
    pictures = video_pictures if text.get("num_image_with_embedding") else clip_pictures
    register_work(
        Work(
            name=name,
            family="git",
            parts=("git_vision_model",),
            size="published" if "like" in more else "small",
            model=model,
            picture=(side, side),
            vocab_size=int(text["vocab_size"]),
            processor=pictures(side),
            **more,
        )
    )


def _register_over_a_map(name: str) -> None:
    """GIT's text side before a ResNet, whose 16 states have no class token among them."""
    tower = map_tower(ResNetConfig(**TINY_RESNET), 4)

    def model(seed: int) -> Any:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            made: Any = PrefixedModel(PrefixedConfig(tower, 16, **_TINY_TEXT))
        made.eval()
        randomise(made, seed, text=("git.embeddings.", "git.encoder.", "output."))
        return made

    register_work(
        Work(
            name=name,
            family="git_over_tower",
            parts=("feature_map_tower",),
            size="small",
            model=model,
            picture=(32, 32),
            vocab_size=320,
            processor=clip_pictures(32),
        )
    )


_register_over_a_map("tiny-resnetgit")
_register("git-base", _VISION, _TEXT, like="microsoft/git-base")
_register(
    "git-base-video",
    _VISION,
    {**_TEXT, "num_image_with_embedding": 6},
    like="microsoft/git-base-vatex",
    notes="videos of six frames",
)
_register("tiny-git", _TINY_VISION, _TINY_TEXT)
_register("tiny-git-video", _TINY_VISION, {**_TINY_TEXT, "num_image_with_embedding": 3})
