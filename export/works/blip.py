"""Reference works of BLIP: captions, answers and scores, published and small."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from transformers import BlipConfig

from primelens.export.randomise import randomise
from primelens.export.work import Work, register_work

__all__ = ["blip"]

# The tokenizer's first ids: padding, the token behind every text, the token before it.
_SPECIAL = ("<pad>", "</s>", "<s>")
TEXT: dict[str, Any] = {
    "vocab_size": 30524,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "max_position_embeddings": 512,
    "layer_norm_eps": 1e-12,
    "bos_token_id": 30522,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "sep_token_id": 1,
}
VISION: dict[str, Any] = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-5,
    "image_size": 384,
    "patch_size": 16,
}
TINY_TEXT: dict[str, Any] = {
    **TEXT,
    "vocab_size": 320,
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "max_position_embeddings": 88,
    "bos_token_id": 318,
}
TINY_VISION: dict[str, Any] = {
    **VISION,
    "hidden_size": 64,  # the width of the text: the answer's decoder reads either
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "image_size": 32,
    "patch_size": 8,
}
_PICTURES = {
    "image_processor_type": "BlipImageProcessor",
    "resample": 3,
    "do_convert_rgb": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}


def blip(name: str, text: dict[str, Any], vision: dict[str, Any], seed: int) -> Any:
    """A BLIP model of the class called ``name``, randomised."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = BlipConfig(text_config=text, vision_config=vision)
        model = getattr(transformers, name)(config).eval()
    randomise(model, seed, text="text_decoder.", even=vision is VISION)
    if hasattr(model, "itm_head"):
        with torch.no_grad():
            for name, table in model.text_encoder.named_parameters():
                if "_embedding" in name and table.ndim == 2:
                    table.mul_(0.6 / table.std())  # else positions drown what a text says
                elif "crossattention.output.dense.weight" in name:
                    table.mul_(3.0)  # else the best text is the best for every picture
    return model


def _register(work: str, name: str, *, tiny: bool = False, **more: Any) -> None:
    text, vision = (TINY_TEXT, TINY_VISION) if tiny else (TEXT, VISION)
    side = vision["image_size"]
    register_work(
        Work(
            name=work,
            family="blip",
            parts=("blip_vision_model",),
            size="small" if tiny else "published",
            model=lambda seed: blip(name, text, vision, seed),
            picture=(side, side),
            vocab_size=text["vocab_size"],
            special=_SPECIAL,
            framed=True,
            processor=_PICTURES,
            **more,
        )
    )


_CAPTIONS, _ANSWERS = "BlipForConditionalGeneration", "BlipForQuestionAnswering"
_SCORES = "BlipForImageTextRetrieval"
# Retrieval cuts texts at 35 tokens, as BLIP's own code does; the tokenizer would take 512.
_READ: dict[str, Any] = {"prompt": None, "tokenizer": {"model_max_length": 35}}
_register("blip-captioning-base", _CAPTIONS, like="Salesforce/blip-image-captioning-base")
_register("blip-vqa-base", _ANSWERS, like="Salesforce/blip-vqa-base", prompt=None)
_register("tiny-blip-captioning", _CAPTIONS, tiny=True)
_register("tiny-blip-vqa", _ANSWERS, tiny=True, prompt=None)
_register("blip-itm-base", _SCORES, like="Salesforce/blip-itm-base-coco", **_READ)
_register("tiny-blip-itm", _SCORES, tiny=True, **_READ)
