"""Small ``VisionEncoderDecoderModel`` works: every tower and every decoder once at least, with the
settings that the published ones leave out.
"""

from __future__ import annotations

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
    ViTConfig,
)

from primelens.export.works.parts import (
    BART,
    BEIT_PICTURES,
    BERT,
    BICUBIC,
    DONUT_TEXT,
    IMAGENET,
    ROBERTA,
    TINY,
    TINY_BART,
    TINY_BEIT,
    TINY_CONVNEXT,
    TINY_DONUT_SWIN,
    TINY_GPT2,
    TINY_RESNET,
    TINY_SWIN,
    TINY_VIT,
    TROCR,
    convnext_pictures,
    deit_pictures,
    donut_pictures,
    map_tower,
)
from primelens.export.works.vision_encoder_decoder import register_pair

register_pair(
    "tiny-vitgpt2",
    lambda: (ViTConfig(**TINY_VIT), GPT2Config(**TINY_GPT2)),
    picture=32,
)
register_pair(
    "tiny-vitbert",
    lambda: (ViTConfig(**TINY_VIT), BertConfig(**{**BERT, **TINY})),
    picture=32,
)
register_pair(
    "tiny-beitbart",
    lambda: (
        BeitConfig(**TINY_BEIT),
        BartConfig(**{**BART, **TINY_BART, "scale_embedding": True}),
    ),
    picture=32,
    start=2,
    processor=BEIT_PICTURES,
)
register_pair(
    "tiny-deitroberta",
    lambda: (
        DeiTConfig(**TINY_VIT),
        RobertaConfig(**{**ROBERTA, **TINY, "type_vocab_size": 2, "tie_word_embeddings": False}),
    ),
    picture=32,
    processor=deit_pictures(36, 32),
)
register_pair(
    "tiny-swingpt2",
    lambda: (
        SwinConfig(**TINY_SWIN),
        GPT2Config(**{**TINY_GPT2, "n_embd": 32, "tie_word_embeddings": False}),
    ),
    picture=32,
    processor={**IMAGENET, "resample": BICUBIC},
)
register_pair(
    "tiny-trocr",
    lambda: (
        ViTConfig(**{**TINY_VIT, "qkv_bias": False}),
        TrOCRConfig(
            **{
                **TROCR,
                **TINY_BART,
                "cross_attention_hidden_size": 48,
                "scale_embedding": True,
                "activation_function": "relu",
            }
        ),
    ),
    picture=32,
    start=2,
)
register_pair(
    "tiny-trocr-sinusoidal",
    lambda: (
        ViTConfig(**TINY_VIT),
        TrOCRConfig(
            **{
                **TROCR,
                **TINY_BART,
                "cross_attention_hidden_size": None,
                "use_learned_position_embeddings": False,
                "layernorm_embedding": False,
                "tie_word_embeddings": False,
            }
        ),
    ),
    picture=32,
    variety=0.15,  # without a table of positions random weights stutter
)
register_pair(
    "tiny-donut",
    lambda: (DonutSwinConfig(**TINY_DONUT_SWIN), MBartConfig(**{**DONUT_TEXT, **TINY_BART})),
    picture=(40, 24),
    processor=donut_pictures(align=True),
)
register_pair(
    "tiny-resnetgpt2",
    lambda: (map_tower(ResNetConfig(**TINY_RESNET), 4), GPT2Config(**TINY_GPT2)),
    picture=32,
    processor=convnext_pictures(32),
)
register_pair(
    "tiny-convnextbert",
    lambda: (
        map_tower(ConvNextConfig(**TINY_CONVNEXT), 4),
        BertConfig(**{**BERT, **TINY, "tie_word_embeddings": False}),
    ),
    picture=32,
    processor=convnext_pictures(32),
)
