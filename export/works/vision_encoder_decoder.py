"""Reference works of transformers' ``VisionEncoderDecoderModel``: towers and decoders of all kinds.

Published sizes are written out after the configuration of the checkpoint that ``like`` names, or
after the two checkpoints that it is put together from. The small ones, which go through the fast
tests, are in `primelens.export.works.small_pairs`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import (
    BartConfig,
    BeitConfig,
    BertConfig,
    ConvNextConfig,
    DeiTConfig,
    DonutSwinConfig,
    GPT2Config,
    MBartConfig,
    ResNetConfig,
    RobertaConfig,
    SwinConfig,
    TrOCRConfig,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
    ViTConfig,
)

from primelens.export.randomise import randomise
from primelens.export.work import Work, register_work
from primelens.export.works.parts import (
    BART,
    BEIT,
    BEIT_PICTURES,
    BERT,
    BICUBIC,
    CONVNEXT,
    DONUT_SWIN,
    DONUT_TEXT,
    GPT2,
    IMAGENET,
    RESNET,
    ROBERTA,
    SWIN,
    SWIN_TINY,
    TROCR,
    VIT,
    convnext_pictures,
    deit_pictures,
    donut_pictures,
    map_tower,
)

__all__ = ["register_pair", "vision_encoder_decoder"]

Configs = Callable[[], tuple[Any, Any]]


def vision_encoder_decoder(encoder: Any, decoder: Any, seed: int, start: int = 0) -> Any:
    """A ``VisionEncoderDecoderModel`` of two configurations, randomised.

    Args:
        encoder, decoder: their configurations; the decoder's names the special tokens.
        seed: of the weights.
        start: the token that texts start with.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
        config.decoder_start_token_id = start
        model = VisionEncoderDecoderModel(config).eval()
    generation = model.generation_config
    generation.decoder_start_token_id, generation.bos_token_id = start, 0
    generation.eos_token_id = decoder.eos_token_id
    generation.pad_token_id = decoder.pad_token_id
    randomise(model, seed, even=True)
    return model


def register_pair(
    name: str, configs: Configs, *, picture: int | tuple[int, int], start: int = 0, **more: Any
) -> None:
    """Register a tower with a decoder: ``configs`` makes both configurations, and ``more`` are
    fields of `Work`; one that is `like` nothing published is small.
    """
    encoder, decoder = configs()
    # The tokenizer's special tokens lie where the decoder's configuration has them.
    special = {0: "<s>", decoder.eos_token_id: "</s>", decoder.pad_token_id: "<pad>"}
    register_work(
        Work(
            name=name,
            family="vision_encoder_decoder",
            parts=(encoder.model_type, decoder.model_type),
            size="published" if "like" in more else "small",
            model=lambda seed: vision_encoder_decoder(*configs(), seed, start),
            picture=(picture, picture) if isinstance(picture, int) else picture,
            vocab_size=int(decoder.vocab_size),
            special=tuple(special[i] for i in range(3)),
            **more,
        )
    )


register_pair(
    "vitgpt2-base",
    lambda: (ViTConfig(**VIT), GPT2Config(**GPT2)),
    picture=224,
    like="google/vit-base-patch16-224-in21k + openai-community/gpt2",
)
register_pair(
    "vitbert-base",
    lambda: (ViTConfig(**VIT), BertConfig(**BERT)),
    picture=224,
    like="google/vit-base-patch16-224-in21k + google-bert/bert-base-uncased",
)
register_pair(
    "vitbart-base",
    lambda: (ViTConfig(**VIT), BartConfig(**BART)),
    picture=224,
    start=2,
    like="google/vit-base-patch16-224-in21k + facebook/bart-base",
)
register_pair(
    "beitgpt2-base",
    lambda: (BeitConfig(**BEIT), GPT2Config(**GPT2)),
    picture=224,
    processor=BEIT_PICTURES,
    like="microsoft/beit-base-patch16-224-pt22k-ft22k + openai-community/gpt2",
)
register_pair(
    "deitroberta-base",
    lambda: (DeiTConfig(**VIT), RobertaConfig(**ROBERTA)),
    picture=224,
    processor=deit_pictures(256, 224),
    like="facebook/deit-base-distilled-patch16-224 + FacebookAI/roberta-base",
)
register_pair(
    "swingpt2-base",
    lambda: (SwinConfig(**SWIN), GPT2Config(**GPT2)),
    picture=224,
    processor={**IMAGENET, "resample": BICUBIC},
    like="microsoft/swin-base-patch4-window7-224-in22k + openai-community/gpt2",
)
register_pair(
    "swinbert-tiny",
    lambda: (SwinConfig(**SWIN_TINY), BertConfig(**BERT)),
    picture=224,
    processor={**IMAGENET, "resample": BICUBIC},
    like="microsoft/swin-tiny-patch4-window7-224 + google-bert/bert-base-uncased",
)
register_pair(
    "trocr-base",
    lambda: (
        ViTConfig(**{**VIT, "image_size": 384, "qkv_bias": False}),
        TrOCRConfig(**TROCR),
    ),
    picture=384,
    start=2,
    like="microsoft/trocr-base-printed",
)
register_pair(
    "donut-base",
    lambda: (DonutSwinConfig(**DONUT_SWIN), MBartConfig(**DONUT_TEXT)),
    picture=(1280, 960),
    processor=donut_pictures(align=False),
    like="naver-clova-ix/donut-base-finetuned-cord-v2",
    notes="1280 x 960 pixels, as in the checkpoint finetuned on CORD; 2560 x 1920 in donut-base",
)
register_pair(
    "resnetgpt2-50",
    lambda: (map_tower(ResNetConfig(**RESNET), 7), GPT2Config(**GPT2)),
    picture=224,
    processor=convnext_pictures(224),
    like="microsoft/resnet-50 + openai-community/gpt2",
)
register_pair(
    "convnextgpt2-tiny",
    lambda: (map_tower(ConvNextConfig(**CONVNEXT), 7), GPT2Config(**GPT2)),
    picture=224,
    processor=convnext_pictures(224),
    like="facebook/convnext-tiny-224 + openai-community/gpt2",
)
